/* combine, scalar column: each row's experts, weighted, in the order of its list. */
#include "kernels/kernels.h"
#include "kernels/num.h"

oct_kstatus oct_op_combine_scalar(const oct_combine_args *a, size_t lo, size_t hi)
{
    for (size_t row = lo; row < hi; row++)
        for (size_t j = row * (size_t)a->top; j < (row + 1) * (size_t)a->top; j++) {
            const int32_t at = a->at[j] - a->first;
            if (at < 0 || at >= a->rows) continue;
            const float *x = a->x + (size_t)at * a->ldx;
            float *y = a->y + row * a->ldy;
            for (int c = 0; c < a->k; c++) y[c] = fmaf(a->gate[j], x[c], y[c]);
        }
    return OCT_K_OK;
}
