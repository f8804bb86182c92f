/* ahead.h: asking for memory while computing on other memory.
 *
 * Hardware prefetchers come late: blocks of a sequence's pages lie far apart, and a loop over some
 * rows is too long for the processor to run ahead of itself. A burst of requests fills the few
 * buffers that a core has for them and stalls it, and while nothing is asked for memory idles. So a
 * kernel spreads what it asks for over all of its work: it counts its work in units, says when
 * some are done, and the lines that are then due are asked for. */
#ifndef OCT_AHEAD_H
#define OCT_AHEAD_H

#include <immintrin.h>

#include "kernels/inline.h"
#include "kernels/kernels.h"

typedef struct {
    const char *at, *end;
    int lines, work; /* in all */
    int due; /* lines times work; at most 0 between calls, so that it stays small */
} oct_asker;

static inline oct_asker oct_asker_of(oct_ahead ahead, int work)
{
    const int lines = (int)((ahead.end - ahead.at + 63) / 64);
    return (oct_asker){ahead.at, ahead.end, lines, work > 0 ? work : 1, 0};
}

/* What follows a window of so many bytes, as much again: past a matrix's end that asks for memory
 * that nobody reads, which is allowed. */
static inline oct_asker oct_asker_past(const void *window, size_t bytes, int work)
{
    const char *next = (const char *)window + bytes;
    return oct_asker_of((oct_ahead){next, next + bytes}, work);
}

/* So much work is done. Into the second cache: the first one's few buffers would hold each line
 * until it came, and a block asked for early would push out the one in work. */
OCT_INLINE void oct_ask(oct_asker *a, int work)
{
    if (a->at >= a->end) return;
    for (a->due += a->lines * work; a->due > 0; a->due -= a->work, a->at += 64)
        _mm_prefetch(a->at, _MM_HINT_T1);
}

#endif
