/* argmax, scalar column: the index of the largest logit, the lowest of equals; NaN never wins. */
#include "kernels/kernels.h"
#include "kernels/num.h"

oct_kstatus oct_op_argmax_scalar(const oct_argmax_args *a, size_t lo, size_t hi)
{
    for (size_t row = lo; row < hi; row++) {
        const float *x = a->x + row * a->ldx;
        int best = -1;
        for (int i = 0; i < a->n; i++)
            if (x[i] == x[i] && (best < 0 || x[i] > x[best])) best = i;
        a->index[row] = best;
    }
    return OCT_K_OK;
}
