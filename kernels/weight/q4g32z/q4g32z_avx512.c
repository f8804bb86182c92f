/* q4g32z, AVX-512 column: the linears of grouped_avx512.h with the constants of q4g32z.h.
 * Packing and gathering, which are not hot, stay with the scalar column. */
#include "kernels/weight/q4g32z/q4g32z.h"
#include "kernels/weight/grouped_avx512.h"

const oct_weight_kernels oct_q4g32z_avx512 = {
    .linear = {linear_a32, linear_a8, linear_a8g32, linear_a8x2},
};
