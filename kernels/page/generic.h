/* The slots that every page format gets for nothing: decode the page into the lane's scratch, then
 * the column's float op. A new format needs `layout`, `seal` and `decode` only. */
#ifndef OCT_PAGE_GENERIC_H
#define OCT_PAGE_GENERIC_H

#include "kernels/kernels.h"

oct_kstatus oct_page_generic_scores(const oct_scores_args *, void *lane);
oct_kstatus oct_page_generic_mix(const oct_mix_args *, void *lane);

/* The same for formats whose value is code * scale and whose block begins with the scales
 * [d/G][64]: with one group per row, `codes` decodes the bare codes and the scale is applied once
 * per token, after the chain (docs/formats.md, A4); with more groups this is the generic slot. */
oct_kstatus oct_page_scaled_scores(const oct_scores_args *, oct_decode_fn codes, void *lane);
oct_kstatus oct_page_scaled_mix(const oct_mix_args *, oct_decode_fn codes, void *lane);

/* By the layouts of both roles; not for blocks whose units lie apart. */
oct_kstatus oct_page_generic_turn(const oct_turn_args *);

/* The most tokens that any of the queries sees: how much of the page there is to read. */
static inline int oct_visible_max(const int *visible, int nq)
{
    int most = 0;
    for (int i = 0; i < nq; i++) most = visible[i] > most ? visible[i] : most;
    return most;
}

#endif
