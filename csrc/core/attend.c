/* attend.c: one driver for prefill and decode, over sealed and open pages.
 *
 * A block is up to 64 query vectors of one KV head: rows of one sequence whose positions lie in one
 * page (so that the reading law shows all of them the same form of every page) times the heads
 * that share the KV head. Keys are read in chunks of 256 tokens at absolute positions; a chunk gives
 * (o, m, l), chunks fold in order inside a super-chunk of 4,096 tokens, those inside a run of
 * 32,768, and runs into the result. The fold order depends on positions alone, so it does not
 * matter whether one lane walks all chunks or each chunk is its own task. What a walk does is in
 * attend_walk.c; here is which walks there are, and who takes them. */
#include "csrc/core/attend.h"

typedef oct_attend_block block;
typedef oct_attend_job job;
typedef oct_partial partial;
typedef oct_walk walk;

static void attend_whole(void *ctx, size_t lo, size_t hi, int lane)
{
    for (size_t unit = lo; unit < hi; unit++) {
        walk w = oct_walk_start(ctx, unit, lane);
        oct_walk_prepare(&w);
        for (int chunk = w.first_chunk; chunk < oct_walk_chunks(&w); chunk++) {
            oct_walk_chunk(&w, chunk, &w.chunk);
            oct_walk_fold_upto(&w, chunk + 1, 0, &w.chunk);
        }
        oct_walk_end(&w);
    }
}

/* ---- split: spans of chunks are tasks, then a fold per block and head --------------------------
 *
 * Inside a span the heads of a chunk follow each other, since that is how their blocks lie in a
 * page: memory is read nearly in order, which is up to 1.7 times as fast as head after head. */

static void prepare_split(void *ctx, size_t lo, size_t hi, int lane)
{
    for (size_t unit = lo; unit < hi; unit++) {
        walk w = oct_walk_start(ctx, unit, lane);
        oct_walk_prepare(&w);
    }
}

/* Where the partial of (block, head, span) lies: [vector of oct_walk_vector][span] of (o, m, l). A
 * block's spans count from that of its first chunk. */
static partial split_at(const walk *w, int span)
{
    const job *j = w->j;
    const size_t d = (size_t)j->l->v_width, q = (size_t)w->queries;
    float *base = j->a->scratch->split + oct_walk_vector(w) * (d + 2) * (size_t)j->spans +
                  q * (d + 2) * (size_t)span;
    return (partial){base, base + q * d, base + q * (d + 1)};
}

/* A chunk of one head, added to the span's partial. */
static void attend_into(walk *w, int chunk)
{
    const int span = w->j->span;
    if (chunk < w->first_chunk || chunk >= oct_walk_chunks(w)) return;
    const partial to = split_at(w, chunk / span - w->first_chunk / span);
    if (chunk % span == 0 || chunk == w->first_chunk) {
        oct_walk_chunk(w, chunk, &to);
        return;
    }
    oct_walk_chunk(w, chunk, &w->chunk);
    w->level[0] = to;
    w->held[0] = true;
    oct_walk_fold(w, 0, &w->chunk);
}

static void attend_split(void *ctx, size_t lo, size_t hi, int lane)
{
    const job *j = ctx;
    const size_t heads = (size_t)j->l->kv_heads, each = (size_t)j->each, some = heads / each;
    for (size_t task = lo; task < hi; task++) {
        const size_t span = task / each; /* of all blocks' */
        const size_t which = span / (size_t)j->spans, first = which * heads + task % each * some;
        const int skipped = oct_first_chunk(j->a, &j->a->scratch->blocks[which]) / j->span;
        const int from = (skipped + (int)(span % (size_t)j->spans)) * j->span;
        for (int chunk = from; chunk < from + j->span; chunk++)
            for (size_t unit = first; unit < first + some; unit++) {
                walk w = oct_walk_start(j, unit, lane);
                attend_into(&w, chunk);
            }
    }
}

static void fold_split(void *ctx, size_t lo, size_t hi, int lane)
{
    const job *j = ctx;
    for (size_t unit = lo; unit < hi; unit++) {
        walk w = oct_walk_start(ctx, unit, lane);
        const int first = w.first_chunk / j->span;
        for (int span = first; span * j->span < oct_walk_chunks(&w); span++) {
            partial p = split_at(&w, span - first);
            oct_walk_fold_upto(&w, (span + 1) * j->span, j->span > 1, &p);
        }
        oct_walk_end(&w);
    }
}

