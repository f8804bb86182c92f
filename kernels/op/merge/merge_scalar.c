/* merge, scalar column: folds one partial attention result (o2, m2, l2) into another (o, m, l). */
#include "kernels/kernels.h"
#include "kernels/num.h"

/* Updates m and l of one row and gives the factors of o (*a) and o2 (*b); false: nothing to do. */
static bool oct_merge_factors(const oct_merge_args *args, size_t row, float *a, float *b)
{
    const float m = args->m[row], m2 = args->m2[row];
    if (m == -INFINITY && m2 == -INFINITY) return false;
    float top = m >= m2 ? m : m2;
    if (m != m) top = m; /* a NaN on either side stays one */
    *a = oct_exp(m - top); /* exp(-inf) is 0 */
    *b = oct_exp(m2 - top);
    args->m[row] = top;
    args->l[row] = fmaf(args->l2[row], *b, args->l[row] * *a);
    return true;
}

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
