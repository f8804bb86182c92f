/* dot_avx512.h: the forms q8 and q8x2 by vpdpbusd, for byte codes biased by 128 and for nibbles.
 *
 * Packed codes are the unsigned side; query or probability bytes are broadcast four at a time as
 * the signed side. A tile is up to six code rows (q8: six queries; q8x2: three, high and low parts)
 * by four vectors of 16 tokens (scores) or channels (mix): 24 accumulators, and every load of the
 * page serves the whole tile. dot.h says what is computed; integers are exact, so only the order of
 * the float steps at the end of a group matters. */
#ifndef OCT_PAGE_DOT_AVX512_H
#define OCT_PAGE_DOT_AVX512_H

#include "kernels/page/ahead.h"
#include "kernels/page/codes_avx512.h"
#include "kernels/page/dot.h"
#include "kernels/page/generic.h"

#define OCT_DOT_ROWS 6

OCT_INLINE __m512i oct_four_bytes(const int8_t *x)
{
    int32_t four;
    memcpy(&four, x, 4);
    return _mm512_set1_epi32(four);
}

/* In assembler because gcc copies the accumulator before and after the intrinsic, and with 24 of
 * them spills: half the speed of `mix`. */
OCT_INLINE void oct_dot_step(__m512i *acc, __m512i u, __m512i b)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*acc) : "v"(u), "v"(b));
}

/* acc[r][v] += the dots of one line of codes: four (or eight) steps along the contraction. */
OCT_INLINE void oct_dot_line(__m512i acc[OCT_DOT_ROWS][4], int rows, int nv, int bits,
                             const uint8_t *line, const int8_t *const *x, int at)
{
    __m512i w[4];
    const __m512i low = _mm512_set1_epi8(15);
    for (int v = 0; v < nv; v++) w[v] = _mm512_load_si512(line + 64 * v);
    for (int half = 0; half < (bits == 4 ? 2 : 1); half++) {
        __m512i u[4];
        for (int v = 0; v < nv; v++)
            u[v] = bits == 8 ? w[v]
                             : _mm512_and_si512(half ? _mm512_srli_epi16(w[v], 4) : w[v], low);
        for (int r = 0; r < rows; r++) {
            const __m512i b = oct_four_bytes(x[r] + at + 4 * half);
            for (int v = 0; v < nv; v++) oct_dot_step(&acc[r][v], u[v], b);
        }
    }
}

/* The dots of `rows` code rows with nv vectors over n codes, lines `step` bytes apart. They leave
 * through memory: an array of registers survives only loops that the compiler unrolls in full. */
OCT_INLINE void oct_dot_run(int32_t out[OCT_DOT_ROWS][64], int rows, int nv, int bits,
                            const uint8_t *line, size_t step, const int8_t *const *x, int n,
                            oct_asker *ask)
{
    __m512i acc[OCT_DOT_ROWS][4];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < nv; v++) acc[r][v] = _mm512_setzero_si512();
    for (int at = 0; at < n; at += 32 / bits, line += step) {
        oct_ask(ask);
        oct_dot_line(acc, rows, nv, bits, line, x, at);
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < nv; v++) _mm512_store_si512(&out[r][16 * v], acc[r][v]);
}

/* Vector v of query r's dots; the two terms of q8x2 are joined. */
OCT_INLINE __m512i oct_dot_of(const int32_t dots[OCT_DOT_ROWS][64], int terms, int r, int v)
{
    const __m512i dot = _mm512_load_si512(&dots[r * terms][16 * v]);
    if (terms == 1) return dot;
    return _mm512_add_epi32(_mm512_slli_epi32(dot, 7),
                            _mm512_load_si512(&dots[r * 2 + 1][16 * v]));
}

