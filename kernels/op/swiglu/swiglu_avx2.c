/* swiglu, AVX2 column: swiglu_simd.inc over simd/v16_avx2.h. */
#include "kernels/kernels.h"
#include "kernels/simd/v16_avx2.h"

#include "kernels/op/swiglu/swiglu_simd.inc"

oct_kstatus oct_op_swiglu_avx2(const oct_swiglu_args *a, size_t lo, size_t hi)
{
    swiglu_rows(a, lo, hi);
    return OCT_K_OK;
}
