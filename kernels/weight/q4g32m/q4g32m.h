/* q4g32m: 4-bit codes, one scale and one float minimum per 32 inputs. value = u * s + m, fused
 * (GGUF Q4_1).
 *
 *   offset  bytes  field (grouped.h draws a line)
 *   0       512    codes [2 halves][4 lines]
 *   512     64     scale[32]
 *   576     64     min[32] */
#ifndef OCT_Q4G32M_H
#define OCT_Q4G32M_H

enum { CODE_BITS = 4, ZERO_CODE = 0, HAS_ZERO = 0, HAS_MIN = 1 };
#include "kernels/weight/grouped.h"
static_assert(CODE_BYTES == 512 && GROUP_BYTES == 640, "5 bits a weight");

#endif
