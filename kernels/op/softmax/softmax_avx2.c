/* softmax, AVX2 column: softmax_simd.inc over simd/v16_avx2.h. */
#include "kernels/kernels.h"
#include "kernels/simd/v16_avx2.h"
#include "kernels/simd/v16_rows.h"

#include "kernels/op/softmax/softmax_simd.inc"

oct_kstatus oct_op_softmax_avx2(const oct_softmax_args *a, size_t lo, size_t hi)
{
    softmax_rows(a, lo, hi);
    return OCT_K_OK;
}
