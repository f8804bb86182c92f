/* dot_avx2.h: the forms q8 and q8x2 by pairs of bytes, for biased byte codes and for nibbles.
 *
 * vpmaddubsw adds two products of an unsigned and a signed byte and saturates at 16 bits, so no
 * product of 255 may enter: byte codes are taken back to signed w, the unsigned side is |w|, and
 * the other byte b takes w's sign (2 * 128 * 127 = 32512). Where no b is negative, as with the
 * probabilities of a page whose scales are as sealed, b itself is the unsigned side and the sign is
 * saved; an edited page may have negative scales, hence negative P. Nibbles are unsigned already
 * (2 * 15 * 127). Widening to 32 bits follows at once, so integers are exact.
 * A tile is up to four code rows (q8x2: two queries) by two vectors of eight tokens or channels. */
#ifndef OCT_PAGE_DOT_AVX2_H
#define OCT_PAGE_DOT_AVX2_H

#include "kernels/page/codes_avx2.h"
#include "kernels/page/dot.h"
#include "kernels/page/generic.h"

#define OCT_DOT_ROWS 4

OCT_INLINE __m256i oct_four_bytes(const int8_t *x)
{
    int32_t four;
    memcpy(&four, x, 4);
    return _mm256_set1_epi32(four);
}

/* Pair sums of codes and the broadcast bytes b in -127..127, in 16 bits. `natural`: no b < 0. */
OCT_INLINE __m256i oct_dot_pairs(__m256i w, __m256i size, __m256i b, int bits, bool natural)
{
    if (bits == 4) return _mm256_maddubs_epi16(w, b);
    return natural ? _mm256_maddubs_epi16(b, w)
                   : _mm256_maddubs_epi16(size, _mm256_sign_epi8(b, w));
}

/* acc[r][v] += the dots of one line of codes: four (or eight) steps along the contraction. */
OCT_INLINE void oct_dot_line(__m256i acc[OCT_DOT_ROWS][2], int rows, int bits, bool natural,
                             const uint8_t *line, const int8_t *const *x, int at)
{
    const __m256i low = _mm256_set1_epi8(15), one = _mm256_set1_epi16(1);
    __m256i w[2][2];
    for (int v = 0; v < 2; v++) {
        const __m256i u = _mm256_load_si256((const __m256i *)(line + 32 * v));
        if (bits == 4) {
            w[0][v] = _mm256_and_si256(u, low);
            w[1][v] = _mm256_and_si256(_mm256_srli_epi16(u, 4), low);
        } else {
            w[0][v] = _mm256_xor_si256(u, _mm256_set1_epi8(-128));
            w[1][v] = _mm256_abs_epi8(w[0][v]);
        }
    }
    for (int r = 0; r < rows; r++) {
        const __m256i b = oct_four_bytes(x[r] + at);
        const __m256i b2 = bits == 4 ? oct_four_bytes(x[r] + at + 4) : b;
        for (int v = 0; v < 2; v++) {
            __m256i pairs = oct_dot_pairs(w[0][v], w[1][v], b, bits, natural);
            if (bits == 4) pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w[1][v], b2));
            acc[r][v] = _mm256_add_epi32(acc[r][v], _mm256_madd_epi16(pairs, one));
        }
    }
}

/* The dots of `rows` code rows with 16 tokens or channels over n codes, lines `step` apart. */
OCT_INLINE void oct_dot_run(int32_t out[OCT_DOT_ROWS][16], int rows, int bits, bool natural,
                            const uint8_t *line, size_t step, const int8_t *const *x, int n)
{
    __m256i acc[OCT_DOT_ROWS][2];
    for (int r = 0; r < rows; r++) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
    for (int at = 0; at < n; at += 32 / bits, line += step)
        oct_dot_line(acc, rows, bits, natural, line, x, at);
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < 2; v++) _mm256_store_si256((__m256i *)&out[r][8 * v], acc[r][v]);
}

