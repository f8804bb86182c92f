/* weights.c: packing from any source layout, reading back, and products as tiles of one parallel
 * loop. Sources are checked here once; kernels trust what they are given. */
#include "csrc/core/weights.h"

#include <limits.h>
#include <string.h>

#include "csrc/core/mem.h"

/* u8 x s8 dots of this many inputs cannot leave int32 (docs/formats.md, B3). */
#define MAX_K 65536
#define MAX_N (1 << 28)

oct_status oct_weights_open(oct_weights **out, oct_runtime *rt)
{
    *out = NULL;
    oct_weights *w = oct_zalloc(OCT_TAG_WEIGHTS, 1, sizeof *w);
    if (!w) return oct_fail_memory("weights", "the store");
    atomic_store(&w->refs, 1);
    w->rt = oct_runtime_ref(rt);
    *out = w;
    return OCT_OK;
}

oct_weights *oct_weights_ref(oct_weights *w)
{
    atomic_fetch_add(&w->refs, 1);
    return w;
}

void oct_weights_unref(oct_weights *w)
{
    if (!w || atomic_fetch_sub(&w->refs, 1) > 1) return;
    for (int i = 0; i < w->matrices; i++) oct_free((void *)(uintptr_t)w->matrix[i].m.data);
    for (int i = 0; i < w->vectors; i++) oct_free(w->vector[i].values);
    oct_free(w->matrix);
    oct_free(w->vector);
    oct_runtime_unref(w->rt);
    oct_free(w);
}

void oct_weights_close(oct_weights **w)
{
    oct_weights_unref(*w);
    *w = NULL;
}

static oct_status take(oct_weights *w, const char *operation)
{
    bool idle = false;
    if (!atomic_compare_exchange_strong(&w->busy, &idle, true))
        return oct_fail(OCT_E_BUSY, "%s: these weights are in use by another call", operation);
    return OCT_OK;
}

static void drop(oct_weights *w)
{
    atomic_store(&w->busy, false);
}

/* ---- packing --------------------------------------------------------------------------------- */

static oct_status source_of(const oct_matrix_desc *d, const oct_weight_traits *t, oct_source *s)
{
    static const char *const kinds[] = {"bytes", "halves", "pairs", "values"};
    int kind = -1;
    for (int i = 0; i < 4; i++)
        if (d->source && !strcmp(d->source, kinds[i])) kind = i;
    if (kind < 0)
        return oct_fail(OCT_E_VALUE, "matrix: source is '%s', legal are bytes, halves, pairs, values",
                        d->source ? d->source : "");
    if ((kind == OCT_SRC_VALUES) != (t->code_bits == 0))
        return oct_fail(OCT_E_UNSUPPORTED, "matrix: format '%s' is not packed from source '%s'; %s",
                        t->name, kinds[kind],
                        t->code_bits ? "quantize the values first (octavo.quant)"
                                     : "pass element values");
    if (kind != OCT_SRC_VALUES && kind != OCT_SRC_BYTES && t->code_bits != 4)
        return oct_fail(OCT_E_UNSUPPORTED, "matrix: format '%s' has 8-bit codes, source '%s' holds 4",
                        t->name, kinds[kind]);
    *s = (oct_source){
        .kind = (oct_src_kind)kind,
        .codes = d->codes,
        .row_stride = d->row_stride,
        .group_stride = d->group_stride,
        .scales = d->scales,
        .mins = d->mins,
        .scale_row_stride = d->scale_row_stride,
        .scale_group_stride = d->scale_group_stride,
        .zeros = d->zeros,
        .zero_row_stride = d->zero_row_stride,
        .row_map = d->row_map,
    };
    if (kind == OCT_SRC_VALUES) return oct_dtype_by_name("matrix", d->values_type, &s->values_type);
    if (!s->scales || t->has_min != (s->mins != NULL) || t->has_zero != (s->zeros != NULL))
        return oct_fail(OCT_E_VALUE, "matrix: format '%s' takes scales%s%s", t->name,
                        t->has_min ? " and mins" : "", t->has_zero ? " and zeros" : "");
    return OCT_OK;
}

/* Of scales, where there are codes: float32 of a whole channel, 16 bits of a group. */
static oct_status scale_type_of(const oct_matrix_desc *d, const oct_weight_traits *t,
                                oct_dtype *out)
{
    *out = t->type;
    if (!t->code_bits) return OCT_OK;
    const oct_status status = oct_dtype_by_name("matrix: scale_type", d->scale_type, out);
    if (status) return status;
    if (t->group ? *out == OCT_F16 || *out == OCT_BF16 : *out == OCT_F32) return OCT_OK;
    return oct_fail(OCT_E_VALUE, "matrix: scale_type is '%s', format '%s' takes %s", d->scale_type,
                    t->name, t->group ? "f16 or bf16" : "f32");
}

