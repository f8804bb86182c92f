/* cast, scalar column: float rows to the type of an open page, and the first element that no page
 * of that type may hold. The test is on the rounded value, which is what `seal` will see: bf16 from
 * 2^56, f16 from 65520 (it rounds to infinity), f32 only infinities and NaN. */
#include <assert.h>

#include "kernels/kernels.h"
#include "kernels/num.h"

static bool cast_one(oct_dtype type, float x, void *y, size_t i)
{
    if (type == OCT_F32) {
        ((float *)y)[i] = x;
        return oct_finite_bits(oct_bits(x));
    }
    const uint16_t bits = type == OCT_F16 ? oct_f32_to_f16(x) : oct_f32_to_bf16(x);
    ((uint16_t *)y)[i] = bits;
    return (bits & 0x7FFF) < (type == OCT_F16 ? 0x7C00 : 0x5B80); /* 0x5B80: bf16 of 2^56 */
}

oct_kstatus oct_op_cast_scalar(const oct_cast_args *a, size_t lo, size_t hi)
{
    assert(a->type == OCT_F32 || a->type == OCT_F16 || a->type == OCT_BF16);
    oct_kstatus status = OCT_K_OK;
    for (size_t row = lo; row < hi; row++) {
        const float *x = a->x + row * a->ldx;
        a->bad[row] = -1;
        for (int i = 0; i < a->k; i++)
            if (!cast_one(a->type, x[i], a->y, row * a->ldy + (size_t)i) && a->bad[row] < 0)
                a->bad[row] = i;
        if (a->bad[row] >= 0) status = OCT_K_NONFINITE;
    }
    return status;
}
