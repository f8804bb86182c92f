/* w8g32, scalar column: what the format means. The functions are in grouped_scalar.h, which reads
 * the constants of w8g32.h; every other column must give these very bits. */
#include "kernels/weight/w8g32/w8g32.h"
#include "kernels/weight/grouped_scalar.h"

const oct_weight_kernels oct_w8g32_scalar = {
    block_bytes, pack, unpack, gather, {linear_a32, linear_a8, linear_a8g32, linear_a8x2},
};
