/* grouped.h: the bytes that w8g32, q4g32, q4g32z and q4g32m share. A template: the format's header
 * sets CODE_BITS, ZERO_CODE, HAS_ZERO and HAS_MIN, draws what comes of it, then includes this.
 *
 * A block is 32 channels x all k, group of 32 inputs after group, each:
 *
 *   offset      bytes         field
 *   0           128*CODE_BITS codes, in two halves of 16 channels (below)
 *   SCALES_AT   64            scale[32]  f16 or bf16, as the matrix's scale_type says
 *   EXTRA_AT    0 | 64 | 32   min[32] of the scales' type, or zero[32] of u8
 *
 * A line of codes is 64 bytes: 16 channels x 4 bytes. Byte b of channel c holds
 *
 *   8 bits  [2 halves][8 lines]   line i: input 4i + b
 *   4 bits  [2 halves][4 lines]   line i: input 8i + b in the low nibble, 8i + 4 + b in the high
 *
 * Why so: a 64-byte load is 16 channels, four bytes each, which is what a byte dot product adds up
 * against four broadcast bytes of the input: lane = channel, k ascending, no sum across a register.
 * Codes are unsigned (w8g32: biased by 128), as that instruction wants its packed side. */
#ifndef OCT_WEIGHT_GROUPED_H
#define OCT_WEIGHT_GROUPED_H

#include <assert.h>
#include <string.h>

#include "kernels/kernels.h"
#include "kernels/num.h"

enum {
    HALF_N = 16, /* channels of a line */
    LINE_BYTES = 64,
    CODE_BYTES = OCT_BLOCK_N * OCT_GROUP * CODE_BITS / 8,
    HALF_BYTES = CODE_BYTES / 2,
    SCALES_AT = CODE_BYTES,
    EXTRA_AT = SCALES_AT + 2 * OCT_BLOCK_N,
    GROUP_BYTES = EXTRA_AT + (HAS_MIN ? 2 * OCT_BLOCK_N : HAS_ZERO ? OCT_BLOCK_N : 0)
};
static_assert(OCT_BLOCK_N == 2 * HALF_N && OCT_GROUP == 32, "the drawing shows 32 x 32");

static inline int group_count(int k)
{
    return (k + OCT_GROUP - 1) / OCT_GROUP;
}

/* Most groups of what the rows of a tile bring that fast columns keep at once: a window of sides. */
enum { SIDE_GROUPS = 256 };

/* How many groups to take at once of `all`: windows alike, so that none is too short to be worth
 * it, and each inside one window of sides. */
static inline int window_groups(int all, int most)
{
    const int span = all < SIDE_GROUPS ? all : SIDE_GROUPS, windows = (span + most - 1) / most;
    return all <= SIDE_GROUPS ? (span + windows - 1) / windows : most;
}

static inline const uint8_t *block_at(const oct_matrix *w, size_t block)
{
    return (const uint8_t *)w->data + block * (size_t)group_count(w->k) * GROUP_BYTES;
}

#endif
