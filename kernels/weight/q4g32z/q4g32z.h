/* q4g32z: 4-bit codes, one scale and one integer zero point (0..15) per 32 inputs.
 * value = (u - z) * s (compressed-tensors asymmetric, GPTQ, AWQ).
 *
 *   offset  bytes  field (grouped.h draws a line)
 *   0       512    codes [2 halves][4 lines]
 *   512     64     scale[32]
 *   576     32     zero[32]
 *
 * A group is 9.5 cache lines, so every other one starts in the middle of a line. */
#ifndef OCT_Q4G32Z_H
#define OCT_Q4G32Z_H

enum { CODE_BITS = 4, ZERO_CODE = 0, HAS_ZERO = 1, HAS_MIN = 0 };
#include "kernels/weight/grouped.h"
static_assert(CODE_BYTES == 512 && GROUP_BYTES == 608, "4.75 bits a weight");

#endif
