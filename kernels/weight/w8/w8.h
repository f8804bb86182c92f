/* w8: signed 8-bit codes, one float32 scale per output channel. value = q * s (compressed-tensors
 * int8 with a scale per channel). Codes are stored as q + 128.
 *
 * A block is 32 channels x all k, padded to whole groups of 32 inputs:
 *
 *   offset        bytes  field
 *   0             128    scale[32]   float32
 *   128 + 128*i   128    input 4i + b of channel c is byte 4*c + b
 *
 * Why so: 64 bytes are 16 channels x 4 inputs, what a byte dot product adds up against four
 * broadcast bytes of the input, and the lines of a block lie in the order in which they are read.
 * With one scale for all of k an output's dot is one integer: nothing but dot products in the
 * loop, and any cut of k gives the same bits. */
#ifndef OCT_W8_H
#define OCT_W8_H

#include <assert.h>
#include <string.h>

#include "kernels/kernels.h"
#include "kernels/num.h"

enum {
    BIAS = 128,
    CODES_AT = OCT_BLOCK_N * (int)sizeof(float),
    STEP_BYTES = 4 * OCT_BLOCK_N, /* four inputs */
    GROUP_BYTES = OCT_GROUP * OCT_BLOCK_N
};
static_assert(CODES_AT == 128 && STEP_BYTES == 128, "the drawing shows 32 channels");

static inline int group_count(int k)
{
    return (k + OCT_GROUP - 1) / OCT_GROUP;
}

static inline const uint8_t *block_at(const oct_matrix *w, size_t block)
{
    return (const uint8_t *)w->data +
           block * (CODES_AT + (size_t)group_count(w->k) * GROUP_BYTES);
}

/* The sum of a row's codes over all of k (of Q for a8x2). */
static inline int32_t row_total(const oct_rows *x, int row)
{
    const int groups = x->kp / OCT_GROUP;
    const int32_t *sum = x->sum + (size_t)row * (size_t)groups;
    int32_t total = 0;
    for (int g = 0; g < groups; g++) total += sum[g];
    return total;
}

#endif
