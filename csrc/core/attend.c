/* attend.c: one driver for prefill and decode, over sealed and open pages.
 *
 * A block is up to 64 query vectors of one KV head: rows of one sequence whose positions lie in one
 * page (so that the reading law shows all of them the same form of every page) times the heads
 * that share the KV head. Keys are read in chunks of 256 tokens at absolute positions; a chunk gives
 * (o, m, l), chunks fold in order inside a super-chunk of 4,096 tokens, those inside a run of
 * 32,768, and runs into the result. The fold order depends on positions alone, so it does not
 * matter whether one lane walks all chunks or each chunk is its own task. */
#include <math.h>
#include <string.h>

#include "csrc/core/attend.h"

typedef oct_attend_block block;
typedef oct_partial partial;
typedef oct_attend_lane lane_buffers;

/* ---- one step's view ------------------------------------------------------------------------- */

typedef struct {
    const oct_attend_args *a;
    const oct_layer *l;
    int group; /* query heads per KV head */
    int blocks, chunks; /* chunks > 0: every (block, head, chunk) is a task */
} job;

static int64_t position_of(const oct_attend_args *a, const oct_part_of_step *p, int64_t row)
{
    return a->after ? p->start : p->start + (row - p->row);
}

static int64_t visible_of(const oct_attend_args *a, const oct_part_of_step *p, int64_t row)
{
    return position_of(a, p, row) + !a->after;
}

/* Query vectors of a KV head lie together: head-major, then rows, then the heads of the group. */
static size_t vector_of(const job *j, int head, int64_t row)
{
    return ((size_t)head * (size_t)j->a->rows + (size_t)row) * (size_t)j->group;
}

static oct_act act_of(oct_form form)
{
    return form == OCT_FORM_Q8 ? OCT_A8 : form == OCT_FORM_Q8X2 ? OCT_A8X2 : OCT_A32;
}

static void prepare_queries(void *ctx, size_t lo, size_t hi, int lane)
{
    const job *j = ctx;
    const oct_attend_args *a = j->a;
    const oct_side *k = &j->l->side[OCT_SEGMENT_K];
    const oct_op_kernels *op = &a->cache->rt->kernels.op;
    const size_t d = (size_t)k->width;
    (void)lane;
    for (size_t r = lo; r < hi; r++)
        for (int h = 0; h < j->l->kv_heads; h++) {
            const size_t at = vector_of(j, h, (int64_t)r), n = (size_t)j->group * d;
            const float *from = a->q + r * a->ldq + (size_t)h * n;
            float *to = a->scratch->q + at * d;
            for (size_t i = 0; i < n; i++) to[i] = from[i] * a->scale;
            if (k->transform.on) {
                const oct_hadamard_args had = {to, n, j->group, k->width, k->transform.block,
                                               k->transform.signs, false, to, n};
                op->hadamard(&had, 0, 1);
            }
            if (a->scratch->codes.act != OCT_A32) {
                const oct_quantize_args quantize = {&a->scratch->codes, NULL};
                op->quantize(&quantize, at, at + (size_t)j->group);
            }
        }
}

static void finish_rows(void *ctx, size_t lo, size_t hi, int lane)
{
    const job *j = ctx;
    const oct_attend_args *a = j->a;
    const oct_side *v = &j->l->side[OCT_SEGMENT_V];
    const size_t n = (size_t)j->group * (size_t)v->width;
    (void)lane;
    for (size_t r = lo; r < hi; r++)
        for (int h = 0; h < j->l->kv_heads; h++) {
            const float *from = a->scratch->o + vector_of(j, h, (int64_t)r) * (size_t)v->width;
            float *to = a->out + r * a->ldo + (size_t)h * n;
            memcpy(to, from, n * sizeof *to);
            if (!v->transform.on) continue;
            const oct_hadamard_args had = {to, n, j->group, v->width, v->transform.block,
                                           v->transform.signs, true, to, n};
            a->cache->rt->kernels.op.hadamard(&had, 0, 1);
        }
}

/* ---- chunks ---------------------------------------------------------------------------------- */

/* One block and KV head, ready to walk pages. */
typedef struct {
    const job *j;
    const oct_part_of_step *part;
    const block *b;
    lane_buffers *buf;
    void *kernel_lane;
    oct_rows q;
    int head, queries;
    int64_t page_of_queries, tokens; /* the most that any of the queries sees */
} walk;

