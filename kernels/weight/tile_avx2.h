/* tile_avx2.h: sums to outputs, 8 channels at a time; the operations and order of tile.h. */
#ifndef OCT_WEIGHT_TILE_AVX2_H
#define OCT_WEIGHT_TILE_AVX2_H

#include <immintrin.h>

#include "kernels/inline.h"
#include "kernels/weight/tile.h"

/* sums: [rows][OCT_BLOCK_N], 32-byte aligned. Channels past n are masked away. */
static inline void oct_tile_finish(const oct_linear_args *a, const oct_tile *t, const float *sums)
{
    const bool row_scale = a->x->act == OCT_A8 || a->x->act == OCT_A8X2;
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    for (int c = 0; c < t->channels; c += 8) {
        const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(t->channels - c), lane);
        const __m256 bias = a->bias ? _mm256_maskload_ps(a->bias + t->channel + c, mask)
                                    : _mm256_setzero_ps();
        for (int r = 0; r < t->rows; r++) {
            float *y = a->y + (size_t)(t->row + r) * a->ldy + t->channel + c;
            __m256 sum = _mm256_load_ps(sums + r * OCT_BLOCK_N + c);
            if (row_scale) sum = _mm256_mul_ps(sum, _mm256_set1_ps(a->x->scale[t->row + r]));
            if (a->bias) sum = _mm256_add_ps(sum, bias);
            if (a->add) sum = _mm256_add_ps(_mm256_maskload_ps(y, mask), sum);
            _mm256_maskstore_ps(y, mask, sum);
        }
    }
}

#endif
