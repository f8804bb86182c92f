/* units.h: pages of plain values (f32, f16, bf16), for all three types and all columns.
 *
 * A block is four units of 16 tokens, so that a page which grows 16 rows at a time is read by the
 * same `decode` as a sealed one: a unit's address is its index times unit_stride.
 *   role K, unit [d][16]: a channel's 16 tokens are one vector
 *   role V, unit [16][d]: rows as they come
 * The functions are plain C over a constant `type`: a file of a wider ISA that includes them gets
 * them vectorized by the compiler, and they only move bits and widen exactly. */
#ifndef OCT_PAGE_UNITS_H
#define OCT_PAGE_UNITS_H

#include <assert.h>

#include "kernels/inline.h"
#include "kernels/page/page.h"

OCT_INLINE size_t oct_units_size(oct_dtype type)
{
    return type == OCT_F32 ? 4 : 2;
}

OCT_INLINE uint32_t oct_units_load(oct_dtype type, const void *x, size_t i)
{
    return type == OCT_F32 ? ((const uint32_t *)x)[i] : ((const uint16_t *)x)[i];
}

OCT_INLINE void oct_units_store(oct_dtype type, void *x, size_t i, uint32_t u)
{
    if (type == OCT_F32) ((uint32_t *)x)[i] = u;
    else ((uint16_t *)x)[i] = (uint16_t)u;
}

/* Smallest magnitude (bits without sign) that a page refuses. */
OCT_INLINE uint32_t oct_units_limit(oct_dtype type)
{
    return type == OCT_F32 ? 0x7F800000u : type == OCT_F16 ? 0x7C00u : OCT_PAGE_LARGE;
}

OCT_INLINE uint32_t oct_units_sign(oct_dtype type)
{
    return type == OCT_F32 ? 0x80000000u : 0x8000u;
}

OCT_INLINE uint32_t oct_units_nan(oct_dtype type)
{
    return type == OCT_F32 ? 0x7FC00000u : type == OCT_F16 ? 0x7E00u : OCT_BF16_NAN;
}

static inline oct_kstatus oct_units_layout(oct_dtype type, int d, oct_role role,
                                           oct_page_layout *out)
{
    if (d < 16 || d % 16 || d > OCT_MAX_HEAD_DIM) return OCT_K_NONFINITE;
    oct_part part = {
        .name = "codes", .dtype = type, .ndim = 3, .shape = {4, d, OCT_UNIT_TOKENS},
        .split = 1, .axes = {0, 2, 1}, .rows = OCT_PAGE_TOKENS, .cols = d,
    };
    if (role == OCT_ROLE_V) {
        part.shape[1] = OCT_UNIT_TOKENS, part.shape[2] = d;
        part.axes[1] = 1, part.axes[2] = 2;
    }
    *out = (oct_page_layout){
        .bytes = OCT_PAGE_TOKENS * (size_t)d * oct_units_size(type),
        .group = d, .parts = 1, .part = {part},
    };
    return OCT_K_OK;
}

/* Rows that hold a bad value: note its place, and store NaN for each such element. */
static inline void oct_units_mend(oct_dtype type, const oct_seal_args *a, oct_kstatus *status,
                                  int t)
{
    const uint32_t limit = oct_units_limit(type), magnitude = oct_units_sign(type) - 1;
    for (int c = 0; c < a->d; c++) {
        if ((oct_units_load(type, a->x, (size_t)t * a->ldx + (size_t)c) & magnitude) < limit)
            continue;
        oct_page_bad(a, status, t, c);
        const int u = t / OCT_UNIT_TOKENS, r = t % OCT_UNIT_TOKENS;
        const size_t in_unit = a->role == OCT_ROLE_K ? (size_t)c * OCT_UNIT_TOKENS + (size_t)r
                                                     : (size_t)r * (size_t)a->d + (size_t)c;
        oct_units_store(type, a->block, (size_t)u * OCT_UNIT_TOKENS * (size_t)a->d + in_unit,
                        oct_units_nan(type));
    }
}

OCT_INLINE oct_kstatus oct_units_seal(oct_dtype type, const oct_seal_args *a)
{
    assert(a->d >= 16 && a->d % 16 == 0 && (uintptr_t)a->block % 64 == 0);
    const size_t d = (size_t)a->d, row = d * oct_units_size(type);
    const uint32_t magnitude = oct_units_sign(type) - 1;
    oct_kstatus status = OCT_K_OK;
    for (int t = 0; t < OCT_PAGE_TOKENS; t++) {
        const char *x = (const char *)a->x + (size_t)t * a->ldx * oct_units_size(type);
        char *unit = (char *)a->block + (size_t)(t / OCT_UNIT_TOKENS) * OCT_UNIT_TOKENS * row;
        const size_t r = (size_t)t % OCT_UNIT_TOKENS;
        uint32_t top = 0;
        for (size_t c = 0; c < d; c++) {
            const uint32_t u = oct_units_load(type, x, c) & magnitude;
            top = u > top ? u : top;
        }
        if (a->role == OCT_ROLE_V) memcpy(unit + r * row, x, row);
        else
            for (size_t c = 0; c < d; c++)
                oct_units_store(type, unit, c * OCT_UNIT_TOKENS + r, oct_units_load(type, x, c));
        if (top >= oct_units_limit(type)) oct_units_mend(type, a, &status, t);
    }
    return status;
}

/* The scalar meaning of `decode`; the columns widen by vectors. */
static inline float oct_units_widen(oct_dtype type, uint32_t u)
{
    return type == OCT_F32   ? oct_float(u)
           : type == OCT_F16 ? oct_f16_to_f32((uint16_t)u)
                             : oct_bf16_to_f32((uint16_t)u);
}

static inline oct_kstatus oct_units_decode(oct_dtype type, const oct_decode_args *a)
{
    assert(a->d % 16 == 0 && a->tokens >= 0 && a->tokens <= OCT_PAGE_TOKENS);
    const int d = a->d, whole = oct_page_whole_units(a->tokens);
    for (int t = 0; t < whole; t++) {
        const int r = t % OCT_UNIT_TOKENS;
        const char *unit = (const char *)a->block + (size_t)(t / OCT_UNIT_TOKENS) * a->unit_stride;
        for (int c = 0; c < d; c++) {
            const size_t i = a->role == OCT_ROLE_K ? (size_t)(c * OCT_UNIT_TOKENS + r)
                                                   : (size_t)(r * d + c);
            a->out[oct_page_image(a->role, d, t, c)] =
                oct_units_widen(type, oct_units_load(type, unit, i));
        }
    }
    return OCT_K_OK;
}

#endif