static oct_status check_desc(const oct_matrix_desc *d, int *format, oct_source *src, oct_dtype *scale)
{
    *format = oct_weight_by_name(d->format);
    if (*format < 0)
        return oct_fail(OCT_E_VALUE, "matrix: unknown weight format '%s'",
                        d->format ? d->format : "");
    const oct_weight_traits *t = &oct_weight_traits_of[*format];
    if (d->n < 1 || d->n > MAX_N || d->k < 1 || d->k > MAX_K)
        return oct_fail(OCT_E_VALUE, "matrix: shape is [%lld, %lld], legal are [1..%d, 1..%d]",
                        (long long)d->n, (long long)d->k, MAX_N, MAX_K);
    if (t->group && d->k % t->group)
        return oct_fail(OCT_E_VALUE, "matrix: k is %lld, format '%s' needs a multiple of %d",
                        (long long)d->k, t->name, t->group);
    const oct_status status = scale_type_of(d, t, scale);
    return status ? status : source_of(d, t, src);
}

/* A packed nibble would silently lose the upper bits of a code above 15. */
static oct_status check_codes(const oct_matrix_desc *d, const oct_weight_traits *t,
                              const oct_source *s)
{
    const size_t groups = t->group ? (size_t)(d->k / t->group) : 0;
    for (int64_t r = 0; r < d->n && t->code_bits == 4; r++) {
        const uint8_t *row = s->codes + (size_t)r * s->row_stride;
        const uint8_t *zeros = s->zeros ? s->zeros + (size_t)r * s->zero_row_stride : NULL;
        unsigned bits = 0;
        for (size_t g = 0; g < groups; g++) {
            const uint8_t *codes = row + g * s->group_stride;
            for (int i = 0; s->kind == OCT_SRC_BYTES && i < t->group; i++) bits |= codes[i];
            if (zeros) bits |= zeros[g];
        }
        if (bits > 15)
            return oct_fail(OCT_E_VALUE, "matrix: source row %lld holds a code or zero point above 15",
                            (long long)r);
    }
    return OCT_OK;
}

typedef struct {
    const oct_weight_kernels *k;
    oct_pack_args args;
} pack_job;

static void pack_blocks(void *ctx, size_t lo, size_t hi, int lane)
{
    const pack_job *job = ctx;
    (void)lane;
    job->k->pack(&job->args, lo, hi);
}

oct_status oct_weights_add_matrix(oct_weights *w, const oct_matrix_desc *d, int *id)
{
    int format;
    oct_source src;
    oct_dtype scale;
    oct_status status = check_desc(d, &format, &src, &scale);
    if (!status) status = check_codes(d, &oct_weight_traits_of[format], &src);
    if (!status) status = take(w, "matrix");
    if (status) return status;
    const oct_weight_kernels *k = &w->rt->kernels.weight[format];
    const size_t blocks = ((size_t)d->n + OCT_BLOCK_N - 1) / OCT_BLOCK_N;
    const size_t bytes = blocks * k->block_bytes((int)d->k); /* n, k bounded: < 2^45 */
    oct_stored_matrix *table = oct_regrow(OCT_TAG_WEIGHTS, w->matrix, (size_t)w->matrices + 1,
                                          sizeof *table);
    if (table) w->matrix = table;
    void *data = table ? oct_alloc(OCT_TAG_WEIGHTS, bytes, 1) : NULL;
    if (!data) {
        drop(w);
        return oct_fail_memory("matrix", "the packed weights");
    }
    pack_job job = {k, {data, (int)d->n, (int)d->k, scale, &src}};
    oct_pool_enter(w->rt->pool, (oct_poll){0});
    oct_parallel(w->rt->pool, blocks, blocks / 64 + 1, pack_blocks, &job);
    oct_pool_leave(w->rt->pool);
    table[w->matrices] =
        (oct_stored_matrix){(oct_weight_id)format, {data, (int)d->n, (int)d->k, scale}, bytes};
    *id = w->matrices++;
    w->bytes += bytes;
    drop(w);
    return OCT_OK;
}

