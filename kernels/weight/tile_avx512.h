/* tile_avx512.h: sums to outputs, 16 channels at a time; the operations and order of tile.h. */
#ifndef OCT_WEIGHT_TILE_AVX512_H
#define OCT_WEIGHT_TILE_AVX512_H

#include <immintrin.h>

#include "kernels/weight/tile.h"

#define OCT_INLINE static inline __attribute__((always_inline))

/* sums: [rows][OCT_BLOCK_N], 64-byte aligned. Channels past n are masked away. */
static inline void oct_tile_finish(const oct_linear_args *a, const oct_tile *t, const float *sums)
{
    const bool row_scale = a->x->act == OCT_A8 || a->x->act == OCT_A8X2;
    for (int c = 0; c < t->channels; c += 16) {
        const int left = t->channels - c;
        const __mmask16 mask = left < 16 ? (__mmask16)((1u << left) - 1) : (__mmask16)0xFFFF;
        const __m512 bias = a->bias ? _mm512_maskz_loadu_ps(mask, a->bias + t->channel + c)
                                    : _mm512_setzero_ps();
        for (int r = 0; r < t->rows; r++) {
            float *y = a->y + (size_t)(t->row + r) * a->ldy + t->channel + c;
            __m512 sum = _mm512_load_ps(sums + r * OCT_BLOCK_N + c);
            if (row_scale) sum = _mm512_mul_ps(sum, _mm512_set1_ps(a->x->scale[t->row + r]));
            if (a->bias) sum = _mm512_add_ps(sum, bias);
            if (a->add) sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), sum);
            _mm512_mask_storeu_ps(y, mask, sum);
        }
    }
}

#endif
