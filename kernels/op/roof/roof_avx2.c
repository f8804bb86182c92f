/* roof, AVX2 column: roof_simd.inc over simd/v16_avx2.h. Without VNNI a byte product takes
 * vpmaddubsw, vpmaddwd and vpaddd; what is counted are the products, so its roof is that of the whole
 * sequence. */
#include "kernels/kernels.h"
#include "kernels/num.h"
#include "kernels/simd/v16_avx2.h"

enum { ROOF_ACCS = 6, BYTE_ACCS = 2 * ROOF_ACCS };

static void int8_task(const oct_roof_args *a, size_t row)
{
    volatile int32_t zero = 0;
    volatile int8_t two = 2, three = 3;
    __m256i acc[BYTE_ACCS], u = _mm256_set1_epi8(two);
    const __m256i s = _mm256_set1_epi8(three), ones = _mm256_set1_epi16(1);
#pragma GCC unroll 12
    for (int i = 0; i < BYTE_ACCS; i++) acc[i] = _mm256_set1_epi32(zero);
    for (uint32_t step = 0; step < a->steps; step++)
#pragma GCC unroll 12
        for (int i = 0; i < BYTE_ACCS; i++) {
            __asm__("" : "+x"(u)); /* as if new: the product is not made once for all */
            const __m256i pairs = _mm256_maddubs_epi16(u, s);
            acc[i] = _mm256_add_epi32(acc[i], _mm256_madd_epi16(pairs, ones));
        }
    for (int i = 1; i < BYTE_ACCS; i++) acc[0] = _mm256_and_si256(acc[0], acc[i]); /* all alike */
    a->work[row] = (uint64_t)a->steps * BYTE_ACCS * 32;
    a->check[row] = (uint32_t)_mm_cvtsi128_si32(_mm256_castsi256_si128(acc[0]));
}

#include "kernels/op/roof/roof_simd.inc"

oct_kstatus oct_op_roof_avx2(const oct_roof_args *a, size_t lo, size_t hi)
{
    return roof_rows(a, lo, hi);
}
