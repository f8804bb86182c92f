/* roof, AVX2 column. Without VNNI a byte product takes vpmaddubsw, vpmaddwd and vpaddd; what is
 * counted are the products, so its roof is that of the whole sequence. */
#include <immintrin.h>

#include "kernels/kernels.h"

enum { ACCS = 12 };
/* All accumulators go the same way, which the compiler must not see: it would keep one. */
#define OPAQUE(x) __asm__("" : "+x"(x))

static void int8_task(const oct_roof_args *a, size_t row)
{
    __m256i acc[ACCS];
    volatile int8_t two = 2, three = 3;
    __m256i u = _mm256_set1_epi8(two);
    const __m256i s = _mm256_set1_epi8(three), ones = _mm256_set1_epi16(1);
#pragma GCC unroll 12
    for (int i = 0; i < ACCS; i++) {
        acc[i] = _mm256_setzero_si256();
        OPAQUE(acc[i]);
    }
    for (uint32_t step = 0; step < a->steps; step++)
#pragma GCC unroll 12
        for (int i = 0; i < ACCS; i++) {
            OPAQUE(u); /* as if new: the product is not made once for all */
            const __m256i pairs = _mm256_maddubs_epi16(u, s);
            acc[i] = _mm256_add_epi32(acc[i], _mm256_madd_epi16(pairs, ones));
        }
    for (int i = 1; i < ACCS; i++) acc[0] = _mm256_and_si256(acc[0], acc[i]); /* all alike */
    a->work[row] = (uint64_t)a->steps * ACCS * 32;
    a->check[row] = (uint32_t)_mm_cvtsi128_si32(_mm256_castsi256_si128(acc[0]));
}

static void f32_task(const oct_roof_args *a, size_t row)
{
    __m256 acc[ACCS];
    volatile float half = 0.5f;
    const __m256 x = _mm256_set1_ps(half), one = _mm256_set1_ps(1.0f);
#pragma GCC unroll 12
    for (int i = 0; i < ACCS; i++) {
        acc[i] = _mm256_setzero_ps();
        OPAQUE(acc[i]);
    }
    for (uint32_t step = 0; step < a->steps; step++)
#pragma GCC unroll 12
        for (int i = 0; i < ACCS; i++) acc[i] = _mm256_fmadd_ps(acc[i], x, one);
    for (int i = 1; i < ACCS; i++) acc[0] = _mm256_and_ps(acc[0], acc[i]);
    a->work[row] = (uint64_t)a->steps * ACCS * 8;
    a->check[row] = (uint32_t)_mm_cvtsi128_si32(_mm_castps_si128(_mm256_castps256_ps128(acc[0])));
}

static void read_task(const oct_roof_args *a, size_t row)
{
    const char *p = (const char *)a->data + row * a->bytes;
    __m256i x[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) x[i] = _mm256_setzero_si256();
    for (const char *end = p + a->bytes; p < end; p += 256)
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
            x[i] = _mm256_xor_si256(x[i], _mm256_load_si256((const __m256i *)(p + 32 * i)));
    for (int i = 1; i < 8; i++) x[0] = _mm256_xor_si256(x[0], x[i]);
    uint32_t lane[8], all = 0;
    _mm256_storeu_si256((__m256i *)lane, x[0]);
    for (int i = 0; i < 8; i++) all ^= lane[i];
    a->work[row] = a->bytes;
    a->check[row] = all;
}

oct_kstatus oct_op_roof_avx2(const oct_roof_args *a, size_t lo, size_t hi)
{
    for (size_t row = lo; row < hi; row++)
        (a->kind == OCT_ROOF_INT8 ? int8_task : a->kind == OCT_ROOF_F32 ? f32_task : read_task)(a, row);
    return OCT_K_OK;
}
