/* v16 on AVX-512: sixteen floats in one register. The same names with the same bits are in
 * v16_avx2.h; op bodies (*_simd.inc) are written once in this vocabulary.
 *
 * `_n` forms touch the first n <= 16 lanes of memory only. v16_max(a, b) is b where either is NaN.
 * Masks are v16m; v16m_bits gives lane i as bit i. d8 is eight doubles. */
#ifndef OCT_V16_H
#define OCT_V16_H

#include <immintrin.h>

#include "kernels/num.h"
#include "kernels/op/real64.h"

#define V16_TILE 4 /* columns of v16 in a register tile of 6 rows: 24 sums of 32 registers */

typedef __m512 v16;
typedef __mmask16 v16m;
typedef __m256i h16; /* sixteen 16-bit elements */
typedef __m512d d8;

static inline v16 v16_set1(float x)
{
    return _mm512_set1_ps(x);
}

static inline v16 v16_set1_bits(uint32_t u)
{
    return _mm512_castsi512_ps(_mm512_set1_epi32((int)u));
}

static inline v16 v16_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

static inline void v16_store(float *p, v16 x)
{
    _mm512_storeu_ps(p, x);
}

static inline v16m v16m_below(int n) /* lanes < n, for any n */
{
    return n >= 16 ? 0xFFFF : n <= 0 ? 0 : (v16m)((1u << n) - 1);
}

static inline v16 v16_load_or(const float *p, int n, v16 other)
{
    return _mm512_mask_loadu_ps(other, v16m_below(n), p);
}

static inline v16 v16_load_n(const float *p, int n) /* +0 elsewhere */
{
    return _mm512_maskz_loadu_ps(v16m_below(n), p);
}

static inline void v16_store_n(float *p, int n, v16 x)
{
    _mm512_mask_storeu_ps(p, v16m_below(n), x);
}

static inline v16 v16_add(v16 a, v16 b)
{
    return _mm512_add_ps(a, b);
}

static inline v16 v16_sub(v16 a, v16 b)
{
    return _mm512_sub_ps(a, b);
}

static inline v16 v16_mul(v16 a, v16 b)
{
    return _mm512_mul_ps(a, b);
}

static inline v16 v16_div(v16 a, v16 b)
{
    return _mm512_div_ps(a, b);
}

static inline v16 v16_fma(v16 a, v16 b, v16 c)
{
    return _mm512_fmadd_ps(a, b, c);
}

static inline v16 v16_max(v16 a, v16 b)
{
    return _mm512_max_ps(a, b);
}

static inline v16 v16_xor(v16 a, v16 b)
{
    return _mm512_xor_ps(a, b);
}

/* Flips the sign of lane i where bit i is set. */
static inline v16 v16_negate(v16 x, unsigned bits)
{
    const __m512i sign = _mm512_set1_epi32(INT32_MIN), u = _mm512_castps_si512(x);
    return _mm512_castsi512_ps(_mm512_mask_xor_epi32(u, (v16m)bits, u, sign));
}

static inline v16m v16_gt(v16 a, v16 b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
}

static inline v16m v16_lt(v16 a, v16 b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
}

static inline v16m v16_eq(v16 a, v16 b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ);
}

static inline v16m v16_isnan(v16 a)
{
    return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
}

static inline v16 v16_select(v16m m, v16 yes, v16 no)
{
    return _mm512_mask_blend_ps(m, no, yes);
}

static inline unsigned v16m_bits(v16m m)
{
    return m;
}

static inline unsigned v16_nonfinite_bits(v16 x)
{
    return _mm512_fpclass_ps_mask(x, 0x81 | 0x18); /* quiet, signalling NaN; +inf, -inf */
}

/* oct_exp of num.h, step by step. */
/* Of x that is not above OCT_EXP_MAX, or NaN. Nothing here is subnormal, so that scaling by 2^n is
 * the exact product of the scalar column; a NaN goes through all steps. */
