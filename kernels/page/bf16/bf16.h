/* bf16 page: 64 tokens of one K or V head as bf16 values, no scales (page/units.h).
 *   role K   [4][d][16]   four units; a unit is 16 tokens of each channel
 *   role V   [4][16][d]   four units; a unit is 16 rows
 * A sealed block holds its units one after another; those of an open page lie unit_stride apart.
 * seal   copies the bits; a non-finite value, or |x| >= 2^56, is refused and stored as NaN.
 * decode widens exactly. */
#ifndef OCT_PAGE_BF16_H
#define OCT_PAGE_BF16_H

#include "kernels/page/units.h"

_Static_assert(OCT_PAGE_TOKENS == 4 * OCT_UNIT_TOKENS, "the drawing shows four units");

#endif
