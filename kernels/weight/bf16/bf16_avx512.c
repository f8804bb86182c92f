/* bf16, AVX-512 column: the linear of floats_avx512.h with the type of bf16.h.
 * Packing and gathering, which are not hot, stay with the scalar column. */
#include "kernels/weight/bf16/bf16.h"
#include "kernels/weight/floats_avx512.h"

const oct_weight_kernels oct_bf16_avx512 = {.linear = {linear_a32, NULL, NULL, NULL}};
