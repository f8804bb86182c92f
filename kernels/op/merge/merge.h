/* merge.h: how two partial softmaxes weigh against each other; every column does this in scalar. */
#ifndef OCT_MERGE_H
#define OCT_MERGE_H

#include "kernels/kernels.h"
#include "kernels/num.h"

/* Updates m and l of one row and gives the factors of o (*a) and o2 (*b); false: nothing to do. */
static inline bool oct_merge_factors(const oct_merge_args *args, size_t row, float *a, float *b)
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

#endif
