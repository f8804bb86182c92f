/* merge, scalar column: folds one partial attention result (o2, m2, l2) into another (o, m, l). */
#include "kernels/op/merge/merge.h"

oct_kstatus oct_op_merge_scalar(const oct_merge_args *a, size_t lo, size_t hi)
{
    for (size_t row = lo; row < hi; row++) {
        float keep, take;
        if (!oct_merge_factors(a, row, &keep, &take)) continue;
        float *o = a->o + row * a->ldo;
        const float *o2 = a->o2 + row * a->ldo2;
        for (int c = 0; c < a->d; c++) o[c] = fmaf(o2[c], take, o[c] * keep);
    }
    return OCT_K_OK;
}
