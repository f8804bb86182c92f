/* units_x86.h: `decode` of f32, f16 and bf16 pages, 16 values at a time, for both x86 columns; the
 * column gives the widening of 16 values. `seal` is units.h compiled for the wider ISA. */
#ifndef OCT_PAGE_UNITS_X86_H
#define OCT_PAGE_UNITS_X86_H

#include <immintrin.h>

#include "kernels/page/units.h"

typedef void (*oct_widen16_fn)(float *out, const void *x);

OCT_INLINE oct_kstatus oct_units_decode16(const oct_decode_args *a, size_t size, oct_widen16_fn
                                          widen16)
{
    const int d = a->d, units = oct_page_whole_units(a->tokens) / OCT_UNIT_TOKENS;
    for (int u = 0; u < units; u++) {
        const char *unit = (const char *)a->block + (size_t)u * a->unit_stride;
        const bool k = a->role == OCT_ROLE_K;
        float *out = a->out + (k ? u * OCT_UNIT_TOKENS : u * OCT_UNIT_TOKENS * d);
        const int step = k ? OCT_PAGE_TOKENS : OCT_UNIT_TOKENS;
        for (int c = 0; c < d; c++)
            widen16(out + (size_t)c * (size_t)step, unit + (size_t)c * OCT_UNIT_TOKENS * size);
    }
    return OCT_K_OK;
}

#endif
