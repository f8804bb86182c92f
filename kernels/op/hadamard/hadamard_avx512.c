/* hadamard, AVX-512 column: hadamard_simd.inc over simd/v16_avx512.h. */
#include "kernels/op/hadamard/hadamard.h"
#include "kernels/simd/v16_avx512.h"

#include "kernels/op/hadamard/hadamard_simd.inc"

oct_kstatus oct_op_hadamard_avx512(const oct_hadamard_args *a, size_t lo, size_t hi)
{
    hadamard_rows(a, lo, hi);
    return OCT_K_OK;
}
