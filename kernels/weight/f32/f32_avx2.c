/* f32, AVX2 column: the linear of floats_avx2.h with the type of f32.h.
 * Packing and gathering, which are not hot, stay with the scalar column. */
#include "kernels/weight/f32/f32.h"
#include "kernels/weight/floats_avx2.h"

const oct_weight_kernels oct_f32_avx2 = {.linear = {linear_a32, NULL, NULL, NULL}};
