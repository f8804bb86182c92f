/* rope, AVX2 column: rope_simd.inc over simd/v16_avx2.h. */
#include "kernels/kernels.h"
#include "kernels/simd/v16_avx2.h"

#include "kernels/op/rope/rope_simd.inc"

oct_kstatus oct_op_rope_avx2(const oct_rope_args *a, size_t lo, size_t hi)
{
    rope_rows(a, lo, hi);
    return OCT_K_OK;
}
