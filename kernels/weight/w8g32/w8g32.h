/* w8g32: signed 8-bit codes, one scale per 32 inputs. value = q * s, -128 is legal (GGUF Q8_0).
 *
 *   offset  bytes  field (grouped.h draws a line; codes are stored as q + 128)
 *   0       1024   codes [2 halves][8 lines]
 *   1024    64     scale[32]
 *
 * Why +128: the byte dot product wants its packed side unsigned; -128 * sum(x), which the rows
 * bring along, takes the bias out again, exactly. */
#ifndef OCT_W8G32_H
#define OCT_W8G32_H

enum { CODE_BITS = 8, ZERO_CODE = 128, HAS_ZERO = 0, HAS_MIN = 0 };
#include "kernels/weight/grouped.h"
static_assert(CODE_BYTES == 1024 && GROUP_BYTES == 1088, "8.5 bits a weight");

#endif
