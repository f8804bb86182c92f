/* tile.h: what all linear kernels share: where a tile lies, and how its sums become outputs.
 *
 * Kernels leave the sums of a tile in the lane's scratch; the finish of each column applies the row
 * scale, bias and addition, in the order that kernels.h fixes. */
#ifndef OCT_WEIGHT_TILE_H
#define OCT_WEIGHT_TILE_H

#include "kernels/kernels.h"

typedef struct {
    size_t block;    /* column block */
    int row, rows;   /* first row, and how many: 1..OCT_TILE_M */
    int channel, channels; /* first channel, and how many: 1..OCT_BLOCK_N */
} oct_tile;

static inline oct_tile oct_tile_at(const oct_linear_args *a, size_t index)
{
    const size_t blocks = ((size_t)a->w->n + OCT_BLOCK_N - 1) / OCT_BLOCK_N;
    oct_tile t = {.block = index % blocks};
    t.row = (int)(index / blocks) * OCT_TILE_M;
    t.rows = a->x->m - t.row < OCT_TILE_M ? a->x->m - t.row : OCT_TILE_M;
    t.channel = (int)t.block * OCT_BLOCK_N;
    t.channels = a->w->n - t.channel < OCT_BLOCK_N ? a->w->n - t.channel : OCT_BLOCK_N;
    return t;
}

/* The first tile of [lo, hi) that has at most `few` rows, as all after it have; hi if none has. */
static inline size_t oct_tile_few(const oct_linear_args *a, int few, size_t lo, size_t hi)
{
    const size_t blocks = ((size_t)a->w->n + OCT_BLOCK_N - 1) / OCT_BLOCK_N;
    const int last = a->x->m % OCT_TILE_M;
    const size_t first = (size_t)(a->x->m / OCT_TILE_M) * blocks;
    if (last == 0 || last > few || first >= hi) return hi;
    return first > lo ? first : lo;
}

/* One output from its sum. */
static inline void oct_tile_put(const oct_linear_args *a, int row, int channel, float sum)
{
    float *y = a->y + (size_t)row * a->ldy + channel;
    const bool row_scale = a->x->act == OCT_A8 || a->x->act == OCT_A8X2;
    float result = row_scale ? sum * a->x->scale[row] : sum;
    if (a->bias) result = result + a->bias[channel];
    *y = a->add ? *y + result : result;
}

#endif
