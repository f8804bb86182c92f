/* codes_avx512.h: between bf16 rows and codes, 16 at a time: the encoders and the decode of int8,
 * fp8 and int4, as constants of one template. Lanes are tokens (K) or channels (V), so a line of
 * 64 bytes becomes four (or eight) vectors by shifts alone. */
#ifndef OCT_PAGE_CODES_AVX512_H
#define OCT_PAGE_CODES_AVX512_H

#include "kernels/page/seal_x86.h"

typedef enum { OCT_CODE_INT8, OCT_CODE_FP8, OCT_CODE_INT4 } oct_code;

OCT_INLINE __m512 oct_widen_bf16(const uint16_t *x)
{
    const __m256i v = _mm256_loadu_si256((const __m256i *)x);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

/* (x - z) / s, a true division. */
OCT_INLINE __m512 oct_ratio16(__m256i x, float s, float z)
{
    const __m512 v = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
    return _mm512_div_ps(_mm512_sub_ps(v, _mm512_set1_ps(z)), _mm512_set1_ps(s));
}

/* Scales round up, so |x / s| exceeds 127 by less than an ulp: saturating is the clamp. */
OCT_INLINE __m128i oct_encode16_int8(__m256i x, float s, float z)
{
    (void)z;
    const __m512i q = _mm512_cvtps_epi32(oct_ratio16(x, s, 0.0f));
    return _mm_xor_si128(_mm512_cvtsepi32_epi8(q), _mm_set1_epi8(-128));
}

OCT_INLINE __m128i oct_encode16_int4(__m256i x, float s, float z)
{
    const __m512i q = _mm512_cvtps_epi32(oct_ratio16(x, s, z));
    return _mm512_cvtepi32_epi8(_mm512_min_epi32(q, _mm512_set1_epi32(15)));
}

/* The steps of oct_f32_to_e4m3. */
OCT_INLINE __m128i oct_encode16_fp8(__m256i x, float s, float z)
{
    (void)z;
    const __m512 most = _mm512_set1_ps(448.0f);
    __m512 v = oct_ratio16(x, s, 0.0f);
    v = _mm512_min_ps(_mm512_max_ps(v, _mm512_sub_ps(_mm512_setzero_ps(), most)), most);
    const __m512i u = _mm512_castps_si512(v);
    const __m512i sign = _mm512_and_si512(_mm512_srli_epi32(u, 24), _mm512_set1_epi32(0x80));
    const __m512i rest = _mm512_and_si512(u, _mm512_set1_epi32(0x7FFFFFFF));
    const __mmask16 small = _mm512_cmplt_epu32_mask(rest, _mm512_set1_epi32(0x3C800000));
    const __m512i sub = _mm512_sub_epi32(
        _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(rest), _mm512_set1_ps(0x1p14f))),
        _mm512_set1_epi32(0x46800000));
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(rest, 20), _mm512_set1_epi32(1));
    const __m512i up = _mm512_set1_epi32(0x7FFFF - (120 << 23));
    const __m512i norm = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(rest, up), odd), 20);
    return _mm512_cvtepi32_epi8(_mm512_or_si512(sign, _mm512_mask_mov_epi32(norm, small, sub)));
}

/* e4m3 in the low byte of each lane to float, as oct_e4m3_to_f32. */
OCT_INLINE __m512 oct_widen_e4m3(__m512i e)
{
    const __m512i rest = _mm512_and_si512(e, _mm512_set1_epi32(0x7F));
    const __m512i sign = _mm512_slli_epi32(_mm512_xor_si512(e, rest), 24);
    __m512i v = _mm512_add_epi32(_mm512_slli_epi32(rest, 20), _mm512_set1_epi32(120 << 23));
    const __mmask16 small = _mm512_cmplt_epu32_mask(rest, _mm512_set1_epi32(8));
    const __m512 sub = _mm512_mul_ps(_mm512_cvtepi32_ps(rest), _mm512_set1_ps(0x1p-9f));
    v = _mm512_mask_mov_epi32(v, small, _mm512_castps_si512(sub));
    const __mmask16 nan = _mm512_cmpeq_epi32_mask(rest, _mm512_set1_epi32(0x7F));
    v = _mm512_mask_mov_epi32(v, nan, _mm512_set1_epi32(0x7FC00000));
    return _mm512_castsi512_ps(_mm512_or_si512(v, sign));
}

