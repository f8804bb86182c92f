/* seal_x86.h: sealing for both x86 columns, 16 tokens (a unit) at a time.
 *
 * A unit is encoded row by row into plain bytes [16][d] by the column's `encode` (which knows the
 * vector width), then laid out. 256-bit integer work serves both columns: the division in `encode`
 * is what takes the time. bf16 magnitudes are compared as integers, so one maximum per group finds
 * the scale and the refused values at once. */
#ifndef OCT_PAGE_SEAL_X86_H
#define OCT_PAGE_SEAL_X86_H

#include <immintrin.h>

#include "kernels/inline.h"
#include "kernels/page/page.h"

#define OCT_BYTE_BIAS 128 /* of int8 codes */

typedef enum { OCT_CODE_INT8, OCT_CODE_FP8, OCT_CODE_INT4 } oct_code;

OCT_INLINE const uint32_t *oct_lines(const void *block, int d, oct_code code)
{
    const size_t parts = code == OCT_CODE_INT4 ? 2 : 1;
    return (const uint32_t *)(const void *)((const char *)block + parts * oct_page_group_bytes(d));
}

/* The arrays of a block of int8 or int4. */
typedef struct {
    const uint8_t *codes;
    const uint16_t *scales, *zeros; /* zeros: nibbles only */
} oct_dot_page;

OCT_INLINE oct_dot_page oct_dot_parts(const void *block, int d, int bits)
{
    const uint8_t *base = block;
    const size_t part = oct_page_group_bytes(d);
    return (oct_dot_page){base + (bits == 4 ? 2 : 1) * part, (const uint16_t *)block,
                          (const uint16_t *)(base + part)};
}

/* 16 bf16 values to 16 stored codes (a nibble is one byte here); s > 0. */
typedef __m128i (*oct_encode16_fn)(__m256i x, float s, float z);

/* The largest magnitude of n bf16 values, as bits. */
static inline uint32_t oct_group_top(const uint16_t *x, int n)
{
    __m256i top = _mm256_setzero_si256();
    for (int c = 0; c < n; c += 16) {
        const __m256i v = _mm256_loadu_si256((const __m256i *)(x + c));
        top = _mm256_max_epu16(top, _mm256_and_si256(v, _mm256_set1_epi16(0x7FFF)));
    }
    const __m128i half = _mm_max_epu16(_mm256_castsi256_si128(top),
                                       _mm256_extracti128_si256(top, 1));
    const __m128i least = _mm_minpos_epu16(_mm_xor_si128(half, _mm_set1_epi16(-1)));
    return 0xFFFFu ^ ((uint32_t)_mm_cvtsi128_si32(least) & 0xFFFFu);
}

/* Least and largest of n bf16 values, as keys: int16 that order as the values do. */
static inline void oct_group_range(const uint16_t *x, int n, int *least, int *most)
{
    __m256i lo = _mm256_set1_epi16(0x7FFF), hi = _mm256_set1_epi16(-0x8000);
    for (int c = 0; c < n; c += 16) {
        const __m256i v = _mm256_loadu_si256((const __m256i *)(x + c));
        const __m256i flip = _mm256_srli_epi16(_mm256_srai_epi16(v, 15), 1);
        lo = _mm256_min_epi16(lo, _mm256_xor_si256(v, flip));
        hi = _mm256_max_epi16(hi, _mm256_xor_si256(v, flip));
    }
    __m128i a = _mm_min_epi16(_mm256_castsi256_si128(lo), _mm256_extracti128_si256(lo, 1));
    __m128i b = _mm_max_epi16(_mm256_castsi256_si128(hi), _mm256_extracti128_si256(hi, 1));
    a = _mm_minpos_epu16(_mm_xor_si128(a, _mm_set1_epi16(-0x8000)));
    b = _mm_minpos_epu16(_mm_xor_si128(b, _mm_set1_epi16(0x7FFF)));
    *least = (int)((uint32_t)_mm_cvtsi128_si32(a) & 0xFFFFu) - 0x8000;
    *most = 0x7FFF - (int)((uint32_t)_mm_cvtsi128_si32(b) & 0xFFFFu);
}

