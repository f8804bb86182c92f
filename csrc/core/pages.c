/* pages.c: pages as the host sees them: what is stored where, decoded copies, pins, edits, and a
 * history re-encoded in another cache's scheme. */
#include <string.h>

#include "csrc/core/cache.h"
#include "csrc/core/mem.h"
#include "kernels/num.h"

/* ---- looking --------------------------------------------------------------------------------- */

typedef struct {
    oct_sequence *seq;
    const oct_layer *l;
    const oct_side *s;
    const oct_entry *e;
    int layer, side, tokens;
    bool sealed;
} place;

static oct_status find_page(oct_cache *c, const char *operation, oct_seq seq, int layer,
                            int64_t index, oct_segment segment, place *out)
{
    oct_sequence *s = NULL;
    const oct_status status = oct_seq_find(c, operation, seq, &s);
    if (status) return status;
    if (layer < 0 || layer >= c->layers)
        return oct_fail(OCT_E_VALUE, "%s: layer is %d, the cache has %d", operation, layer, c->layers);
    const int64_t pages = (s->length + P - 1) / P;
    if (index < 0 || index >= pages)
        return oct_fail(OCT_E_VALUE, "%s: page index is %lld, the sequence has %lld pages", operation,
                        (long long)index, (long long)pages);
    const int side = segment == OCT_SEGMENT_K ? 0 : 1;
    const int64_t left = s->length - index * P;
    *out = (place){s, &c->layer[layer], &c->layer[layer].side[side], &s->table[index], layer, side,
                   left < P ? (int)left : P, s->table[index].page >= 0};
    return OCT_OK;
}

static void describe_part(const oct_part *p, oct_part_info *out)
{
    *out = (oct_part_info){
        .name = p->name,
        .dtype = oct_dtype_name(p->dtype),
        .offset = p->offset,
        .ndim = p->ndim,
        .split = p->split,
        .split_axis = p->split_axis,
        .rows = p->rows,
        .cols = p->cols,
        .bias = p->bias,
    };
    memcpy(out->shape, p->shape, sizeof out->shape);
    memcpy(out->axes, p->axes, sizeof out->axes);
}

static void describe_page(const oct_cache *c, const place *at, oct_page_info *out)
{
    const oct_page_id format = at->sealed ? at->s->format : at->s->open_format;
    *out = (oct_page_info){
        .format = oct_page_traits_of[format].name,
        .sealed = at->sealed,
        .tokens = at->tokens,
        .width = at->s->width,
        .kv_heads = at->l->kv_heads,
        .head_stride = at->l->head_bytes,
    };
    if (!at->sealed) return;
    oct_page_layout layout;
    c->rt->kernels.page[format].layout(at->s->width, at->s->role, &layout);
    out->group = layout.group;
    out->parts = layout.parts;
    for (int i = 0; i < layout.parts; i++) describe_part(&layout.part[i], &out->part[i]);
    out->data = (const uint8_t *)oct_sealed_block(c, at->layer, at->e->page, 0, at->side);
    out->page = (uint64_t)at->e->page;
    out->generation = c->page[at->e->page].generation;
}

oct_status oct_page_at(oct_cache *c, oct_seq seq, int layer, int64_t index, oct_segment segment,
                       oct_page_info *out)
{
    place at = {0};
    oct_status status = oct_cache_take(c, "page");
    if (status) return status;
    status = find_page(c, "page", seq, layer, index, segment, &at);
    if (!status) describe_page(c, &at, out);
    oct_cache_drop(c);
    return status;
}

/* Float32 [tokens][width] of one head, as stored. lane: OCT_LANE_BYTES. */
static void decode_head(const oct_cache *c, const place *at, int head, float *out, float *lane)
{
    const size_t d = (size_t)at->s->width;
    const oct_page_id format = at->sealed ? at->s->format : at->s->open_format;
    const oct_decode_args args = {
        at->sealed ? oct_sealed_block(c, at->layer, at->e->page, head, at->side)
                   : oct_open_block(c, at->layer, at->e->slot, head, at->side),
        at->sealed ? at->s->unit_bytes : c->unit_bytes,
        at->s->width,
        at->tokens,
        at->s->role,
        lane,
    };
    c->rt->kernels.page[format].decode(&args);
    for (size_t t = 0; t < (size_t)at->tokens; t++)
        for (size_t ch = 0; ch < d; ch++)
            out[t * d + ch] = at->s->role == OCT_ROLE_V ? lane[t * d + ch] : lane[ch * P + t];
}

