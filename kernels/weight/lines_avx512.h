/* lines_avx512.h: reading what a group of the grouped formats stores, 16 channels at a time. A
 * template like grouped.h, for the columns that have these registers. */
#ifndef OCT_WEIGHT_LINES_AVX512_H
#define OCT_WEIGHT_LINES_AVX512_H

#include <immintrin.h>

#include "kernels/inline.h"
#include "kernels/weight/grouped.h"

/* Scales or minima of 16 channels. */
OCT_INLINE __m512 widen16(const uint8_t *p, oct_dtype type)
{
    const __m256i h = _mm256_loadu_si256((const __m256i *)p);
    return type == OCT_F16 ? _mm512_cvtph_ps(h)
                           : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

/* The zero points of half h, each in all four bytes of its channel. */
OCT_INLINE __m512i zeros16(const uint8_t *group, int h)
{
    const __m512i copy = _mm512_set4_epi32(0x0C0C0C0C, 0x08080808, 0x04040404, 0);
    const __m128i z = _mm_loadu_si128((const __m128i *)(group + EXTRA_AT + h * HALF_N));
    return _mm512_shuffle_epi8(_mm512_cvtepu8_epi32(z), copy);
}

/* The low and the high nibbles of a line. */
OCT_INLINE void split_line(const uint8_t *line, __m512i w[2])
{
    const __m512i low = _mm512_set1_epi8(15), v = _mm512_loadu_si512(line);
    w[0] = _mm512_and_si512(v, low);
    w[1] = _mm512_and_si512(_mm512_srli_epi16(v, 4), low);
}

#endif