static inline float oct_key_value(int key)
{
    return oct_bf16_to_f32((uint16_t)(key < 0 ? key ^ 0x7FFF : key));
}

/* Dwords [16 tokens][n] to [n][64 tokens], at the unit's place. */
static inline void oct_place_k(uint32_t *out, const uint8_t *rows, int n)
{
    for (int j = 0; j < n; j++)
        for (int r = 0; r < OCT_UNIT_TOKENS; r++)
            memcpy(&out[j * OCT_PAGE_TOKENS + r], rows + (size_t)(r * n + j) * 4, 4);
}

/* Four rows of d bytes to d dwords of four tokens; nibbles: eight rows, the last four above. */
OCT_INLINE void oct_place_v(uint8_t *out, const uint8_t *rows, int d, int bits)
{
    for (int c = 0; c < d; c += 16) {
        __m128i r[4];
        for (int j = 0; j < 4; j++) {
            r[j] = _mm_loadu_si128((const __m128i *)(rows + j * d + c));
            if (bits == 8) continue;
            const __m128i above = _mm_loadu_si128((const __m128i *)(rows + (4 + j) * d + c));
            r[j] = _mm_or_si128(r[j], _mm_slli_epi16(above, 4));
        }
        const __m128i a = _mm_unpacklo_epi8(r[0], r[1]), b = _mm_unpacklo_epi8(r[2], r[3]);
        const __m128i e = _mm_unpackhi_epi8(r[0], r[1]), f = _mm_unpackhi_epi8(r[2], r[3]);
        __m128i *at = (__m128i *)(out + (size_t)c * 4);
        _mm_store_si128(at, _mm_unpacklo_epi16(a, b));
        _mm_store_si128(at + 1, _mm_unpackhi_epi16(a, b));
        _mm_store_si128(at + 2, _mm_unpacklo_epi16(e, f));
        _mm_store_si128(at + 3, _mm_unpackhi_epi16(e, f));
    }
}

/* n bytes of nibbles in place: the second four of eight go above the first; n/2 bytes remain. */
static inline void oct_fold_row(uint8_t *out, const uint8_t *row, int n)
{
    for (int c = 0; c < n; c += 8) {
        uint64_t eight;
        memcpy(&eight, row + c, 8);
        const uint32_t four = (uint32_t)(eight | eight >> 28);
        memcpy(out + c / 2, &four, 4);
    }
}

/* Lays out the bytes [16][d] of unit u. `bits` is 8 or 4; `rows` may be changed. */
OCT_INLINE void oct_place_unit(uint8_t *codes, uint8_t *rows, int d, int u, oct_role role, int bits)
{
    if (role == OCT_ROLE_K) {
        if (bits == 4)
            for (int r = 0; r < OCT_UNIT_TOKENS; r++)
                oct_fold_row(rows + r * d / 2, rows + r * d, d);
        oct_place_k((uint32_t *)(void *)codes + u * OCT_UNIT_TOKENS, rows, d * bits / 32);
        return;
    }
    const int per = 32 / bits; /* tokens in a dword */
    for (int r = 0; r < OCT_UNIT_TOKENS; r += per)
        oct_place_v(codes + (size_t)(u * OCT_UNIT_TOKENS + r) / (size_t)per * (size_t)d * 4,
                    rows + r * d, d, bits);
}

/* One group of one row: its bytes from scale and zero; a scale of 0 (or a refused group) gives
 * `none`, the stored form of code 0. */
OCT_INLINE void oct_encode_group(uint8_t *out, const uint16_t *x, int n, float s, float z, int none,
                                 oct_encode16_fn encode)
{
    if (s == 0.0f) {
        memset(out, none, (size_t)n);
        return;
    }
    for (int c = 0; c < n; c += 16)
        _mm_storeu_si128((__m128i *)(out + c),
                         encode(_mm256_loadu_si256((const __m256i *)(x + c)), s, z));
}

