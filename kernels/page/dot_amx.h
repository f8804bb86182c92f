/* dot_amx.h: the forms q8 and q8x2 for many queries, by the tile products of AMX: prefill, and the
 * heads of a latent.
 *
 * A strip is 16 queries' codes against 16 tokens (scores) or 64 channels (mix) at a time. A page's
 * codes lie as a B tile wants them, 16 columns x 4 bytes to a line, so nothing is moved: a tile of
 * keys is 64 channels of 16 tokens, its lines 256 bytes apart; one of values is all tokens of 16
 * channels, its lines 4 * d apart. Nibbles are split into the lane first, once for all queries.
 * Few queries, pages that are seen in part and odd widths are left to the AVX-512 column, which
 * gives the same bits. */
#ifndef OCT_PAGE_DOT_AMX_H
#define OCT_PAGE_DOT_AMX_H

#define OCT_DOT_ROWS 32
#include "kernels/page/dot_fold_avx512.h"
#include "kernels/simd/nibbles_gfni.h"
#include "kernels/simd/tiles_amx.h"

enum {
    OCT_STRIP = 16, /* queries */
    OCT_DEEP = 64,  /* channels or tokens of a tile product */
    OCT_DOT_GROUPS = OCT_MAX_HEAD_DIM / 64 /* most groups of channels that are of whole tiles */
};

typedef struct {
    _Alignas(64) int32_t dots[OCT_DOT_ROWS][64]; /* of q8x2 hi, then lo, query by query */
} oct_strip_sums;

static inline bool oct_tiles_suit(const int *visible, int nq, int d)
{
    if (nq < OCT_STRIP || oct_page_group(d) % OCT_DEEP) return false;
    for (int i = 0; i < nq; i++)
        if (visible[i] < OCT_PAGE_TOKENS) return false;
    return true;
}

/* The codes of a page as bytes [n / 4][columns][4], whose stored order is [n / 8][columns][4] of
 * nibbles: a line becomes one of its low and, a row of lines further, one of its high halves.
 * centred: those less 8. */
static inline const uint8_t *oct_split_page(oct_dot_page page, int bits, int n, int columns,
                                            bool centred, void *lane)
{
    const size_t row = (size_t)columns * 4;
    const uint8_t *from = page.codes;
    uint8_t *to = lane;
    if (bits == 8) return from;
    for (int i = 0; i < n / 8; i++, to += row)
        for (size_t end = row; end > 0; end -= 64, from += 64, to += 64) {
            __m512i w[2];
            if (centred) oct_centred_nibbles(_mm512_load_si512(from), w);
            else oct_nibbles(_mm512_load_si512(from), w);
            _mm512_store_si512(to, w[0]);
            _mm512_store_si512(to + row, w[1]);
        }
    return lane;
}

/* dots [16][ld] = 16 code rows x 64 columns over n codes; lines of codes lie `step` bytes apart. */
static inline void oct_tile_dots(int32_t *dots, size_t ld, const int8_t *x, size_t ldx,
                                 const uint8_t *lines, size_t step, int n)
{
    OCT_TILE_ZERO(0);
    OCT_TILE_ZERO(1);
    OCT_TILE_ZERO(2);
    OCT_TILE_ZERO(3);
    for (int i = 0; i < n; i += OCT_DEEP, x += OCT_DEEP, lines += OCT_DEEP / 4 * step) {
        OCT_TILE_LOAD(4, x, ldx);
        OCT_TILE_LOAD(6, lines, step);
        OCT_TILE_DOT_SU(0, 4, 6);
        OCT_TILE_LOAD(7, lines + 64, step);
        OCT_TILE_DOT_SU(1, 4, 7);
        OCT_TILE_LOAD(6, lines + 128, step);
        OCT_TILE_DOT_SU(2, 4, 6);
        OCT_TILE_LOAD(7, lines + 192, step);
        OCT_TILE_DOT_SU(3, 4, 7);
    }
    OCT_TILE_STORE(0, dots, ld * sizeof *dots);
    OCT_TILE_STORE(1, dots + 16, ld * sizeof *dots);
    OCT_TILE_STORE(2, dots + 32, ld * sizeof *dots);
    OCT_TILE_STORE(3, dots + 48, ld * sizeof *dots);
}

/* The dots of the rows from x on, and of q8x2's low parts. */
static inline void oct_strip_dots(oct_strip_sums *out, int terms, const int8_t *hi,
                                  const int8_t *lo, size_t ldx, const uint8_t *lines, size_t step,
                                  int n)
{
    oct_tile_dots(out->dots[0], (size_t)terms * 64, hi, ldx, lines, step, n);
    if (terms == 2) oct_tile_dots(out->dots[1], 128, lo, ldx, lines, step, n);
}

/* What a strip of queries brings to each group of channels. */
typedef struct {
    _Alignas(64) int32_t less[OCT_DOT_GROUPS][OCT_STRIP]; /* 8 bits: sums of codes times 128 */
    _Alignas(64) float sum[OCT_DOT_GROUPS][OCT_STRIP];    /* 4 bits: sums of codes */
    _Alignas(64) int32_t sums[2][2][OCT_STRIP][16]; /* of two units: terms, queries, tokens */
} oct_scores_work;

