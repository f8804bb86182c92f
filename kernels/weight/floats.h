/* floats.h: the bytes that f32, f16 and bf16 share. A template: the format's header defines
 * `element` and TYPE, then includes this. Their order: block, input, channel. */
#ifndef OCT_WEIGHT_FLOATS_H
#define OCT_WEIGHT_FLOATS_H

#include <assert.h>
#include <string.h>

#include "kernels/kernels.h"
#include "kernels/num.h"

enum { INPUT_BYTES = OCT_BLOCK_N * (int)sizeof(element) };

static inline const element *block_at(const oct_matrix *w, size_t block)
{
    return (const element *)w->data + block * (size_t)w->k * OCT_BLOCK_N;
}

#endif