/* ---- the driver ------------------------------------------------------------------------------ */

static int blocks_ahead(size_t block_bytes)
{
    const size_t far = AHEAD_BYTES / block_bytes;
    return far < 1 ? 1 : far > 2 * CHUNK_PAGES ? 2 * CHUNK_PAGES : (int)far;
}

static int make_blocks(const job *j)
{
    const oct_attend_args *a = j->a;
    const int64_t most = j->group < QUERIES ? QUERIES / j->group : 1;
    int n = 0;
    for (int i = 0; i < a->parts; i++) {
        const oct_part_of_step *p = &a->part[i];
        for (int64_t row = p->row, end = p->row + p->n; row < end;) {
            const int64_t page_end = a->after ? end : row + P - oct_position_of(a, p, row) % P;
            int64_t stop = row + most;
            stop = stop < page_end ? stop : page_end;
            stop = stop < end ? stop : end;
            a->scratch->blocks[n++] = (block){i, (int)(stop - row), row};
            row = stop;
        }
    }
    return n;
}

static int64_t longest(const oct_attend_args *a)
{
    int64_t tokens = 0;
    for (int i = 0; i < a->parts; i++) {
        const int64_t seen = oct_visible_of(a, &a->part[i], a->part[i].row + a->part[i].n - 1);
        tokens = seen > tokens ? seen : tokens;
    }
    return tokens;
}

/* The most spans of so many chunks that a block walks. */
static int most_spans(const job *j, int span)
{
    const oct_attend_args *a = j->a;
    int most = 0;
    for (int i = 0; i < j->blocks; i++) {
        const block *b = &a->scratch->blocks[i];
        const int64_t tokens = oct_visible_of(a, &a->part[b->part], b->row + b->rows - 1);
        const int chunks = (int)((tokens + CHUNK - 1) / CHUNK);
        const int spans = (chunks + span - 1) / span - oct_first_chunk(a, b) / span;
        most = spans > most ? spans : most;
    }
    return most;
}

/* Split where there are too few blocks to keep the lanes busy, or where each has so few queries that
 * memory decides, and where the partials have room. */
static bool worth_splitting(const job *j, int spans)
{
    const oct_attend_args *a = j->a;
    const oct_attend_scratch *s = a->scratch;
    const size_t d = (size_t)j->l->v_width;
    const size_t vectors = (size_t)a->rows * (size_t)a->heads;
    return spans > 1 && vectors <= s->vectors &&
           vectors * (d + 2) * (size_t)spans <= s->split_floats &&
           (a->rows == j->blocks || j->blocks * j->l->kv_heads < BUSY * a->cache->rt->threads);
}

void oct_attend_run(const oct_attend_args *a)
{
    oct_pool *pool = a->cache->rt->pool;
    const oct_layer *l = &a->cache->layer[a->layer];
    const int threads = a->cache->rt->threads;
    job j = {.a = a, .l = l, .group = a->heads / l->kv_heads,
             .far = {blocks_ahead(l->latent ? l->head_bytes : l->side[0].block_bytes),
                     blocks_ahead(l->side[1].block_bytes)}};
    j.blocks = make_blocks(&j);
    const size_t units = (size_t)j.blocks * (size_t)l->kv_heads;
    const int span = oct_attend_cut_of(longest(a), threads).span, spans = most_spans(&j, span);
    if (!worth_splitting(&j, spans)) {
        oct_parallel(pool, units, 1, attend_whole, &j);
        return;
    }
    j.span = span;
    j.spans = spans;
    j.each = span == 1 || spans < BUSY * threads ? l->kv_heads : 1;
    const size_t tasks = (size_t)j.blocks * (size_t)j.spans * (size_t)j.each;
    /* One row's queries are a microsecond: a barrier would cost more than it saves. */
    oct_parallel(pool, units, a->rows == 1 ? units : 1, prepare_split, &j);
    oct_parallel_shares(pool, tasks, tasks / ((size_t)BUSY * (size_t)threads) + 1, attend_split, &j);
    oct_parallel(pool, units, 1, fold_split, &j);
}
