/* turn.h: the slot `turn` of plain values, whose units may lie apart. Coded formats have the default of
 * generic.c, which goes by their layouts. */
#ifndef OCT_PAGE_TURN_H
#define OCT_PAGE_TURN_H

#include "kernels/page/units.h"

/* Units of plain values: [d][16] to [16][d], the new ones side by side. */
static inline oct_kstatus oct_turn_units(oct_dtype type, const oct_turn_args *a)
{
    const size_t d = (size_t)a->d, bytes = d * OCT_UNIT_TOKENS * oct_units_size(type);
    for (int u = 0; u * OCT_UNIT_TOKENS < a->tokens; u++) {
        const char *from = (const char *)a->block + (size_t)u * a->unit_stride;
        char *to = (char *)a->out + (size_t)u * bytes;
        for (size_t c = 0; c < d; c++)
            for (size_t r = 0; r < OCT_UNIT_TOKENS; r++)
                oct_units_store(type, to, r * d + c,
                                oct_units_load(type, from, c * OCT_UNIT_TOKENS + r));
    }
    return OCT_K_OK;
}

#endif