static void undo_transform(const oct_cache *c, const oct_side *s, float *rows, int n)
{
    const size_t d = (size_t)s->width;
    const oct_hadamard_args args = {rows, d, 1, s->width, s->transform.block, s->transform.signs,
                                    true, rows, d};
    if (s->transform.on) c->rt->kernels.op.hadamard(&args, 0, (size_t)n);
}

static void decode_page(const oct_cache *c, const place *at, bool model_basis, float *out, void *lane)
{
    for (int h = 0; h < at->l->kv_heads; h++) {
        float *rows = out + (size_t)h * (size_t)at->tokens * (size_t)at->s->width;
        decode_head(c, at, h, rows, lane);
        if (model_basis) undo_transform(c, at->s, rows, at->tokens);
    }
}

oct_status oct_page_decode(oct_cache *c, oct_seq seq, int layer, int64_t index, oct_segment segment,
                           bool model_basis, float *out)
{
    place at = {0};
    oct_status status = oct_cache_take(c, "decode");
    if (status) return status;
    status = find_page(c, "decode", seq, layer, index, segment, &at);
    void *lane = status ? NULL : oct_alloc(OCT_TAG_SCRATCH, 1, OCT_LANE_BYTES);
    if (!status && !lane) status = oct_fail_memory("decode", "its scratch");
    if (!status) {
        const oct_fp_word host = oct_fp_enter();
        decode_page(c, &at, model_basis, out, lane);
        oct_fp_leave(host);
    }
    oct_free(lane);
    oct_cache_drop(c);
    return status;
}

/* ---- pins ------------------------------------------------------------------------------------ */

oct_status oct_page_pin(oct_cache *c, uint64_t page, uint64_t generation)
{
    oct_status status = oct_cache_take(c, "view");
    if (status) return status;
    if (page >= (uint64_t)c->pages || c->page[page].generation != generation ||
        c->page[page].state == PAGE_FREE || c->page[page].state == PAGE_RESERVED)
        status = oct_fail(OCT_E_STALE, "view: page %llu was given back since; ask the sequence for it "
                          "again", (unsigned long long)page);
    else if (oct_views_of(c, (int32_t)page) == INT32_MAX)
        status = oct_fail(OCT_E_VALUE, "view: page %llu has 2^31-1 views", (unsigned long long)page);
    if (!status) {
        atomic_fetch_add(&c->pins[page], 1);
        atomic_fetch_add(&c->pinned, 1);
    }
    oct_cache_drop(c);
    return status;
}

void oct_page_unpin(oct_cache *c, uint64_t page)
{
    atomic_fetch_sub(&c->pins[page], 1);
    atomic_fetch_sub(&c->pinned, 1);
}

/* ---- edits ----------------------------------------------------------------------------------- */

static void copy_page(oct_cache *c, int32_t from, int32_t to)
{
    for (int l = 0; l < c->layers; l++) {
        const oct_layer *y = &c->layer[l];
        memcpy(y->base + (size_t)to * y->stride, y->base + (size_t)from * y->stride, y->stride);
    }
}

/* The page becomes the sequence's own: copied if another sequence or the index holds it too. */
static oct_status make_private(oct_cache *c, oct_entry *e, int64_t index)
{
    const uint32_t views = oct_views_of(c, e->page);
    if (c->page[e->page].refs == 1 && c->page[e->page].node < 0)
        return views == 0 ? OCT_OK
                          : oct_fail(OCT_E_PINNED, "edit: page %lld has %u views; delete them first",
                                     (long long)index, views);
    const oct_status status = oct_pool_reserve(c, "edit", 1, 0, 0);
    if (status) return status;
    const int32_t own = oct_page_take(c);
    copy_page(c, e->page, own);
    oct_page_publish(c, own);
    oct_page_let_go(c, e->page);
    *e = (oct_entry){own, e->slot, -1};
    return OCT_OK;
}

