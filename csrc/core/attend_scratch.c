/* attend_scratch.c: the memory of attention, sized for a step before it computes: each lane's
 * queries, scores and partial results; and where spans of chunks run as tasks of their own, all
 * queries and the partials of all spans. */
#include <limits.h>

#include "csrc/core/attend.h"
#include "csrc/core/mem.h"

#define SPLIT_BYTES ((size_t)64 << 20) /* most memory for partial results of split chunks */

typedef oct_partial partial;
typedef oct_attend_lane lane_buffers;

/* A whole number of cache lines, as the block of values at the front is. */
static size_t lane_floats(int queries, int width, size_t turned_bytes)
{
    const size_t q = (size_t)queries;
    const size_t n = q * (size_t)width + q * CHUNK + (LEVELS + 1) * q * ((size_t)width + 2) + q +
                     turned_bytes / sizeof(float);
    return (n + 15) / 16 * 16;
}

static void lay_out_lane(lane_buffers *b, float *at, int queries, int width, size_t turned_bytes)
{
    const size_t q = (size_t)queries;
    b->turned = (char *)at;
    at += turned_bytes / sizeof *at;
    b->q = at;
    at += q * (size_t)width;
    b->s = at;
    at += q * CHUNK;
    for (int i = 0; i <= LEVELS; i++) {
        partial *p = i ? &b->level[i - 1] : &b->chunk;
        *p = (partial){at, at + q * (size_t)width, at + q * ((size_t)width + 1)};
        at += q * ((size_t)width + 2);
    }
    b->visible = (int *)at;
}

void oct_attend_free(oct_attend_scratch *s)
{
    if (!s) return;
    for (int i = 0; s->lane && i < s->lanes; i++) oct_rows_free(&s->lane[i].codes);
    oct_free(s->blocks);
    oct_free(s->lane);
    oct_free(s->lane_memory);
    oct_free(s->split);
    oct_free(s->q);
    oct_rows_free(&s->codes);
    oct_free(s);
}

static bool add_split(oct_attend_scratch *s, int width)
{
    s->split = oct_alloc(OCT_TAG_SCRATCH, s->split_floats, sizeof *s->split);
    s->q = oct_alloc(OCT_TAG_SCRATCH, s->vectors * (size_t)width, sizeof *s->q);
    return s->split && s->q &&
           oct_rows_alloc(&s->codes, "attend", (int)s->vectors, width) == OCT_OK;
}

static oct_attend_scratch *new_scratch(int64_t rows, int width, int queries, int lanes,
                                       size_t turned_bytes, size_t split_floats, size_t vectors)
{
    oct_attend_scratch *s = oct_zalloc(OCT_TAG_SCRATCH, 1, sizeof *s);
    const size_t each = lane_floats(queries, width, turned_bytes);
    if (!s) return NULL;
    *s = (oct_attend_scratch){.width = width, .queries = queries, .lanes = lanes, .rows = rows,
                              .turned_bytes = turned_bytes, .split_floats = split_floats,
                              .vectors = split_floats ? vectors : 0};
    s->blocks = oct_alloc(OCT_TAG_SCRATCH, (size_t)rows, sizeof *s->blocks);
    s->lane = oct_zalloc(OCT_TAG_SCRATCH, (size_t)lanes, sizeof *s->lane);
    s->lane_memory = oct_alloc(OCT_TAG_SCRATCH, (size_t)lanes * each, sizeof *s->lane_memory);
    bool good = s->blocks && s->lane && s->lane_memory && (!split_floats || add_split(s, width));
    for (int i = 0; good && i < lanes; i++) {
        lay_out_lane(&s->lane[i], s->lane_memory + (size_t)i * each, queries, width,
                     turned_bytes);
        good = oct_rows_alloc(&s->lane[i].codes, "attend", queries, width) == OCT_OK;
    }
    if (good) return s;
    oct_attend_free(s);
    return NULL;
}

static int widest(const oct_cache *c)
{
    int width = 0;
    for (int l = 0; l < c->layers; l++) {
        const int q = c->layer[l].q_width, v = c->layer[l].v_width;
        width = q > width ? q : width;
        width = v > width ? v : width;
    }
    return width;
}

/* A chunk of the largest blocks that are turned, sealed or open. */
static size_t turned_bytes_of(const oct_cache *c)
{
    size_t most = 0;
    for (int l = 0; l < c->layers; l++) {
        const oct_side *k = &c->layer[l].side[OCT_SEGMENT_K];
        if (!c->layer[l].latent) continue;
        most = UNITS * k->unit_bytes > most ? UNITS * k->unit_bytes : most;
        most = k->block_bytes > most ? k->block_bytes : most;
    }
    return CHUNK_PAGES * most;
}

oct_status oct_attend_fit(oct_attend_scratch **scratch, const oct_cache *c, const char *operation,
                          int64_t rows, int heads, int64_t tokens)
{
    const size_t turned = turned_bytes_of(c);
    const int width = widest(c), queries = heads > QUERIES ? heads : QUERIES;
    const oct_attend_cut cut = oct_attend_cut_of(tokens, c->rt->threads);
    const size_t vectors = (size_t)rows * (size_t)heads;
    size_t split = 0;
    if (rows > INT_MAX / heads)
        return oct_fail(OCT_E_VALUE, "%s: %lld rows of %d heads are more than one call takes",
                        operation, (long long)rows, heads);
    if (rows <= QUERIES && cut.chunks > 1 &&
        (!oct_mul(vectors * ((size_t)width + 2), (size_t)cut.spans, &split) ||
         split > SPLIT_BYTES / sizeof(float)))
        split = 0;
    const oct_attend_scratch *s = *scratch;
    if (s && s->rows >= rows && s->width >= width &&
        s->queries >= queries && s->lanes >= c->rt->threads && s->turned_bytes >= turned &&
        (!split || (s->split_floats >= split && s->vectors >= vectors)))
        return OCT_OK;
    if (split && split < 1 << 16) split = 1 << 16;
    oct_attend_scratch *fit = new_scratch(rows, width, queries, c->rt->threads, turned, split,
                                          vectors);
    if (!fit) return oct_fail_memory(operation, "the scratch of attention");
    oct_attend_free(*scratch);
    *scratch = fit;
    return OCT_OK;
}