/* As oct_dot_query_sum; groups here are of two or four sums. */
static inline void oct_sum_queries(const oct_scores_args *a, int bits, int first,
                                   oct_scores_work *m)
{
    const int per = oct_page_group(a->d) / OCT_GROUP, groups = a->d / oct_page_group(a->d);
    for (int r = 0; r < OCT_STRIP; r++) {
        const int32_t *part = a->q->sum + (size_t)(first + r) * (size_t)(a->q->kp / OCT_GROUP);
        for (int g = 0; g < groups; g++, part += per) {
            int32_t sum = part[0] + part[1];
            if (per == 4) sum += part[2] + part[3];
            if (bits == 8) m->less[g][r] = 128 * sum;
            else m->sum[g][r] = (float)sum;
        }
    }
}

/* The scores of a strip. A unit is a group of channels of 16 tokens, tokens running slowest. */
OCT_INLINE void oct_scores_units(const oct_scores_args *a, oct_dot_page page, int bits, int terms,
                                 int first, const uint8_t *bytes, oct_scores_work *m,
                                 oct_asker *ask)
{
    const int group = oct_page_group(a->d), groups = a->d / group;
    const int n = OCT_PAGE_TOKENS / 16 * groups;
    const size_t at = (size_t)first * (size_t)a->q->kp;
    const ptrdiff_t ldq = a->q->kp, step = 4 * OCT_PAGE_TOKENS;
    float *s = a->s + (size_t)first * a->lds;
    __m512 acc[OCT_STRIP];
    for (int r = 0; r < OCT_STRIP; r++) acc[r] = _mm512_setzero_ps(); /* gcc sees no other */
    int g = 0, folded = 0, t = 0;
    const uint8_t *tokens = bytes;
    for (int i = 0; i < n + 3; i += 2) {
#pragma GCC unroll 2
        for (int parity = 0; parity < 2; parity++) {
            const int j = i + parity;
            const bool store = j >= 2 && j < n + 2, dot = j < n;
            int32_t(*sums)[OCT_STRIP][16] = m->sums[parity];
            if (store && parity) {
                OCT_TILE_STORE(1, sums[0], 64);
                if (terms == 2) OCT_TILE_STORE(3, sums[1], 64);
            } else if (store) {
                OCT_TILE_STORE(0, sums[0], 64);
                if (terms == 2) OCT_TILE_STORE(2, sums[1], 64);
            }
            if (dot && parity) {
                OCT_TILE_ZERO(1);
                if (terms == 2) OCT_TILE_ZERO(3);
            } else if (dot) {
                OCT_TILE_ZERO(0);
                if (terms == 2) OCT_TILE_ZERO(2);
            }
            for (int c = g * group; dot && c < (g + 1) * group; c += OCT_DEEP) {
                OCT_TILE_LOAD(4, a->q->hi + at + c, ldq);
                OCT_TILE_LOAD(6, tokens + (size_t)c * OCT_PAGE_TOKENS, step);
                if (terms == 2) OCT_TILE_LOAD(5, a->q->lo + at + c, ldq);
                if (parity) {
                    OCT_TILE_DOT_SU(1, 4, 6);
                    if (terms == 2) OCT_TILE_DOT_SU(3, 5, 6);
                } else {
                    OCT_TILE_DOT_SU(0, 4, 6);
                    if (terms == 2) OCT_TILE_DOT_SU(2, 5, 6);
                }
            }
            if (dot) {
                oct_ask(ask, 1);
                if (++g == groups) g = 0, tokens += 64;
            }
            if (j < 3 || j >= n + 3) continue;
            const __m512 scale = oct_widen_bf16(page.scales + folded * OCT_PAGE_TOKENS + t);
            const __m512 zero =
                bits == 4 ? oct_widen_bf16(page.zeros + folded * OCT_PAGE_TOKENS + t) : scale;
#pragma GCC unroll 16
            for (int r = 0; r < OCT_STRIP; r++) {
                __m512i sum = _mm512_load_si512(m->sums[1 - parity][0][r]);
                if (terms == 2)
                    sum = _mm512_add_epi32(_mm512_slli_epi32(sum, 7),
                                           _mm512_load_si512(m->sums[1 - parity][1][r]));
                if (bits == 8)
                    sum = _mm512_sub_epi32(sum, _mm512_set1_epi32(m->less[folded][r]));
                acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale,
                                         folded ? acc[r] : _mm512_setzero_ps());
                if (bits == 4)
                    acc[r] = _mm512_fmadd_ps(_mm512_set1_ps(m->sum[folded][r]), zero, acc[r]);
            }
            if (++folded < groups) continue;
#pragma GCC unroll 16
            for (int r = 0; r < OCT_STRIP; r++)
                _mm512_storeu_ps(s + (size_t)r * a->lds + t,
                                 _mm512_mul_ps(acc[r], _mm512_set1_ps(a->q->scale[first + r])));
            folded = 0;
            t += 16;
        }
    }
}

