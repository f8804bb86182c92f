/* turn_avx512.h: `turn` of byte codes by whole lines: four lines of four channels by 16 tokens become
 * four of 16 channels by four tokens. */
#ifndef OCT_PAGE_TURN_AVX512_H
#define OCT_PAGE_TURN_AVX512_H

#include "kernels/page/turn_x86.h"

/* 128-bit lane i of x[j] becomes lane j of x[i]. */
static inline void oct_turn_lanes(__m512i x[4])
{
    const __m512i a = _mm512_shuffle_i32x4(x[0], x[1], 0x44);
    const __m512i b = _mm512_shuffle_i32x4(x[2], x[3], 0x44);
    const __m512i c = _mm512_shuffle_i32x4(x[0], x[1], 0xEE);
    const __m512i d = _mm512_shuffle_i32x4(x[2], x[3], 0xEE);
    x[0] = _mm512_shuffle_i32x4(a, b, 0x88);
    x[1] = _mm512_shuffle_i32x4(a, b, 0xDD);
    x[2] = _mm512_shuffle_i32x4(c, d, 0x88);
    x[3] = _mm512_shuffle_i32x4(c, d, 0xDD);
}

/* d is a multiple of 16. */
static inline oct_kstatus oct_turn8_avx512(const oct_turn_args *a, size_t at)
{
    const size_t d = (size_t)a->d, row = 4 * OCT_PAGE_TOKENS; /* bytes of four channels */
    const __m512i square = _mm512_broadcast_i32x4(oct_square_order());
    const uint8_t *from = (const uint8_t *)a->block + at;
    uint8_t *to = (uint8_t *)a->out + at;
    memcpy(a->out, a->block, at);
    for (size_t c = 0; c < d; c += 16, from += 4 * row)
        for (size_t t = 0; t < OCT_PAGE_TOKENS; t += 16) {
            __m512i x[4];
            for (size_t i = 0; i < 4; i++)
                x[i] = _mm512_shuffle_epi8(_mm512_load_si512(from + i * row + 4 * t), square);
            oct_turn_lanes(x);
            for (size_t i = 0; i < 4; i++)
                _mm512_store_si512(to + (t / 4 + i) * 4 * d + 4 * c, x[i]);
        }
    return OCT_K_OK;
}

#endif
