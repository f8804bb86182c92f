/* ahead.h: asking for memory while computing on other memory. Blocks of a sequence's pages lie far
 * apart, so no hardware prefetcher sees the next one coming, and a burst of requests before a block
 * would take as long as reading it: a few lines go into each step of a kernel's loop instead. */
#ifndef OCT_PAGE_AHEAD_H
#define OCT_PAGE_AHEAD_H

#include <immintrin.h>

#include "kernels/inline.h"
#include "kernels/kernels.h"

typedef struct {
    oct_ahead left;
    int lines; /* of each step */
} oct_asker;

static inline oct_asker oct_asker_of(oct_ahead ahead, int steps)
{
    const unsigned lines = (unsigned)(ahead.end - ahead.at + 63) / 64, each = (unsigned)steps;
    return (oct_asker){ahead, (int)((lines + each - 1) / each)};
}

/* Past the end by less than a step's lines: most often that is what the walk reads next. */
OCT_INLINE void oct_ask(oct_asker *a)
{
    const char *at = a->left.at;
    if (at >= a->left.end) return;
    for (int i = 0; i < a->lines; i++) _mm_prefetch(at + 64 * i, _MM_HINT_T0);
    a->left.at = at + 64 * a->lines;
}

#endif
