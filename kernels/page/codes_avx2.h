/* codes_avx2.h: codes_avx512.h in halves: the encoders and the decode of int8, fp8 and int4, eight
 * lanes at a time. Lanes are tokens (K) or channels (V). */
#ifndef OCT_PAGE_CODES_AVX2_H
#define OCT_PAGE_CODES_AVX2_H

#include "kernels/page/seal_x86.h"

OCT_INLINE __m256 oct_widen_half(__m128i x)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}

OCT_INLINE __m256 oct_widen_bf16(const uint16_t *x)
{
    return oct_widen_half(_mm_loadu_si128((const __m128i *)x));
}

/* (x - z) / s, a true division. */
OCT_INLINE __m256 oct_ratio8(__m128i x, float s, float z)
{
    return _mm256_div_ps(_mm256_sub_ps(oct_widen_half(x), _mm256_set1_ps(z)), _mm256_set1_ps(s));
}

/* 16 dwords to 16 bytes, in order; `sign` says how the bytes saturate. */
OCT_INLINE __m128i oct_bytes_of(__m256i lo, __m256i hi, bool sign)
{
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(lo, hi), 0xD8);
    const __m128i a = _mm256_castsi256_si128(words), b = _mm256_extracti128_si256(words, 1);
    return sign ? _mm_packs_epi16(a, b) : _mm_packus_epi16(a, b);
}

OCT_INLINE __m256i oct_round8(__m256i x, int half, float s, float z)
{
    const __m128i v = half ? _mm256_extracti128_si256(x, 1) : _mm256_castsi256_si128(x);
    return _mm256_cvtps_epi32(oct_ratio8(v, s, z));
}

/* Scales round up, so |x / s| exceeds 127 by less than an ulp: saturating is the clamp. */
OCT_INLINE __m128i oct_encode16_int8(__m256i x, float s, float z)
{
    (void)z;
    const __m256i lo = oct_round8(x, 0, s, 0.0f), hi = oct_round8(x, 1, s, 0.0f);
    return _mm_xor_si128(oct_bytes_of(lo, hi, true), _mm_set1_epi8(-128));
}

OCT_INLINE __m128i oct_encode16_int4(__m256i x, float s, float z)
{
    const __m256i lo = oct_round8(x, 0, s, z), hi = oct_round8(x, 1, s, z);
    return _mm_min_epu8(oct_bytes_of(lo, hi, false), _mm_set1_epi8(15));
}

/* The steps of oct_f32_to_e4m3. */
OCT_INLINE __m256i oct_e4m3_of(__m256 v)
{
    v = _mm256_min_ps(_mm256_max_ps(v, _mm256_set1_ps(-448.0f)), _mm256_set1_ps(448.0f));
    const __m256i u = _mm256_castps_si256(v);
    const __m256i sign = _mm256_and_si256(_mm256_srli_epi32(u, 24), _mm256_set1_epi32(0x80));
    const __m256i rest = _mm256_and_si256(u, _mm256_set1_epi32(0x7FFFFFFF));
    const __m256i small = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x3C800000), rest);
    const __m256i sub = _mm256_sub_epi32(
        _mm256_castps_si256(_mm256_add_ps(_mm256_castsi256_ps(rest), _mm256_set1_ps(0x1p14f))),
        _mm256_set1_epi32(0x46800000));
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(rest, 20), _mm256_set1_epi32(1));
    const __m256i up = _mm256_set1_epi32(0x7FFFF - (120 << 23));
    const __m256i norm = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(rest, up), odd), 20);
    return _mm256_or_si256(sign, _mm256_blendv_epi8(norm, sub, small));
}

OCT_INLINE __m128i oct_encode16_fp8(__m256i x, float s, float z)
{
    (void)z;
    const __m256i lo = oct_e4m3_of(oct_ratio8(_mm256_castsi256_si128(x), s, 0.0f));
    const __m256i hi = oct_e4m3_of(oct_ratio8(_mm256_extracti128_si256(x, 1), s, 0.0f));
    return oct_bytes_of(lo, hi, false);
}

