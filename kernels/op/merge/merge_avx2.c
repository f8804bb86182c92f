/* merge, AVX2 column: merge_simd.inc over simd/v16_avx2.h. */
#include "kernels/kernels.h"
#include "kernels/simd/v16_avx2.h"

#include "kernels/op/merge/merge_simd.inc"

oct_kstatus oct_op_merge_avx2(const oct_merge_args *a, size_t lo, size_t hi)
{
    merge_rows(a, lo, hi);
    return OCT_K_OK;
}