/* One group's dots of `queries` queries with nv vectors from token t0; the float steps of A4. */
OCT_INLINE void oct_scores_group(const oct_scores_args *a, oct_dot_page page, int bits, int terms,
                                 int queries, int nv, int i0, int t0, int g,
                                 oct_asker *ask)
{
    const int d = a->d, group = oct_page_group(d), per = bits == 4 ? 8 : 4;
    const int8_t *x[OCT_DOT_ROWS];
    _Alignas(64) int32_t dots[OCT_DOT_ROWS][64];
    for (int r = 0; r < queries; r++) {
        const size_t row = (size_t)(i0 + r) * (size_t)a->q->kp + (size_t)(g * group);
        x[r * terms] = a->q->hi + row;
        if (terms == 2) x[r * 2 + 1] = a->q->lo + row;
    }
    const size_t first = (size_t)(g * group / per) * OCT_PAGE_TOKENS + (size_t)t0;
    oct_dot_run(dots, queries * terms, nv, bits, page.codes + first * 4, 4 * OCT_PAGE_TOKENS, x,
                group, ask);

    const uint16_t *scales = page.scales + g * OCT_PAGE_TOKENS + t0;
    const uint16_t *zeros = page.zeros + g * OCT_PAGE_TOKENS + t0;
    for (int r = 0; r < queries; r++) {
        float *s = a->s + (size_t)(i0 + r) * a->lds + t0;
        const int32_t sum = oct_dot_query_sum(a->q, i0 + r, g, group);
        for (int v = 0; v < nv; v++) {
            __m512i dot = oct_dot_of(dots, terms, r, v);
            if (bits == 8) dot = _mm512_sub_epi32(dot, _mm512_set1_epi32(128 * sum));
            __m512 f = g ? _mm512_loadu_ps(s + 16 * v) : _mm512_setzero_ps();
            f = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), oct_widen_bf16(scales + 16 * v), f);
            if (bits == 4)
                f = _mm512_fmadd_ps(_mm512_set1_ps((float)sum), oct_widen_bf16(zeros + 16 * v), f);
            if (g == d / group - 1) {
                const __m512i t = _mm512_add_epi32(
                    _mm512_set1_epi32(t0 + 16 * v),
                    _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
                const __mmask16 seen =
                    _mm512_cmplt_epi32_mask(t, _mm512_set1_epi32(a->visible[i0 + r]));
                f = _mm512_mask_mul_ps(_mm512_set1_ps(-INFINITY), seen, f,
                                       _mm512_set1_ps(a->q->scale[i0 + r]));
            }
            _mm512_storeu_ps(s + 16 * v, f);
        }
    }
}

/* Whole pages take four vectors at once; a page that is seen in part goes unit by unit, so that
 * units past the last visible token are not read. */
OCT_INLINE void oct_scores_tile(const oct_scores_args *a, int bits, int terms, int queries, int i0,
                                int units, oct_asker *ask)
{
    const oct_dot_page page = oct_dot_parts(a->block, a->d, bits);
    const int groups = a->d / oct_page_group(a->d);
    if (units == 4) {
        for (int g = 0; g < groups; g++)
            oct_scores_group(a, page, bits, terms, queries, 4, i0, 0, g, ask);
        return;
    }
    for (int u = 0; u < units; u++)
        for (int g = 0; g < groups; g++)
            oct_scores_group(a, page, bits, terms, queries, 1, i0, u * OCT_UNIT_TOKENS, g, ask);
    for (int r = 0; r < queries; r++)
        for (int u = units; u < 4; u++)
            _mm512_storeu_ps(a->s + (size_t)(i0 + r) * a->lds + u * OCT_UNIT_TOKENS,
                             _mm512_set1_ps(-INFINITY));
}