static oct_status edit_taken(oct_cache *c, oct_seq seq, const place *at, int64_t index)
{
    oct_sequence *s = NULL;
    oct_status status = oct_seq_find_idle(c, "edit", seq, &s);
    if (!status && !at->sealed)
        status = oct_fail(OCT_E_VALUE, "edit: page %lld is open; only sealed pages are edited",
                          (long long)index);
    if (!status) status = make_private(c, &s->table[index], index);
    if (status) return status;
    atomic_fetch_or(&c->pins[s->table[index].page], OCT_PIN_EDIT);
    s->edited = true;
    s->feed = false;
    s->editing = (int32_t)index;
    return OCT_OK;
}

oct_status oct_page_edit(oct_cache *c, oct_seq seq, int layer, int64_t index, oct_segment segment,
                         oct_page_info *out)
{
    place at = {0};
    oct_status status = oct_cache_take(c, "edit");
    if (status) return status;
    status = find_page(c, "edit", seq, layer, index, segment, &at);
    if (!status) status = edit_taken(c, seq, &at, index);
    if (!status) describe_page(c, &at, out);
    oct_cache_drop(c);
    return status;
}

void oct_page_edit_end(oct_cache *c, uint64_t page)
{
    atomic_fetch_and(&c->pins[page], ~OCT_PIN_EDIT);
}

size_t oct_widest_rows(const oct_cache *c, int side)
{
    size_t most = 0;
    for (int i = 0; i < c->layers; i++) {
        const size_t w = (size_t)c->layer[i].kv_heads * (size_t)c->layer[i].side[side].width;
        most = w > most ? w : most;
    }
    return most;
}

/* ---- re-encoding ----------------------------------------------------------------------------- */

static oct_status same_shape(const oct_cache *a, const oct_cache *b)
{
    bool same = a->layers == b->layers && a->rt == b->rt;
    for (int l = 0; same && l < a->layers; l++)
        same = a->layer[l].kv_heads == b->layer[l].kv_heads &&
               a->layer[l].latent == b->layer[l].latent &&
               a->layer[l].side[0].width == b->layer[l].side[0].width &&
               a->layer[l].side[1].width == b->layer[l].side[1].width;
    return same ? OCT_OK : oct_fail(OCT_E_VALUE, "reencode: the caches differ in layers, heads or "
                                    "widths, or in runtime");
}

typedef struct {
    oct_cache *from, *to;
    const place *page;
    oct_part_of_step *part; /* of `to` */
    float *scratch;         /* [threads][2][most] */
    size_t most;            /* values of one layer's page */
} feed_job;

/* One layer of a page: decode, undo the source's transform, round to the target's row type,
 * transform, store. The rounding happens twice (before and after the transform), so that a bf16
 * history gives the bytes that running in the target's scheme gives. */
static void feed_layer(const feed_job *j, int layer, float *rows, float *heads, void *lane)
{
    oct_cache *from = j->from, *to = j->to;
    for (int side = 0; side < 2; side++) {
        place at = *j->page;
        at.l = &from->layer[layer];
        at.s = &at.l->side[side];
        at.layer = layer;
        at.side = side;
        decode_page(from, &at, true, heads, lane);
        const oct_side *s = &to->layer[layer].side[side];
        const size_t d = (size_t)s->width, n = (size_t)at.l->kv_heads;
        for (size_t h = 0; h < n; h++)
            for (size_t t = 0; t < (size_t)at.tokens; t++) {
                float *row = rows + (t * n + h) * d;
                memcpy(row, heads + (h * (size_t)at.tokens + t) * d, d * sizeof *row);
                for (size_t ch = 0; s->open_type == OCT_BF16 && ch < d; ch++)
                    row[ch] = oct_bf16_to_f32(oct_f32_to_bf16(row[ch]));
            }
        oct_rows_store(to, j->part, 1, layer, side, rows, n * d, 0, at.tokens, lane);
    }
}

static void feed_layers(void *ctx, size_t lo, size_t hi, int lane)
{
    const feed_job *j = ctx;
    float *own = j->scratch + 2 * j->most * (size_t)lane;
    for (size_t l = lo; l < hi; l++)
        feed_layer(j, (int)l, own, own + j->most, j->to->rt->lanes[lane]);
}

/* The most that feeding page by page holds at any time, in one piece, so that a refusal comes before
 * the first page: the sealed pages of the end, the pages that stay open, and one more. */
