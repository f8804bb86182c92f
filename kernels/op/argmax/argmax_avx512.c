/* argmax, AVX-512 column: argmax_simd.inc over simd/v16_avx512.h. */
#include "kernels/kernels.h"
#include "kernels/simd/v16_avx512.h"
#include "kernels/simd/v16_rows.h"

#include "kernels/op/argmax/argmax_simd.inc"

oct_kstatus oct_op_argmax_avx512(const oct_argmax_args *a, size_t lo, size_t hi)
{
    argmax_rows(a, lo, hi);
    return OCT_K_OK;
}
