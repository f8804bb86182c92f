/* swiglu, scalar column: y = (g / (1 + exp(-g))) * u, with the exp of num.h. */
#include "kernels/kernels.h"
#include "kernels/num.h"

oct_kstatus oct_op_swiglu_scalar(const oct_swiglu_args *a, size_t lo, size_t hi)
{
    for (size_t row = lo; row < hi; row++) {
        const float *g = a->g + row * a->ldg, *u = a->u + row * a->ldu;
        float *y = a->y + row * a->ldy;
        for (int i = 0; i < a->k; i++) y[i] = (g[i] / (1.0f + oct_exp(-g[i]))) * u[i];
    }
    return OCT_K_OK;
}
