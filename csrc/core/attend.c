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

static oct_act act_of(oct_form form)
{
    return form == OCT_FORM_Q8 ? OCT_A8 : form == OCT_FORM_Q8X2 ? OCT_A8X2 : OCT_A32;
}

/* ---- chunks ---------------------------------------------------------------------------------- */

/* One block and KV head, ready to walk pages. Query vectors: rows ascending, heads of the group. */
typedef struct {
    const job *j;
    const oct_part_of_step *part;
    const block *b;
    oct_attend_lane *buf;
    void *kernel_lane;
    partial chunk, level[LEVELS];
    bool held[LEVELS]; /* whether anything was folded into a level yet */
    int head, queries;
    int64_t page_of_queries, tokens; /* the most that any of the queries sees */
} walk;

/* Query vectors of the block: scaled, transformed, quantized as the sealed keys want them. */
static void prepare_queries(const walk *w)
{
    const oct_attend_args *a = w->j->a;
    const oct_side *k = &w->j->l->side[OCT_SEGMENT_K];
    const oct_op_kernels *op = &a->cache->rt->kernels.op;
    const size_t n = (size_t)w->j->group * (size_t)k->width;
    float *to = w->buf->q;
    for (int r = 0; r < w->b->rows; r++, to += n) {
        const float *from = a->q + (size_t)(w->b->row + r) * a->ldq + (size_t)w->head * n;
        for (size_t i = 0; i < n; i++) to[i] = from[i] * a->scale;
        if (!k->transform.on) continue;
        const oct_hadamard_args had = {to, n, w->j->group, k->width, k->transform.block,
                                       k->transform.signs, false, to, n};
        op->hadamard(&had, 0, 1);
    }
    oct_rows *codes = &w->buf->codes;
    codes->act = act_of(k->form);
    codes->m = w->queries;
    codes->k = k->width;
    codes->kp = (k->width + OCT_GROUP - 1) / OCT_GROUP * OCT_GROUP;
    codes->x = w->buf->q;
    codes->ldx = (size_t)k->width;
    if (codes->act == OCT_A32) return;
    const oct_quantize_args quantize = {codes, NULL};
    op->quantize(&quantize, 0, (size_t)w->queries);
}

