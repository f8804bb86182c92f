/* kl, scalar column: the divergence of softmax(other) from softmax(base), in float64.
 *
 * With ex = exp(x - max x), dx = x - max x, zx = sum ex (and y for `other`):
 *   KL = sum(ex * (dx - dy)) / zx - (log zx - log zy)
 * so one pass needs one exp a logit and equal rows give exactly 0. A logit whose ex is 0 adds
 * nothing, whatever y is; -inf in y alone gives +inf. NaN, +inf or no finite logit: NaN. */
#include "kernels/kernels.h"
#include "kernels/num.h"
#include "kernels/op/real64.h"

static float largest(const float *x, int n) /* NaN where there is one */
{
    float m = -INFINITY;
    for (int i = 0; i < n; i++) {
        if (x[i] != x[i]) return NAN;
        if (x[i] > m) m = x[i];
    }
    return m;
}

static double row_kl(const float *x, const float *y, int n, double mx, double my)
{
    double zx[16] = {0}, zy[16] = {0}, t[16] = {0};
    for (int i = 0; i < n; i++) {
        const double dx = (double)x[i] - mx, dy = (double)y[i] - my, ex = oct_exp64(dx);
        zx[i % 16] += ex;
        zy[i % 16] += oct_exp64(dy);
        t[i % 16] = fma(ex, ex == 0.0 ? 0.0 : dx - dy, t[i % 16]);
    }
    const double sx = oct_reduce_tree64(zx), sy = oct_reduce_tree64(zy);
    return oct_reduce_tree64(t) / sx - (oct_log64(sx) - oct_log64(sy));
}

oct_kstatus oct_op_kl_scalar(const oct_kl_args *a, size_t lo, size_t hi)
{
    oct_kstatus status = OCT_K_OK;
    for (size_t row = lo; row < hi; row++) {
        const float *x = a->base + row * a->ld, *y = a->other + row * a->ld;
        const float mx = largest(x, a->n), my = largest(y, a->n);
        if (oct_finite_bits(oct_bits(mx)) && oct_finite_bits(oct_bits(my))) {
            a->kl[row] = row_kl(x, y, a->n, mx, my);
        } else {
            a->kl[row] = NAN;
            status = OCT_K_NONFINITE;
        }
    }
    return status;
}
