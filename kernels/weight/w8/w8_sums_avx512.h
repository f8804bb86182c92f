/* w8_sums_avx512.h: the sums of a tile of w8 between windows of inputs, where they start and how
 * they become outputs, for the columns that have these registers. a8x2 sums its two terms apart,
 * since their sum leaves 32 bits, and joins them in float64, where both and their sum are exact. */
#ifndef OCT_W8_SUMS_AVX512_H
#define OCT_W8_SUMS_AVX512_H

#include "kernels/weight/tile_avx512.h"
#include "kernels/weight/w8/w8.h"

enum { TILE = OCT_TILE_M * OCT_BLOCK_N };

typedef struct {
    _Alignas(64) union {
        float sums[TILE];
        int32_t dots[TILE]; /* of a8; of a8x2 those of hi */
    };
    _Alignas(64) int32_t low[TILE];
    int row; /* whose tile `total` holds */
    int32_t total[OCT_TILE_M];
} w8_sums;

/* 128 * hi + lo - 128 * total, exact in float64, then rounded once. */
static inline __m256 join8(const int32_t *hi, const int32_t *lo, __m512d bias)
{
    const __m512d h = _mm512_cvtepi32_pd(_mm256_load_si256((const __m256i *)hi));
    const __m512d l = _mm512_cvtepi32_pd(_mm256_load_si256((const __m256i *)lo));
    return _mm512_cvtpd_ps(_mm512_add_pd(_mm512_fmadd_pd(h, _mm512_set1_pd(128.0), l), bias));
}

/* The rows of t, which lie at `at` of the scratch, from sums over all of k to outputs. */
static inline void finish(const oct_linear_args *a, const oct_tile *t, w8_sums *l, size_t at)
{
    const float *scale = (const float *)block_at(a->w, t->block);
    const oct_act act = a->x->act;
    for (int r = 0; r < t->rows; r++, at += OCT_BLOCK_N) {
        const double total = act == OCT_A8X2 ? l->total[t->row - l->row + r] : 0;
        const __m512d bias = _mm512_set1_pd(-BIAS * total);
        for (size_t i = at; act == OCT_A8X2 && i < at + OCT_BLOCK_N; i += 8)
            _mm256_store_ps(l->sums + i, join8(l->dots + i, l->low + i, bias));
        for (int h = 0; h < 2; h++) {
            float *sum = l->sums + at + 16 * h;
            const __m512 t16 = act == OCT_A8 ? _mm512_cvtepi32_ps(_mm512_load_si512(sum))
                                             : _mm512_load_ps(sum);
            _mm512_store_ps(sum, _mm512_mul_ps(t16, _mm512_loadu_ps(scale + 16 * h)));
        }
    }
    oct_tile_finish(a, t, l->sums + at - (size_t)t->rows * OCT_BLOCK_N);
}

/* Where the sums of a tile start. */
static inline void start(const oct_rows *x, const oct_tile *t, w8_sums *l)
{
    const bool totals = x->act == OCT_A8 || x->act == OCT_A8X2;
    for (int r = 0; totals && l->row != t->row && r < t->rows; r++)
        l->total[r] = row_total(x, t->row + r);
    l->row = t->row;
    for (int r = 0; r < t->rows; r++) {
        const __m512i from = _mm512_set1_epi32(x->act == OCT_A8 ? -BIAS * l->total[r] : 0);
        for (int h = 0; h < 2; h++) _mm512_store_si512(l->dots + r * OCT_BLOCK_N + 16 * h, from);
    }
    if (x->act == OCT_A8X2) memset(l->low, 0, (size_t)t->rows * OCT_BLOCK_N * sizeof *l->low);
}

#endif
