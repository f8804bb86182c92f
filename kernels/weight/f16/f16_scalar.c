/* f16, scalar column: what the format means. The functions are in floats_scalar.h, which reads the
 * type of f16.h; every other column must give these very bits. */
#include "kernels/weight/f16/f16.h"
#include "kernels/weight/floats_scalar.h"

const oct_weight_kernels oct_f16_scalar = {
    block_bytes, pack, unpack, gather, {linear_a32, NULL, NULL, NULL},
};
