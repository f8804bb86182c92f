/* cpu.h: what threads ask of the processor itself: to wait politely, and to compute as all columns
 * assume. Elsewhere than on x86-64 both do nothing. */
#ifndef OCT_CPU_H
#define OCT_CPU_H

typedef unsigned int oct_fp_word;

#if defined(__x86_64__) && !defined(OCT_PORTABLE)
#include <xmmintrin.h>

static inline void oct_relax(void)
{
    _mm_pause();
}

/* Sets the control word: all exceptions masked, round to nearest, no FTZ, no DAZ; returns the old. */
static inline oct_fp_word oct_fp_enter(void)
{
    const oct_fp_word old = _mm_getcsr();
    _mm_setcsr(0x1F80);
    return old;
}

static inline void oct_fp_leave(oct_fp_word old)
{
    _mm_setcsr(old);
}
#else
static inline void oct_relax(void)
{
}

static inline oct_fp_word oct_fp_enter(void)
{
    return 0;
}

static inline void oct_fp_leave(oct_fp_word old)
{
    (void)old;
}
#endif

#endif
