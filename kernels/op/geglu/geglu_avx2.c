/* geglu, AVX2 column: geglu_simd.inc over simd/v16_avx2.h. */
#include "kernels/kernels.h"
#include "kernels/simd/v16_avx2.h"

#include "kernels/op/geglu/geglu_simd.inc"

oct_kstatus oct_op_geglu_avx2(const oct_geglu_args *a, size_t lo, size_t hi)
{
    geglu_rows(a, lo, hi);
    return OCT_K_OK;
}
