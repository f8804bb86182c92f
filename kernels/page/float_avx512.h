/* float_avx512.h: the form f32 straight from the block, for few queries: each value is widened in a
 * register and used at once, so a page costs one pass and not a decode, a store and a load.
 *
 * The chains are those of the ops scores_f32 and mix_f32 (c ascending, t ascending), so results are
 * the same bits. Beyond OCT_FLOAT_ROWS queries decoding once is cheaper: the callers fall back to
 * page/generic.h. A format gives `load4`: four neighbours along the contraction, 16 lanes each. */
#ifndef OCT_PAGE_FLOAT_AVX512_H
#define OCT_PAGE_FLOAT_AVX512_H

#include "kernels/ahead.h"
#include "kernels/page/generic.h"
#include "kernels/page/lanes_avx512.h"
#include "kernels/page/page.h"

#define OCT_FLOAT_ROWS 6

/* `step`: bytes from one neighbour to the next, where they are stored apart. */
typedef void (*oct_load4_fn)(__m512 x[4], const char *at, size_t step);

typedef struct {
    int size;           /* bytes of a value */
    bool lines;         /* byte codes in the order of oct_page_at8 after one group's scales */
    oct_load4_fn load4;
} oct_float_format;

/* Four channels of unit u from c on. */
OCT_INLINE void oct_float_load_k(const oct_scores_args *a, oct_float_format f, int u, int c,
                                 __m512 x[4])
{
    const char *base = a->block;
    if (f.lines)
        f.load4(x, base + 2 * OCT_PAGE_TOKENS + ((size_t)(c / 4) * OCT_PAGE_TOKENS +
                                                 (size_t)u * OCT_UNIT_TOKENS) * 4, 0);
    else
        f.load4(x, base + (size_t)u * a->unit_stride + (size_t)(c * OCT_UNIT_TOKENS * f.size),
                (size_t)(OCT_UNIT_TOKENS * f.size));
}

/* Four tokens from t on, 16 channels from c on. */
OCT_INLINE void oct_float_load_v(const oct_mix_args *a, oct_float_format f, int t, int c,
                                 __m512 x[4])
{
    const char *base = a->block;
    if (f.lines)
        f.load4(x, base + 2 * OCT_PAGE_TOKENS + (size_t)(t / 4 * a->d + c) * 4, 0);
    else
        f.load4(x, base + (size_t)(t / OCT_UNIT_TOKENS) * a->unit_stride +
                       (size_t)((t % OCT_UNIT_TOKENS * a->d + c) * f.size),
                (size_t)(a->d * f.size));
}

/* How many of n vectors are widened before they are used: a broadcast serves them all, and sums and
 * values fit the registers. */
OCT_INLINE int oct_float_side(int rows, int n)
{
    return rows <= 4 && n % 2 == 0 ? 2 : 1;
}

/* `rows` queries from i on with nu units from u on; both are constants after inlining. */
OCT_INLINE void oct_float_scores_tile(const oct_scores_args *a, oct_float_format f, int rows,
                                      int nu, int i, int u, oct_asker *ask)
{
    __m512 acc[OCT_FLOAT_ROWS][4];
    const int side = oct_float_side(rows, nu);
    const float *q = a->q->x + (size_t)i * a->q->ldx;
    const size_t ldq = a->q->ldx;
    const uint16_t *scales = a->block; /* of lines */
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < nu; v++) acc[r][v] = _mm512_setzero_ps();
    for (int c = 0; c < a->d; c += 4, q += 4) {
#pragma GCC unroll 4
        for (int v = 0; v < nu; v += side) {
            oct_ask(ask, rows * side);
            __m512 x[2][4];
#pragma GCC unroll 2
            for (int w = 0; w < side; w++) oct_float_load_k(a, f, u + v + w, c, x[w]);
#pragma GCC unroll 4
            for (size_t k = 0; k < 4; k++)
#pragma GCC unroll 6
                for (int r = 0; r < rows; r++) {
                    const __m512 by = _mm512_set1_ps(q[(size_t)r * ldq + k]);
#pragma GCC unroll 2
                    for (int w = 0; w < side; w++)
                        acc[r][v + w] = _mm512_fmadd_ps(by, x[w][k], acc[r][v + w]);
                }
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < nu; v++) {
            const int t = (u + v) * OCT_UNIT_TOKENS;
            if (f.lines) acc[r][v] = _mm512_mul_ps(acc[r][v], oct_widen_bf16(scales + t));
            float *s = a->s + (size_t)(i + r) * a->lds + t;
            if (a->add) acc[r][v] = _mm512_add_ps(_mm512_loadu_ps(s), acc[r][v]);
            _mm512_storeu_ps(s, _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY),
                                                   oct_lanes_below(a->visible[i + r] - t),
                                                   acc[r][v]));
        }
}

