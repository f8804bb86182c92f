/* v16 on AVX2: sixteen floats in two registers. The same names with the same bits are in
 * v16_avx512.h; op bodies (*_simd.inc) are written once in this vocabulary.
 *
 * `_n` forms touch the first n <= 16 lanes of memory only. v16_max(a, b) is b where either is NaN.
 * Masks are v16m; v16m_bits gives lane i as bit i. d8 is eight doubles. */
#ifndef OCT_V16_H
#define OCT_V16_H

#include <immintrin.h>

#include "kernels/num.h"
#include "kernels/op/real64.h"

#define V16_TILE 1 /* columns of v16 in a register tile of 6 rows: 12 sums of 16 registers */

typedef struct {
    __m256 a, b; /* lanes 0..7, 8..15 */
} v16;
typedef v16 v16m;    /* all bits of a lane, or none */
typedef __m256i h16; /* sixteen 16-bit elements */
typedef struct {
    __m256d a, b;
} d8;

static inline v16 v16_set1(float x)
{
    return (v16){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}

static inline v16 v16_set1_bits(uint32_t u)
{
    const __m256 x = _mm256_castsi256_ps(_mm256_set1_epi32((int)u));
    return (v16){x, x};
}

static inline v16 v16_load(const float *p)
{
    return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}

static inline void v16_store(float *p, v16 x)
{
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}

static inline v16m v16m_below(int n) /* lanes < n, for any n */
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return (v16m){
        _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane)),
        _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n - 8), lane)),
    };
}

static inline v16 v16_select(v16m m, v16 yes, v16 no)
{
    return (v16){_mm256_blendv_ps(no.a, yes.a, m.a), _mm256_blendv_ps(no.b, yes.b, m.b)};
}

static inline v16 v16_load_n(const float *p, int n) /* +0 elsewhere */
{
    if (n >= 16) return v16_load(p);
    const v16m m = v16m_below(n);
    return (v16){
        _mm256_maskload_ps(p, _mm256_castps_si256(m.a)),
        _mm256_maskload_ps(p + 8, _mm256_castps_si256(m.b)),
    };
}

static inline v16 v16_load_or(const float *p, int n, v16 other)
{
    return n >= 16 ? v16_load(p) : v16_select(v16m_below(n), v16_load_n(p, n), other);
}

static inline void v16_store_n(float *p, int n, v16 x)
{
    if (n >= 16) { /* masked stores are slow on some machines */
        v16_store(p, x);
        return;
    }
    const v16m m = v16m_below(n);
    _mm256_maskstore_ps(p, _mm256_castps_si256(m.a), x.a);
    _mm256_maskstore_ps(p + 8, _mm256_castps_si256(m.b), x.b);
}

static inline v16 v16_add(v16 x, v16 y)
{
    return (v16){_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)};
}

static inline v16 v16_sub(v16 x, v16 y)
{
    return (v16){_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)};
}

static inline v16 v16_mul(v16 x, v16 y)
{
    return (v16){_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
}

static inline v16 v16_div(v16 x, v16 y)
{
    return (v16){_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)};
}

static inline v16 v16_fma(v16 x, v16 y, v16 z)
{
    return (v16){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}

static inline v16 v16_max(v16 x, v16 y)
{
    return (v16){_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)};
}

static inline v16 v16_xor(v16 x, v16 y)
{
    return (v16){_mm256_xor_ps(x.a, y.a), _mm256_xor_ps(x.b, y.b)};
}

/* Flips the sign of lane i where bit i is set. */
static inline __m256 v16_negate_half(__m256 x, unsigned bits)
{
    const __m256i up = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
    const __m256i moved = _mm256_sllv_epi32(_mm256_set1_epi32((int)bits), up);
    return _mm256_xor_ps(x, _mm256_castsi256_ps(
                                _mm256_and_si256(moved, _mm256_set1_epi32(INT32_MIN))));
}

static inline v16 v16_negate(v16 x, unsigned bits)
{
    return (v16){v16_negate_half(x.a, bits), v16_negate_half(x.b, bits >> 8)};
}

static inline v16m v16_gt(v16 x, v16 y)
{
    return (v16m){_mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ)};
}

static inline v16m v16_lt(v16 x, v16 y)
{
    return (v16m){_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ)};
}

static inline v16m v16_eq(v16 x, v16 y)
{
    return (v16m){_mm256_cmp_ps(x.a, y.a, _CMP_EQ_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_EQ_OQ)};
}

static inline v16m v16_isnan(v16 x)
{
    return (v16m){_mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q), _mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q)};
}

static inline unsigned v16m_bits(v16m m)
{
    return (unsigned)_mm256_movemask_ps(m.a) | (unsigned)_mm256_movemask_ps(m.b) << 8;
}

static inline unsigned v16_nonfinite_bits(v16 x)
{
    return v16m_bits(v16_isnan(v16_sub(x, x))); /* NaN for NaN and infinities, else 0 */
}

