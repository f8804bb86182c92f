/* roof, AVX-512 column: roof_simd.inc over simd/v16_avx512.h. Sixteen independent sums are more than
 * latency times ports of any processor that has vpdpbusd. */
#include "kernels/kernels.h"
#include "kernels/num.h"
#include "kernels/simd/v16_avx512.h"

enum { ROOF_ACCS = 16 };

static void int8_task(const oct_roof_args *a, size_t row)
{
    volatile int32_t zero = 0;
    volatile int8_t two = 2, three = 3;
    __m512i acc[ROOF_ACCS];
    const __m512i u = _mm512_set1_epi8(two), s = _mm512_set1_epi8(three);
#pragma GCC unroll 16
    for (int i = 0; i < ROOF_ACCS; i++) acc[i] = _mm512_set1_epi32(zero);
    for (uint32_t step = 0; step < a->steps; step++)
#pragma GCC unroll 16
        for (int i = 0; i < ROOF_ACCS; i++) acc[i] = _mm512_dpbusd_epi32(acc[i], u, s);
    for (int i = 1; i < ROOF_ACCS; i++) acc[0] = _mm512_and_si512(acc[0], acc[i]); /* all alike */
    a->work[row] = (uint64_t)a->steps * ROOF_ACCS * 64;
    a->check[row] = (uint32_t)_mm_cvtsi128_si32(_mm512_castsi512_si128(acc[0]));
}

#include "kernels/op/roof/roof_simd.inc"

oct_kstatus oct_op_roof_avx512(const oct_roof_args *a, size_t lo, size_t hi)
{
    return roof_rows(a, lo, hi);
}
