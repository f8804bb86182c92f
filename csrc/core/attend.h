/* attend.h: the shape of attention's work, shared by the driver and its scratch. */
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
    oct_partial chunk, level[LEVELS];
    int *visible;
} oct_attend_lane;

struct oct_attend_scratch {
    int width, queries, lanes; /* capacities, as the next */
    int64_t rows;
    oct_attend_block *blocks; /* [rows] */
    oct_attend_lane *lane;
    float *lane_memory;
    float *split; /* partials of chunks that are tasks of their own */
    size_t split_floats;
};

#endif
