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
    const long lines = (long)(ahead.end - ahead.at + 63) / 64;
    return (oct_asker){ahead, (int)((lines + steps - 1) / steps)};
}

OCT_INLINE void oct_ask(oct_asker *a)
{
    for (int i = 0; i < a->lines && a->left.at < a->left.end; i++, a->left.at += 64)
        _mm_prefetch(a->left.at, _MM_HINT_T0);
}

#endif
