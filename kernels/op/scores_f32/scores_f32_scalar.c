/* scores_f32, scalar column: one chain of fused steps per query and token, channels ascending. What
 * lies in tokens that a query does not see is never part of any result. */
#include <assert.h>

#include "kernels/kernels.h"
#include "kernels/num.h"

static float score(const oct_scores_f32_args *a, const float *q, int token)
{
    float s = 0.0f;
    for (int c = 0; c < a->d; c++) s = fmaf(q[c], a->kt[c * OCT_PAGE_TOKENS + token], s);
    return a->scale ? s * a->scale[token] : s;
}

oct_kstatus oct_op_scores_f32_scalar(const oct_scores_f32_args *a, size_t lo, size_t hi)
{
    for (size_t i = lo; i < hi; i++) {
        assert(a->visible[i] >= 0 && a->visible[i] <= OCT_PAGE_TOKENS);
        for (int t = 0; t < OCT_PAGE_TOKENS; t++) {
            float *s = a->s + i * a->lds + (size_t)t;
            const float x = t < a->visible[i] ? score(a, a->q + i * a->ldq, t) : -INFINITY;
            *s = a->add && t < a->visible[i] ? *s + x : x;
        }
    }
    return OCT_K_OK;
}