static walk start_walk(const job *j, int block_index, int head, int lane)
{
    const oct_attend_args *a = j->a;
    const block *b = &a->scratch->blocks[block_index];
    const oct_part_of_step *p = &a->part[b->part];
    const size_t at = vector_of(j, head, b->row);
    oct_rows q = a->scratch->codes;
    q.m = b->rows * j->group;
    q.x = a->scratch->q + at * (size_t)q.k;
    q.ldx = (size_t)q.k;
    q.hi += at * (size_t)q.kp;
    q.lo += at * (size_t)q.kp;
    q.scale += at;
    q.sum += at * (size_t)(q.kp / OCT_GROUP);
    return (walk){
        .j = j,
        .part = p,
        .b = b,
        .buf = &a->scratch->lane[lane],
        .kernel_lane = a->cache->rt->lanes[lane],
        .q = q,
        .head = head,
        .queries = q.m,
        .page_of_queries = position_of(a, p, b->row) / P,
        .tokens = visible_of(a, p, b->row + b->rows - 1),
    };
}

/* Sealed or open, by the reading law: sealed iff page(s) < page(t) - recent and page(s) >= sinks. */
static bool is_sealed(const walk *w, int64_t page)
{
    const oct_cache *c = w->j->a->cache;
    return page < w->page_of_queries - c->recent && page >= c->sinks;
}

static const void *read_page(const walk *w, int64_t page, int side, oct_page_id *format,
                             oct_form *form)
{
    const oct_cache *c = w->j->a->cache;
    const oct_side *s = &w->j->l->side[side];
    const oct_entry *e = &w->part->seq->table[page];
    if (is_sealed(w, page)) {
        *format = s->format;
        *form = s->form;
        return oct_sealed_block(c, w->j->a->layer, e->page, w->head, side);
    }
    *format = s->open_format;
    *form = OCT_FORM_F32;
    return oct_open_block(c, w->j->a->layer, e->slot, w->head, side);
}

/* Bytes between 16-token units of a block: open units lie a whole cache unit apart. */
static size_t unit_stride(const walk *w, int64_t page, int side)
{
    return is_sealed(w, page) ? w->j->l->side[side].unit_bytes : w->j->a->cache->unit_bytes;
}

/* Tokens of `page` that each query sees. */
static void fill_visible(const walk *w, int64_t page)
{
    const oct_attend_args *a = w->j->a;
    for (int r = 0; r < w->b->rows; r++) {
        const int64_t seen = visible_of(a, w->part, w->b->row + r) - page * P;
        const int visible = seen < 0 ? 0 : seen > P ? P : (int)seen;
        for (int g = 0; g < w->j->group; g++) w->buf->visible[r * w->j->group + g] = visible;
    }
}

/* What the walk reads after block `at` of a chunk: its K blocks, its V blocks, then the next chunk's.
 * Small blocks look further, so that what is asked for has the time to come. */
static oct_ahead ahead_of(const walk *w, int64_t first, int pages, int at)
{
    const oct_side *sides = w->j->l->side;
    const int side_now = at < pages ? OCT_SEGMENT_K : OCT_SEGMENT_V;
    const size_t far = AHEAD_BYTES / sides[side_now].block_bytes;
    at += far < 1 ? 1 : far > CHUNK_PAGES ? CHUNK_PAGES : (int)far;
    const int side = at < pages || at >= 2 * pages ? OCT_SEGMENT_K : OCT_SEGMENT_V;
    const int64_t page = first + (at < pages ? at : at - pages);
    if (page >= (w->tokens + P - 1) / P || !is_sealed(w, page)) return (oct_ahead){0};
    const char *block = oct_sealed_block(w->j->a->cache, w->j->a->layer,
                                         w->part->seq->table[page].page, w->head, side);
    return (oct_ahead){block, block + sides[side].block_bytes};
}

