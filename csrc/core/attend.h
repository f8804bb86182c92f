/* attend.h: the shape of attention's work, shared by the driver, its walks and its scratch. */
#ifndef OCT_CORE_ATTEND_H
#define OCT_CORE_ATTEND_H

#include "csrc/core/cache.h"
#include "csrc/core/weights.h"

enum {
    QUERIES = 64,
    CHUNK = 256,
    CHUNK_PAGES = CHUNK / P,
    SUPER = 4096 / CHUNK, /* chunks */
    RUN = 32768 / CHUNK,
    LEVELS = 3,
    BUSY = 4, /* tasks that keep a lane busy to the end */
    AHEAD_BYTES = 32768, /* how far ahead of the walk memory is asked for, at most a chunk */
};

typedef struct {
    int part, rows;
    int64_t row; /* in the batch */
} oct_attend_block;

/* (o, m, l) of up to `queries` vectors. */
typedef struct {
    float *o, *m, *l;
} oct_partial;

typedef struct {
    float *q;       /* [queries][width] of the block that is walked */
    oct_rows codes; /* of q */
    float *s;       /* [queries][CHUNK] */
    char *turned;   /* a latent's blocks as values, those of a chunk */
    oct_partial chunk, level[LEVELS];
    int *visible;
} oct_attend_lane;

struct oct_attend_scratch {
    int width, queries, lanes; /* capacities, as the next two */
    size_t turned_bytes;
    int64_t rows;
    oct_attend_block *blocks; /* [rows] */
    oct_attend_lane *lane;
    float *lane_memory;
    /* Where spans of chunks are tasks of their own: */
    float *split; /* their partials */
    size_t split_floats;
    float *q; /* [rows * heads][width]: all queries, and their codes */
    oct_rows codes;
    size_t vectors; /* rows * heads */
};

/* How `tokens` are cut where spans of chunks are tasks: a span is a super-chunk once there are
 * enough of them for all lanes. */
typedef struct {
    int chunks, span, spans;
} oct_attend_cut;

static inline oct_attend_cut oct_attend_cut_of(int64_t tokens, int threads)
{
    const int chunks = (int)((tokens + CHUNK - 1) / CHUNK);
    const int span = chunks >= BUSY * threads * SUPER ? SUPER : 1;
    return (oct_attend_cut){chunks, span, (chunks + span - 1) / span};
}

/* One call on one layer. */
typedef struct {
    const oct_attend_args *a;
    const oct_layer *l;
    int group; /* query heads per KV head */
    int blocks;
    int span, spans; /* spans > 0: blocks are split in so many spans of so many chunks, at most */
    int each;        /* tasks of a span: one a head, or one for all heads */
    int far[2];      /* blocks of K and of V that memory is asked for ahead */
} oct_attend_job;

/* One block and KV head, ready to walk pages. Query vectors: rows ascending, heads of the group. */
typedef struct {
    const oct_attend_job *j;
    const oct_part_of_step *part;
    const oct_attend_block *b;
    oct_attend_lane *buf;
    void *kernel_lane;
    float *q;       /* [queries][width of K], and their codes */
    oct_rows codes;
    oct_rows rotated; /* what meets the rotated keys of a latent layer */
    oct_partial chunk, level[LEVELS];
    bool held[LEVELS]; /* whether anything was folded into a level yet */
    bool all_visible;  /* buf->visible says that every query sees the whole page */
    int head, queries, first_chunk;
    int64_t page_of_queries, first_page; /* pages before this one none of the queries sees */
    int64_t tokens; /* the most that any of the queries sees */
} oct_walk;

static inline int64_t oct_position_of(const oct_attend_args *a, const oct_part_of_step *p,
                                      int64_t row)
{
    return a->after ? p->start : p->start + (row - p->row);
}

static inline int64_t oct_visible_of(const oct_attend_args *a, const oct_part_of_step *p,
                                     int64_t row)
{
    return oct_position_of(a, p, row) + !a->after;
}

/* The first token that a query at this position sees. */
static inline int64_t oct_seen_from(int window, int64_t position)
{
    const int64_t from = window ? position - window + 1 : 0;
    return from > 0 ? from : 0;
}

/* Where the walk of a block begins, a matter of its page alone: of which rows share a block, nothing
 * may depend. A row that sees none of the first chunk folds an empty one. */
static inline int oct_first_chunk(const oct_attend_args *a, const oct_attend_block *b)
{
    const int64_t page = oct_position_of(a, &a->part[b->part], b->row) / P;
    return (int)(oct_seen_from(a->window, page * P) / CHUNK);
}

/* Unit u of the work is KV head u % kv_heads of block u / kv_heads: a page's heads lie one after
 * the other. */
oct_walk oct_walk_start(const oct_attend_job *, size_t unit, int lane);
void oct_walk_prepare(oct_walk *); /* its queries, before any chunk */
size_t oct_walk_vector(const oct_walk *); /* its first among all: [head][row][group] */
int oct_walk_chunks(const oct_walk *);
void oct_walk_chunk(oct_walk *, int chunk, const oct_partial *out);

/* Add `from` to a level; the first of a level takes its place and leaves it the level's memory. */
void oct_walk_fold(oct_walk *, int level, oct_partial *from);
/* The same, of what was read up to chunk `end`; levels that are full by then go up. */
void oct_walk_fold_upto(oct_walk *, int end, int level, oct_partial *from);
void oct_walk_end(oct_walk *); /* writes the outputs */

#endif
