/* rmsnorm, scalar column: y = (x * r) * w with r = 1 / sqrt(mean(x^2) + eps), the sum of squares in
 * the one shape of num.h. A row may hold several pieces of k (heads), each normed by itself. */
#include <assert.h>

#include "kernels/kernels.h"
#include "kernels/num.h"

static void piece(const oct_rmsnorm_args *a, const float *x, float *y)
{
    float acc[16] = {0};
    for (int i = 0; i < a->k; i++) acc[i % 16] = fmaf(x[i], x[i], acc[i % 16]);
    const float ss = oct_reduce_tree(acc);
    const float r = 1.0f / sqrtf(ss / (float)a->k + a->eps);
    for (int i = 0; i < a->k; i++) y[i] = (x[i] * r) * a->w[i];
}

oct_kstatus oct_op_rmsnorm_scalar(const oct_rmsnorm_args *a, size_t lo, size_t hi)
{
    assert(a->k > 0 && a->heads > 0);
    for (size_t row = lo; row < hi; row++)
        for (int h = 0; h < a->heads; h++) {
            const size_t at = (size_t)h * (size_t)a->k;
            piece(a, a->x + row * a->ldx + at, a->y + row * a->ldy + at);
        }
    return OCT_K_OK;
}
