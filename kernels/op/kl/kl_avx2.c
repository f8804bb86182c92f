/* kl, AVX2 column: kl_simd.inc over simd/v16_avx2.h. */
#include "kernels/kernels.h"
#include "kernels/simd/v16_avx2.h"
#include "kernels/simd/v16_rows.h"

#include "kernels/op/kl/kl_simd.inc"

oct_kstatus oct_op_kl_avx2(const oct_kl_args *a, size_t lo, size_t hi)
{
    return kl_rows(a, lo, hi);
}
