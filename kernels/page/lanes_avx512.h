/* lanes_avx512.h: what all AVX-512 page kernels ask of sixteen lanes. */
#ifndef OCT_PAGE_LANES_AVX512_H
#define OCT_PAGE_LANES_AVX512_H

#include <immintrin.h>

#include "kernels/inline.h"

/* The first n of sixteen; n may be negative or more. */
OCT_INLINE __mmask16 oct_lanes_below(int n)
{
    return n >= 16 ? 0xFFFF : n <= 0 ? 0 : (__mmask16)((1 << n) - 1);
}

OCT_INLINE __m512 oct_widen_bf16(const void *x)
{
    const __m512i v = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x));
    return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
}

#endif