static inline v16 v16_exp_bounded(v16 x)
{
    const __mmask16 keep = _mm512_cmp_ps_mask(x, v16_set1(OCT_EXP_MIN), _CMP_NLT_UQ);
    const v16 n = _mm512_roundscale_ps(v16_mul(x, v16_set1(1.44269504088896341f)),
                                       _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    v16 r = v16_fma(n, v16_set1(-0.693359375f), x);
    r = v16_fma(n, v16_set1(2.12194440e-4f), r);
    v16 p = v16_set1(1.9875691500e-4f);
    p = v16_fma(p, r, v16_set1(1.3981999507e-3f));
    p = v16_fma(p, r, v16_set1(8.3334519073e-3f));
    p = v16_fma(p, r, v16_set1(4.1665795894e-2f));
    p = v16_fma(p, r, v16_set1(1.6666665459e-1f));
    p = v16_fma(p, r, v16_set1(5.0000001201e-1f));
    const v16 y = v16_add(v16_fma(p, v16_mul(r, r), r), v16_set1(1.0f));
    return _mm512_maskz_scalef_ps(keep, y, n);
}

static inline v16 v16_exp(v16 x)
{
    return v16_select(v16_gt(x, v16_set1(OCT_EXP_MAX)), v16_set1(INFINITY), v16_exp_bounded(x));
}

static inline float v16_largest(v16 x) /* no NaN among the lanes; of zeros, either */
{
    return _mm512_reduce_max_ps(x);
}

static inline float v16_reduce(v16 x) /* oct_reduce_tree */
{
    const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

/* Lane i becomes lane i ^ distance, distance 1, 2, 4 or 8 (a constant after inlining). */
static inline v16 v16_swap(v16 x, int distance)
{
    if (distance == 1) return _mm512_permute_ps(x, 0xB1);
    if (distance == 2) return _mm512_permute_ps(x, 0x4E);
    if (distance == 4) return _mm512_shuffle_f32x4(x, x, 0xB1);
    return _mm512_shuffle_f32x4(x, x, 0x4E);
}

/* (lo, hi) as sixteen pairs: their first and second elements; and back. */
static inline void v16_split(v16 lo, v16 hi, v16 *first, v16 *second)
{
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    *first = _mm512_permutex2var_ps(lo, even, hi);
    *second = _mm512_permutex2var_ps(lo, _mm512_add_epi32(even, _mm512_set1_epi32(1)), hi);
}

static inline void v16_join(v16 first, v16 second, v16 *lo, v16 *hi)
{
    const __m512i l = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    *lo = _mm512_permutex2var_ps(first, l, second);
    *hi = _mm512_permutex2var_ps(first, _mm512_add_epi32(l, _mm512_set1_epi32(8)), second);
}

/* Unsigned keys that ascend with the float, -0 as +0, NaN 0 (op/sample/sample.h), as raw bits. */
static inline v16 v16_order_key(v16 x)
{
    const __m512i u = _mm512_castps_si512(v16_add(x, v16_set1(0.0f)));
    const __m512i flip = _mm512_or_si512(_mm512_srai_epi32(u, 31), _mm512_set1_epi32(INT32_MIN));
    return v16_select(v16_isnan(x), v16_set1(0.0f), _mm512_castsi512_ps(_mm512_xor_si512(u, flip)));
}

static inline h16 v16_to_f16(v16 x)
{
    return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

static inline h16 v16_to_bf16(v16 x)
{
    const __m512i u = _mm512_castps_si512(x), top = _mm512_srli_epi32(u, 16);
    const __m512i odd = _mm512_and_si512(top, _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7FFF)), odd);
    const __m512i quiet = _mm512_or_si512(top, _mm512_set1_epi32(0x40));
    return _mm512_cvtepi32_epi16(
        _mm512_mask_blend_epi32(v16_isnan(x), _mm512_srli_epi32(up, 16), quiet));
}

static inline void h16_store_n(uint16_t *p, int n, h16 x)
{
    _mm256_mask_storeu_epi16(p, v16m_below(n), x);
}

/* Elements whose low 15 bits are at least `limit`. */
static inline unsigned h16_from_bits(h16 x, int limit)
{
    const h16 low = _mm256_and_si256(x, _mm256_set1_epi16(0x7FFF));
    return _mm256_cmpgt_epi16_mask(low, _mm256_set1_epi16((short)(limit - 1)));
}

static inline d8 d8_set1(double x)
{
    return _mm512_set1_pd(x);
}

static inline d8 d8_low(v16 x) /* lanes 0..7 */
{
    return _mm512_cvtps_pd(_mm512_castps512_ps256(x));
}

static inline d8 d8_high(v16 x)
{
    return _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
}

static inline d8 d8_add(d8 a, d8 b)
{
    return _mm512_add_pd(a, b);
}

static inline d8 d8_sub(d8 a, d8 b)
{
    return _mm512_sub_pd(a, b);
}

static inline d8 d8_fma(d8 a, d8 b, d8 c)
{
    return _mm512_fmadd_pd(a, b, c);
}

static inline d8 d8_zero_where_zero(d8 x, d8 y) /* x == 0 ? 0 : y */
{
    return _mm512_maskz_mov_pd(_mm512_cmp_pd_mask(x, _mm512_setzero_pd(), _CMP_NEQ_UQ), y);
}

/* oct_exp64 of op/real64.h, step by step. */
static inline d8 d8_exp(d8 x)
{
    const d8 n = _mm512_roundscale_pd(_mm512_mul_pd(x, d8_set1(OCT_LOG2E)),
                                      _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    d8 r = _mm512_fnmadd_pd(n, d8_set1(OCT_LN2_HI), x);
    r = _mm512_fnmadd_pd(n, d8_set1(OCT_LN2_LO), r);
    d8 p = d8_set1(oct_exp64_term[OCT_EXP64_TERMS]);
    for (int i = OCT_EXP64_TERMS - 1; i >= 0; i--) p = d8_fma(p, r, d8_set1(oct_exp64_term[i]));
    const __m256i e = _mm256_add_epi32(_mm512_cvtpd_epi32(n), _mm256_set1_epi32(1023));
    const __m512i scale = _mm512_slli_epi64(_mm512_cvtepi32_epi64(e), 52);
    d8 y = _mm512_mul_pd(p, _mm512_castsi512_pd(scale));
    y = _mm512_mask_mov_pd(y, _mm512_cmp_pd_mask(x, x, _CMP_UNORD_Q), x);
    const __mmask8 low = _mm512_cmp_pd_mask(x, d8_set1(OCT_EXP64_MIN), _CMP_LT_OQ);
    return _mm512_mask_mov_pd(y, low, _mm512_setzero_pd());
}

static inline double d8_reduce(d8 low, d8 high) /* oct_reduce_tree64 */
{
    const __m512d a = _mm512_add_pd(low, high);
    const __m256d b = _mm256_add_pd(_mm512_castpd512_pd256(a), _mm512_extractf64x4_pd(a, 1));
    const __m128d c = _mm_add_pd(_mm256_castpd256_pd128(b), _mm256_extractf128_pd(b, 1));
    return _mm_cvtsd_f64(_mm_add_sd(c, _mm_unpackhi_pd(c, c)));
}

#endif
