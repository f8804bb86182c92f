/* pairs_avx2.h: inputs as pairs of int16, which one instruction multiplies and adds in 32 bits.
 *
 * A pair is two inputs that lie two bytes apart in a line of codes (0,2 1,3 4,6 5,7 of eight),
 * because masks and shifts alone bring those together; the rows are laid out to match. */
#ifndef OCT_WEIGHT_PAIRS_AVX2_H
#define OCT_WEIGHT_PAIRS_AVX2_H

#include <immintrin.h>

#include "kernels/inline.h"
#include "kernels/kernels.h"

OCT_INLINE __m256i madd(__m256i dot, __m256i w, int32_t pair)
{
    return _mm256_add_epi32(dot, _mm256_madd_epi16(w, _mm256_set1_epi32(pair)));
}

/* 16 inputs of a row in the order of pairs. */
OCT_INLINE void lay_out(const int8_t *hi, const int8_t *lo, int32_t *to)
{
    const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15, 0,
                                           1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    __m256i q = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)hi));
    if (lo) {
        const __m256i low = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)lo));
        q = _mm256_add_epi16(_mm256_slli_epi16(q, 7), low);
    }
    _mm256_store_si256((__m256i *)to, _mm256_shuffle_epi8(q, order));
}

#endif
