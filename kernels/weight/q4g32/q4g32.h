/* q4g32: 4-bit codes, one scale of any sign per 32 inputs. value = (u - 8) * s (GGUF Q4_0,
 * compressed-tensors symmetric int4).
 *
 *   offset  bytes  field (grouped.h draws a line)
 *   0       512    codes [2 halves][4 lines]
 *   512     64     scale[32] */
#ifndef OCT_Q4G32_H
#define OCT_Q4G32_H

enum { CODE_BITS = 4, ZERO_CODE = 8, HAS_ZERO = 0, HAS_MIN = 0 };
#include "kernels/weight/grouped.h"
static_assert(CODE_BYTES == 512 && GROUP_BYTES == 576, "4.5 bits a weight");

#endif
