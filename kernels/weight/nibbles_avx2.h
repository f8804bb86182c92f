/* nibbles_avx2.h: 4-bit codes against 8-bit inputs with byte products. Part of grouped_avx2.h,
 * which includes it.
 *
 * vpmaddubsw adds pairs of u8 x s8 in 16 bits and saturates; but a pair with a nibble is at most
 * 2 * 15 * 127, and the eight pairs of a group in one lane at most 30480, so a whole group adds up
 * in 16 bits before it is widened, exactly. Codes are read as stored; a zero point is taken out of
 * the sum, so none is subtracted from codes. */
#ifndef OCT_WEIGHT_NIBBLES_AVX2_H
#define OCT_WEIGHT_NIBBLES_AVX2_H

static_assert(8 * 2 * 15 * 127 <= INT16_MAX, "a group's pairs add up in 16 bits");

OCT_INLINE __m256i broadcast4(const int8_t *p)
{
    int32_t four;
    memcpy(&four, p, sizeof four);
    return _mm256_set1_epi32(four);
}

/* What the zero points of octet o take off a group's dot; side.dot is -8 * X, or -X where each
 * channel has its own. */
OCT_INLINE __m256i zero_share(const uint8_t *group, int o, int32_t dot)
{
    if (!HAS_ZERO) return _mm256_set1_epi32(dot);
    const __m128i bytes = _mm_loadl_epi64((const __m128i *)(group + EXTRA_AT + 8 * o));
    return _mm256_madd_epi16(_mm256_cvtepu8_epi32(bytes), _mm256_set1_epi32(dot)); /* |X| < 2^12 */
}

/* 16 channels at a time. */
OCT_INLINE void dot_nibbles(strip *s, const int rows, const oct_act act)
{
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    for (int g = 0; g < s->groups; g++) {
        const uint8_t *group = s->group + (size_t)g * GROUP_BYTES;
        oct_ask(&s->ask, 1);
        for (int h = 0; h < 2; h++) {
            __m256i sum[MR][2];
            forget_loads();
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                const __m256i *at = (const __m256i *)(group + h * HALF_BYTES + i * LINE_BYTES);
                const __m256i v = _mm256_loadu_si256(at), u = _mm256_loadu_si256(at + 1);
                const __m256i w[2][2] = {
                    {_mm256_and_si256(v, low), _mm256_and_si256(u, low)},
                    {_mm256_and_si256(_mm256_srli_epi16(v, 4), low),
                     _mm256_and_si256(_mm256_srli_epi16(u, 4), low)},
                };
#pragma GCC unroll 2
                for (int q = 0; q < 2; q++)
#pragma GCC unroll 4
                    for (int r = 0; r < rows; r++) {
                        const int8_t *from = s->hi + (size_t)r * s->kp;
                        const __m256i x = broadcast4(from + g * OCT_GROUP + 8 * i + 4 * q);
                        sum[r][0] = _mm256_add_epi16(sum[r][0], _mm256_maddubs_epi16(w[q][0], x));
                        sum[r][1] = _mm256_add_epi16(sum[r][1], _mm256_maddubs_epi16(w[q][1], x));
                    }
            }
            const sizes by[2] = {sizes_of(s, g, 2 * h), sizes_of(s, g, 2 * h + 1)};
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
                for (int v = 0; v < 2; v++) {
                    const int32_t share = s->side[(size_t)r * s->side_ld + (size_t)g].dot;
                    __m256i dot = _mm256_madd_epi16(sum[r][v], ones);
                    if (!HAS_MIN)
                        dot = _mm256_add_epi32(dot, zero_share(group, 2 * h + v, share));
                    fold_group(s, r, g, 2 * h + v, act, by[v], dot);
                }
        }
    }
}

#endif
