/* swiglu, AVX-512 column: swiglu_simd.inc over simd/v16_avx512.h. */
#include "kernels/kernels.h"
#include "kernels/simd/v16_avx512.h"

#include "kernels/op/swiglu/swiglu_simd.inc"

oct_kstatus oct_op_swiglu_avx512(const oct_swiglu_args *a, size_t lo, size_t hi)
{
    swiglu_rows(a, lo, hi);
    return OCT_K_OK;
}