oct_status oct_weights_add_vector(oct_weights *w, const float *values, int64_t n, int *id)
{
    if (n < 1 || n > INT_MAX)
        return oct_fail(OCT_E_VALUE, "vector: length is %lld", (long long)n);
    const oct_status status = take(w, "vector");
    if (status) return status;
    oct_stored_vector *table = oct_regrow(OCT_TAG_WEIGHTS, w->vector, (size_t)w->vectors + 1,
                                          sizeof *table);
    if (table) w->vector = table;
    float *copy = table ? oct_alloc(OCT_TAG_WEIGHTS, (size_t)n, sizeof *copy) : NULL;
    if (!copy) {
        drop(w);
        return oct_fail_memory("vector", "its values");
    }
    memcpy(copy, values, (size_t)n * sizeof *copy);
    table[w->vectors] = (oct_stored_vector){copy, (int)n};
    *id = w->vectors++;
    w->bytes += (size_t)n * sizeof *copy;
    drop(w);
    return OCT_OK;
}

/* ---- reading back ---------------------------------------------------------------------------- */

static oct_status matrix_at(const oct_weights *w, const char *operation, int id,
                            const oct_stored_matrix **out)
{
    if (id < 0 || id >= w->matrices)
        return oct_fail(OCT_E_VALUE, "%s: matrix id is %d, this store has %d", operation, id,
                        w->matrices);
    *out = &w->matrix[id];
    return OCT_OK;
}

size_t oct_weights_bytes(const oct_weights *w)
{
    return w->bytes;
}

oct_status oct_weights_info(const oct_weights *w, int id, oct_matrix_info *out)
{
    const oct_stored_matrix *m = NULL;
    const oct_status status = matrix_at(w, "info", id, &m);
    if (status) return status;
    const oct_weight_traits *t = &oct_weight_traits_of[m->format];
    *out = (oct_matrix_info){
        t->name, oct_dtype_name(m->m.scale_type), oct_dtype_name(t->type), m->m.n, m->m.k,
        t->code_bits && !t->group ? m->m.k : t->group, t->has_zero, t->has_min, m->bytes,
    };
    return OCT_OK;
}

oct_status oct_weights_unpack(const oct_weights *w, int id, uint8_t *codes, void *scales,
                              uint8_t *zeros, uint16_t *mins, void *values)
{
    const oct_stored_matrix *m = NULL;
    const oct_status status = matrix_at(w, "unpack", id, &m);
    if (status) return status;
    const oct_unpack_args args = {&m->m, codes, scales, zeros, mins, values};
    w->rt->kernels.weight[m->format].unpack(&args, 0,
                                            ((size_t)m->m.n + OCT_BLOCK_N - 1) / OCT_BLOCK_N);
    return OCT_OK;
}

oct_status oct_weights_rows(const oct_weights *w, int id, const int32_t *rows, int64_t m, float *y)
{
    const oct_stored_matrix *s = NULL;
    const oct_status status = matrix_at(w, "rows", id, &s);
    if (status) return status;
    if (m > INT_MAX) return oct_fail(OCT_E_VALUE, "rows: %lld rows are too many", (long long)m);
    for (int64_t i = 0; i < m; i++)
        if (rows[i] < 0 || rows[i] >= s->m.n)
            return oct_fail(OCT_E_VALUE, "rows: index %d at %lld, the matrix has %d rows", rows[i],
                            (long long)i, s->m.n);
    const oct_gather_args args = {&s->m, rows, (int)m, y, (size_t)s->m.k};
    w->rt->kernels.weight[s->format].gather(&args, 0, (size_t)m);
    return OCT_OK;
}

/* ---- products -------------------------------------------------------------------------------- */

oct_act oct_effective_act(const oct_kernels *k, oct_weight_id format, oct_act act)
{
    return k->weight[format].linear[act] ? act : OCT_A32;
}

typedef struct {
    oct_runtime *rt;
    const oct_product *product;
    int count;
    size_t first[OCT_MAX_PRODUCTS + 1]; /* tiles before each product */
} product_job;

static void run_tiles(void *ctx, size_t lo, size_t hi, int lane)
{
    const product_job *job = ctx;
    for (int i = 0; i < job->count; i++) {
        const size_t begin = lo > job->first[i] ? lo : job->first[i];
        const size_t end = hi < job->first[i + 1] ? hi : job->first[i + 1];
        if (begin >= end) continue;
        const oct_product *p = &job->product[i];
        const oct_linear_args args = {&p->w->m, p->x, p->y, p->ldy, p->bias, p->add};
        job->rt->kernels.weight[p->w->format].linear[p->x->act](
            &args, begin - job->first[i], end - job->first[i], job->rt->lanes[lane]);
    }
}

