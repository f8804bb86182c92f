/* quantize, AVX2 column. The largest magnitude is found on the bits, which also shows whether
 * anything is not finite; codes come from the same two operations as in the scalar column. */
#include <immintrin.h>

#include "kernels/op/quantize/quantize.h"

/* x[j..j+8), zeros at and past `to`, which is where memory may end. */
static inline __m256 load_until(const float *x, int j, int to)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    if (to - j >= 8) return _mm256_loadu_ps(x + j);
    if (to - j <= 0) return _mm256_setzero_ps();
    return _mm256_maskload_ps(x + j, _mm256_cmpgt_epi32(_mm256_set1_epi32(to - j), lane));
}

/* Largest magnitude of [from, to) as bits; 0x7F800000 or more if not all are finite. */
static inline uint32_t amax_bits(const float *x, int from, int to)
{
    const __m256i magnitude = _mm256_set1_epi32(0x7FFFFFFF);
    __m256i most = _mm256_setzero_si256();
    for (int j = from; j < to; j += 8) {
        const __m256i u = _mm256_castps_si256(load_until(x, j, to));
        most = _mm256_max_epu32(most, _mm256_and_si256(u, magnitude));
    }
    uint32_t lane[8], most_of_all = 0;
    _mm256_storeu_si256((__m256i *)lane, most);
    for (int i = 0; i < 8; i++) most_of_all = lane[i] > most_of_all ? lane[i] : most_of_all;
    return most_of_all;
}

/* Four vectors of int32 in int8 range to 32 bytes in order. */
static inline void store_bytes(int8_t *to, const __m256i q[4])
{
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i a = _mm256_packs_epi32(q[0], q[1]), b = _mm256_packs_epi32(q[2], q[3]);
    _mm256_storeu_si256((__m256i *)to,
                        _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b), order));
}

static inline int32_t add_lanes(__m256i v)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xB1)));
}

/* One group: 32 codes, zeros past `to`, and their sum. */
static inline void quantize_group(const oct_quantize_row *r, int g, int to, float inverse)
{
    const __m256i limit = _mm256_set1_epi32(r->act == OCT_A8X2 ? 16256 : 127);
    const __m256i least = _mm256_sub_epi32(_mm256_setzero_si256(), limit);
    __m256i sum = _mm256_setzero_si256(), high[4], low[4];
    for (int i = 0; i < 4; i++) {
        const __m256 x = load_until(r->x, g * OCT_GROUP + 8 * i, to);
        __m256i q = _mm256_cvtps_epi32(_mm256_mul_ps(x, _mm256_set1_ps(inverse)));
        q = _mm256_max_epi32(_mm256_min_epi32(q, limit), least);
        sum = _mm256_add_epi32(sum, q);
        const __m256i upper = _mm256_srai_epi32(_mm256_add_epi32(q, _mm256_set1_epi32(64)), 7);
        high[i] = r->act == OCT_A8X2 ? upper : q;
        low[i] = _mm256_sub_epi32(q, _mm256_slli_epi32(upper, 7));
    }
    store_bytes(r->hi + g * OCT_GROUP, high);
    if (r->act == OCT_A8X2) store_bytes(r->lo + g * OCT_GROUP, low);
    r->sum[g] = add_lanes(sum);
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

oct_kstatus oct_op_quantize_avx2(const oct_quantize_args *a, size_t lo, size_t hi)
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
