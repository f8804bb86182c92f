/* f32, AVX-512 column: the linear of floats_avx512.h with the type of f32.h.
 * Packing and gathering, which are not hot, stay with the scalar column. */
#include "kernels/weight/f32/f32.h"
#include "kernels/weight/floats_avx512.h"

const oct_weight_kernels oct_f32_avx512 = {.linear = {linear_a32, NULL, NULL, NULL}};
