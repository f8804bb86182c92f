/* fp8 page: 64 tokens of one K or V head, e4m3 codes, one bf16 scale per token and group.
 *
 *   offset     bytes     field                    n = d / G groups (G = d up to d = 128)
 *   0          128 * n   scale[n][64]             bf16, >= 0; NaN if the group held a bad value
 *   128 * n    64 * d    code                     value = e4m3(code) * scale; never 0x7F or 0xFF
 *
 *   role K, code[d/4][64][4]: four channels of one token, then the next token
 *   role V, code[64/4][d][4]: four tokens of one channel, then the next channel
 * The order is that of int8 (page/int8/int8.h draws it): a line of 64 bytes widens to four vectors
 *   of 16 tokens or 16 channels without a shuffle.
 * seal    scale = bf16_up(amax / 448), code = e4m3(x / scale); the sign of a zero is kept.
 * decode  exact: 4 bits times 8 bits. */
#ifndef OCT_PAGE_FP8_H
#define OCT_PAGE_FP8_H

#include "kernels/page/page.h"

static inline size_t oct_fp8_codes_at(int d)
{
    return oct_page_group_bytes(d);
}

_Static_assert(OCT_PAGE_TOKENS == 64, "the drawing shows 64 tokens");
_Static_assert(OCT_PAGE_TOKENS * 2 % 64 == 0, "codes start on a cache line");

#endif