/* The last strip begins early enough to be whole: some scores are then computed twice. */
OCT_INLINE oct_kstatus oct_scores_tiles(const oct_scores_args *a, int bits, int terms, void *lane,
                                        oct_scores_fn few)
{
    if (!oct_tiles_suit(a->visible, a->nq, a->d)) return few(a, lane);
    const oct_dot_page page = oct_dot_parts(a->block, a->d, bits);
    const int group = oct_page_group(a->d), groups = a->d / group;
    const int strips = (a->nq + OCT_STRIP - 1) / OCT_STRIP;
    const uint8_t *bytes = oct_split_page(page, bits, a->d, OCT_PAGE_TOKENS, false, lane);
    oct_scores_work m;
    oct_asker ask = oct_asker_of(a->ahead, strips * OCT_PAGE_TOKENS / 16 * groups);
    oct_tiles_shape(OCT_STRIP, OCT_STRIP, OCT_DEEP);
    for (int i = 0; i < strips; i++) {
        const int at = i * OCT_STRIP, first = at + OCT_STRIP <= a->nq ? at : a->nq - OCT_STRIP;
        oct_sum_queries(a, bits, first, &m);
        oct_scores_units(a, page, bits, terms, first, bytes, &m, &ask);
    }
    oct_tiles_release();
    return OCT_K_OK;
}

/* Rows of a strip beyond its queries hold what was there before: their dots are not read. */
OCT_INLINE oct_kstatus oct_mix_tiles(const oct_mix_args *a, int bits, int terms, void *lane,
                                     oct_mix_fn few)
{
    if (!oct_tiles_suit(a->visible, a->nq, a->d)) return few(a, lane);
    const oct_dot_page page = oct_dot_parts(a->block, a->d, bits);
    const int group = oct_page_group(a->d), groups = a->d / group;
    const uint8_t *bytes = oct_split_page(page, bits, OCT_PAGE_TOKENS, a->d, false, lane);
    oct_asker ask = oct_asker_of(a->ahead, a->nq * (a->d / 64 + 2 * groups) * OCT_FLOAT_WORK);
    oct_strip_sums sums;
    oct_dot_probs prob;
    oct_tiles_shape(OCT_STRIP, OCT_STRIP, OCT_DEEP);
    for (int i = 0; i < a->nq; i += OCT_STRIP) {
        const int queries = a->nq - i < OCT_STRIP ? a->nq - i : OCT_STRIP;
        for (int g = 0; g < groups; g++) {
            oct_mix_probs(a, page, bits, terms, queries, i, g, true, &prob, &ask);
            for (int c = g * group; c < (g + 1) * group; c += OCT_DEEP) {
                oct_strip_dots(&sums, terms, prob.code[0], prob.code[1],
                               (size_t)terms * OCT_PAGE_TOKENS, bytes + (size_t)c * 4,
                               (size_t)a->d * 4, OCT_PAGE_TOKENS);
                oct_mix_fold(a, bits, terms, queries, 4, sums.dots, i, c, &prob, &ask);
            }
        }
    }
    oct_tiles_release();
    return OCT_K_OK;
}

#include "kernels/page/mix_pages_amx.h"

/* The slots of a format, and the column that takes what tiles do not suit. */
#define OCT_PAGE_AMX(name, bits)                                                                   \
    extern const oct_page_kernels oct_page_##name##_avx512;                                        \
    static oct_kstatus scores_q8(const oct_scores_args *a, void *lane)                             \
    {                                                                                              \
        const oct_scores_fn few = oct_page_##name##_avx512.scores[OCT_FORM_Q8];                    \
        return oct_scores_tiles(a, bits, 1, lane, few);                                            \
    }                                                                                              \
    static oct_kstatus scores_q8x2(const oct_scores_args *a, void *lane)                           \
    {                                                                                              \
        const oct_scores_fn few = oct_page_##name##_avx512.scores[OCT_FORM_Q8X2];                  \
        return oct_scores_tiles(a, bits, 2, lane, few);                                            \
    }                                                                                              \
    static oct_kstatus mix_q8(const oct_mix_args *a, void *lane)                                   \
    {                                                                                              \
        const oct_mix_fn few = oct_page_##name##_avx512.mix[OCT_FORM_Q8];                          \
        return oct_mix_tiles(a, bits, 1, lane, few);                                               \
    }                                                                                              \
    static oct_kstatus mix_q8x2(const oct_mix_args *a, void *lane)                                 \
    {                                                                                              \
        const oct_mix_fn few = oct_page_##name##_avx512.mix[OCT_FORM_Q8X2];                        \
        return oct_mix_tiles(a, bits, 2, lane, few);                                               \
    }                                                                                              \
    static oct_kstatus mix_pages(const oct_mix_args *a, int count, void *lane)                     \
    {                                                                                              \
        return oct_mix_pages_tiles(a, count, bits, lane);                                          \
    }                                                                                              \
    const oct_page_kernels oct_page_##name##_amx = {                                               \
        .mix_pages = mix_pages,                                                                    \
        .scores = {NULL, scores_q8, scores_q8x2},                                                  \
        .mix = {NULL, mix_q8, mix_q8x2},                                                           \
    };

#endif
