/* q4g32, AVX2 column: the linears of grouped_avx2.h with the constants of q4g32.h.
 * Packing and gathering, which are not hot, stay with the scalar column. */
#include "kernels/weight/q4g32/q4g32.h"
#include "kernels/weight/grouped_avx2.h"

const oct_weight_kernels oct_q4g32_avx2 = {
    .linear = {linear_a32, linear_a8, linear_a8g32, linear_a8x2},
};