OCT_INLINE oct_kstatus oct_scores_dot(const oct_scores_args *a, int bits, int terms)
{
    oct_asker ask = oct_asker_of(a->ahead, a->d * bits / 32);
    const int units =
        oct_page_whole_units(oct_visible_max(a->visible, a->nq)) / OCT_UNIT_TOKENS;
    for (int i = 0; i < a->nq;) {
        const int left = a->nq - i, most = OCT_DOT_ROWS / terms, take = left < most ? left : most;
        switch (take) {
        case 1: oct_scores_tile(a, bits, terms, 1, i, units, &ask); break;
        case 2: oct_scores_tile(a, bits, terms, 2, i, units, &ask); break;
        case 3: oct_scores_tile(a, bits, terms, 3, i, units, &ask); break;
        case 4: oct_scores_tile(a, bits, terms, terms == 1 ? 4 : 3, i, units, &ask); break;
        case 5: oct_scores_tile(a, bits, terms, terms == 1 ? 5 : 3, i, units, &ask); break;
        default: oct_scores_tile(a, bits, terms, terms == 1 ? 6 : 3, i, units, &ask); break;
        }
        i += take;
    }
    return OCT_K_OK;
}

/* One group's probabilities of one query: codes, their sum, their scale, and the zero term. */
typedef struct {
    _Alignas(64) int8_t code[2][OCT_PAGE_TOKENS];
    int32_t sum;
    float scale, zero;
} oct_dot_prob;

OCT_INLINE void oct_probs(oct_dot_prob *out, const float *p, const float *s, const float *zc,
                          int visible, int terms)
{
    __m512 w[4], zacc = _mm512_setzero_ps();
    __m512i top = _mm512_setzero_si512(), sum = top;
    for (int v = 0; v < 4; v++) {
        const int n = visible - 16 * v;
        const __mmask16 seen = n >= 16 ? 0xFFFF : n <= 0 ? 0 : (__mmask16)((1 << n) - 1);
        const __m512 x = _mm512_maskz_loadu_ps(seen, p + 16 * v);
        w[v] = _mm512_maskz_mul_ps(seen, x, _mm512_load_ps(s + 16 * v));
        const __m512i u = _mm512_castps_si512(w[v]);
        top = _mm512_max_epu32(top, _mm512_and_si512(u, _mm512_set1_epi32(0x7FFFFFFF)));
        if (zc) zacc = _mm512_mask3_fmadd_ps(x, _mm512_load_ps(zc + 16 * v), zacc, seen);
    }
    const uint32_t bits = _mm512_reduce_max_epu32(top);
    const float most = oct_float(bits), steps = terms == 2 ? 16256.0f : 127.0f;
    const bool none = !oct_finite_bits(bits) || most < OCT_DOT_TINY;
    out->scale = !oct_finite_bits(bits) ? NAN : none ? 0.0f : most / steps;
    const __mmask16 keep = none ? 0 : 0xFFFF;
    const __m512 ratio = _mm512_set1_ps(none ? 0.0f : steps / most);
    for (int v = 0; v < 4; v++) {
        const __m512i q = _mm512_maskz_cvtps_epi32(keep, _mm512_mul_ps(w[v], ratio));
        sum = _mm512_add_epi32(sum, q);
        const __m512i hi = terms == 2 ? _mm512_srai_epi32(q, 7) : q;
        _mm_store_si128((__m128i *)(out->code[0] + 16 * v), _mm512_cvtepi32_epi8(hi));
        if (terms == 2)
            _mm_store_si128((__m128i *)(out->code[1] + 16 * v),
                            _mm512_cvtepi32_epi8(_mm512_and_si512(q, _mm512_set1_epi32(127))));
    }
    out->sum = _mm512_reduce_add_epi32(sum);
    _Alignas(64) float acc[16];
    _mm512_store_ps(acc, zacc);
    out->zero = zc ? oct_reduce_tree(acc) : 0.0f;
}

