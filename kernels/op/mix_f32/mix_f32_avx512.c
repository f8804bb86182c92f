/* mix_f32, AVX-512 column: mix_f32_simd.inc over simd/v16_avx512.h. */
#include "kernels/inline.h"
#include "kernels/kernels.h"
#include "kernels/simd/v16_avx512.h"

#include "kernels/op/mix_f32/mix_f32_simd.inc"

oct_kstatus oct_op_mix_f32_avx512(const oct_mix_f32_args *a, size_t lo, size_t hi)
{
    mix_f32_rows(a, lo, hi);
    return OCT_K_OK;
}
