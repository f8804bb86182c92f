/* quantize, AVX-512 column. The largest magnitude is found on the bits, which also shows whether
 * anything is not finite; codes come from the same two operations as in the scalar column. */
#include <immintrin.h>

#include "kernels/op/quantize/quantize.h"

static inline __mmask16 lanes(int left)
{
    return left >= 16 ? (__mmask16)0xFFFF : (__mmask16)((1u << left) - 1);
}

/* Largest magnitude of [from, to) as bits; 0x7F800000 or more if not all are finite. */
static inline uint32_t amax_bits(const float *x, int from, int to)
{
    const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
    __m512i most = _mm512_setzero_si512();
    for (int j = from; j < to; j += 16) {
        const __m512i u = _mm512_castps_si512(_mm512_maskz_loadu_ps(lanes(to - j), x + j));
        most = _mm512_max_epu32(most, _mm512_and_si512(u, magnitude));
    }
    return _mm512_reduce_max_epu32(most);
}

/* One group: 32 codes, zeros past `to`, and their sum. */
static inline void quantize_group(const oct_quantize_row *r, int g, int to, float inverse)
{
    const __m512i limit = _mm512_set1_epi32(r->act == OCT_A8X2 ? 16256 : 127);
    const __m512i least = _mm512_sub_epi32(_mm512_setzero_si512(), limit);
    __m512i sum = _mm512_setzero_si512();
    for (int j = g * OCT_GROUP; j < (g + 1) * OCT_GROUP; j += 16) {
        const __mmask16 mask = j < to ? lanes(to - j) : 0;
        const __m512 x = _mm512_maskz_loadu_ps(mask, r->x + j);
        __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(inverse)));
        q = _mm512_max_epi32(_mm512_min_epi32(q, limit), least);
        sum = _mm512_add_epi32(sum, q);
        __m512i high = q;
        if (r->act == OCT_A8X2) {
            high = _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(64)), 7);
            const __m512i low = _mm512_sub_epi32(q, _mm512_slli_epi32(high, 7));
            _mm_storeu_si128((__m128i *)(r->lo + j), _mm512_cvtepi32_epi8(low));
        }
        _mm_storeu_si128((__m128i *)(r->hi + j), _mm512_cvtepi32_epi8(high));
    }
    r->sum[g] = _mm512_reduce_add_epi32(sum);
}

static void quantize_row(const oct_quantize_row *r, uint32_t row_amax)
{
    float inverse = 0.0f;
    if (r->act != OCT_A8G32) inverse = oct_quantize_scale(r->act, oct_float(row_amax), r->scale);
    for (int g = 0; g < r->kp / OCT_GROUP; g++) {
        if (r->act == OCT_A8G32) {
            const int from = g * OCT_GROUP, to = r->k - from < OCT_GROUP ? r->k : from + OCT_GROUP;
            const float amax = oct_float(amax_bits(r->x, from, to));
            inverse = oct_quantize_scale(r->act, amax, r->scale + g);
        }
        quantize_group(r, g, r->k, inverse);
    }
}

oct_kstatus oct_op_quantize_avx512(const oct_quantize_args *a, size_t lo, size_t hi)
{
    oct_kstatus status = OCT_K_OK;
    for (size_t i = lo; i < hi; i++) {
        const oct_quantize_row r = oct_quantize_row_at(a->rows, i);
        const uint32_t amax = amax_bits(r.x, 0, r.k);
        const bool finite = amax < 0x7F800000u;
        if (a->bad) a->bad[i] = !finite;
        if (!finite) status = OCT_K_NONFINITE;
        if (r.act == OCT_A32) continue;
        if (finite) quantize_row(&r, amax);
        else oct_quantize_clear(&r, NAN);
    }
    return status;
}