/* oct_exp of num.h, step by step. */
static inline __m256 v16_exp_scale(__m256 n) /* 2^n */
{
    const __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(e, 23));
}

/* Of x that is not above OCT_EXP_MAX, or NaN, which goes through all steps. */
static inline v16 v16_exp_bounded(v16 x)
{
    const v16 t = v16_mul(x, v16_set1(1.44269504088896341f));
    const v16 n = {
        _mm256_round_ps(t.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
        _mm256_round_ps(t.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
    };
    v16 r = v16_fma(n, v16_set1(-0.693359375f), x);
    r = v16_fma(n, v16_set1(2.12194440e-4f), r);
    v16 p = v16_set1(1.9875691500e-4f);
    p = v16_fma(p, r, v16_set1(1.3981999507e-3f));
    p = v16_fma(p, r, v16_set1(8.3334519073e-3f));
    p = v16_fma(p, r, v16_set1(4.1665795894e-2f));
    p = v16_fma(p, r, v16_set1(1.6666665459e-1f));
    p = v16_fma(p, r, v16_set1(5.0000001201e-1f));
    v16 y = v16_add(v16_fma(p, v16_mul(r, r), r), v16_set1(1.0f));
    y = v16_mul(y, (v16){v16_exp_scale(n.a), v16_exp_scale(n.b)});
    return v16_select(v16_lt(x, v16_set1(OCT_EXP_MIN)), v16_set1(0.0f), y);
}

static inline v16 v16_exp(v16 x)
{
    return v16_select(v16_gt(x, v16_set1(OCT_EXP_MAX)), v16_set1(INFINITY), v16_exp_bounded(x));
}

static inline float v16_largest(v16 x) /* no NaN among the lanes; of zeros, either */
{
    const __m256 a = _mm256_max_ps(x.a, x.b);
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}

static inline float v16_reduce(v16 x) /* oct_reduce_tree */
{
    const __m256 a = _mm256_add_ps(x.a, x.b);
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

/* Lane i becomes lane i ^ distance, distance 1, 2, 4 or 8 (a constant after inlining). */
static inline v16 v16_swap(v16 x, int distance)
{
    if (distance == 1) return (v16){_mm256_permute_ps(x.a, 0xB1), _mm256_permute_ps(x.b, 0xB1)};
    if (distance == 2) return (v16){_mm256_permute_ps(x.a, 0x4E), _mm256_permute_ps(x.b, 0x4E)};
    if (distance == 8) return (v16){x.b, x.a};
    return (v16){_mm256_permute2f128_ps(x.a, x.a, 1), _mm256_permute2f128_ps(x.b, x.b, 1)};
}

static inline __m256 v16_pick(__m256 x, __m256 y, int odd) /* every second of (x, y) */
{
    const __m256 mixed = odd ? _mm256_shuffle_ps(x, y, 0xDD) : _mm256_shuffle_ps(x, y, 0x88);
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(mixed), 0xD8));
}

/* (lo, hi) as sixteen pairs: their first and second elements; and back. */
static inline void v16_split(v16 lo, v16 hi, v16 *first, v16 *second)
{
    *first = (v16){v16_pick(lo.a, lo.b, 0), v16_pick(hi.a, hi.b, 0)};
    *second = (v16){v16_pick(lo.a, lo.b, 1), v16_pick(hi.a, hi.b, 1)};
}

static inline v16 v16_zip(__m256 x, __m256 y)
{
    const __m256 lo = _mm256_unpacklo_ps(x, y), hi = _mm256_unpackhi_ps(x, y);
    return (v16){_mm256_permute2f128_ps(lo, hi, 0x20), _mm256_permute2f128_ps(lo, hi, 0x31)};
}

static inline void v16_join(v16 first, v16 second, v16 *lo, v16 *hi)
{
    *lo = v16_zip(first.a, second.a);
    *hi = v16_zip(first.b, second.b);
}

/* Unsigned keys that ascend with the float, -0 as +0, NaN 0 (op/sample/sample.h), as raw bits. */
static inline __m256 v16_order_half(__m256 x)
{
    const __m256i u = _mm256_castps_si256(_mm256_add_ps(x, _mm256_setzero_ps()));
    const __m256i flip = _mm256_or_si256(_mm256_srai_epi32(u, 31), _mm256_set1_epi32(INT32_MIN));
    const __m256 number = _mm256_cmp_ps(x, x, _CMP_ORD_Q);
    return _mm256_and_ps(number, _mm256_castsi256_ps(_mm256_xor_si256(u, flip)));
}

static inline v16 v16_order_key(v16 x)
{
    return (v16){v16_order_half(x.a), v16_order_half(x.b)};
}

static inline h16 v16_to_f16(v16 x)
{
    return _mm256_setr_m128i(_mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                             _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

static inline __m256i v16_bf16_half(__m256 x)
{
    const __m256i u = _mm256_castps_si256(x), top = _mm256_srli_epi32(u, 16);
    const __m256i odd = _mm256_and_si256(top, _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7FFF)), odd);
    const __m256i quiet = _mm256_or_si256(top, _mm256_set1_epi32(0x40));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(_mm256_srli_epi32(up, 16), quiet, nan);
}

static inline h16 v16_to_bf16(v16 x)
{
    const __m256i packed = _mm256_packus_epi32(v16_bf16_half(x.a), v16_bf16_half(x.b));
    return _mm256_permute4x64_epi64(packed, 0xD8);
}

static inline void h16_store_n(uint16_t *p, int n, h16 x)
{
    if (n >= 16) {
        _mm256_storeu_si256((__m256i *)p, x);
        return;
    }
    uint16_t all[16];
    _mm256_storeu_si256((__m256i *)all, x);
    memcpy(p, all, (size_t)n * sizeof *p);
}

/* Elements whose low 15 bits are at least `limit`. */
static inline unsigned h16_from_bits(h16 x, int limit)
{
    const h16 low = _mm256_and_si256(x, _mm256_set1_epi16(0x7FFF));
    const h16 wide = _mm256_cmpgt_epi16(low, _mm256_set1_epi16((short)(limit - 1)));
    const __m128i bytes =
        _mm_packs_epi16(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    return (unsigned)_mm_movemask_epi8(bytes);
}

static inline d8 d8_set1(double x)
{
    return (d8){_mm256_set1_pd(x), _mm256_set1_pd(x)};
}

static inline d8 d8_widen(__m256 x)
{
    return (d8){_mm256_cvtps_pd(_mm256_castps256_ps128(x)),
                _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1))};
}

