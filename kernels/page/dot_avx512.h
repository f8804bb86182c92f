/* dot_avx512.h: the forms q8 and q8x2 by vpdpbusd, for byte codes biased by 128 and for nibbles.
 *
 * Packed codes are the unsigned side; query or probability bytes are broadcast four at a time as
 * the signed side. A tile is up to six code rows (q8: six queries; q8x2: three, high and low parts)
 * by four vectors of 16 tokens (scores) or channels (mix): 24 accumulators, and every load of the
 * page serves the whole tile. dot.h says what is computed; integers are exact, so only the order of
 * the float steps at the end of a group matters. */
#ifndef OCT_PAGE_DOT_AVX512_H
#define OCT_PAGE_DOT_AVX512_H

#define OCT_DOT_ROWS 6
#include "kernels/page/dot_fold_avx512.h"
#include "kernels/page/generic.h"

enum { OCT_DOT_WORK = 2 }; /* of a step of dots, in units of OCT_FLOAT_WORK */

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

/* acc[r][v] += the dots of one line of codes: four (or eight) steps along the contraction. Code
 * rows lie a constant apart, or their addresses would not fit the registers. */
OCT_INLINE void oct_dot_line(__m512i acc[OCT_DOT_ROWS][4], int rows, int nv, int bits,
                             const uint8_t *line, const int8_t *x, size_t ldx)
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
            const __m512i b = oct_four_bytes(x + (size_t)r * ldx + 4 * half);
            for (int v = 0; v < nv; v++) oct_dot_step(&acc[r][v], u[v], b);
        }
    }
}

/* The dots of `rows` code rows with nv vectors over n codes, lines `step` bytes apart. They leave
 * through memory: an array of registers survives only loops that the compiler unrolls in full. */
OCT_INLINE void oct_dot_run(int32_t out[OCT_DOT_ROWS][64], int rows, int nv, int bits,
                            const uint8_t *line, size_t step, const int8_t *x, size_t ldx, int n,
                            oct_asker *ask)
{
    __m512i acc[OCT_DOT_ROWS][4];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < nv; v++) acc[r][v] = _mm512_setzero_si512();
    for (const int8_t *end = x + n; x < end; x += 32 / bits, line += step) {
        oct_ask(ask, OCT_DOT_WORK);
        oct_dot_line(acc, rows, nv, bits, line, x, ldx);
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < nv; v++) _mm512_store_si512(&out[r][16 * v], acc[r][v]);
}

/* The queries of a tile: code rows (of q8x2 hi, then lo, query by query). */
typedef struct {
    _Alignas(64) int8_t code[OCT_DOT_ROWS][OCT_MAX_HEAD_DIM];
    int first; /* query */
    bool whole; /* all see the whole page */
} oct_dot_queries;

OCT_INLINE void oct_dot_take(oct_dot_queries *to, const oct_scores_args *a, int terms, int queries,
                             int first)
{
    const size_t kp = (size_t)a->q->kp, d = (size_t)a->d;
    to->first = first;
    to->whole = true;
    for (int r = 0; r < queries; r++) {
        const size_t row = (size_t)(first + r) * kp;
        to->whole = to->whole && a->visible[first + r] >= OCT_PAGE_TOKENS;
        for (size_t c = 0; c < d; c += 16) {
            const __m128i hi = _mm_loadu_si128((const __m128i *)(a->q->hi + row + c));
            _mm_store_si128((__m128i *)(to->code[r * terms] + c), hi);
            if (terms == 1) continue;
            const __m128i lo = _mm_loadu_si128((const __m128i *)(a->q->lo + row + c));
            _mm_store_si128((__m128i *)(to->code[r * 2 + 1] + c), lo);
        }
    }
}

OCT_INLINE void oct_scores_group(const oct_scores_args *a, oct_dot_page page, int bits, int terms,
                                 int queries, int nv, const oct_dot_queries *q, int t0, int g,
                                 oct_asker *ask)
{
    const int per = bits == 4 ? 8 : 4, group = oct_page_group(a->d);
    _Alignas(64) int32_t dots[OCT_DOT_ROWS][64];
    const size_t first = (size_t)(g * group / per) * OCT_PAGE_TOKENS + (size_t)t0;
    oct_dot_run(dots, queries * terms, nv, bits, page.codes + first * 4, 4 * OCT_PAGE_TOKENS,
                q->code[0] + g * group, OCT_MAX_HEAD_DIM, group, ask);
    oct_scores_fold(a, page, bits, terms, queries, nv, dots, q->first, q->whole, t0, g,
                    ask);
}

