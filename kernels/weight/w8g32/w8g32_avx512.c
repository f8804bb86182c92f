/* w8g32, AVX-512 column: the linears of grouped_avx512.h with the constants of w8g32.h.
 * Packing and gathering, which are not hot, stay with the scalar column. */
#include "kernels/weight/w8g32/w8g32.h"
#include "kernels/weight/grouped_avx512.h"

const oct_weight_kernels oct_w8g32_avx512 = {
    .linear = {linear_a32, linear_a8, linear_a8g32, linear_a8x2},
};
