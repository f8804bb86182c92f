/* f16: weights as stored, no scales. A block is [k][32 channels]: input after input, 64 bytes
 * each, so that lanes are channels and every output is one chain over ascending k.
 *
 *   offset      bytes  field
 *   64*j          64    value[32] of input j, j in [0, k) */
#ifndef OCT_F16_H
#define OCT_F16_H

#include "kernels/kernels.h"

typedef uint16_t element;
static const oct_dtype TYPE = OCT_F16;
#include "kernels/weight/floats.h"
static_assert(INPUT_BYTES == 64, "the drawing shows 32 channels");

#endif