/* The k-th code of each dword, as float. */
OCT_INLINE __m512 oct_code_of(oct_code code, __m512i dword, int k)
{
    const int shift = code == OCT_CODE_INT4 ? k % 4 * 8 + k / 4 * 4 : k * 8;
    const __m512i mask = _mm512_set1_epi32(code == OCT_CODE_INT4 ? 15 : 255);
    const __m512i u = _mm512_and_si512(_mm512_srli_epi32(dword, (unsigned)shift), mask);
    if (code == OCT_CODE_FP8) return oct_widen_e4m3(u);
    if (code == OCT_CODE_INT4) return _mm512_cvtepi32_ps(u);
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(u, _mm512_set1_epi32(128)));
}

OCT_INLINE __m512 oct_value_of(oct_code code, __m512i dword, int k, __m512 s, __m512 z, bool scaled)
{
    const __m512 q = oct_code_of(code, dword, k);
    if (!scaled) return q;
    /* The product is exact, so the fused step rounds once like the two. */
    return code == OCT_CODE_INT4 ? _mm512_fmadd_ps(q, s, z) : _mm512_mul_ps(q, s);
}

OCT_INLINE const uint32_t *oct_lines(const void *block, int d, oct_code code)
{
    const size_t parts = code == OCT_CODE_INT4 ? 2 : 1;
    return (const uint32_t *)(const void *)((const char *)block + parts * oct_page_group_bytes(d));
}

OCT_INLINE void oct_expand_k(const oct_decode_args *a, oct_code code, bool scaled, int u)
{
    const int d = a->d, group = oct_page_group(d), per = code == OCT_CODE_INT4 ? 8 : 4;
    const uint16_t *scales = a->block, *zeros = scales + oct_page_group_bytes(d) / 2;
    const uint32_t *lines = oct_lines(a->block, d, code);
    for (int c = 0; c < d; c += per) {
        const int at = c / group * OCT_PAGE_TOKENS + u * OCT_UNIT_TOKENS;
        const __m512 s = oct_widen_bf16(scales + at);
        const __m512 z = code == OCT_CODE_INT4 ? oct_widen_bf16(zeros + at) : s;
        const __m512i dword = _mm512_load_si512(lines + c / per * OCT_PAGE_TOKENS +
                                                u * OCT_UNIT_TOKENS);
        for (int k = 0; k < per; k++)
            _mm512_storeu_ps(a->out + (c + k) * OCT_PAGE_TOKENS + u * OCT_UNIT_TOKENS,
                             oct_value_of(code, dword, k, s, z, scaled));
    }
}

OCT_INLINE void oct_expand_v(const oct_decode_args *a, oct_code code, bool scaled, int t)
{
    const int d = a->d, group = oct_page_group(d), per = code == OCT_CODE_INT4 ? 8 : 4;
    const uint16_t *scales = a->block, *zeros = scales + oct_page_group_bytes(d) / 2;
    const uint32_t *lines = oct_lines(a->block, d, code);
    for (int g = 0; g < d / group; g++) {
        __m512 s[8], z[8];
        for (int k = 0; k < per; k++) {
            const int at = g * OCT_PAGE_TOKENS + t + k;
            s[k] = _mm512_set1_ps(oct_bf16_to_f32(scales[at]));
            z[k] = code == OCT_CODE_INT4 ? _mm512_set1_ps(oct_bf16_to_f32(zeros[at])) : s[k];
        }
        for (int c = g * group; c < (g + 1) * group; c += 16) {
            const __m512i dword = _mm512_load_si512(lines + t / per * d + c);
            for (int k = 0; k < per; k++)
                _mm512_storeu_ps(a->out + (t + k) * d + c,
                                 oct_value_of(code, dword, k, s[k], z[k], scaled));
        }
    }
}

/* All of `decode`; scaled = false gives the bare codes. */
OCT_INLINE oct_kstatus oct_expand(const oct_decode_args *a, oct_code code, bool scaled)
{
    const int whole = oct_page_whole_units(a->tokens), per = code == OCT_CODE_INT4 ? 8 : 4;
    if (a->role == OCT_ROLE_K)
        for (int u = 0; u < whole / OCT_UNIT_TOKENS; u++) oct_expand_k(a, code, scaled, u);
    else
        for (int t = 0; t < whole; t += per) oct_expand_v(a, code, scaled, t);
    return OCT_K_OK;
}

#endif
