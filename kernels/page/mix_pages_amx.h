/* mix_pages_amx.h: the form q8 of four pages at once, by the tile products of AMX; a part of
 * dot_amx.h.
 *
 * Mixing page by page reads and writes all outputs for each, which for the heads of a latent are
 * more bytes than the page. Here 16 channels of 16 queries stay in registers from the first page to
 * the last, and the probabilities of all four in tile registers. The operations of an output and
 * their order are those of mix. */
#ifndef OCT_PAGE_MIX_PAGES_AMX_H
#define OCT_PAGE_MIX_PAGES_AMX_H

enum { OCT_MIX_PAGES = 4 }; /* as many as there are tiles for their probabilities */

/* What a strip of queries brings to a group of channels of each page. */
typedef struct {
    oct_dot_probs prob[OCT_MIX_PAGES];
    _Alignas(64) int32_t less[OCT_MIX_PAGES][OCT_STRIP]; /* 8 bits: sums of codes times 128 */
    _Alignas(64) int32_t sums[2][OCT_STRIP][16]; /* of two units: queries, channels */
    oct_asker ask[OCT_MIX_PAGES];
} oct_mix_work;

/* Channels [c, end) of a strip. A unit is 16 channels of a page: while its dots run, the sums of
 * the unit before last are stored, and those of the one before that are added to the outputs of
 * their channels, which are in registers from the first page to the last. */
OCT_INLINE void oct_mix_units(const oct_mix_args *a, int bits, int i0, int c, int end,
                              const uint8_t *const *bytes, oct_mix_work *m)
{
    const int n = (end - c) / 16 * OCT_MIX_PAGES;
    const ptrdiff_t step = (ptrdiff_t)a->d * 4;
    float *o = a->o + (size_t)i0 * a->ldo + c;
    __m512 acc[OCT_STRIP];
    for (int r = 0; r < OCT_STRIP; r++) acc[r] = _mm512_setzero_ps(); /* gcc sees no other */
    OCT_TILE_LOAD(4, m->prob[0].code, OCT_PAGE_TOKENS);
    OCT_TILE_LOAD(5, m->prob[1].code, OCT_PAGE_TOKENS);
    OCT_TILE_LOAD(6, m->prob[2].code, OCT_PAGE_TOKENS);
    OCT_TILE_LOAD(7, m->prob[3].code, OCT_PAGE_TOKENS);
#define DOT(sums, probs)                                         \
    do {                                                         \
        if (bits == 4) OCT_TILE_DOT_SS(sums, probs, 3);          \
        else OCT_TILE_DOT_SU(sums, probs, 3);                    \
    } while (0)
    for (int i = 0; i < n + OCT_MIX_PAGES; i += OCT_MIX_PAGES, c += 16) {
#pragma GCC unroll 4
        for (int p = 0; p < OCT_MIX_PAGES; p++) {
            const int j = i + p, added = (p + 1) % OCT_MIX_PAGES;
            const bool store = j >= 2 && j < n + 2, dot = j < n;
            if (dot) OCT_TILE_LOAD(3, bytes[p] + (size_t)c * 4, step);
            if (store && p % 2) OCT_TILE_STORE(1, m->sums[1], 64);
            if (store && p % 2 == 0) OCT_TILE_STORE(0, m->sums[0], 64);
            if (dot) {
                if (p % 2) OCT_TILE_ZERO(1);
                else OCT_TILE_ZERO(0);
                if (p == 0) DOT(0, 4);
                if (p == 1) DOT(1, 5);
                if (p == 2) DOT(0, 6);
                if (p == 3) DOT(1, 7);
                oct_ask(&m->ask[p], 1);
            }
            if (j < 3 || j >= n + 3) continue;
            if (added == 0)
#pragma GCC unroll 16
                for (int r = 0; r < OCT_STRIP; r++)
                    acc[r] = _mm512_loadu_ps(o + (size_t)r * a->ldo);
            const oct_dot_probs *prob = &m->prob[added];
#pragma GCC unroll 16
            for (int r = 0; r < OCT_STRIP; r++) {
                __m512i sum = _mm512_load_si512(m->sums[1 - p % 2][r]);
                if (bits == 8) sum = _mm512_sub_epi32(sum, _mm512_set1_epi32(m->less[added][r]));
                acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(prob->scale[r]),
                                         acc[r]);
                if (bits == 4) acc[r] = _mm512_add_ps(acc[r], _mm512_set1_ps(prob->zero[r]));
            }
            if (added < OCT_MIX_PAGES - 1) continue;
#pragma GCC unroll 16
            for (int r = 0; r < OCT_STRIP; r++) _mm512_storeu_ps(o + (size_t)r * a->ldo, acc[r]);
            o += 16;
        }
    }
#undef DOT
}

/* As mix of one page after the other, with each output read and written once. */
OCT_INLINE oct_kstatus oct_mix_pages_tiles(const oct_mix_args *a, int count, int bits, void *lane)
{
    const int strips = a->nq / OCT_STRIP, group = oct_page_group(a->d);
    bool suit = count == OCT_MIX_PAGES && a->form == OCT_FORM_Q8;
    for (int p = 0; p < count; p++) suit = suit && oct_tiles_suit(a[p].visible, a->nq, a->d);
    if (!suit) {
        for (int p = 0; p < count; p++) a->self->mix[a->form](&a[p], lane);
        return OCT_K_OK;
    }
    const uint8_t *bytes[OCT_MIX_PAGES];
    oct_dot_page page[OCT_MIX_PAGES];
    oct_mix_work m;
    oct_asker none = {0};
    for (int p = 0; p < OCT_MIX_PAGES; p++) {
        page[p] = oct_dot_parts(a[p].block, a->d, bits);
        bytes[p] = oct_split_page(page[p], bits, OCT_PAGE_TOKENS, a->d, true,
                                  (uint8_t *)lane + p * OCT_PAGE_TOKENS * a->d);
        m.ask[p] = oct_asker_of(a[p].ahead, strips * a->d / 16);
    }
    oct_tiles_shape(OCT_STRIP, OCT_STRIP, OCT_DEEP);
    for (int c = 0, g = 0; c < a->d; c += group, g++)
        for (int i = 0; i < strips * OCT_STRIP; i += OCT_STRIP) {
            for (int p = 0; p < OCT_MIX_PAGES; p++) {
                oct_mix_probs(&a[p], page[p], bits, 1, OCT_STRIP, i, g, true, &m.prob[p], &none);
                for (int r = 0; r < OCT_STRIP; r++) m.less[p][r] = 128 * m.prob[p].sum[r];
            }
            oct_mix_units(a, bits, i, c, c + group, bytes, &m);
        }
    oct_tiles_release();
    const int done = strips * OCT_STRIP;
    for (int p = 0; p < OCT_MIX_PAGES && done < a->nq; p++) {
        oct_mix_args rest = a[p];
        rest.nq -= done;
        rest.visible += done;
        rest.p += (size_t)done * a->ldp;
        rest.o += (size_t)done * a->ldo;
        rest.ahead = (oct_ahead){0};
        a->self->mix[OCT_FORM_Q8](&rest, lane);
    }
    return OCT_K_OK;
}

#endif
