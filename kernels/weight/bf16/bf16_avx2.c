/* bf16, AVX2 column: the linear of floats_avx2.h with the type of bf16.h.
 * Packing and gathering, which are not hot, stay with the scalar column. */
#include "kernels/weight/bf16/bf16.h"
#include "kernels/weight/floats_avx2.h"

const oct_weight_kernels oct_bf16_avx2 = {.linear = {linear_a32, NULL, NULL, NULL}};
