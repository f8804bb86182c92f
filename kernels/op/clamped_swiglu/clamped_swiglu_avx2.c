/* clamped_swiglu, AVX2 column: clamped_swiglu_simd.inc over simd/v16_avx2.h. */
#include "kernels/kernels.h"
#include "kernels/simd/v16_avx2.h"

#include "kernels/op/clamped_swiglu/clamped_swiglu_simd.inc"

oct_kstatus oct_op_clamped_swiglu_avx2(const oct_clamped_swiglu_args *a, size_t lo, size_t hi)
{
    clamped_swiglu_rows(a, lo, hi);
    return OCT_K_OK;
}
