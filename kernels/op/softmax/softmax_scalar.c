/* softmax, scalar column: one chunk of scores to unnormalised probabilities, their largest score
 * and their sum. Merging chunks and dividing by the sum is the caller's. */
#include <assert.h>

#include "kernels/kernels.h"
#include "kernels/num.h"

/* The largest score, NaN if there is one; + 0 makes a zero positive in every column. */
static float largest(const float *s, int n)
{
    float m = -INFINITY;
    for (int i = 0; i < n; i++) {
        if (s[i] != s[i]) return NAN;
        if (s[i] > m) m = s[i];
    }
    return m + 0.0f;
}

oct_kstatus oct_op_softmax_scalar(const oct_softmax_args *a, size_t lo, size_t hi)
{
    assert(a->n % 16 == 0);
    for (size_t row = lo; row < hi; row++) {
        float *s = a->s + row * a->lds, acc[16] = {0};
        const float m = largest(s, a->n);
        for (int i = 0; i < a->n; i++) {
            s[i] = m == -INFINITY ? 0.0f : oct_exp(s[i] - m);
            acc[i % 16] += s[i];
        }
        a->max[row] = m;
        a->sum[row] = oct_reduce_tree(acc);
    }
    return OCT_K_OK;
}
