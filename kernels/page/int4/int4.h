/* int4 page: 64 tokens of one K or V head, 4-bit codes, a bf16 scale and zero per token and group.
 *
 *   offset     bytes     field                    n = d / G groups (G = d up to d = 128)
 *   0          128 * n   scale[n][64]             bf16, >= 0; NaN if the group held a bad value
 *   128 * n    128 * n   zero[n][64]              bf16: the group's minimum, never -0
 *   256 * n    32 * d    code                     value = code * scale + zero, code in 0..15
 *
 *   role K, code[d/8][64][4]                     role V, code[64/8][d][4]
 *   +---------+---------+-- --+---------+        +---------+---------+-- --+----------+
 *   | t0      | t1      |     | t63     |  line  | c0      | c1      |     | c(d-1)   |  line
 *   | c0 - c3 | c0 - c3 |     | c0 - c3 |  0,low | t0 - t3 | t0 - t3 |     | t0 - t3  |  0,low
 *   | c4 - c7 | c4 - c7 |     | c4 - c7 |  high  | t4 - t7 | t4 - t7 |     | t4 - t7  |  high
 *   +---------+---------+-- --+---------+        +---------+---------+-- --+----------+
 * Why so: as int8, with the second half of eight in the high nibbles, so that a mask and a shift
 *   give two lines of bytes in the order of int8.
 * seal    zero = min + 0, scale = bf16_up((max - zero) / 15), code = rne((x - zero) / scale),
 *         clamped to 0..15.
 * decode  fma(code, scale, zero): one rounding, and no product that overflows on its own where an
 *         editor of the page wrote scales near the end of the range.
 * mix     uses code - 8 and zc = fma(8, scale, zero), so that rounding a probability is multiplied
 *         by a small code; zacc = reduce(p_t, zc_t) in the shape of oct_reduce_tree (t = j, j+16,
 *         ... in accumulator j): a serial chain of 64 would cost more than the page's dots. */
#ifndef OCT_PAGE_INT4_H
#define OCT_PAGE_INT4_H

#include "kernels/page/page.h"

#define OCT_INT4_CENTRE 8

static inline size_t oct_int4_zeros_at(int d)
{
    return oct_page_group_bytes(d);
}

static inline size_t oct_int4_codes_at(int d)
{
    return 2 * oct_page_group_bytes(d);
}

_Static_assert(OCT_PAGE_TOKENS == 64, "the drawing shows 64 tokens");
_Static_assert(OCT_PAGE_TOKENS * 2 % 64 == 0, "codes start on a cache line");

#endif
