/* bf16, scalar column: what the format means. The functions are in floats_scalar.h, which reads the
 * type of bf16.h; every other column must give these very bits. */
#include "kernels/weight/bf16/bf16.h"
#include "kernels/weight/floats_scalar.h"

const oct_weight_kernels oct_bf16_scalar = {
    block_bytes, pack, unpack, gather, {linear_a32, NULL, NULL, NULL},
};