/* (o, m, l) of one chunk into `out`. */
static void attend_chunk(const walk *w, int chunk, const partial *out)
{
    const oct_kernels *k = &w->j->a->cache->rt->kernels;
    const int64_t first = (int64_t)chunk * CHUNK_PAGES, end = (w->tokens + P - 1) / P;
    const int pages = (int)(end - first < CHUNK_PAGES ? end - first : CHUNK_PAGES);
    const oct_side *ks = &w->j->l->side[OCT_SEGMENT_K], *vs = &w->j->l->side[OCT_SEGMENT_V];
    oct_page_id format;
    oct_form form;
    for (int i = 0; i < pages; i++) {
        const void *keys = read_page(w, first + i, OCT_SEGMENT_K, &format, &form);
        fill_visible(w, first + i);
        const oct_scores_args scores = {
            &k->page[format], &k->op, keys, unit_stride(w, first + i, OCT_SEGMENT_K), ks->width,
            w->queries, form, &w->q, w->buf->visible, w->buf->s + i * P, CHUNK,
            ahead_of(w, first, pages, i),
        };
        k->page[format].scores[form](&scores, w->kernel_lane);
    }
    const oct_softmax_args softmax = {w->buf->s, CHUNK, pages * P, out->m, out->l};
    k->op.softmax(&softmax, 0, (size_t)w->queries);
    memset(out->o, 0, (size_t)w->queries * (size_t)vs->width * sizeof *out->o);
    for (int i = 0; i < pages; i++) {
        const void *values = read_page(w, first + i, OCT_SEGMENT_V, &format, &form);
        fill_visible(w, first + i);
        const oct_mix_args mix = {
            &k->page[format], &k->op, values, unit_stride(w, first + i, OCT_SEGMENT_V), vs->width,
            w->queries, form, w->buf->visible, w->buf->s + i * P, CHUNK, out->o, (size_t)vs->width,
            ahead_of(w, first, pages, pages + i),
        };
        k->page[format].mix[form](&mix, w->kernel_lane);
    }
}

/* ---- folding --------------------------------------------------------------------------------- */

static void clear_level(const walk *w, int level)
{
    const partial *p = &w->buf->level[level];
    memset(p->o, 0, (size_t)w->queries * (size_t)w->j->l->side[1].width * sizeof *p->o);
    for (int i = 0; i < w->queries; i++) {
        p->m[i] = -INFINITY;
        p->l[i] = 0.0f;
    }
}

static void merge_into(const walk *w, const partial *to, const partial *from)
{
    const size_t d = (size_t)w->j->l->side[OCT_SEGMENT_V].width;
    const oct_merge_args args = {to->o, to->m, to->l, d, from->o, from->m, from->l, d, (int)d};
    w->j->a->cache->rt->kernels.op.merge(&args, 0, (size_t)w->queries);
}

/* Level i is full: add it to the one above and start it anew. */
static void close_level(const walk *w, int level)
{
    merge_into(w, &w->buf->level[level + 1], &w->buf->level[level]);
    clear_level(w, level);
}

static void fold_chunk(const walk *w, int chunk, const partial *p)
{
    merge_into(w, &w->buf->level[0], p);
    if ((chunk + 1) % SUPER == 0) close_level(w, 0);
    if ((chunk + 1) % RUN == 0) close_level(w, 1);
}

static void fold_end(const walk *w)
{
    const job *j = w->j;
    const size_t d = (size_t)j->l->side[OCT_SEGMENT_V].width;
    close_level(w, 0);
    close_level(w, 1);
    const partial *total = &w->buf->level[2];
    float *out = j->a->scratch->o + vector_of(j, w->head, w->b->row) * d;
    for (int i = 0; i < w->queries; i++)
        for (size_t ch = 0; ch < d; ch++)
            out[(size_t)i * d + ch] =
                total->l[i] == 0.0f ? 0.0f : total->o[(size_t)i * d + ch] / total->l[i];
}

static int chunks_of(const walk *w)
{
    return (int)((w->tokens + CHUNK - 1) / CHUNK);
}

static void attend_whole(void *ctx, size_t lo, size_t hi, int lane)
{
    const job *j = ctx;
    for (size_t task = lo; task < hi; task++) {
        const int blocks = j->blocks;
        const walk w = start_walk(j, (int)(task % (size_t)blocks), (int)(task / (size_t)blocks), lane);
        for (int level = 0; level < LEVELS; level++) clear_level(&w, level);
        for (int chunk = 0; chunk < chunks_of(&w); chunk++) {
            attend_chunk(&w, chunk, &w.buf->chunk);
            fold_chunk(&w, chunk, &w.buf->chunk);
        }
        fold_end(&w);
    }
}

/* ---- split: every chunk a task, then a fold per block and head --------------------------------- */

/* Where the partial of (block, head, chunk) lies: [vector][chunk] of (o, m, l) with the vectors of a
 * block together. */
static partial split_at(const walk *w, int chunk)
{
    const job *j = w->j;
    const size_t d = (size_t)j->l->side[OCT_SEGMENT_V].width, q = (size_t)w->queries;
    float *base = j->a->scratch->split + vector_of(j, w->head, w->b->row) * (d + 2) *
                                             (size_t)j->chunks + q * (d + 2) * (size_t)chunk;
    return (partial){base, base + q * d, base + q * (d + 1)};
}

