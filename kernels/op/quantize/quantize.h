/* quantize.h: what the columns of the quantize op share: a row's arrays, and its scale.
 *
 * The two divisions are one float32 operation each, so they are here once for all columns. */
#ifndef OCT_QUANTIZE_H
#define OCT_QUANTIZE_H

#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/kernels.h"
#include "kernels/num.h"

/* One row of an oct_rows, writable. */
typedef struct {
    oct_act act;
    int k, kp;
    const float *x;
    int8_t *hi, *lo; /* [kp]; lo only for a8x2; kp: k rounded up to OCT_GROUP */
    float *scale;    /* one, or one per group */
    int32_t *sum;    /* [kp / OCT_GROUP] */
} oct_quantize_row;

oct_kstatus oct_op_quantize_scalar(const oct_quantize_args *a, size_t lo, size_t hi);
oct_kstatus oct_op_quantize_avx2(const oct_quantize_args *a, size_t lo, size_t hi);
oct_kstatus oct_op_quantize_avx512(const oct_quantize_args *a, size_t lo, size_t hi);

/* The op is the one writer of these arrays, which all later readers see as const. Groups past the
 * row's last are zeroed here. */
static inline oct_quantize_row oct_quantize_row_at(const oct_rows *rows, size_t i)
{
    assert(rows->k > 0 && rows->kp % OCT_GROUP == 0 && rows->kp >= rows->k);
    const size_t groups = (size_t)rows->kp / OCT_GROUP;
    const int whole = (rows->k + OCT_GROUP - 1) / OCT_GROUP;
    oct_quantize_row r = {.act = rows->act, .k = rows->k, .kp = whole * OCT_GROUP};
    r.x = rows->x + i * rows->ldx;
    if (rows->act == OCT_A32) return r;
    r.hi = (int8_t *)(uintptr_t)rows->hi + i * (size_t)rows->kp;
    if (rows->act == OCT_A8X2) r.lo = (int8_t *)(uintptr_t)rows->lo + i * (size_t)rows->kp;
    r.scale = (float *)(uintptr_t)rows->scale + i * (rows->act == OCT_A8G32 ? groups : 1);
    r.sum = (int32_t *)(uintptr_t)rows->sum + i * groups;
    for (int g = whole; g < (int)groups; g++) {
        memset(r.hi + g * OCT_GROUP, 0, OCT_GROUP);
        if (r.lo) memset(r.lo + g * OCT_GROUP, 0, OCT_GROUP);
        if (rows->act == OCT_A8G32) r.scale[g] = 0.0f;
        r.sum[g] = 0;
    }
    return r;
}

/* Codes and sums 0, padding included, and every scale `scale`: what a row starts from, and all
 * that a row with a non-finite element gets (scale NaN). */
static inline void oct_quantize_clear(const oct_quantize_row *r, float scale)
{
    const int scales = r->act == OCT_A8G32 ? r->kp / OCT_GROUP : 1;
    memset(r->hi, 0, (size_t)r->kp);
    if (r->lo) memset(r->lo, 0, (size_t)r->kp);
    memset(r->sum, 0, (size_t)(r->kp / OCT_GROUP) * sizeof *r->sum);
    for (int i = 0; i < scales; i++) r->scale[i] = scale;
}

/* Stores the scale of a span and returns what its elements are multiplied by; 0: codes are 0. */
static inline float oct_quantize_scale(oct_act act, float amax, float *scale)
{
    const float limit = act == OCT_A8X2 ? 16256.0f : 127.0f;
    *scale = amax < 0x1p-60f ? 0.0f : amax / limit;
    return amax < 0x1p-60f ? 0.0f : limit / amax;
}

#endif
