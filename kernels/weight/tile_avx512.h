/* tile_avx512.h: sums to outputs, 16 channels at a time; the operations and order of tile.h. */
#ifndef OCT_WEIGHT_TILE_AVX512_H
#define OCT_WEIGHT_TILE_AVX512_H

#include <immintrin.h>

#include "kernels/inline.h"
#include "kernels/weight/tile.h"

/* Asks for the lines of outputs that rows [row, row + rows) of a tile will write, as far as the
 * input has such rows. */
OCT_INLINE void oct_tile_ask(const oct_linear_args *a, const oct_tile *t, int row, int rows)
{
    for (int r = row; r < row + rows && r < a->x->m; r++) {
        const char *y = (const char *)(a->y + (size_t)r * a->ldy + t->channel);
        _mm_prefetch(y, _MM_HINT_T0);
        _mm_prefetch(y + 64, _MM_HINT_T0);
    }
}

/* sums: [rows][OCT_BLOCK_N], 64-byte aligned. Channels past n are masked away. Row by row, since
 * rows of y are pages apart: both lines of one are written while its translation is at hand. */
static inline void oct_tile_finish(const oct_linear_args *a, const oct_tile *t, const float *sums)
{
    const bool row_scale = a->x->act == OCT_A8 || a->x->act == OCT_A8X2;
    const uint32_t all = t->channels < OCT_BLOCK_N ? (1u << t->channels) - 1 : UINT32_MAX;
    const __mmask16 mask[2] = {(__mmask16)all, (__mmask16)(all >> 16)};
    __m512 bias[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int h = 0; a->bias && h < 2; h++)
        bias[h] = _mm512_maskz_loadu_ps(mask[h], a->bias + t->channel + 16 * h);
    for (int r = 0; r < t->rows; r++) {
        float *y = a->y + (size_t)(t->row + r) * a->ldy + t->channel;
        const __m512 scale = _mm512_set1_ps(row_scale ? a->x->scale[t->row + r] : 1.0f);
        for (int h = 0; h < 2; h++) {
            __m512 sum = _mm512_load_ps(sums + r * OCT_BLOCK_N + 16 * h);
            if (row_scale) sum = _mm512_mul_ps(sum, scale);
            if (a->bias) sum = _mm512_add_ps(sum, bias[h]);
            if (a->add) sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask[h], y + 16 * h), sum);
            _mm512_mask_storeu_ps(y + 16 * h, mask[h], sum);
        }
    }
}

#endif