OCT_INLINE void oct_float_scores_rows(const oct_scores_args *a, oct_float_format f, int rows, int i,
                                      oct_asker *ask)
{
    const int units =
        oct_page_whole_units(oct_visible_max(a->visible + i, rows)) / OCT_UNIT_TOKENS;
    if (units == 4) oct_float_scores_tile(a, f, rows, 4, i, 0, ask);
    else
        for (int u = 0; u < units; u++) oct_float_scores_tile(a, f, rows, 1, i, u, ask);
    for (int r = 0; r < rows; r++)
        for (int u = units; u < 4; u++)
            _mm512_storeu_ps(a->s + (size_t)(i + r) * a->lds + u * OCT_UNIT_TOKENS,
                             _mm512_set1_ps(-INFINITY));
}

OCT_INLINE void oct_float_scores(const oct_scores_args *a, oct_float_format f)
{
    const int units = oct_page_whole_units(oct_visible_max(a->visible, a->nq)) / OCT_UNIT_TOKENS;
    oct_asker ask = oct_asker_of(a->ahead, a->d / 4 * units * a->nq);
    for (int i = 0; i < a->nq; i += OCT_FLOAT_ROWS)
        switch (a->nq - i) {
        case 1: oct_float_scores_rows(a, f, 1, i, &ask); break;
        case 2: oct_float_scores_rows(a, f, 2, i, &ask); break;
        case 3: oct_float_scores_rows(a, f, 3, i, &ask); break;
        case 4: oct_float_scores_rows(a, f, 4, i, &ask); break;
        case 5: oct_float_scores_rows(a, f, 5, i, &ask); break;
        default: oct_float_scores_rows(a, f, 6, i, &ask); break;
        }
}

/* Four tokens from t on; at an edge only those of [t0, t1) count. */
OCT_INLINE void oct_float_mix_quad(__m512 acc[OCT_FLOAT_ROWS][4], const oct_mix_args *a,
                                   oct_float_format f, int rows, int nv, int c, unsigned t,
                                   unsigned t0, unsigned t1, const float *w, oct_asker *ask)
{
    const bool edge = t0 > t || t1 < t + 4;
    const int side = oct_float_side(rows, nv);
#pragma GCC unroll 4
    for (int v = 0; v < nv; v += side) {
        __m512 x[2][4];
        oct_ask(ask, rows * side);
#pragma GCC unroll 2
        for (int i = 0; i < side; i++) oct_float_load_v(a, f, (int)t, c + 16 * (v + i), x[i]);
#pragma GCC unroll 4
        for (unsigned k = 0; k < 4; k++) {
            const __mmask16 in = !edge || (t + k >= t0 && t + k < t1) ? 0xFFFF : 0;
#pragma GCC unroll 6
            for (unsigned r = 0; r < (unsigned)rows; r++) {
                const __m512 weight = _mm512_set1_ps(w[r * OCT_PAGE_TOKENS + t + k]);
#pragma GCC unroll 2
                for (int i = 0; i < side; i++)
                    acc[r][v + i] = _mm512_mask3_fmadd_ps(weight, x[i][k], acc[r][v + i], in);
            }
        }
    }
}

