/* codes_avx512.h: between bf16 rows and codes, 16 at a time: the encoders and the decode of int8,
 * fp8 and int4, as constants of one template. Lanes are tokens (K) or channels (V), so a line of
 * 64 bytes becomes four (or eight) vectors by shifts alone. */
#ifndef OCT_PAGE_CODES_AVX512_H
#define OCT_PAGE_CODES_AVX512_H

#include "kernels/page/lanes_avx512.h"
#include "kernels/page/seal_x86.h"

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

/* The magnitudes of e4m3 as bf16, which holds them all; 0x7F is NaN. */
static const _Alignas(64) uint16_t oct_e4m3_as_bf16[128] = {
    // clang-format off
    0x0000, 0x3B00, 0x3B80, 0x3BC0, 0x3C00, 0x3C20, 0x3C40, 0x3C60, 0x3C80, 0x3C90, 0x3CA0,
    0x3CB0, 0x3CC0, 0x3CD0, 0x3CE0, 0x3CF0, 0x3D00, 0x3D10, 0x3D20, 0x3D30, 0x3D40, 0x3D50,
    0x3D60, 0x3D70, 0x3D80, 0x3D90, 0x3DA0, 0x3DB0, 0x3DC0, 0x3DD0, 0x3DE0, 0x3DF0, 0x3E00,
    0x3E10, 0x3E20, 0x3E30, 0x3E40, 0x3E50, 0x3E60, 0x3E70, 0x3E80, 0x3E90, 0x3EA0, 0x3EB0,
    0x3EC0, 0x3ED0, 0x3EE0, 0x3EF0, 0x3F00, 0x3F10, 0x3F20, 0x3F30, 0x3F40, 0x3F50, 0x3F60,
    0x3F70, 0x3F80, 0x3F90, 0x3FA0, 0x3FB0, 0x3FC0, 0x3FD0, 0x3FE0, 0x3FF0, 0x4000, 0x4010,
    0x4020, 0x4030, 0x4040, 0x4050, 0x4060, 0x4070, 0x4080, 0x4090, 0x40A0, 0x40B0, 0x40C0,
    0x40D0, 0x40E0, 0x40F0, 0x4100, 0x4110, 0x4120, 0x4130, 0x4140, 0x4150, 0x4160, 0x4170,
    0x4180, 0x4190, 0x41A0, 0x41B0, 0x41C0, 0x41D0, 0x41E0, 0x41F0, 0x4200, 0x4210, 0x4220,
    0x4230, 0x4240, 0x4250, 0x4260, 0x4270, 0x4280, 0x4290, 0x42A0, 0x42B0, 0x42C0, 0x42D0,
    0x42E0, 0x42F0, 0x4300, 0x4310, 0x4320, 0x4330, 0x4340, 0x4350, 0x4360, 0x4370, 0x4380,
    0x4390, 0x43A0, 0x43B0, 0x43C0, 0x43D0, 0x43E0, 0x7FC0,
    // clang-format on
};

/* An e4m3 in the low byte of each word to bf16: two look-ups of 64 and the sign. */
OCT_INLINE __m512i oct_words_of_e4m3(__m512i e)
{
    const __m512i *table = (const __m512i *)oct_e4m3_as_bf16;
    const __mmask32 upper = _mm512_test_epi16_mask(e, _mm512_set1_epi16(0x40));
    const __m512i a = _mm512_permutex2var_epi16(_mm512_load_si512(table), e,
                                                _mm512_load_si512(table + 1));
    const __m512i b = _mm512_permutex2var_epi16(_mm512_load_si512(table + 2), e,
                                                _mm512_load_si512(table + 3));
    const __m512i sign = _mm512_slli_epi16(_mm512_srli_epi16(e, 7), 15);
    return _mm512_or_si512(_mm512_mask_blend_epi16(upper, a, b), sign);
}

/* Normal numbers of e4m3 in the high byte of each word, the low one ignored, to bf16. */
OCT_INLINE __m512i oct_words_of_normal_e4m3(__m512i high)
{
    const __m512i sign_and_rest = _mm512_set1_epi16((short)0x87F0);
    const __m512i kept = _mm512_and_si512(_mm512_srai_epi16(high, 4), sign_and_rest);
    return _mm512_add_epi16(kept, _mm512_set1_epi16(0x3C00)); /* from -127 on, not -7 */
}

/* Four e4m3 of each dword as floats. Nearly all lines hold normal numbers only, which are bf16 but
 * for the place of their bits. */
OCT_INLINE void oct_floats_of_e4m3(__m512i dword, __m512 x[4])
{
    const __m512i upper = _mm512_set1_epi32(-0x10000), low = _mm512_set1_epi16(0xFF);
    const __m512i rest = _mm512_sub_epi8(_mm512_and_si512(dword, _mm512_set1_epi8(0x7F)),
                                         _mm512_set1_epi8(8));
    __m512i even, odd;
    if (__builtin_expect(_mm512_cmpgt_epu8_mask(rest, _mm512_set1_epi8(0x76)) == 0, 1)) {
        even = oct_words_of_normal_e4m3(_mm512_slli_epi16(dword, 8));
        odd = oct_words_of_normal_e4m3(dword);
    } else { /* some are subnormal, zero or NaN */
        even = oct_words_of_e4m3(_mm512_and_si512(dword, low));
        odd = oct_words_of_e4m3(_mm512_srli_epi16(dword, 8));
    }
    x[0] = _mm512_castsi512_ps(_mm512_slli_epi32(even, 16));
    x[1] = _mm512_castsi512_ps(_mm512_slli_epi32(odd, 16));
    x[2] = _mm512_castsi512_ps(_mm512_and_si512(even, upper));
    x[3] = _mm512_castsi512_ps(_mm512_and_si512(odd, upper));
}

/* The codes of each dword as floats, in order: four, of int4 eight. */
OCT_INLINE void oct_codes_of(oct_code code, __m512i dword, __m512 x[8])
{
    if (code == OCT_CODE_FP8) {
        oct_floats_of_e4m3(dword, x);
        return;
    }
    for (int k = 0; k < (code == OCT_CODE_INT4 ? 8 : 4); k++) {
        const unsigned shift = code == OCT_CODE_INT4 ? k % 4 * 8 + k / 4 * 4 : k * 8;
        const __m512i mask = _mm512_set1_epi32(code == OCT_CODE_INT4 ? 15 : 255);
        const __m512i u = _mm512_and_si512(_mm512_srli_epi32(dword, shift), mask);
        const __m512i bias = _mm512_set1_epi32(code == OCT_CODE_INT8 ? OCT_BYTE_BIAS : 0);
        x[k] = _mm512_cvtepi32_ps(_mm512_sub_epi32(u, bias));
    }
}

/* As the scalar column: int4 by one fused step, the others by one product. */
OCT_INLINE __m512 oct_value_of(oct_code code, __m512 q, __m512 s, __m512 z, bool scaled)
{
    if (!scaled) return q;
    return code == OCT_CODE_INT4 ? _mm512_fmadd_ps(q, s, z) : _mm512_mul_ps(q, s);
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
        __m512 x[8];
        oct_codes_of(code, dword, x);
        for (int k = 0; k < per; k++)
            _mm512_storeu_ps(a->out + (c + k) * OCT_PAGE_TOKENS + u * OCT_UNIT_TOKENS,
                             oct_value_of(code, x[k], s, z, scaled));
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
            __m512 x[8];
            oct_codes_of(code, dword, x);
            for (int k = 0; k < per; k++)
                _mm512_storeu_ps(a->out + (t + k) * d + c,
                                 oct_value_of(code, x[k], s[k], z[k], scaled));
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
