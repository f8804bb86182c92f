/* hadamard, scalar column: y = c * WHT(sign * x), or its inverse sign * (c * WHT(x)), on blocks of
 * a head. Stages h = 1, 2, 4, ... turn each pair (j, j + h) into (a + b, a - b). */
#include <assert.h>

#include "kernels/op/hadamard/hadamard.h"

static float flip(float x, bool yes, int channel)
{
    return oct_float(oct_bits(x) ^ (yes ? oct_hadamard_flip(channel) : 0));
}

static void block_of(const oct_hadamard_args *a, const float *x, float *y, int channel,
                     float factor)
{
    float z[OCT_MAX_HEAD_DIM];
    for (int i = 0; i < a->block; i++)
        z[i] = flip(x[i], a->signs && !a->inverse, channel + i);
    for (int h = 1; h < a->block; h *= 2)
        for (int j = 0; j < a->block; j++) {
            if (j & h) continue;
            const float p = z[j], q = z[j + h];
            z[j] = p + q;
            z[j + h] = p - q;
        }
    for (int i = 0; i < a->block; i++)
        y[i] = flip(z[i] * factor, a->signs && a->inverse, channel + i);
}

oct_kstatus oct_op_hadamard_scalar(const oct_hadamard_args *a, size_t lo, size_t hi)
{
    assert(a->block > 0 && (a->block & (a->block - 1)) == 0);
    assert(a->d % a->block == 0 && a->d <= OCT_MAX_HEAD_DIM);
    const float factor = oct_hadamard_factor(a->block);
    for (size_t row = lo; row < hi; row++)
        for (int h = 0; h < a->heads; h++)
            for (int c = 0; c < a->d; c += a->block) {
                const size_t at = (size_t)h * (size_t)a->d + (size_t)c;
                block_of(a, a->x + row * a->ldx + at, a->y + row * a->ldy + at, c, factor);
            }
    return OCT_K_OK;
}
