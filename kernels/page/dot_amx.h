/* dot_amx.h: the forms q8 and q8x2 for many queries, by the tile products of AMX: prefill.
 *
 * A strip is 16 queries' codes against 64 tokens (scores) or channels (mix): four C tiles. A page's
 * codes lie as a B tile wants them, 16 columns x 4 bytes to a line, so nothing is moved: a tile of
 * keys is 64 channels of 16 tokens, its lines 256 bytes apart; one of values is all tokens of 16
 * channels, its lines 4 * d apart. Nibbles are split into the lane first, once for all queries.
 * Few queries, pages that are seen in part and odd widths are left to the AVX-512 column, which
 * gives the same bits. */
#ifndef OCT_PAGE_DOT_AMX_H
#define OCT_PAGE_DOT_AMX_H

#define OCT_DOT_ROWS 32
#include "kernels/page/dot_fold_avx512.h"
#include "kernels/page/generic.h"
#include "kernels/simd/tiles_amx.h"

enum {
    OCT_STRIP = 16, /* queries */
    OCT_DEEP = 64   /* channels or tokens of a tile product */
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
 * nibbles: a line becomes one of its low and, a row of lines further, one of its high halves. */
static inline const uint8_t *oct_split_page(oct_dot_page page, int bits, int n, int columns,
                                            void *lane)
{
    const size_t row = (size_t)columns * 4;
    const __m512i low = _mm512_set1_epi8(15);
    const uint8_t *from = page.codes;
    uint8_t *to = lane;
    if (bits == 8) return from;
    for (int i = 0; i < n / 8; i++, to += row)
        for (size_t end = row; end > 0; end -= 64, from += 64, to += 64) {
            const __m512i v = _mm512_load_si512(from);
            _mm512_store_si512(to, _mm512_and_si512(v, low));
            _mm512_store_si512(to + row, _mm512_and_si512(_mm512_srli_epi16(v, 4), low));
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

/* The last strip begins early enough to be whole: some scores are then computed twice. The dots of
 * a strip and group are on their way while those before them are folded. */
OCT_INLINE oct_kstatus oct_scores_tiles(const oct_scores_args *a, int bits, int terms, void *lane,
                                        oct_scores_fn few)
{
    if (!oct_tiles_suit(a->visible, a->nq, a->d)) return few(a, lane);
    const oct_dot_page page = oct_dot_parts(a->block, a->d, bits);
    const int group = oct_page_group(a->d), groups = a->d / group;
    const int strips = (a->nq + OCT_STRIP - 1) / OCT_STRIP, steps = strips * groups;
    const uint8_t *bytes = oct_split_page(page, bits, a->d, OCT_PAGE_TOKENS, lane);
    oct_strip_sums sums[2];
    oct_asker ask = oct_asker_of(a->ahead, steps * OCT_STRIP * OCT_FLOAT_WORK);
    oct_tiles_shape(OCT_STRIP, OCT_STRIP, OCT_DEEP);
    for (int i = 0, before = 0; i <= steps; i++) {
        const int g = i % groups, at = i / groups * OCT_STRIP;
        const int first = at + OCT_STRIP <= a->nq ? at : a->nq - OCT_STRIP;
        if (i < steps) {
            const size_t from = (size_t)first * (size_t)a->q->kp + (size_t)(g * group);
            oct_strip_dots(&sums[i % 2], terms, a->q->hi + from,
                           terms == 2 ? a->q->lo + from : NULL, (size_t)a->q->kp,
                           bytes + (size_t)(g * group) * OCT_PAGE_TOKENS, 4 * OCT_PAGE_TOKENS,
                           group);
        }
        if (i > 0)
            oct_scores_fold(a, page, bits, terms, OCT_STRIP, 4, sums[1 - i % 2].dots, before, true,
                            0, (i - 1) % groups, &ask);
        before = first;
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
    const uint8_t *bytes = oct_split_page(page, bits, OCT_PAGE_TOKENS, a->d, lane);
    oct_asker ask = oct_asker_of(a->ahead, a->nq * (a->d / 64 + 2 * groups) * OCT_FLOAT_WORK);
    oct_strip_sums sums;
    oct_dot_probs prob;
    oct_tiles_shape(OCT_STRIP, OCT_STRIP, OCT_DEEP);
    for (int i = 0; i < a->nq; i += OCT_STRIP) {
        const int queries = a->nq - i < OCT_STRIP ? a->nq - i : OCT_STRIP;
        for (int g = 0; g < groups; g++) {
            oct_mix_probs(a, page, bits, terms, queries, i, g, &prob, &ask);
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

/* ---- several pages ---- */

enum { OCT_MIX_PAGES = 4 };

/* What a strip of queries brings to a group of channels of each page. */
typedef struct {
    oct_dot_probs prob[OCT_MIX_PAGES];
    _Alignas(64) int32_t less[OCT_MIX_PAGES][OCT_STRIP]; /* sums of codes times their centre */
    _Alignas(64) int32_t sums[2][2][OCT_STRIP][16];      /* of two units: terms, queries, channels */
    oct_asker ask[OCT_MIX_PAGES];
} oct_mix_work;

/* Channels [c, end) of a strip. A unit is 16 channels of a page: while its dots run, sums of the one
 * before last are stored, and those of the one before that are added to the outputs of their
 * channels, which are in registers from the first page to the last. */
OCT_INLINE void oct_mix_units(const oct_mix_args *a, int count, int bits, int terms, int i0, int c,
                              int end, const uint8_t *const *bytes, oct_mix_work *m)
{
    const int n = (end - c) / 16 * count;
    const ptrdiff_t row = terms * OCT_PAGE_TOKENS, step = (ptrdiff_t)a->d * 4;
    float *o = a->o + (size_t)i0 * a->ldo + c;
    __m512 acc[OCT_STRIP];
    int page = 0, folded = 0;
    for (int i = 0; i < n + 3; i += 2) {
#pragma GCC unroll 2
        for (int parity = 0; parity < 2; parity++) {
            const int j = i + parity;
            const bool store = j >= 2 && j < n + 2, dot = j < n;
            int32_t(*sums)[OCT_STRIP][16] = m->sums[parity];
            if (dot) {
                OCT_TILE_LOAD(4, m->prob[page].code[0], row);
                if (terms == 2) OCT_TILE_LOAD(5, m->prob[page].code[1], row);
                OCT_TILE_LOAD(6, bytes[page] + (size_t)c * 4, step);
            }
            if (parity) {
                if (store) OCT_TILE_STORE(1, sums[0], 64);
                if (dot) OCT_TILE_ZERO(1);
                if (dot) OCT_TILE_DOT_SU(1, 4, 6);
                if (store && terms == 2) OCT_TILE_STORE(3, sums[1], 64);
                if (dot && terms == 2) OCT_TILE_ZERO(3);
                if (dot && terms == 2) OCT_TILE_DOT_SU(3, 5, 6);
            } else {
                if (store) OCT_TILE_STORE(0, sums[0], 64);
                if (dot) OCT_TILE_ZERO(0);
                if (dot) OCT_TILE_DOT_SU(0, 4, 6);
                if (store && terms == 2) OCT_TILE_STORE(2, sums[1], 64);
                if (dot && terms == 2) OCT_TILE_ZERO(2);
                if (dot && terms == 2) OCT_TILE_DOT_SU(2, 5, 6);
            }
            if (dot) {
                oct_ask(&m->ask[page], 1);
                if (++page == count) page = 0, c += 16;
            }
            if (j < 3 || j >= n + 3) continue;
            if (folded == 0)
#pragma GCC unroll 16
                for (int r = 0; r < OCT_STRIP; r++)
                    acc[r] = _mm512_loadu_ps(o + (size_t)r * a->ldo);
            const oct_dot_probs *prob = &m->prob[folded];
#pragma GCC unroll 16
            for (int r = 0; r < OCT_STRIP; r++) {
                __m512i sum = _mm512_load_si512(m->sums[1 - parity][0][r]);
                if (terms == 2)
                    sum = _mm512_add_epi32(_mm512_slli_epi32(sum, 7),
                                           _mm512_load_si512(m->sums[1 - parity][1][r]));
                sum = _mm512_sub_epi32(sum, _mm512_set1_epi32(m->less[folded][r]));
                acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(prob->scale[r]),
                                         acc[r]);
                if (bits == 4) acc[r] = _mm512_add_ps(acc[r], _mm512_set1_ps(prob->zero[r]));
            }
            if (++folded < count) continue;
#pragma GCC unroll 16
            for (int r = 0; r < OCT_STRIP; r++) _mm512_storeu_ps(o + (size_t)r * a->ldo, acc[r]);
            folded = 0;
            o += 16;
        }
    }
}

/* As mix of one page after the other, with each output read and written once. */
OCT_INLINE oct_kstatus oct_mix_pages(const oct_mix_args *a, int count, int bits, int terms,
                                     void *lane, oct_mix_fn each)
{
    const int strips = a->nq / OCT_STRIP, group = oct_page_group(a->d);
    const size_t page_bytes = OCT_PAGE_TOKENS * (size_t)a->d;
    bool suit = count > 1 && count <= OCT_MIX_PAGES;
    for (int p = 0; p < count; p++) suit = suit && oct_tiles_suit(a[p].visible, a->nq, a->d);
    if (!suit) {
        for (int p = 0; p < count; p++) each(&a[p], lane);
        return OCT_K_OK;
    }
    const uint8_t *bytes[OCT_MIX_PAGES];
    oct_dot_page page[OCT_MIX_PAGES];
    oct_mix_work m;
    for (int p = 0; p < count; p++) {
        page[p] = oct_dot_parts(a[p].block, a->d, bits);
        bytes[p] = oct_split_page(page[p], bits, OCT_PAGE_TOKENS, a->d,
                                  (uint8_t *)lane + (size_t)p * page_bytes);
        m.ask[p] = oct_asker_of(a[p].ahead, strips * a->d / 16);
    }
    oct_asker none = {0};
    oct_tiles_shape(OCT_STRIP, OCT_STRIP, OCT_DEEP);
    for (int c = 0, g = 0; c < a->d; c += group, g++)
        for (int i = 0; i < strips * OCT_STRIP; i += OCT_STRIP) {
            for (int p = 0; p < count; p++) {
                oct_dot_probs *prob = &m.prob[p];
                oct_mix_probs(&a[p], page[p], bits, terms, OCT_STRIP, i, g, prob, &none);
                for (int r = 0; r < OCT_STRIP; r++)
                    m.less[p][r] = (bits == 4 ? 8 : 128) * prob->sum[r];
            }
            oct_mix_units(a, count, bits, terms, i, c, c + group, bytes, &m);
        }
    oct_tiles_release();
    const int done = strips * OCT_STRIP;
    for (int p = 0; p < count && done < a->nq; p++) {
        oct_mix_args rest = a[p];
        rest.nq -= done;
        rest.visible += done;
        rest.p += (size_t)done * a->ldp;
        rest.o += (size_t)done * a->ldo;
        rest.ahead = (oct_ahead){0};
        each(&rest, lane);
    }
    return OCT_K_OK;
}

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
        if (a->form == OCT_FORM_Q8) return oct_mix_pages(a, count, bits, 1, lane, mix_q8);         \
        if (a->form == OCT_FORM_Q8X2) return oct_mix_pages(a, count, bits, 2, lane, mix_q8x2);     \
        return oct_page_generic_mix_pages(a, count, lane);                                         \
    }                                                                                              \
    const oct_page_kernels oct_page_##name##_amx = {                                               \
        .mix_pages = mix_pages,                                                                    \
        .scores = {NULL, scores_q8, scores_q8x2},                                                  \
        .mix = {NULL, mix_q8, mix_q8x2},                                                           \
    };

#endif