/* e4m3 in the low byte of each lane to float, as oct_e4m3_to_f32. */
OCT_INLINE __m256 oct_widen_e4m3(__m256i e)
{
    const __m256i rest = _mm256_and_si256(e, _mm256_set1_epi32(0x7F));
    const __m256i sign = _mm256_slli_epi32(_mm256_xor_si256(e, rest), 24);
    __m256i v = _mm256_add_epi32(_mm256_slli_epi32(rest, 20), _mm256_set1_epi32(120 << 23));
    const __m256i small = _mm256_cmpgt_epi32(_mm256_set1_epi32(8), rest);
    const __m256 sub = _mm256_mul_ps(_mm256_cvtepi32_ps(rest), _mm256_set1_ps(0x1p-9f));
    v = _mm256_blendv_epi8(v, _mm256_castps_si256(sub), small);
    const __m256i nan = _mm256_cmpeq_epi32(rest, _mm256_set1_epi32(0x7F));
    v = _mm256_blendv_epi8(v, _mm256_set1_epi32(0x7FC00000), nan);
    return _mm256_castsi256_ps(_mm256_or_si256(v, sign));
}

/* The k-th value of each dword: as the scalar column, int4 by a fused step, others by a product. */
OCT_INLINE __m256 oct_value_of(oct_code code, __m256i dword, int k, __m256 s, __m256 z, bool scaled)
{
    const int shift = code == OCT_CODE_INT4 ? k % 4 * 8 + k / 4 * 4 : k * 8;
    const __m256i mask = _mm256_set1_epi32(code == OCT_CODE_INT4 ? 15 : 255);
    const __m256i u = _mm256_and_si256(_mm256_srli_epi32(dword, shift), mask);
    const __m256i bias = _mm256_set1_epi32(code == OCT_CODE_INT8 ? OCT_BYTE_BIAS : 0);
    const __m256 q = code == OCT_CODE_FP8 ? oct_widen_e4m3(u)
                                          : _mm256_cvtepi32_ps(_mm256_sub_epi32(u, bias));
    if (!scaled) return q;
    return code == OCT_CODE_INT4 ? _mm256_fmadd_ps(q, s, z) : _mm256_mul_ps(q, s);
}

OCT_INLINE void oct_expand_k(const oct_decode_args *a, oct_code code, bool scaled, int t)
{
    const int d = a->d, group = oct_page_group(d), per = code == OCT_CODE_INT4 ? 8 : 4;
    const uint16_t *scales = a->block, *zeros = scales + oct_page_group_bytes(d) / 2;
    const uint32_t *lines = oct_lines(a->block, d, code);
    for (int c = 0; c < d; c += per) {
        const int at = c / group * OCT_PAGE_TOKENS + t;
        const __m256 s = oct_widen_bf16(scales + at);
        const __m256 z = code == OCT_CODE_INT4 ? oct_widen_bf16(zeros + at) : s;
        const __m256i dword =
            _mm256_load_si256((const __m256i *)(lines + c / per * OCT_PAGE_TOKENS + t));
        for (int k = 0; k < per; k++)
            _mm256_storeu_ps(a->out + (c + k) * OCT_PAGE_TOKENS + t,
                             oct_value_of(code, dword, k, s, z, scaled));
    }
}

OCT_INLINE void oct_expand_v(const oct_decode_args *a, oct_code code, bool scaled, int t)
{
    const int d = a->d, group = oct_page_group(d), per = code == OCT_CODE_INT4 ? 8 : 4;
    const uint16_t *scales = a->block, *zeros = scales + oct_page_group_bytes(d) / 2;
    const uint32_t *lines = oct_lines(a->block, d, code) + t / per * d;
    for (int c = 0; c < d; c += 8) {
        const __m256i dword = _mm256_load_si256((const __m256i *)(lines + c));
        for (int k = 0; k < per; k++) {
            const int at = c / group * OCT_PAGE_TOKENS + t + k;
            const __m256 s = _mm256_set1_ps(oct_bf16_to_f32(scales[at]));
            const __m256 z = code == OCT_CODE_INT4 ? _mm256_set1_ps(oct_bf16_to_f32(zeros[at])) : s;
            _mm256_storeu_ps(a->out + (t + k) * d + c, oct_value_of(code, dword, k, s, z, scaled));
        }
    }
}

/* All of `decode`; scaled = false gives the bare codes. */
OCT_INLINE oct_kstatus oct_expand(const oct_decode_args *a, oct_code code, bool scaled)
{
    const int whole = oct_page_whole_units(a->tokens), per = code == OCT_CODE_INT4 ? 8 : 4;
    if (a->role == OCT_ROLE_K)
        for (int t = 0; t < whole; t += 8) oct_expand_k(a, code, scaled, t);
    else
        for (int t = 0; t < whole; t += per) oct_expand_v(a, code, scaled, t);
    return OCT_K_OK;
}

#endif
