/* combine, AVX2 column: combine_simd.inc over simd/v16_avx2.h. */
#include "kernels/kernels.h"
#include "kernels/simd/v16_avx2.h"

#include "kernels/op/combine/combine_simd.inc"

oct_kstatus oct_op_combine_avx2(const oct_combine_args *a, size_t lo, size_t hi)
{
    combine_rows(a, lo, hi);
    return OCT_K_OK;
}
