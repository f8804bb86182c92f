/* rope, scalar column: rotates the pairs of every head by the row's (cos, sin), in place. The
 * angles are made by rope_table. */
#include <assert.h>

#include "kernels/kernels.h"
#include "kernels/num.h"

oct_kstatus oct_op_rope_scalar(const oct_rope_args *a, size_t lo, size_t hi)
{
    assert(a->d > 0 && a->d % 2 == 0);
    const int half = a->d / 2;
    const int step = a->half_split ? 1 : 2, apart = a->half_split ? half : 1;
    for (size_t row = lo; row < hi; row++) {
        const float *cs = a->cs + row * (size_t)a->d;
        for (int h = 0; h < a->heads; h++) {
            float *x = a->x + row * a->ldx + (size_t)h * a->ldh;
            for (int i = 0; i < half; i++) {
                float *p = x + i * step, *q = p + apart;
                const float u = *p, v = *q, c = cs[2 * i], s = cs[2 * i + 1];
                *p = fmaf(u, c, -(v * s));
                *q = fmaf(v, c, u * s);
            }
        }
    }
    return OCT_K_OK;
}