void oct_products_run(oct_runtime *rt, const oct_product *product, int count)
{
    product_job job = {rt, product, count, {0}};
    for (int i = 0; i < count; i++) {
        const size_t nb = ((size_t)product[i].w->m.n + OCT_BLOCK_N - 1) / OCT_BLOCK_N;
        const size_t mb = ((size_t)product[i].x->m + OCT_TILE_M - 1) / OCT_TILE_M;
        job.first[i + 1] = job.first[i] + nb * mb;
    }
    const size_t tiles = job.first[count];
    /* A claim is a few microseconds of work, and lanes get at least four each to even out; but no
     * claim may last long, since signals are looked at between claims: 50 ms at 2 or 40 Gop/s. */
    const size_t grain = tiles / ((size_t)rt->threads * 8) + 1;
    const size_t rows = (size_t)(product[0].x->m < OCT_TILE_M ? product[0].x->m : OCT_TILE_M);
    const size_t tile = 2 * OCT_BLOCK_N * rows * (size_t)product[0].w->m.k;
    const size_t most = (rt->kernels.isa == OCT_SCALAR ? 100000000 : 2000000000) / tile + 1;
    oct_parallel(rt->pool, tiles, grain < most ? grain : most, run_tiles, &job);
}

oct_status oct_rows_alloc(oct_rows *rows, const char *operation, int m, int k)
{
    const int kp = (k + OCT_GROUP - 1) / OCT_GROUP * OCT_GROUP;
    const size_t codes = (size_t)m * (size_t)kp, groups = codes / OCT_GROUP;
    *rows = (oct_rows){.m = m, .k = k, .kp = kp};
    rows->hi = oct_alloc(OCT_TAG_SCRATCH, codes, 1);
    rows->lo = oct_alloc(OCT_TAG_SCRATCH, codes, 1);
    rows->scale = oct_alloc(OCT_TAG_SCRATCH, groups, sizeof *rows->scale);
    rows->sum = oct_alloc(OCT_TAG_SCRATCH, groups, sizeof *rows->sum);
    if (rows->hi && rows->lo && rows->scale && rows->sum) return OCT_OK;
    oct_rows_free(rows);
    return oct_fail_memory(operation, "quantized rows");
}

void oct_rows_free(oct_rows *rows)
{
    oct_free((void *)(uintptr_t)rows->hi);
    oct_free((void *)(uintptr_t)rows->lo);
    oct_free((void *)(uintptr_t)rows->scale);
    oct_free((void *)(uintptr_t)rows->sum);
    *rows = (oct_rows){0};
}

typedef struct {
    oct_runtime *rt;
    oct_quantize_args args;
    _Atomic int bad;
} quantize_job;

static void quantize_rows(void *ctx, size_t lo, size_t hi, int lane)
{
    quantize_job *job = ctx;
    (void)lane;
    if (job->rt->kernels.op.quantize(&job->args, lo, hi) != OCT_K_OK) atomic_store(&job->bad, 1);
}

oct_status oct_linear(oct_weights *w, int id, const char *act_name, const float *x, int64_t m,
                      float *y)
{
    const oct_stored_matrix *s = NULL;
    const int act = oct_act_by_name(act_name);
    oct_status status = matrix_at(w, "linear", id, &s);
    if (status) return status;
    if (act < 0) return oct_fail(OCT_E_VALUE, "linear: unknown activation form '%s'", act_name);
    if (!w->rt->kernels.weight[s->format].linear[act])
        return oct_fail(OCT_E_UNSUPPORTED, "linear: no kernel for format '%s' with act '%s'; "
                        "use act=\"a32\"", oct_weight_traits_of[s->format].name, act_name);
    if (m < 0 || m > 1 << 24)
        return oct_fail(OCT_E_VALUE, "linear: %lld rows, at most %d", (long long)m, 1 << 24);
    oct_rows rows;
    if (m == 0) return OCT_OK;
    if ((status = oct_rows_alloc(&rows, "linear", (int)m, s->m.k))) return status;
    if ((status = take(w, "linear"))) goto done;
    rows.act = (oct_act)act;
    rows.x = x;
    rows.ldx = (size_t)s->m.k;
    oct_pool_enter(w->rt->pool, (oct_poll){0});
    quantize_job job = {w->rt, {&rows, NULL}, 0};
    if (act != OCT_A32) oct_parallel(w->rt->pool, (size_t)m, 16, quantize_rows, &job);
    if (atomic_load(&job.bad)) {
        status = oct_fail(OCT_E_NUMERIC, "linear: x has a non-finite row; act=\"a32\" lets it through");
    } else {
        const oct_product product = {s, &rows, y, (size_t)s->m.n, NULL, false};
        oct_products_run(w->rt, &product, 1);
    }
    oct_pool_leave(w->rt->pool);
    drop(w);
done:
    oct_rows_free(&rows);
    return status;
}
