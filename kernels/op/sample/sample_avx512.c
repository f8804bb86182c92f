/* sample, AVX-512 column: sample_simd.inc over simd/v16_avx512.h. */
#include "kernels/op/sample/sample.h"
#include "kernels/simd/v16_avx512.h"
#include "kernels/simd/v16_rows.h"

#include "kernels/op/sample/sample_simd.inc"

oct_kstatus oct_op_sample_avx512(const oct_sample_args *a, size_t lo, size_t hi)
{
    sample_rows(a, lo, hi);
    return OCT_K_OK;
}
