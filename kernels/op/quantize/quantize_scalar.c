/* quantize, scalar column: float rows to the 8-bit forms of docs/formats.md B1, with the sums that
 * serve every zero point. What a row's codes are depends on that row alone. */
#include "kernels/op/quantize/quantize.h"

/* Codes of [from, to), and their sums per group; the padding up to kp is the caller's. */
static void quantize_span(const oct_quantize_row *r, int from, int to, float inverse)
{
    const int limit = r->act == OCT_A8X2 ? 16256 : 127;
    for (int j = from; j < to; j++) {
        int q = (int)rintf(r->x[j] * inverse);
        q = q > limit ? limit : q < -limit ? -limit : q;
        r->sum[j / OCT_GROUP] += q;
        if (r->act == OCT_A8X2) {
            const int hi = (q + 64 + 128 * 128) / 128 - 128; /* floor((q + 64) / 128) */
            r->hi[j] = (int8_t)hi;
            r->lo[j] = (int8_t)(q - 128 * hi);
        } else {
            r->hi[j] = (int8_t)q;
        }
    }
}

static float amax_of(const float *x, int from, int to)
{
    float amax = 0.0f;
    for (int j = from; j < to; j++) amax = fabsf(x[j]) > amax ? fabsf(x[j]) : amax;
    return amax;
}

static bool all_finite(const float *x, int k)
{
    for (int j = 0; j < k; j++)
        if (!oct_finite_bits(oct_bits(x[j]))) return false;
    return true;
}

static void quantize_row(const oct_quantize_row *r)
{
    const int span = r->act == OCT_A8G32 ? OCT_GROUP : r->k;
    for (int from = 0; from < r->k; from += span) {
        const int to = r->k - from < span ? r->k : from + span;
        const float amax = amax_of(r->x, from, to);
        const float inverse = oct_quantize_scale(r->act, amax, &r->scale[from / span]);
        if (inverse != 0.0f) quantize_span(r, from, to, inverse);
    }
}

oct_kstatus oct_op_quantize_scalar(const oct_quantize_args *a, size_t lo, size_t hi)
{
    oct_kstatus status = OCT_K_OK;
    for (size_t i = lo; i < hi; i++) {
        const oct_quantize_row r = oct_quantize_row_at(a->rows, i);
        const bool finite = all_finite(r.x, r.k);
        if (a->bad) a->bad[i] = !finite;
        if (!finite) status = OCT_K_NONFINITE;
        if (r.act == OCT_A32) continue;
        oct_quantize_clear(&r, finite ? 0.0f : NAN);
        if (finite) quantize_row(&r);
    }
    return status;
}
