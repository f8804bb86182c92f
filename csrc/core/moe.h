/* moe.h: what a mixture of experts needs of memory; see moe.c. */
#ifndef OCT_CORE_MOE_H
#define OCT_CORE_MOE_H

#include "csrc/core/weights.h"

#define OCT_MOE_SLOTS 1024 /* (row, expert) pairs that a pass holds */
#define OCT_MOE_PASSES 64  /* more slots once there would be more passes of whole experts */

/* The most that any op of a program asks for. */
typedef struct {
    int experts, top, width, inner;
} oct_moe_sizes;

typedef struct {
    int slots;           /* of a pass */
    int32_t *id;         /* [rows][top] experts, ascending */
    float *gate;         /* [rows][top] */
    int32_t *at;         /* [rows][top] the slot's place in the order of experts */
    int32_t *row;        /* [rows * top] of each place */
    int32_t *start;      /* [experts + 1] first place of each expert */
    float *y;            /* [rows][width] */
    float *x;            /* [slots][width] inputs, where floats are read; then outputs */
    float *gated, *up;   /* [slots][inner] */
    oct_rows rows;       /* [slots] quantized inputs of the products in work */
    oct_rows *view;      /* [2 * experts] */
    oct_product *product; /* [2 * experts] */
    size_t *tiles;       /* [2 * experts + 1] */
} oct_moe_scratch;

oct_moe_scratch *oct_moe_open(const oct_moe_sizes *, int max_rows); /* NULL: no memory */
void oct_moe_free(oct_moe_scratch *);

#endif
