/* cast, AVX-512 column: cast_simd.inc over simd/v16_avx512.h. */
#include "kernels/kernels.h"
#include "kernels/simd/v16_avx512.h"

#include "kernels/op/cast/cast_simd.inc"

oct_kstatus oct_op_cast_avx512(const oct_cast_args *a, size_t lo, size_t hi)
{
    return cast_rows(a, lo, hi);
}