static inline d8 d8_low(v16 x) /* lanes 0..7 */
{
    return d8_widen(x.a);
}

static inline d8 d8_high(v16 x)
{
    return d8_widen(x.b);
}

static inline d8 d8_add(d8 x, d8 y)
{
    return (d8){_mm256_add_pd(x.a, y.a), _mm256_add_pd(x.b, y.b)};
}

static inline d8 d8_sub(d8 x, d8 y)
{
    return (d8){_mm256_sub_pd(x.a, y.a), _mm256_sub_pd(x.b, y.b)};
}

static inline d8 d8_fma(d8 x, d8 y, d8 z)
{
    return (d8){_mm256_fmadd_pd(x.a, y.a, z.a), _mm256_fmadd_pd(x.b, y.b, z.b)};
}

static inline d8 d8_zero_where_zero(d8 x, d8 y) /* x == 0 ? 0 : y */
{
    const __m256d zero = _mm256_setzero_pd();
    return (d8){_mm256_and_pd(_mm256_cmp_pd(x.a, zero, _CMP_NEQ_UQ), y.a),
                _mm256_and_pd(_mm256_cmp_pd(x.b, zero, _CMP_NEQ_UQ), y.b)};
}

/* oct_exp64 of op/real64.h, step by step. */
static inline __m256d d8_exp_half(__m256d x)
{
    const __m256d n = _mm256_round_pd(_mm256_mul_pd(x, _mm256_set1_pd(OCT_LOG2E)),
                                      _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256d r = _mm256_fnmadd_pd(n, _mm256_set1_pd(OCT_LN2_HI), x);
    r = _mm256_fnmadd_pd(n, _mm256_set1_pd(OCT_LN2_LO), r);
    __m256d p = _mm256_set1_pd(oct_exp64_term[OCT_EXP64_TERMS]);
    for (int i = OCT_EXP64_TERMS - 1; i >= 0; i--)
        p = _mm256_fmadd_pd(p, r, _mm256_set1_pd(oct_exp64_term[i]));
    const __m128i e = _mm_add_epi32(_mm256_cvtpd_epi32(n), _mm_set1_epi32(1023));
    const __m256i scale = _mm256_slli_epi64(_mm256_cvtepi32_epi64(e), 52);
    __m256d y = _mm256_mul_pd(p, _mm256_castsi256_pd(scale));
    y = _mm256_blendv_pd(y, x, _mm256_cmp_pd(x, x, _CMP_UNORD_Q));
    const __m256d low = _mm256_cmp_pd(x, _mm256_set1_pd(OCT_EXP64_MIN), _CMP_LT_OQ);
    return _mm256_andnot_pd(low, y);
}

static inline d8 d8_exp(d8 x)
{
    return (d8){d8_exp_half(x.a), d8_exp_half(x.b)};
}

static inline double d8_reduce(d8 low, d8 high) /* oct_reduce_tree64 */
{
    const d8 a = d8_add(low, high);
    const __m256d b = _mm256_add_pd(a.a, a.b);
    const __m128d c = _mm_add_pd(_mm256_castpd256_pd128(b), _mm256_extractf128_pd(b, 1));
    return _mm_cvtsd_f64(_mm_add_sd(c, _mm_unpackhi_pd(c, c)));
}

#endif