/* Whole pages take four vectors at once; a page that is seen in part goes unit by unit, so that
 * units past the last visible token are not read. */
OCT_INLINE void oct_scores_tile(const oct_scores_args *a, int bits, int terms, int queries, int i0,
                                int units, oct_asker *ask)
{
    const oct_dot_page page = oct_dot_parts(a->block, a->d, bits);
    const int groups = a->d / oct_page_group(a->d);
    oct_dot_queries q;
    oct_dot_take(&q, a, terms, queries, i0);
    if (units == 4) {
        for (int g = 0; g < groups; g++)
            oct_scores_group(a, page, bits, terms, queries, 4, &q, 0, g, ask);
        return;
    }
    for (int u = 0; u < units; u++)
        for (int g = 0; g < groups; g++)
            oct_scores_group(a, page, bits, terms, queries, 1, &q, u * OCT_UNIT_TOKENS, g, ask);
    for (int r = 0; r < queries; r++)
        for (int u = units; u < 4; u++)
            _mm512_storeu_ps(a->s + (size_t)(i0 + r) * a->lds + u * OCT_UNIT_TOKENS,
                             _mm512_set1_ps(-INFINITY));
}

OCT_INLINE int oct_dot_tiles(int queries, int terms)
{
    return (queries * terms + OCT_DOT_ROWS - 1) / OCT_DOT_ROWS;
}

OCT_INLINE oct_kstatus oct_scores_dot(const oct_scores_args *a, int bits, int terms)
{
    const int steps = oct_dot_tiles(a->nq, terms) * a->d * bits / 32;
    const int floats = a->nq * (a->d / oct_page_group(a->d));
    oct_asker ask = oct_asker_of(a->ahead, steps * OCT_DOT_WORK + floats * OCT_FLOAT_WORK);
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

/* nv vectors of channels from c on, all tokens of the first `units` units. */
OCT_INLINE void oct_mix_channels(const oct_mix_args *a, oct_dot_page page, int bits, int terms,
                                 int queries, int nv, int i0, int c, int units,
                                 const oct_dot_probs *prob, oct_asker *ask)
{
    _Alignas(64) int32_t dots[OCT_DOT_ROWS][64];
    oct_dot_run(dots, queries * terms, nv, bits, page.codes + (size_t)c * 4, (size_t)a->d * 4,
                prob->code[0], OCT_PAGE_TOKENS, units * OCT_UNIT_TOKENS, ask);
    oct_mix_fold(a, bits, terms, queries, nv, dots, i0, c, prob, ask);
}

OCT_INLINE void oct_mix_tile(const oct_mix_args *a, int bits, int terms, int queries, int i0,
                             int units, oct_asker *ask)
{
    const oct_dot_page page = oct_dot_parts(a->block, a->d, bits);
    const int group = oct_page_group(a->d);
    oct_dot_probs prob;
    for (int g = 0; g < a->d / group; g++) {
        oct_mix_probs(a, page, bits, terms, queries, i0, g, false, &prob, ask);
        int c = g * group;
        for (; c + 64 <= (g + 1) * group; c += 64)
            oct_mix_channels(a, page, bits, terms, queries, 4, i0, c, units, &prob, ask);
        for (; c < (g + 1) * group; c += 16)
            oct_mix_channels(a, page, bits, terms, queries, 1, i0, c, units, &prob, ask);
    }
}

OCT_INLINE oct_kstatus oct_mix_dot(const oct_mix_args *a, int bits, int terms)
{
    const int group = oct_page_group(a->d), groups = a->d / group;
    const int runs = groups * (group / 64 + group % 64 / 16);
    const int steps = oct_dot_tiles(a->nq, terms) * runs * OCT_PAGE_TOKENS * bits / 32;
    const int floats = a->nq * (runs + 2 * groups); /* the sums, and probabilities in two passes */
    oct_asker ask = oct_asker_of(a->ahead, steps * OCT_DOT_WORK + floats * OCT_FLOAT_WORK);
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
