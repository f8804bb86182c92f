/* int8 page: 64 tokens of one K or V head, 8-bit codes, one bf16 scale per token and group.
 *
 *   offset     bytes     field                    n = d / G groups (G = d up to d = 128)
 *   0          128 * n   scale[n][64]             bf16, >= 0; NaN if the group held a bad value
 *   128 * n    64 * d    code                     value = (code - 128) * scale, code in 1..255
 *
 *   role K, code[d/4][64][4]                     role V, code[64/4][d][4]
 *   +---------+---------+-- --+---------+        +---------+---------+-- --+----------+
 *   | t0      | t1      |     | t63     |  line  | c0      | c1      |     | c(d-1)   |  line
 *   | c0 - c3 | c0 - c3 |     | c0 - c3 |  0     | t0 - t3 | t0 - t3 |     | t0 - t3  |  0
 *   +---------+---------+-- --+---------+        +---------+---------+-- --+----------+
 * Why so: 64 bytes are 16 tokens (K) or 16 channels (V), and four broadcast bytes of query or
 *   probability advance 16 dot products at once; 64 tokens' scales are two vectors.
 * Why +128: vpdpbusd wants one side unsigned, and the broadcast side is signed.
 * seal    scale = bf16_up(amax / 127), code = rne(x / scale) + 128;
 *         |x - decode| <= scale / 2 * (1 + 2^-10).
 * decode  exact: 8 bits times 8 bits. */
#ifndef OCT_PAGE_INT8_H
#define OCT_PAGE_INT8_H

#include "kernels/page/page.h"

#define OCT_INT8_BIAS 128

static inline size_t oct_int8_codes_at(int d)
{
    return oct_page_group_bytes(d);
}

_Static_assert(OCT_PAGE_TOKENS == 64, "the drawing shows 64 tokens");
_Static_assert(OCT_PAGE_TOKENS * 2 % 64 == 0, "codes start on a cache line");

#endif