static void attend_split(void *ctx, size_t lo, size_t hi, int lane)
{
    const job *j = ctx;
    for (size_t task = lo; task < hi; task++) {
        const size_t unit = task / (size_t)j->chunks;
        const int chunk = (int)(task % (size_t)j->chunks), blocks = j->blocks;
        const walk w = start_walk(j, (int)(unit % (size_t)blocks), (int)(unit / (size_t)blocks), lane);
        if (chunk >= chunks_of(&w)) continue;
        const partial p = split_at(&w, chunk);
        attend_chunk(&w, chunk, &p);
    }
}

static void fold_split(void *ctx, size_t lo, size_t hi, int lane)
{
    const job *j = ctx;
    for (size_t unit = lo; unit < hi; unit++) {
        const int blocks = j->blocks;
        const walk w = start_walk(j, (int)(unit % (size_t)blocks), (int)(unit / (size_t)blocks), lane);
        for (int level = 0; level < LEVELS; level++) clear_level(&w, level);
        for (int chunk = 0; chunk < chunks_of(&w); chunk++) {
            const partial p = split_at(&w, chunk);
            fold_chunk(&w, chunk, &p);
        }
        fold_end(&w);
    }
}

/* ---- the driver ------------------------------------------------------------------------------ */

static int make_blocks(const job *j)
{
    const oct_attend_args *a = j->a;
    const int64_t most = j->group < QUERIES ? QUERIES / j->group : 1;
    int n = 0;
    for (int i = 0; i < a->parts; i++) {
        const oct_part_of_step *p = &a->part[i];
        for (int64_t row = p->row, end = p->row + p->n; row < end;) {
            const int64_t page_end = a->after ? end : row + P - position_of(a, p, row) % P;
            int64_t stop = row + most;
            stop = stop < page_end ? stop : page_end;
            stop = stop < end ? stop : end;
            a->scratch->blocks[n++] = (block){i, (int)(stop - row), row};
            row = stop;
        }
    }
    return n;
}

static int longest_in_chunks(const oct_attend_args *a)
{
    int64_t tokens = 0;
    for (int i = 0; i < a->parts; i++) {
        const int64_t seen = visible_of(a, &a->part[i], a->part[i].row + a->part[i].n - 1);
        tokens = seen > tokens ? seen : tokens;
    }
    return (int)((tokens + CHUNK - 1) / CHUNK);
}

/* Split where there are too few blocks to keep the lanes busy and the partials have room. */
static bool worth_splitting(const job *j, int chunks)
{
    const oct_attend_args *a = j->a;
    const size_t d = (size_t)j->l->side[OCT_SEGMENT_V].width;
    const size_t floats = (size_t)a->rows * (size_t)a->heads * (d + 2) * (size_t)chunks;
    return chunks > 1 && a->cache->rt->threads > 1 &&
           (size_t)j->blocks * (size_t)j->l->kv_heads < 4 * (size_t)a->cache->rt->threads &&
           floats <= a->scratch->split_floats;
}

void oct_attend_run(const oct_attend_args *a)
{
    oct_pool *pool = a->cache->rt->pool;
    const oct_layer *l = &a->cache->layer[a->layer];
    const oct_side *k = &l->side[OCT_SEGMENT_K];
    oct_rows *codes = &a->scratch->codes;
    job j = {a, l, a->heads / l->kv_heads, 0, 0};
    codes->act = act_of(k->form);
    codes->m = (int)(a->rows * a->heads);
    codes->k = k->width;
    codes->kp = (k->width + OCT_GROUP - 1) / OCT_GROUP * OCT_GROUP;
    codes->x = a->scratch->q;
    codes->ldx = (size_t)k->width;
    oct_parallel(pool, (size_t)a->rows, 8, prepare_queries, &j);
    j.blocks = make_blocks(&j);
    const size_t units = (size_t)j.blocks * (size_t)l->kv_heads;
    const int chunks = longest_in_chunks(a);
    if (worth_splitting(&j, chunks)) {
        j.chunks = chunks;
        oct_parallel(pool, units * (size_t)chunks, 1, attend_split, &j);
        oct_parallel(pool, units, 1, fold_split, &j);
    } else {
        oct_parallel(pool, units, 1, attend_whole, &j);
    }
    oct_parallel(pool, (size_t)a->rows, 8, finish_rows, &j);
}
