/* sample, scalar column: weights of the row, then the draw of sample.h (the definition). */
#include "kernels/op/sample/sample.h"

static int greedy(const float *x, int n) /* -1 where every logit is NaN or -inf */
{
    int best = -1;
    for (int i = 0; i < n; i++)
        if (x[i] > (best < 0 ? -INFINITY : x[best])) best = i;
    return best;
}

static int draw(const oct_sample_args *a, const float *x, double u)
{
    const int best = greedy(x, a->n);
    if (best < 0 || a->temperature == 0.0f) return best;
    const sample_row r = sample_row_at(a->work, a->n);
    const float max = x[best], inverse = 1.0f / a->temperature;
    for (int i = 0; i < a->n; i++) {
        r.key[i] = sample_key(x[i]);
        r.w[i] = x[i] != x[i] ? 0.0f : oct_exp(x[i] == max ? 0.0f : (x[i] - max) * inverse);
    }
    return sample_draw(&r, a, u);
}

oct_kstatus oct_op_sample_scalar(const oct_sample_args *a, size_t lo, size_t hi)
{
    assert(a->temperature >= 0.0f);
    for (size_t row = lo; row < hi; row++)
        a->token[row] = draw(a, a->x + row * a->ldx, a->u[row]);
    return OCT_K_OK;
}