static oct_status reserve_whole(oct_cache *to, int64_t length)
{
    const int64_t sealed = oct_sealed_end(to, length) - to->sinks;
    const int64_t open = length / P - sealed + 1;
    if (sealed > 0)
        return oct_pool_reserve(to, "reencode", (size_t)sealed, (size_t)open, (size_t)open * UNITS);
    return oct_pool_reserve(to, "reencode", 0, (size_t)((length + P - 1) / P),
                            (size_t)((length + OCT_UNIT_TOKENS - 1) / OCT_UNIT_TOKENS));
}

/* Page by page, so that the open rows of one page are all that is held beside the result. */
static oct_status reencode_pages(oct_sequence *src, feed_job *j)
{
    oct_cache *to = j->to;
    oct_part_of_step *part = j->part;
    oct_status status = reserve_whole(to, src->length);
    for (int64_t at = 0; !status && at < src->length; at += part->n) {
        part->start = at;
        part->n = (int32_t)(src->length - at < P ? src->length - at : P);
        if ((status = oct_step_reserve(to, "reencode", part, 1))) break;
        const oct_entry *entry = &src->table[at / P];
        const place page = {src, NULL, NULL, entry, 0, 0, part->n, entry->page >= 0};
        j->page = &page;
        oct_parallel(to->rt->pool, (size_t)to->layers, 1, feed_layers, j);
        for (int l = 0; l < to->layers; l++) oct_rows_seal(to, part, 1, l);
        if (oct_pool_cancelled(to->rt->pool)) {
            oct_step_rollback(to, part, 1);
            return oct_fail(OCT_E_CANCELLED, "reencode: cancelled. Nothing was changed.");
        }
        oct_step_commit(to, part, 1);
        if (atomic_load(&part->bad))
            return oct_fail(OCT_E_NUMERIC, "reencode: a row is too large for the target's format");
    }
    return status;
}

static oct_status reencode_taken(oct_cache *from, oct_sequence *src, oct_cache *to, oct_poll poll,
                                 oct_seq handle)
{
    oct_part_of_step part = {0};
    const size_t keys = oct_widest_rows(from, OCT_SEGMENT_K);
    const size_t values = oct_widest_rows(from, OCT_SEGMENT_V);
    feed_job job = {from, to, NULL, &part, NULL, P * (keys > values ? keys : values)};
    oct_status status = oct_seq_find(to, "reencode", handle, &part.seq);
    if (status) return status;
    if (!oct_pool_enter(to->rt->pool, poll))
        return oct_fail(OCT_E_CANCELLED, "reencode: cancelled. Nothing was changed.");
    const size_t lanes = (size_t)oct_pool_threads(to->rt->pool);
    job.scratch = oct_alloc(OCT_TAG_SCRATCH, 2 * lanes * job.most, sizeof *job.scratch);
    status = job.scratch ? reencode_pages(src, &job) : oct_fail_memory("reencode", "its scratch");
    oct_free(job.scratch);
    oct_pool_leave(to->rt->pool);
    return status;
}

static oct_status reencode_both(oct_cache *from, oct_seq seq, oct_cache *to, oct_poll poll,
                                oct_seq *out)
{
    oct_sequence *src = NULL, *made = NULL;
    oct_seq handle = 0;
    oct_status status = oct_seq_find_idle(from, "reencode", seq, &src);
    if (!status) status = oct_seq_make(to, "reencode", &handle);
    if (status) return status;
    status = reencode_taken(from, src, to, poll, handle);
    if (!status) *out = handle;
    else if (!oct_seq_find(to, "reencode", handle, &made)) oct_seq_discard(to, made);
    return status;
}

oct_status oct_seq_reencode(oct_cache *from, oct_seq seq, oct_cache *to, oct_poll poll,
                            oct_seq *out)
{
    *out = 0;
    if (from == to) return oct_fail(OCT_E_VALUE, "reencode: both caches are the same; use fork");
    oct_status status = same_shape(from, to);
    if (!status) status = oct_cache_take(from, "reencode");
    if (status) return status;
    status = oct_cache_take(to, "reencode");
    if (!status) {
        status = reencode_both(from, seq, to, poll, out);
        oct_cache_drop(to);
    }
    oct_cache_drop(from);
    return status;
}
