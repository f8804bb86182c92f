/* roof, AVX-512 column: sixteen independent accumulators, more than latency times ports of any
 * processor that has vpdpbusd. */
#include <immintrin.h>

#include "kernels/kernels.h"

enum { ACCS = 16 };
/* All accumulators go the same way, which the compiler must not see: it would keep one. */
#define OPAQUE(x) __asm__("" : "+v"(x))

static void int8_task(const oct_roof_args *a, size_t row)
{
    __m512i acc[ACCS];
    volatile int8_t two = 2, three = 3;
    const __m512i u = _mm512_set1_epi8(two), s = _mm512_set1_epi8(three);
#pragma GCC unroll 16
    for (int i = 0; i < ACCS; i++) {
        acc[i] = _mm512_setzero_si512();
        OPAQUE(acc[i]);
    }
    for (uint32_t step = 0; step < a->steps; step++)
#pragma GCC unroll 16
        for (int i = 0; i < ACCS; i++) acc[i] = _mm512_dpbusd_epi32(acc[i], u, s);
    for (int i = 1; i < ACCS; i++) acc[0] = _mm512_and_si512(acc[0], acc[i]); /* all alike */
    a->work[row] = (uint64_t)a->steps * ACCS * 64;
    a->check[row] = (uint32_t)_mm_cvtsi128_si32(_mm512_castsi512_si128(acc[0]));
}

static void f32_task(const oct_roof_args *a, size_t row)
{
    __m512 acc[ACCS];
    volatile float half = 0.5f;
    const __m512 x = _mm512_set1_ps(half), one = _mm512_set1_ps(1.0f);
#pragma GCC unroll 16
    for (int i = 0; i < ACCS; i++) {
        acc[i] = _mm512_setzero_ps();
        OPAQUE(acc[i]);
    }
    for (uint32_t step = 0; step < a->steps; step++)
#pragma GCC unroll 16
        for (int i = 0; i < ACCS; i++) acc[i] = _mm512_fmadd_ps(acc[i], x, one);
    __m512i all = _mm512_castps_si512(acc[0]);
    for (int i = 1; i < ACCS; i++) all = _mm512_and_si512(all, _mm512_castps_si512(acc[i]));
    a->work[row] = (uint64_t)a->steps * ACCS * 16;
    a->check[row] = (uint32_t)_mm_cvtsi128_si32(_mm512_castsi512_si128(all));
}

static void read_task(const oct_roof_args *a, size_t row)
{
    const char *p = (const char *)a->data + row * a->bytes;
    __m512i x[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) x[i] = _mm512_setzero_si512();
    for (const char *end = p + a->bytes; p < end; p += 512)
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) x[i] = _mm512_xor_si512(x[i], _mm512_load_si512(p + 64 * i));
    for (int i = 1; i < 8; i++) x[0] = _mm512_xor_si512(x[0], x[i]);
    uint32_t lane[16], all = 0;
    _mm512_storeu_si512(lane, x[0]);
    for (int i = 0; i < 16; i++) all ^= lane[i];
    a->work[row] = a->bytes;
    a->check[row] = all;
}

oct_kstatus oct_op_roof_avx512(const oct_roof_args *a, size_t lo, size_t hi)
{
    for (size_t row = lo; row < hi; row++)
        (a->kind == OCT_ROOF_INT8 ? int8_task : a->kind == OCT_ROOF_F32 ? f32_task : read_task)(a, row);
    return OCT_K_OK;
}
