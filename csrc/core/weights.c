/* weights.c: the store of packed matrices and vectors, reading back, and products as tiles of one
 * parallel loop. Matrices come from pack.c. */
#include "csrc/core/weights.h"

#include <limits.h>
#include <string.h>

#include "csrc/core/mem.h"

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
    for (int i = 0; i < w->batches; i++) oct_free(w->batch[i]);
    for (int i = 0; i < w->vectors; i++) oct_free(w->vector[i].values);
    oct_free(w->batch);
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

oct_status oct_weights_take(oct_weights *w, const char *operation)
{
    bool idle = false;
    if (!atomic_compare_exchange_strong(&w->busy, &idle, true))
        return oct_fail(OCT_E_BUSY, "%s: these weights are in use by another call", operation);
    return OCT_OK;
}

void oct_weights_drop(oct_weights *w)
{
    atomic_store(&w->busy, false);
}

/* ---- vectors ---------------------------------------------------------------------------------- */

oct_status oct_weights_add_vector(oct_weights *w, const float *values, int64_t n, int *id)
{
    if (n < 1 || n > INT_MAX)
        return oct_fail(OCT_E_VALUE, "vector: length is %lld", (long long)n);
    const oct_status status = oct_weights_take(w, "vector");
    if (status) return status;
    oct_stored_vector *table = oct_regrow(OCT_TAG_WEIGHTS, w->vector, (size_t)w->vectors + 1,
                                          sizeof *table);
    if (table) w->vector = table;
    float *copy = table ? oct_alloc(OCT_TAG_WEIGHTS, (size_t)n, sizeof *copy) : NULL;
    if (!copy) {
        oct_weights_drop(w);
        return oct_fail_memory("vector", "its values");
    }
    memcpy(copy, values, (size_t)n * sizeof *copy);
    table[w->vectors] = (oct_stored_vector){copy, (int)n};
    *id = w->vectors++;
    w->bytes += (size_t)n * sizeof *copy;
    oct_weights_drop(w);
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
    const size_t *first; /* [count + 1] tiles before each product */
} product_job;

/* The last product that begins at or before tile `at`. */
static int product_at(const product_job *job, size_t at)
{
    int lo = 0;
    for (int hi = job->count; hi - lo > 1;) {
        const int mid = lo + (hi - lo) / 2;
        if (job->first[mid] <= at) lo = mid;
        else hi = mid;
    }
    return lo;
}

static void run_tiles(void *ctx, size_t lo, size_t hi, int lane)
{
    const product_job *job = ctx;
    for (int i = product_at(job, lo); i < job->count && job->first[i] < hi; i++) {
        const size_t begin = lo > job->first[i] ? lo : job->first[i];
        const size_t end = hi < job->first[i + 1] ? hi : job->first[i + 1];
        const oct_product *p = &job->product[i];
        const oct_linear_args args = {&p->w->m, p->x, p->y, p->ldy, p->bias, p->add};
        job->rt->kernels.weight[p->w->format].linear[p->x->act](
            &args, begin - job->first[i], end - job->first[i], job->rt->lanes[lane]);
    }
}

void oct_products_list(oct_runtime *rt, const oct_product *product, int count, size_t *first)
{
    const product_job job = {rt, product, count, first};
    size_t largest = 1; /* operations of a tile */
    first[0] = 0;
    for (int i = 0; i < count; i++) {
        const size_t m = (size_t)product[i].x->m, rows = m < OCT_TILE_M ? m : OCT_TILE_M;
        const size_t nb = ((size_t)product[i].w->m.n + OCT_BLOCK_N - 1) / OCT_BLOCK_N;
        const size_t tile = 2 * OCT_BLOCK_N * rows * (size_t)product[i].w->m.k;
        first[i + 1] = first[i] + nb * ((m + OCT_TILE_M - 1) / OCT_TILE_M);
        largest = tile > largest ? tile : largest;
    }
    /* No claim may last long, since signals are looked at between claims: 50 ms at 2 or 40 Gop/s. */
    const size_t most = (rt->kernels.isa == OCT_SCALAR ? 100000000 : 2000000000) / largest + 1;
    oct_parallel_shares(rt->pool, first[count], most, run_tiles, (void *)(uintptr_t)&job);
}

void oct_products_run(oct_runtime *rt, const oct_product *product, int count)
{
    size_t first[OCT_MAX_PRODUCTS + 1];
    oct_products_list(rt, product, count, first);
}

oct_rows oct_rows_at(const oct_rows *r, oct_act act, int at, int n)
{
    oct_rows out = *r;
    const size_t i = (size_t)at, kp = (size_t)r->kp, groups = kp / OCT_GROUP;
    out.act = act;
    out.m = n;
    if (out.x) out.x += i * r->ldx;
    out.hi += i * kp;
    out.lo += i * kp;
    out.sum += i * groups;
    out.scale += r->act == OCT_A8G32 ? i * groups : i;
    return out;
}

oct_status oct_rows_alloc(oct_rows *rows, const char *operation, int m, int k)
{
    const size_t most = ((size_t)k + OCT_GROUP - 1) / OCT_GROUP * OCT_GROUP + OCT_ROW_APART;
    const size_t codes = (size_t)m * most, groups = codes / OCT_GROUP;
    *rows = (oct_rows){.m = m, .k = k, .kp = oct_rows_kp(k)};
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
    if ((status = oct_weights_take(w, "linear"))) goto done;
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
    oct_weights_drop(w);
done:
    oct_rows_free(&rows);
    return status;
}