/* nv vectors of channels from c on, all tokens of the first `units` units. */
OCT_INLINE void oct_mix_channels(const oct_mix_args *a, oct_dot_page page, int bits, int terms,
                                 int queries, int nv, int i0, int c, int units,
                                 const oct_dot_prob *prob, oct_asker *ask)
{
    const int8_t *x[OCT_DOT_ROWS];
    _Alignas(64) int32_t dots[OCT_DOT_ROWS][64];
    for (int r = 0; r < queries * terms; r++) x[r] = prob[r / terms].code[r % terms];
    oct_dot_run(dots, queries * terms, nv, bits, page.codes + (size_t)c * 4, (size_t)a->d * 4, x,
                units * OCT_UNIT_TOKENS, ask);
    const int centre = bits == 4 ? 8 : 128;
    for (int r = 0; r < queries; r++) {
        float *o = a->o + (size_t)(i0 + r) * a->ldo + c;
        for (int v = 0; v < nv; v++) {
            __m512i dot = oct_dot_of(dots, terms, r, v);
            dot = _mm512_sub_epi32(dot, _mm512_set1_epi32(centre * prob[r].sum));
            __m512 f = _mm512_loadu_ps(o + 16 * v);
            f = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_set1_ps(prob[r].scale), f);
            if (bits == 4) f = _mm512_add_ps(f, _mm512_set1_ps(prob[r].zero));
            _mm512_storeu_ps(o + 16 * v, f);
        }
    }
}

OCT_INLINE void oct_mix_tile(const oct_mix_args *a, int bits, int terms, int queries, int i0,
                             int units, oct_asker *ask)
{
    const oct_dot_page page = oct_dot_parts(a->block, a->d, bits);
    const int group = oct_page_group(a->d);
    _Alignas(64) float s[OCT_PAGE_TOKENS], zc[OCT_PAGE_TOKENS];
    oct_dot_prob prob[OCT_DOT_ROWS];
    for (int g = 0; g < a->d / group; g++) {
        for (int t = 0; t < OCT_PAGE_TOKENS; t += 16) {
            const __m512 scale = oct_widen_bf16(page.scales + g * OCT_PAGE_TOKENS + t);
            _mm512_store_ps(s + t, scale);
            if (bits == 8) continue;
            const __m512 zero = oct_widen_bf16(page.zeros + g * OCT_PAGE_TOKENS + t);
            _mm512_store_ps(zc + t, _mm512_fmadd_ps(_mm512_set1_ps(8.0f), scale, zero));
        }
        for (int r = 0; r < queries; r++)
            oct_probs(&prob[r], a->p + (size_t)(i0 + r) * a->ldp, s, bits == 4 ? zc : NULL,
                      a->visible[i0 + r], terms);
        int c = g * group;
        for (; c + 64 <= (g + 1) * group; c += 64)
            oct_mix_channels(a, page, bits, terms, queries, 4, i0, c, units, prob, ask);
        for (; c < (g + 1) * group; c += 16)
            oct_mix_channels(a, page, bits, terms, queries, 1, i0, c, units, prob, ask);
    }
}

OCT_INLINE oct_kstatus oct_mix_dot(const oct_mix_args *a, int bits, int terms)
{
    oct_asker ask = oct_asker_of(a->ahead, OCT_PAGE_TOKENS * bits / 32 * ((a->d + 63) / 64));
    const int units =
        oct_page_whole_units(oct_visible_max(a->visible, a->nq)) / OCT_UNIT_TOKENS;
    for (int i = 0; i < a->nq;) {
        const int left = a->nq - i, most = OCT_DOT_ROWS / terms, take = left < most ? left : most;
        switch (take) {
        case 1: oct_mix_tile(a, bits, terms, 1, i, units, &ask); break;
        case 2: oct_mix_tile(a, bits, terms, 2, i, units, &ask); break;
        case 3: oct_mix_tile(a, bits, terms, 3, i, units, &ask); break;
        case 4: oct_mix_tile(a, bits, terms, terms == 1 ? 4 : 3, i, units, &ask); break;
        case 5: oct_mix_tile(a, bits, terms, terms == 1 ? 5 : 3, i, units, &ask); break;
        default: oct_mix_tile(a, bits, terms, terms == 1 ? 6 : 3, i, units, &ask); break;
        }
        i += take;
    }
    return OCT_K_OK;
}

#endif
