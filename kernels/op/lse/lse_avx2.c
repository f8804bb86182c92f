/* lse, AVX2 column: lse_simd.inc over simd/v16_avx2.h. */
#include "kernels/kernels.h"
#include "kernels/simd/v16_avx2.h"
#include "kernels/simd/v16_rows.h"

#include "kernels/op/lse/lse_simd.inc"

oct_kstatus oct_op_lse_avx2(const oct_lse_args *a, size_t lo, size_t hi)
{
    return lse_rows(a, lo, hi);
}
