/* f16, AVX2 column: the linear of floats_avx2.h with the type of f16.h.
 * Packing and gathering, which are not hot, stay with the scalar column. */
#include "kernels/weight/f16/f16.h"
#include "kernels/weight/floats_avx2.h"

const oct_weight_kernels oct_f16_avx2 = {.linear = {linear_a32, NULL, NULL, NULL}};