/* Unit u of the work is block u % blocks of KV head u / blocks. */
static walk start_walk(const job *j, size_t unit, int lane)
{
    const oct_attend_args *a = j->a;
    oct_attend_lane *buf = &a->scratch->lane[lane];
    const block *b = &a->scratch->blocks[unit % (size_t)j->blocks];
    const oct_part_of_step *p = &a->part[b->part];
    walk w = {
        .j = j,
        .part = p,
        .b = b,
        .buf = buf,
        .kernel_lane = a->cache->rt->lanes[lane],
        .chunk = buf->chunk,
        .head = (int)(unit / (size_t)j->blocks),
        .queries = b->rows * j->group,
        .page_of_queries = position_of(a, p, b->row) / P,
        .tokens = visible_of(a, p, b->row + b->rows - 1),
    };
    memcpy(w.level, buf->level, sizeof w.level);
    return w;
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
    const char *next = oct_sealed_block(w->j->a->cache, w->j->a->layer,
                                        w->part->seq->table[page].page, w->head, side);
    return (oct_ahead){next, next + sides[side].block_bytes};
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
            w->queries, form, &w->buf->codes, w->buf->visible, w->buf->s + i * P, CHUNK,
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

/* Adds `from` to a level. The first of a level takes its place and leaves it the level's memory. */
static void fold(walk *w, int level, partial *from)
{
    const size_t d = (size_t)w->j->l->side[OCT_SEGMENT_V].width;
    partial *to = &w->level[level];
    if (w->held[level]) {
        const oct_merge_args args = {to->o, to->m, to->l, d, from->o, from->m, from->l, d, (int)d};
        w->j->a->cache->rt->kernels.op.merge(&args, 0, (size_t)w->queries);
        return;
    }
    const partial mine = *to;
    *to = *from;
    *from = mine;
    w->held[level] = true;
}

/* Level i is full: add it to the one above and start it anew. */
static void close_level(walk *w, int level)
{
    if (!w->held[level]) return;
    fold(w, level + 1, &w->level[level]);
    w->held[level] = false;
}

static void fold_chunk(walk *w, int chunk, partial *p)
{
    fold(w, 0, p);
    if ((chunk + 1) % SUPER == 0) close_level(w, 0);
    if ((chunk + 1) % RUN == 0) close_level(w, 1);
}

/* One row's heads of the group, divided by their sums and back in the model's basis. */
static void put_row(const walk *w, int row, const partial *total)
{
    const oct_attend_args *a = w->j->a;
    const oct_side *v = &w->j->l->side[OCT_SEGMENT_V];
    const int group = w->j->group, d = v->width;
    const size_t n = (size_t)group * (size_t)d;
    float *out = a->out + (size_t)(w->b->row + row) * a->ldo + (size_t)w->head * n;
    for (int g = 0; g < group; g++) {
        const int i = row * group + g;
        const float *o = total ? total->o + (size_t)i * (size_t)d : NULL;
        if (!total || total->l[i] == 0.0f)
            memset(out + g * d, 0, (size_t)d * sizeof *out);
        else
            for (int ch = 0; ch < d; ch++) out[g * d + ch] = o[ch] / total->l[i];
    }
    if (!v->transform.on) return;
    const oct_hadamard_args had = {out, n, group, d, v->transform.block, v->transform.signs, true,
                                   out, n};
    a->cache->rt->kernels.op.hadamard(&had, 0, 1);
}

static void fold_end(walk *w)
{
    close_level(w, 0);
    close_level(w, 1);
    for (int r = 0; r < w->b->rows; r++) put_row(w, r, w->held[2] ? &w->level[2] : NULL);
}

static int chunks_of(const walk *w)
{
    return (int)((w->tokens + CHUNK - 1) / CHUNK);
}

static void attend_whole(void *ctx, size_t lo, size_t hi, int lane)
{
    for (size_t unit = lo; unit < hi; unit++) {
        walk w = start_walk(ctx, unit, lane);
        prepare_queries(&w);
        for (int chunk = 0; chunk < chunks_of(&w); chunk++) {
            attend_chunk(&w, chunk, &w.chunk);
            fold_chunk(&w, chunk, &w.chunk);
        }
        fold_end(&w);
    }
}

/* ---- split: every chunk a task, then a fold per block and head --------------------------------- */

/* Where the partial of (block, head, chunk) lies. The vectors of a block and head are together, and
 * of those of a head the rows ascend:  [head][row][group] vectors x [chunk] of (o, m, l). */
static partial split_at(const walk *w, int chunk)
{
    const job *j = w->j;
    const size_t d = (size_t)j->l->side[OCT_SEGMENT_V].width, q = (size_t)w->queries;
    const size_t vector = ((size_t)w->head * (size_t)j->a->rows + (size_t)w->b->row) *
                          (size_t)j->group;
    float *base = j->a->scratch->split + vector * (d + 2) * (size_t)j->chunks +
                  q * (d + 2) * (size_t)chunk;
    return (partial){base, base + q * d, base + q * (d + 1)};
}

static void attend_split(void *ctx, size_t lo, size_t hi, int lane)
{
    const job *j = ctx;
    const size_t chunks = (size_t)j->chunks;
    for (size_t task = lo; task < hi;) {
        const size_t unit = task / chunks, end = unit * chunks + chunks < hi ? unit * chunks + chunks : hi;
        const walk w = start_walk(j, unit, lane);
        prepare_queries(&w);
        for (; task < end; task++) {
            const int chunk = (int)(task % chunks);
            if (chunk >= chunks_of(&w)) continue;
            const partial p = split_at(&w, chunk);
            attend_chunk(&w, chunk, &p);
        }
    }
}

static void fold_split(void *ctx, size_t lo, size_t hi, int lane)
{
    for (size_t unit = lo; unit < hi; unit++) {
        walk w = start_walk(ctx, unit, lane);
        for (int chunk = 0; chunk < chunks_of(&w); chunk++) {
            partial p = split_at(&w, chunk);
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
    job j = {a, l, a->heads / l->kv_heads, 0, 0};
    j.blocks = make_blocks(&j);
    const size_t units = (size_t)j.blocks * (size_t)l->kv_heads;
    const int chunks = longest_in_chunks(a);
    if (!worth_splitting(&j, chunks)) {
        oct_parallel(pool, units, 1, attend_whole, &j);
        return;
    }
    /* Neighbouring chunks in one claim: the walk asks for memory ahead of itself. */
    const size_t tasks = units * (size_t)chunks;
    j.chunks = chunks;
    oct_parallel(pool, tasks, tasks / (8 * (size_t)a->cache->rt->threads) + 1, attend_split, &j);
    oct_parallel(pool, units, 1, fold_split, &j);
}
