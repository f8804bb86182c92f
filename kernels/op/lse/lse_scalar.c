/* lse, scalar column: log of the sum of exponentials of a row of logits. The terms are float32 in
 * the shape of num.h, the logarithm is ours in float64, the result is rounded once. */
#include "kernels/kernels.h"
#include "kernels/num.h"
#include "kernels/op/real64.h"

static float largest(const float *x, int n) /* NaN where there is one */
{
    float m = -INFINITY;
    for (int i = 0; i < n; i++) {
        if (x[i] != x[i]) return NAN;
        if (x[i] > m) m = x[i];
    }
    return m;
}

oct_kstatus oct_op_lse_scalar(const oct_lse_args *a, size_t lo, size_t hi)
{
    oct_kstatus status = OCT_K_OK;
    for (size_t row = lo; row < hi; row++) {
        const float *x = a->x + row * a->ldx, m = largest(x, a->n);
        if (m == -INFINITY) { /* nothing has any probability */
            a->lse[row] = m;
            continue;
        }
        if (!oct_finite_bits(oct_bits(m))) {
            a->lse[row] = NAN;
            status = OCT_K_NONFINITE;
            continue;
        }
        float acc[16] = {0};
        for (int i = 0; i < a->n; i++) acc[i % 16] += oct_exp(x[i] - m);
        a->lse[row] = (float)((double)m + oct_log64((double)oct_reduce_tree(acc)));
    }
    return status;
}