OCT_INLINE void oct_note_large(const oct_seal_args *a, oct_kstatus *status, int t, int g, int group)
{
    const uint16_t *x = (const uint16_t *)a->x + (size_t)t * a->ldx + g * group;
    oct_page_bad(a, status, t, g * group + oct_page_first_large(x, group));
}

/* Formats with value = code * scale and scale = bf16_up(amax / steps). */
OCT_INLINE oct_kstatus oct_seal_scaled(const oct_seal_args *a, float steps, int none,
                                       oct_encode16_fn encode)
{
    _Alignas(64) uint8_t rows[OCT_UNIT_TOKENS * OCT_MAX_HEAD_DIM];
    const int d = a->d, group = oct_page_group(d);
    uint16_t *scales = a->block;
    uint8_t *codes = (uint8_t *)a->block + oct_page_group_bytes(d);
    oct_kstatus status = OCT_K_OK;
    for (int t = 0; t < OCT_PAGE_TOKENS; t++) {
        const int r = t % OCT_UNIT_TOKENS;
        for (int g = 0; g < d / group; g++) {
            const uint16_t *x = (const uint16_t *)a->x + (size_t)t * a->ldx + g * group;
            const uint32_t top = oct_group_top(x, group);
            const float amax = oct_bf16_to_f32((uint16_t)top);
            uint16_t scale = amax < OCT_PAGE_TINY ? 0 : oct_bf16_up(amax / steps);
            float s = oct_bf16_to_f32(scale);
            if (top >= OCT_PAGE_LARGE) {
                oct_note_large(a, &status, t, g, group);
                scale = OCT_BF16_NAN, s = 0.0f;
            }
            scales[g * OCT_PAGE_TOKENS + t] = scale;
            oct_encode_group(rows + r * d + g * group, x, group, s, 0.0f, none, encode);
        }
        if (r == OCT_UNIT_TOKENS - 1)
            oct_place_unit(codes, rows, d, t / OCT_UNIT_TOKENS, a->role, 8);
    }
    return status;
}

/* Formats with value = code * scale + zero: scales, zeros, then nibbles. */
OCT_INLINE oct_kstatus oct_seal_ranged(const oct_seal_args *a, float steps, oct_encode16_fn encode)
{
    _Alignas(64) uint8_t rows[OCT_UNIT_TOKENS * OCT_MAX_HEAD_DIM];
    const int d = a->d, group = oct_page_group(d);
    uint16_t *scales = a->block, *zeros = scales + oct_page_group_bytes(d) / 2;
    uint8_t *codes = (uint8_t *)a->block + 2 * oct_page_group_bytes(d);
    oct_kstatus status = OCT_K_OK;
    for (int t = 0; t < OCT_PAGE_TOKENS; t++) {
        const int r = t % OCT_UNIT_TOKENS;
        for (int g = 0; g < d / group; g++) {
            const uint16_t *x = (const uint16_t *)a->x + (size_t)t * a->ldx + g * group;
            int least, most;
            oct_group_range(x, group, &least, &most);
            float z = oct_key_value(least) + 0.0f; /* -0 becomes +0 */
            const float span = oct_key_value(most) - z;
            uint16_t scale = span < OCT_PAGE_TINY ? 0 : oct_bf16_up(span / steps);
            float s = oct_bf16_to_f32(scale);
            if (most >= (int)OCT_PAGE_LARGE || least < -(int)OCT_PAGE_LARGE) {
                oct_note_large(a, &status, t, g, group);
                scale = OCT_BF16_NAN, s = z = 0.0f;
            }
            scales[g * OCT_PAGE_TOKENS + t] = scale;
            zeros[g * OCT_PAGE_TOKENS + t] = (uint16_t)(oct_bits(z) >> 16);
            oct_encode_group(rows + r * d + g * group, x, group, s, z, 0, encode);
        }
        if (r == OCT_UNIT_TOKENS - 1)
            oct_place_unit(codes, rows, d, t / OCT_UNIT_TOKENS, a->role, 4);
    }
    return status;
}

#endif
