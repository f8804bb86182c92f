/* next.h: asking for the next window of weights while one is in work.
 *
 * A loop over several rows is too long for the processor to run ahead of itself, and its
 * prefetchers follow neither the interleaved lines of a group nor the jump of a strip back to the
 * window's start: memory would wait for arithmetic. So every step of a strip asks for some lines of
 * the window that comes next, a share that is all of them by the time that all strips have passed.
 * Past a matrix's end that asks for memory that nobody reads, which is allowed. */
#ifndef OCT_WEIGHT_NEXT_H
#define OCT_WEIGHT_NEXT_H

#include <stddef.h>

#include "kernels/inline.h"

enum { NEXT_LINE = 64 };

typedef struct {
    const char *at, *end; /* of the next window: what is still to be asked for */
    int lines;            /* that a step asks for */
} oct_next;

/* From `next`, `steps` steps of `bytes` each, shared by so many strips. */
static inline oct_next oct_next_of(const void *next, int steps, int bytes, int strips)
{
    const char *at = next;
    const int lines = (bytes + NEXT_LINE - 1) / NEXT_LINE;
    return (oct_next){at, at + (size_t)steps * (size_t)bytes, (lines + strips - 1) / strips};
}

OCT_INLINE void oct_next_ask(const oct_next *a, int step)
{
    const char *at = a->at + (size_t)(step * a->lines) * NEXT_LINE;
    for (int i = 0; i < a->lines; i++, at += NEXT_LINE) __builtin_prefetch(at);
}

/* A strip has passed. */
static inline void oct_next_pass(oct_next *a, int steps)
{
    a->at += (size_t)(steps * a->lines) * NEXT_LINE;
    if (a->at >= a->end) a->lines = 0;
}

#endif
