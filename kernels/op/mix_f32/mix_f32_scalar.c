/* mix_f32, scalar column: o += w_t * v_t by fused steps, tokens ascending. A query reads its
 * visible tokens only, so that its result depends on nothing else in the call. */
#include <assert.h>

#include "kernels/kernels.h"
#include "kernels/num.h"

oct_kstatus oct_op_mix_f32_scalar(const oct_mix_f32_args *a, size_t lo, size_t hi)
{
    for (size_t i = lo; i < hi; i++) {
        assert(a->visible[i] >= 0 && a->visible[i] <= OCT_PAGE_TOKENS);
        float *o = a->o + i * a->ldo;
        for (int t = 0; t < a->visible[i]; t++) {
            const float p = a->p[i * a->ldp + (size_t)t], w = a->scale ? p * a->scale[t] : p;
            const float *v = a->v + (size_t)t * (size_t)a->d;
            for (int c = 0; c < a->d; c++) o[c] = fmaf(w, v[c], o[c]);
        }
    }
    return OCT_K_OK;
}