/* Tokens [t0, t1) into `rows` outputs, nv vectors of channels from c on. w: [rows][64]. */
OCT_INLINE void oct_float_mix_tile(const oct_mix_args *a, oct_float_format f, int rows, int nv,
                                   int i, int c, unsigned t0, unsigned t1, const float *w,
                                   oct_asker *ask)
{
    __m512 acc[OCT_FLOAT_ROWS][4];
    float *o = a->o + (size_t)i * a->ldo + c;
    unsigned t = t0 & ~3u;
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < nv; v++) acc[r][v] = _mm512_loadu_ps(o + (size_t)r * a->ldo + 16 * v);
    if (t < t0) oct_float_mix_quad(acc, a, f, rows, nv, c, t, t0, t1, w, ask), t += 4;
    for (; t + 4 <= t1; t += 4) oct_float_mix_quad(acc, a, f, rows, nv, c, t, t, t + 4, w, ask);
    if (t < t1) oct_float_mix_quad(acc, a, f, rows, nv, c, t, t0, t1, w, ask);
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < nv; v++) _mm512_storeu_ps(o + (size_t)r * a->ldo + 16 * v, acc[r][v]);
}

OCT_INLINE void oct_float_mix_span(const oct_mix_args *a, oct_float_format f, int rows, int i,
                                   unsigned t0, unsigned t1, const float *w, oct_asker *ask)
{
    int c = 0;
    if (t0 >= t1) return;
    for (; c + 64 <= a->d; c += 64) oct_float_mix_tile(a, f, rows, 4, i, c, t0, t1, w, ask);
    for (; c < a->d; c += 16) oct_float_mix_tile(a, f, rows, 1, i, c, t0, t1, w, ask);
}

/* The tokens that all rows see go by tiles, what single rows see beyond row by row. */
OCT_INLINE void oct_float_mix_rows(const oct_mix_args *a, oct_float_format f, int rows, int i,
                                   oct_asker *ask)
{
    _Alignas(64) float w[OCT_FLOAT_ROWS * OCT_PAGE_TOKENS];
    const uint16_t *scales = a->block; /* of lines */
    unsigned all = OCT_PAGE_TOKENS;
    for (int r = 0; r < rows; r++) {
        const int visible = a->visible[i + r];
        all = (unsigned)visible < all ? (unsigned)visible : all;
        for (int t = 0; t < OCT_PAGE_TOKENS; t += 16) {
            const __mmask16 seen = oct_lanes_below(visible - t);
            __m512 p = _mm512_maskz_loadu_ps(seen, a->p + (size_t)(i + r) * a->ldp + t);
            if (f.lines) p = _mm512_maskz_mul_ps(seen, p, oct_widen_bf16(scales + t));
            _mm512_store_ps(w + r * OCT_PAGE_TOKENS + t, p);
        }
    }
    oct_float_mix_span(a, f, rows, i, 0, all, w, ask);
    for (int r = 0; r < rows; r++)
        oct_float_mix_span(a, f, 1, i + r, all, (unsigned)a->visible[i + r],
                           w + r * OCT_PAGE_TOKENS, ask);
}

OCT_INLINE void oct_float_mix(const oct_mix_args *a, oct_float_format f)
{
    const int quads = (oct_visible_max(a->visible, a->nq) + 3) / 4;
    oct_asker ask = oct_asker_of(a->ahead, quads * (a->d / 16) * a->nq);
    for (int i = 0; i < a->nq; i += OCT_FLOAT_ROWS)
        switch (a->nq - i) {
        case 1: oct_float_mix_rows(a, f, 1, i, &ask); break;
        case 2: oct_float_mix_rows(a, f, 2, i, &ask); break;
        case 3: oct_float_mix_rows(a, f, 3, i, &ask); break;
        case 4: oct_float_mix_rows(a, f, 4, i, &ask); break;
        case 5: oct_float_mix_rows(a, f, 5, i, &ask); break;
        default: oct_float_mix_rows(a, f, 6, i, &ask); break;
        }
}

#endif
