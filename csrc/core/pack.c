/* pack.c: matrices from any source layout, many at once: checked, given one block of memory, and
 * packed in one parallel pass over their source. Kernels trust what they are given. */
#include <limits.h>
#include <stdatomic.h>
#include <string.h>

#include "csrc/core/mem.h"
#include "csrc/core/weights.h"

/* u8 x s8 dots of this many inputs cannot leave int32 (docs/formats.md, B3). */
#define MAX_K 65536
#define MAX_N (1 << 28)
#define ALIGN 64
#define CLAIM_BYTES (1 << 20) /* packed by a claim: long against a wake-up, short to even out */

static oct_status source_of(const oct_matrix_desc *d, const oct_weight_traits *t, oct_source *s)
{
    static const char *const kinds[] = {"bytes", "halves", "pairs", "values"};
    int kind = -1;
    for (int i = 0; i < 4; i++)
        if (d->source && !strcmp(d->source, kinds[i])) kind = i;
    if (kind < 0)
        return oct_fail(OCT_E_VALUE,
                        "matrix: source is '%s', legal are bytes, halves, pairs, values",
                        d->source ? d->source : "");
    if ((kind == OCT_SRC_VALUES) != (t->code_bits == 0))
        return oct_fail(OCT_E_UNSUPPORTED, "matrix: format '%s' is not packed from source '%s'; %s",
                        t->name, kinds[kind],
                        t->code_bits ? "quantize the values first (octavo.quant)"
                                     : "pass element values");
    if (kind != OCT_SRC_VALUES && kind != OCT_SRC_BYTES && t->code_bits != 4)
        return oct_fail(OCT_E_UNSUPPORTED,
                        "matrix: format '%s' has 8-bit codes, source '%s' holds 4", t->name,
                        kinds[kind]);
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

static oct_status check_desc(const oct_matrix_desc *d, int *format, oct_source *src,
                             oct_dtype *scale)
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

/* ---- one pass over all blocks of all matrices ------------------------------------------------ */

typedef struct {
    int format;
    oct_source src;
    oct_pack_args args;
    const oct_weight_kernels *k;
    size_t bytes; /* packed */
    size_t first; /* blocks before it, in the pass */
} item;

typedef struct {
    item *items;
    int count;
    size_t blocks;
    _Atomic uint64_t bad; /* the least channel (block * 32 + c) that does not fit, or NONE */
} pass;

#define NONE UINT64_MAX

static size_t blocks_of(const item *it)
{
    return ((size_t)it->args.n + OCT_BLOCK_N - 1) / OCT_BLOCK_N;
}

static size_t row_of(const item *it, size_t channel)
{
    return it->src.row_map ? (size_t)it->src.row_map[channel] : channel;
}

/* A packed nibble would silently lose the upper bits of a code above 15. */
static bool fits_nibbles(const item *it, size_t row)
{
    const oct_source *s = &it->src;
    const uint8_t *zeros = s->zeros ? s->zeros + row * s->zero_row_stride : NULL;
    const int groups = it->args.k / OCT_GROUP;
    unsigned bits = 0;
    for (int g = 0; g < groups; g++) {
        const uint8_t *codes = s->codes + row * s->row_stride + (size_t)g * s->group_stride;
        for (int i = 0; s->kind == OCT_SRC_BYTES && i < OCT_GROUP; i++) bits |= codes[i];
        if (zeros) bits |= zeros[g];
    }
    return bits <= 15;
}

static void check_block(pass *p, const item *it, size_t block)
{
    const size_t n = (size_t)it->args.n, lo = block * OCT_BLOCK_N;
    if (oct_weight_traits_of[it->format].code_bits != 4) return;
    if (it->src.kind != OCT_SRC_BYTES && !it->src.zeros) return;
    for (size_t c = lo; c < n && c < lo + OCT_BLOCK_N; c++) {
        if (fits_nibbles(it, row_of(it, c))) continue;
        const uint64_t at = (uint64_t)it->first * OCT_BLOCK_N + c;
        uint64_t least = atomic_load(&p->bad);
        while (at < least && !atomic_compare_exchange_weak(&p->bad, &least, at)) {}
        return;
    }
}

static item *item_at(const pass *p, size_t block)
{
    int lo = 0, hi = p->count;
    while (hi - lo > 1) {
        const int middle = lo + (hi - lo) / 2;
        if (p->items[middle].first <= block) lo = middle;
        else hi = middle;
    }
    return &p->items[lo];
}

static void pack_blocks(void *ctx, size_t lo, size_t hi, int lane)
{
    pass *p = ctx;
    (void)lane;
    for (item *it = item_at(p, lo); lo < hi; it++) {
        const size_t end = it->first + blocks_of(it) < hi ? it->first + blocks_of(it) : hi;
        for (; lo < end; lo++) {
            check_block(p, it, lo - it->first); /* and its sources are in the cache */
            it->k->pack(&it->args, lo - it->first, lo - it->first + 1);
        }
    }
}

static oct_status run_pass(oct_runtime *rt, pass *p, size_t bytes)
{
    const size_t grain = CLAIM_BYTES / (bytes / p->blocks + 1) + 1;
    const size_t even = p->blocks / ((size_t)rt->threads * 4) + 1;
    atomic_store(&p->bad, NONE);
    oct_pool_enter(rt->pool, (oct_poll){0});
    oct_parallel(rt->pool, p->blocks, grain < even ? grain : even, pack_blocks, p);
    oct_pool_leave(rt->pool);
    const uint64_t bad = atomic_load(&p->bad);
    if (bad == NONE) return OCT_OK;
    const item *it = item_at(p, (size_t)(bad / OCT_BLOCK_N));
    const size_t channel = (size_t)bad - it->first * OCT_BLOCK_N;
    return oct_fail(OCT_E_VALUE, "matrix: source row %zu holds a code or zero point above 15",
                    row_of(it, channel));
}

/* ---- adding ---------------------------------------------------------------------------------- */

/* Fills the items; the bytes of their block. */
static oct_status plan(const oct_weights *w, const oct_matrix_desc *d, pass *p, size_t *bytes)
{
    *bytes = 0;
    for (int i = 0; i < p->count; i++) {
        item *it = &p->items[i];
        oct_dtype scale;
        const oct_status status = check_desc(&d[i], &it->format, &it->src, &scale);
        if (status) return status;
        it->k = &w->rt->kernels.weight[it->format];
        it->args = (oct_pack_args){NULL, (int)d[i].n, (int)d[i].k, scale, &it->src};
        it->bytes = blocks_of(it) * it->k->block_bytes(it->args.k); /* n, k bounded: < 2^45 */
        it->first = p->blocks;
        p->blocks += blocks_of(it);
        *bytes += (it->bytes + ALIGN - 1) / ALIGN * ALIGN; /* count < 2^16: no wrap */
    }
    return OCT_OK;
}

/* Room in the tables for what a pass adds, so that keeping it cannot fail. */
static bool grow(oct_weights *w, int count)
{
    oct_stored_matrix *table = oct_regrow(OCT_TAG_WEIGHTS, w->matrix,
                                          (size_t)w->matrices + (size_t)count, sizeof *table);
    if (!table) return false;
    w->matrix = table;
    void **batch = oct_regrow(OCT_TAG_WEIGHTS, w->batch, (size_t)w->batches + 1, sizeof *batch);
    if (batch) w->batch = batch;
    return batch;
}

static oct_status pack_all(oct_weights *w, pass *p, size_t bytes)
{
    char *block = grow(w, p->count) ? oct_alloc(OCT_TAG_WEIGHTS, bytes, 1) : NULL;
    if (!block) return oct_fail_memory("matrix", "the packed weights");
    size_t at = 0;
    for (int i = 0; i < p->count; i++) {
        p->items[i].args.data = block + at;
        at += (p->items[i].bytes + ALIGN - 1) / ALIGN * ALIGN;
    }
    const oct_status status = run_pass(w->rt, p, bytes);
    if (status) {
        oct_free(block);
        return status;
    }
    w->batch[w->batches++] = block;
    for (int i = 0; i < p->count; i++) {
        const item *it = &p->items[i];
        const oct_matrix m = {it->args.data, it->args.n, it->args.k, it->args.scale_type};
        w->matrix[w->matrices++] = (oct_stored_matrix){(oct_weight_id)it->format, m, it->bytes};
        w->bytes += it->bytes;
    }
    return OCT_OK;
}

oct_status oct_weights_add_matrices(oct_weights *w, const oct_matrix_desc *d, int count, int *first)
{
    if (count < 1 || count > USHRT_MAX)
        return oct_fail(OCT_E_VALUE, "matrix: %d at once, legal are 1 to %d", count, USHRT_MAX);
    pass p = {.items = oct_zalloc(OCT_TAG_SCRATCH, (size_t)count, sizeof *p.items), .count = count};
    if (!p.items) return oct_fail_memory("matrix", "the plan of a pass");
    size_t bytes;
    oct_status status = plan(w, d, &p, &bytes);
    if (!status) status = oct_weights_take(w, "matrix");
    if (!status) {
        *first = w->matrices;
        status = pack_all(w, &p, bytes);
        oct_weights_drop(w);
    }
    oct_free(p.items);
    return status;
}
