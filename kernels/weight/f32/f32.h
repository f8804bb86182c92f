/* f32: weights as stored, no scales. A block is [k][32 channels]: input after input, 128 bytes
 * each, so that lanes are channels and every output is one chain over ascending k.
 *
 *   offset      bytes  field
 *   128*j         128    value[32] of input j, j in [0, k) */
#ifndef OCT_F32_H
#define OCT_F32_H

#include "kernels/kernels.h"

typedef float element;
static const oct_dtype TYPE = OCT_F32;
#include "kernels/weight/floats.h"
static_assert(INPUT_BYTES == 128, "the drawing shows 32 channels");

#endif
