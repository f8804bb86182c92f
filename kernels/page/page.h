/* page.h: what all page formats share: which widths are legal, the group size, where an element's
 * code lies, and the limits of `seal` (docs/formats.md, A1, A3, A5). Formats draw their own bytes
 * in <format>.h; this file only keeps them from saying the same thing six times. */
#ifndef OCT_PAGE_H
#define OCT_PAGE_H

#include <string.h>

#include "kernels/kernels.h"
#include "kernels/num.h"

#define OCT_PAGE_LARGE 0x5B80u   /* bf16 bits of 2^56: this and above is refused, NaN and Inf too */
#define OCT_PAGE_TINY 0x1p-60f   /* a group below this is stored with scale 0 and codes 0 */
#define OCT_BF16_NAN 0x7FC0u

/* Channels that share a scale; 0 where the format cannot hold d. */
static inline int oct_page_group(int d)
{
    if (d < 16 || d % 16 || d > OCT_MAX_HEAD_DIM) return 0;
    if (d <= 128) return d;
    for (int g = 128; g >= 32; g /= 2)
        if (d % g == 0) return g;
    return 0;
}

/* Bytes of one bf16 [d/G][64] array, the shape of scales and of zeros. */
static inline size_t oct_page_group_bytes(int d)
{
    return (size_t)(d / oct_page_group(d)) * OCT_PAGE_TOKENS * 2;
}

/* Byte codes: role K [d/4][64][4], role V [64/4][d][4]. */
static inline size_t oct_page_at8(oct_role role, int d, int t, int c)
{
    return role == OCT_ROLE_K ? ((size_t)(c / 4) * OCT_PAGE_TOKENS + (size_t)t) * 4 + (size_t)c % 4
                              : ((size_t)(t / 4) * (size_t)d + (size_t)c) * 4 + (size_t)t % 4;
}

/* Nibbles: role K [d/8][64][4], role V [64/8][d][4]; *shift is 0 for the first four channels (K) or
 * tokens (V) of eight, 4 for the next four. */
static inline size_t oct_page_at4(oct_role role, int d, int t, int c, int *shift)
{
    const int along = role == OCT_ROLE_K ? c : t;
    const size_t line = role == OCT_ROLE_K ? (size_t)(c / 8) * OCT_PAGE_TOKENS + (size_t)t
                                           : (size_t)(t / 8) * (size_t)d + (size_t)c;
    *shift = along % 8 / 4 * 4;
    return line * 4 + (size_t)along % 4;
}

/* Where the float of token t, channel c goes in a decoded image: K [d][64], V [64][d]. */
static inline size_t oct_page_image(oct_role role, int d, int t, int c)
{
    return role == OCT_ROLE_K ? (size_t)c * OCT_PAGE_TOKENS + (size_t)t
                              : (size_t)t * (size_t)d + (size_t)c;
}

static inline int oct_page_whole_units(int tokens)
{
    return (tokens + OCT_UNIT_TOKENS - 1) / OCT_UNIT_TOKENS * OCT_UNIT_TOKENS;
}

/* Keeps the first bad place; calls come in ascending order of token and channel. */
static inline void oct_page_bad(const oct_seal_args *a, oct_kstatus *status, int t, int c)
{
    if (*status == OCT_K_OK) {
        *a->bad_token = t;
        *a->bad_channel = c;
    }
    *status = OCT_K_NONFINITE;
}

/* The first of n bf16 values that a page refuses, or -1. */
static inline int oct_page_first_large(const uint16_t *x, int n)
{
    for (int c = 0; c < n; c++)
        if ((x[c] & 0x7FFFu) >= OCT_PAGE_LARGE) return c;
    return -1;
}

/* A bf16 [d/G][64] part: scales or zeros. Logical array [64][d/G]. */
static inline oct_part oct_part_groups(const char *name, int d, size_t offset)
{
    const int groups = d / oct_page_group(d);
    return (oct_part){
        .name = name, .dtype = OCT_BF16, .offset = offset, .ndim = 2,
        .shape = {groups, OCT_PAGE_TOKENS}, .split = 1, .axes = {1, 0},
        .rows = OCT_PAGE_TOKENS, .cols = groups,
    };
}

/* Codes of one byte, in the order of oct_page_at8. */
static inline oct_part oct_part_codes8(oct_dtype dtype, int d, oct_role role, size_t offset,
                                       int bias)
{
    oct_part part = {
        .name = "codes", .dtype = dtype, .offset = offset, .ndim = 3,
        .shape = {d / 4, OCT_PAGE_TOKENS, 4}, .split = 1, .axes = {1, 0, 2},
        .rows = OCT_PAGE_TOKENS, .cols = d, .bias = bias,
    };
    if (role == OCT_ROLE_V) {
        part.shape[0] = OCT_PAGE_TOKENS / 4, part.shape[1] = d;
        part.axes[0] = 0, part.axes[1] = 2, part.axes[2] = 1;
    }
    return part;
}

/* Codes of half a byte, in the order of oct_page_at4. */
static inline oct_part oct_part_codes4(int d, oct_role role, size_t offset)
{
    oct_part part = {
        .name = "codes", .dtype = OCT_U8, .offset = offset, .ndim = 3,
        .shape = {d / 8, OCT_PAGE_TOKENS, 4}, .split = 2, .split_axis = 2, .axes = {1, 0, 2, 3},
        .rows = OCT_PAGE_TOKENS, .cols = d,
    };
    if (role == OCT_ROLE_V) {
        part.shape[0] = OCT_PAGE_TOKENS / 8, part.shape[1] = d;
        part.axes[0] = 0, part.axes[1] = 2, part.axes[2] = 3, part.axes[3] = 1;
    }
    return part;
}

#endif