/* Vector v of query r's dots; the two terms of q8x2 are joined. */
OCT_INLINE __m256i oct_dot_of(const int32_t dots[OCT_DOT_ROWS][16], int terms, int r, int v)
{
    const __m256i dot = _mm256_load_si256((const __m256i *)&dots[r * terms][8 * v]);
    if (terms == 1) return dot;
    return _mm256_add_epi32(_mm256_slli_epi32(dot, 7),
                            _mm256_load_si256((const __m256i *)&dots[r * 2 + 1][8 * v]));
}

OCT_INLINE __m256i oct_lane_index(int first)
{
    return _mm256_add_epi32(_mm256_set1_epi32(first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* One group's scores of `queries` queries with the unit at token t0; the float steps of A4. */
OCT_INLINE void oct_scores_group(const oct_scores_args *a, oct_dot_page page, int bits, int terms,
                                 int queries, int i0, int t0, int g)
{
    const int d = a->d, group = oct_page_group(d), per = bits == 4 ? 8 : 4;
    const int8_t *x[OCT_DOT_ROWS];
    _Alignas(32) int32_t dots[OCT_DOT_ROWS][16];
    for (int r = 0; r < queries; r++) {
        const size_t row = (size_t)(i0 + r) * (size_t)a->q->kp + (size_t)(g * group);
        x[r * terms] = a->q->hi + row;
        if (terms == 2) x[r * 2 + 1] = a->q->lo + row;
    }
    const size_t first = (size_t)(g * group / per) * OCT_PAGE_TOKENS + (size_t)t0;
    oct_dot_run(dots, queries * terms, bits, false, page.codes + first * 4, 4 * OCT_PAGE_TOKENS, x,
                group);
    for (int r = 0; r < queries; r++) {
        const float sum = (float)oct_dot_query_sum(a->q, i0 + r, g, group);
        for (int v = 0; v < 2; v++) {
            const int t = t0 + 8 * v, at = g * OCT_PAGE_TOKENS + t;
            float *s = a->s + (size_t)(i0 + r) * a->lds + t;
            __m256 f = g ? _mm256_loadu_ps(s) : _mm256_setzero_ps();
            f = _mm256_fmadd_ps(_mm256_cvtepi32_ps(oct_dot_of(dots, terms, r, v)),
                                oct_widen_bf16(page.scales + at), f);
            if (bits == 4)
                f = _mm256_fmadd_ps(_mm256_set1_ps(sum), oct_widen_bf16(page.zeros + at), f);
            if (g == d / group - 1) {
                const __m256i seen = _mm256_cmpgt_epi32(_mm256_set1_epi32(a->visible[i0 + r]),
                                                        oct_lane_index(t));
                f = _mm256_blendv_ps(_mm256_set1_ps(-INFINITY),
                                     _mm256_mul_ps(f, _mm256_set1_ps(a->q->scale[i0 + r])),
                                     _mm256_castsi256_ps(seen));
            }
            _mm256_storeu_ps(s, f);
        }
    }
}

OCT_INLINE void oct_scores_tile(const oct_scores_args *a, int bits, int terms, int queries, int i0,
                                int units)
{
    const oct_dot_page page = oct_dot_parts(a->block, a->d, bits);
    for (int u = 0; u < units; u++)
        for (int g = 0; g < a->d / oct_page_group(a->d); g++)
            oct_scores_group(a, page, bits, terms, queries, i0, u * OCT_UNIT_TOKENS, g);
    for (int r = 0; r < queries; r++)
        for (int t = units * OCT_UNIT_TOKENS; t < OCT_PAGE_TOKENS; t++)
            a->s[(size_t)(i0 + r) * a->lds + (size_t)t] = -INFINITY;
}

OCT_INLINE oct_kstatus oct_scores_dot(const oct_scores_args *a, int bits, int terms)
{
    const int units =
        oct_page_whole_units(oct_visible_max(a->visible, a->nq)) / OCT_UNIT_TOKENS;
    for (int i = 0; i < a->nq;) {
        const int left = a->nq - i, most = OCT_DOT_ROWS / terms, take = left < most ? left : most;
        switch (take) {
        case 1: oct_scores_tile(a, bits, terms, 1, i, units); break;
        case 2: oct_scores_tile(a, bits, terms, 2, i, units); break;
        case 3: oct_scores_tile(a, bits, terms, terms == 1 ? 3 : 2, i, units); break;
        default: oct_scores_tile(a, bits, terms, terms == 1 ? 4 : 2, i, units); break;
        }
        i += take;
    }
    return OCT_K_OK;
}

/* One group's probabilities of one query: codes, their sum, their scale, and the zero term. */
typedef struct {
    _Alignas(32) int8_t code[2][OCT_PAGE_TOKENS];
    int32_t sum;
    float scale, zero;
    bool natural; /* no code is negative */
} oct_dot_prob;

OCT_INLINE void oct_prob_bytes(int8_t *out, const __m256i *x)
{
    _mm_store_si128((__m128i *)out, oct_bytes_of(x[0], x[1], true));
}

/* w_t = p_t * s_t of the visible tokens, its largest magnitude, and accumulators of p_t * zc_t. */
OCT_INLINE uint32_t oct_prob_weights(__m256 w[8], __m256 zacc[2], const float *p, const float *s,
                                     const float *zc, int visible)
{
    __m256i top = _mm256_setzero_si256();
    for (int v = 0; v < 8; v++) {
        const __m256i seen = _mm256_cmpgt_epi32(_mm256_set1_epi32(visible), oct_lane_index(8 * v));
        const __m256 x = _mm256_maskload_ps(p + 8 * v, seen);
        w[v] = _mm256_and_ps(_mm256_mul_ps(x, _mm256_load_ps(s + 8 * v)),
                             _mm256_castsi256_ps(seen));
        top = _mm256_max_epu32(top, _mm256_and_si256(_mm256_castps_si256(w[v]),
                                                     _mm256_set1_epi32(0x7FFFFFFF)));
        if (zc)
            zacc[v % 2] = _mm256_blendv_ps(
                zacc[v % 2], _mm256_fmadd_ps(x, _mm256_load_ps(zc + 8 * v), zacc[v % 2]),
                _mm256_castsi256_ps(seen));
    }
    _Alignas(32) uint32_t lanes[8];
    _mm256_store_si256((__m256i *)lanes, top);
    uint32_t most = 0;
    for (int j = 0; j < 8; j++) most = lanes[j] > most ? lanes[j] : most;
    return most;
}

OCT_INLINE void oct_probs(oct_dot_prob *out, const float *p, const float *s, const float *zc,
                          int visible, int terms)
{
    __m256 w[8], zacc[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    const uint32_t bits = oct_prob_weights(w, zacc, p, s, zc, visible);
    const float most = oct_float(bits), steps = terms == 2 ? 16256.0f : 127.0f;
    const bool none = !oct_finite_bits(bits) || most < OCT_DOT_TINY;
    out->scale = !oct_finite_bits(bits) ? NAN : none ? 0.0f : most / steps;
    const __m256 ratio = _mm256_set1_ps(none ? 0.0f : steps / most);
    __m256i sum = _mm256_setzero_si256(), any = sum;
    for (int v = 0; v < 8; v += 2) {
        __m256i q[2], lo[2];
        for (int h = 0; h < 2; h++) {
            q[h] = none ? _mm256_setzero_si256()
                        : _mm256_cvtps_epi32(_mm256_mul_ps(w[v + h], ratio));
            sum = _mm256_add_epi32(sum, q[h]);
            any = _mm256_or_si256(any, q[h]);
            lo[h] = _mm256_and_si256(q[h], _mm256_set1_epi32(127));
            if (terms == 2) q[h] = _mm256_srai_epi32(q[h], 7);
        }
        oct_prob_bytes(out->code[0] + 8 * v, q);
        if (terms == 2) oct_prob_bytes(out->code[1] + 8 * v, lo);
    }
    _Alignas(32) int32_t parts[8];
    _Alignas(32) float acc[16];
    _mm256_store_si256((__m256i *)parts, sum);
    _mm256_store_ps(acc, zacc[0]);
    _mm256_store_ps(acc + 8, zacc[1]);
    out->natural = !_mm256_movemask_ps(_mm256_castsi256_ps(any));
    out->sum = 0;
    for (int j = 0; j < 8; j++) out->sum += parts[j];
    out->zero = zc ? oct_reduce_tree(acc) : 0.0f;
}

/* 16 channels from c on, all tokens of the first `units` units. */
OCT_INLINE void oct_mix_channels(const oct_mix_args *a, oct_dot_page page, int bits, int terms,
                                 int queries, bool natural, int i0, int c, int units,
                                 const oct_dot_prob *prob)
{
    const int8_t *x[OCT_DOT_ROWS];
    _Alignas(32) int32_t dots[OCT_DOT_ROWS][16];
    for (int r = 0; r < queries * terms; r++) x[r] = prob[r / terms].code[r % terms];
    oct_dot_run(dots, queries * terms, bits, natural, page.codes + (size_t)c * 4, (size_t)a->d * 4,
                x, units * OCT_UNIT_TOKENS);
    for (int r = 0; r < queries; r++) {
        /* Byte codes entered as signed; nibbles are centred here. */
        const __m256i centre = _mm256_set1_epi32(bits == 4 ? 8 * prob[r].sum : 0);
        for (int v = 0; v < 2; v++) {
            float *o = a->o + (size_t)(i0 + r) * a->ldo + c + 8 * v;
            const __m256i dot = _mm256_sub_epi32(oct_dot_of(dots, terms, r, v), centre);
            __m256 f = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), _mm256_set1_ps(prob[r].scale),
                                       _mm256_loadu_ps(o));
            if (bits == 4) f = _mm256_add_ps(f, _mm256_set1_ps(prob[r].zero));
            _mm256_storeu_ps(o, f);
        }
    }
}

OCT_INLINE void oct_mix_tile(const oct_mix_args *a, int bits, int terms, int queries, int i0,
                             int units)
{
    const oct_dot_page page = oct_dot_parts(a->block, a->d, bits);
    const int group = oct_page_group(a->d);
    _Alignas(32) float s[OCT_PAGE_TOKENS], zc[OCT_PAGE_TOKENS];
    oct_dot_prob prob[OCT_DOT_ROWS];
    for (int g = 0; g < a->d / group; g++) {
        for (int t = 0; t < OCT_PAGE_TOKENS; t += 8) {
            const __m256 scale = oct_widen_bf16(page.scales + g * OCT_PAGE_TOKENS + t);
            _mm256_store_ps(s + t, scale);
            if (bits == 8) continue;
            const __m256 zero = oct_widen_bf16(page.zeros + g * OCT_PAGE_TOKENS + t);
            _mm256_store_ps(zc + t, _mm256_fmadd_ps(_mm256_set1_ps(8.0f), scale, zero));
        }
        bool natural = true;
        for (int r = 0; r < queries; r++) {
            oct_probs(&prob[r], a->p + (size_t)(i0 + r) * a->ldp, s, bits == 4 ? zc : NULL,
                      a->visible[i0 + r], terms);
            natural = natural && prob[r].natural;
        }
        /* Two copies of the loop, for nibbles one: they take any sign. */
        if (bits == 4 || natural)
            for (int c = g * group; c < (g + 1) * group; c += 16)
                oct_mix_channels(a, page, bits, terms, queries, true, i0, c, units, prob);
        else
            for (int c = g * group; c < (g + 1) * group; c += 16)
                oct_mix_channels(a, page, bits, terms, queries, false, i0, c, units, prob);
    }
}

OCT_INLINE oct_kstatus oct_mix_dot(const oct_mix_args *a, int bits, int terms)
{
    const int units =
        oct_page_whole_units(oct_visible_max(a->visible, a->nq)) / OCT_UNIT_TOKENS;
    for (int i = 0; i < a->nq;) {
        const int left = a->nq - i, most = OCT_DOT_ROWS / terms, take = left < most ? left : most;
        switch (take) {
        case 1: oct_mix_tile(a, bits, terms, 1, i, units); break;
        case 2: oct_mix_tile(a, bits, terms, 2, i, units); break;
        case 3: oct_mix_tile(a, bits, terms, terms == 1 ? 3 : 2, i, units); break;
        default: oct_mix_tile(a, bits, terms, terms == 1 ? 4 : 2, i, units); break;
        }
        i += take;
    }
    return OCT_K_OK;
}

#endif
