/* geglu, scalar column: gelu by its tanh form, which is a sigmoid: (1 + tanh(z / 2)) / 2 =
 * 1 / (1 + exp(-z)). So no tanh is computed, and nothing cancels where g is far below 0. */
#include "kernels/kernels.h"
#include "kernels/num.h"
#include "kernels/op/geglu/geglu.h"

oct_kstatus oct_op_geglu_scalar(const oct_geglu_args *a, size_t lo, size_t hi)
{
    for (size_t row = lo; row < hi; row++) {
        const float *g = a->g + row * a->ldg, *u = a->u + row * a->ldu;
        float *y = a->y + row * a->ldy;
        for (int i = 0; i < a->k; i++) {
            const float z = g[i] * fmaf(OCT_GELU_CUBIC, g[i] * g[i], OCT_GELU_LINEAR);
            y[i] = (g[i] / (1.0f + oct_exp(-z))) * u[i];
        }
    }
    return OCT_K_OK;
}
