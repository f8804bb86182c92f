/* turn_x86.h: the slot `turn` by vectors of 16 bytes, for the AVX2 and the AVX-512 column: both orders
 * keep a 4 x 4 square of codes in one such vector, so a square is one shuffle and memory is read and
 * written in whole vectors. `at`: where the codes begin; scales and zeros before them lie alike. */
#ifndef OCT_PAGE_TURN_X86_H
#define OCT_PAGE_TURN_X86_H

#include <immintrin.h>

#include "kernels/page/turn.h"

/* The shuffle that turns a 4 x 4 square of bytes. */
static inline __m128i oct_square_order(void)
{
    return _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
}

static inline __m128i oct_square4(__m128i v)
{
    return _mm_shuffle_epi8(v, oct_square_order());
}

static inline __m128i oct_load128(const void *at)
{
    return _mm_loadu_si128(at);
}

/* Four channels of four tokens a vector. */
static inline oct_kstatus oct_turn8_x86(const oct_turn_args *a, size_t at)
{
    const size_t d = (size_t)a->d;
    const uint8_t *from = (const uint8_t *)a->block + at;
    uint8_t *to = (uint8_t *)a->out + at;
    memcpy(a->out, a->block, at);
    for (size_t c = 0; c < d; c += 4)
        for (size_t t = 0; t < OCT_PAGE_TOKENS; t += 4, from += 16)
            _mm_storeu_si128((__m128i *)(to + t * d + 4 * c), oct_square4(oct_load128(from)));
    return OCT_K_OK;
}

/* Eight channels of eight tokens: two vectors in, tokens 0 to 3 and 4 to 7, each with channels 0 to 3
 * low and 4 to 7 high; two out, channels 0 to 3 and 4 to 7, each with tokens 0 to 3 low. */
static inline oct_kstatus oct_turn4_x86(const oct_turn_args *a, size_t at)
{
    const size_t d = (size_t)a->d;
    const __m128i low = _mm_set1_epi8(15), high = _mm_set1_epi8((char)0xF0);
    const uint8_t *from = (const uint8_t *)a->block + at;
    uint8_t *to = (uint8_t *)a->out + at;
    memcpy(a->out, a->block, at);
    for (size_t c = 0; c < d; c += 8)
        for (size_t t = 0; t < OCT_PAGE_TOKENS; t += 8, from += 32) {
            const __m128i x = oct_load128(from), y = oct_load128(from + 16);
            const __m128i first = _mm_or_si128(_mm_and_si128(x, low),
                                               _mm_slli_epi16(_mm_and_si128(y, low), 4));
            const __m128i second = _mm_or_si128(_mm_and_si128(_mm_srli_epi16(x, 4), low),
                                                _mm_and_si128(y, high));
            __m128i *out = (__m128i *)(to + t / 2 * d + 4 * c);
            _mm_storeu_si128(out, oct_square4(first));
            _mm_storeu_si128(out + 1, oct_square4(second));
        }
    return OCT_K_OK;
}

/* Eight channels of eight tokens of 16 bits. */
static inline void oct_square8(const uint16_t *from, uint16_t *to, size_t ld)
{
    __m128i x[8], y[8];
    for (int i = 0; i < 8; i++) x[i] = oct_load128(from + i * OCT_UNIT_TOKENS);
    for (int i = 0; i < 4; i++) {
        y[2 * i] = _mm_unpacklo_epi16(x[2 * i], x[2 * i + 1]);
        y[2 * i + 1] = _mm_unpackhi_epi16(x[2 * i], x[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        const int at = i / 2 * 4 + i % 2; /* rows 0, 1 hold tokens 0 to 3 and 4 to 7 of a pair */
        x[2 * i] = _mm_unpacklo_epi32(y[at], y[at + 2]);
        x[2 * i + 1] = _mm_unpackhi_epi32(y[at], y[at + 2]);
    }
    for (int i = 0; i < 4; i++) {
        _mm_storeu_si128((__m128i *)(to + (size_t)(2 * i) * ld), _mm_unpacklo_epi64(x[i], x[i + 4]));
        _mm_storeu_si128((__m128i *)(to + (size_t)(2 * i + 1) * ld),
                         _mm_unpackhi_epi64(x[i], x[i + 4]));
    }
}

static inline oct_kstatus oct_turn16_x86(const oct_turn_args *a)
{
    const size_t d = (size_t)a->d;
    for (int u = 0; u * OCT_UNIT_TOKENS < a->tokens; u++) {
        const uint16_t *from =
            (const uint16_t *)((const char *)a->block + (size_t)u * a->unit_stride);
        uint16_t *to = (uint16_t *)a->out + (size_t)u * OCT_UNIT_TOKENS * d;
        for (size_t c = 0; c < d; c += 8)
            for (size_t r = 0; r < OCT_UNIT_TOKENS; r += 8)
                oct_square8(from + c * OCT_UNIT_TOKENS + r, to + r * d + c, d);
    }
    return OCT_K_OK;
}

#endif
