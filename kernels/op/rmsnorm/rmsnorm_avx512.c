/* rmsnorm, AVX-512 column: rmsnorm_simd.inc over simd/v16_avx512.h. */
#include "kernels/kernels.h"
#include "kernels/simd/v16_avx512.h"

#include "kernels/op/rmsnorm/rmsnorm_simd.inc"

oct_kstatus oct_op_rmsnorm_avx512(const oct_rmsnorm_args *a, size_t lo, size_t hi)
{
    rmsnorm_rows(a, lo, hi);
    return OCT_K_OK;
}
