/* heads.h: what a product for each head needs of memory; see heads.c. */
#ifndef OCT_CORE_HEADS_H
#define OCT_CORE_HEADS_H

#include "csrc/core/weights.h"

typedef struct {
    oct_rows rows;        /* [heads][rows of the step] codes; absent where all matrices read floats */
    oct_rows *view;       /* [heads] */
    oct_product *product; /* [heads] */
    size_t *tiles;        /* [heads + 1] */
} oct_heads_scratch;

/* The most that any op of a program asks for; k: of those that read codes, 0: none does. NULL: no
 * memory. */
oct_heads_scratch *oct_heads_open(int heads, int k, int max_rows);
void oct_heads_free(oct_heads_scratch *);

#endif
