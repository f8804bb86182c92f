/* clamped_swiglu, scalar column: gpt-oss's gate, g bounded above and u on both sides, with the exp
 * of num.h. Comparisons are written so that a NaN stays one. */
#include "kernels/kernels.h"
#include "kernels/num.h"
#include "kernels/op/clamped_swiglu/clamped_swiglu.h"

oct_kstatus oct_op_clamped_swiglu_scalar(const oct_clamped_swiglu_args *a, size_t lo, size_t hi)
{
    const float most = OCT_SWIGLU_LIMIT;
    for (size_t row = lo; row < hi; row++) {
        const float *g = a->g + row * a->ldg, *u = a->u + row * a->ldu;
        float *y = a->y + row * a->ldy;
        for (int i = 0; i < a->k; i++) {
            const float gate = g[i] > most ? most : g[i];
            const float up = u[i] > most ? most : u[i] < -most ? -most : u[i];
            y[i] = (gate / (1.0f + oct_exp(-OCT_SWIGLU_SLOPE * gate))) * (up + 1.0f);
        }
    }
    return OCT_K_OK;
}
