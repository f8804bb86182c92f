/* sides.h: what the rows of a tile bring to every column block, once per row and group: the zero
 * point's share of the integer dots, or the inputs' sums that multiply the minima.
 *
 * A template like grouped.h, for the fast columns. A window of up to SIDE_GROUPS groups is kept in
 * the lane's scratch and used again while calls stay in one row tile. */
#ifndef OCT_WEIGHT_SIDES_H
#define OCT_WEIGHT_SIDES_H

#include "kernels/weight/grouped.h"
#include "kernels/weight/tile.h"

typedef union {
    int32_t dot; /* -bias * X: where the integer dot starts */
    float sum;   /* of formats with minima: X (a8, a8x2), X * scale (a8g32), the sum of x (a32) */
} side;

typedef struct {
    int row, from, groups; /* what `value` holds: rows from `row`, groups [from, from + groups) */
    side value[OCT_TILE_M * SIDE_GROUPS]; /* [rows][groups] */
} sides;

/* The sums of x over 8 groups at once, each in ascending order, to hide the latency of addition. */
static inline void sum_groups(const float *x, int k, int groups, side *to)
{
    for (int g = 0; g < groups; g += 8) {
        const int many = groups - g < 8 ? groups - g : 8;
        float t[8] = {0.0f};
        const float *xs = x + (size_t)g * OCT_GROUP;
        const int left = k - g * OCT_GROUP;
        if (many == 8 && left >= 8 * OCT_GROUP)
            for (int j = 0; j < OCT_GROUP; j++)
                for (int i = 0; i < 8; i++) t[i] = t[i] + xs[i * OCT_GROUP + j];
        else
            for (int j = 0; j < many * OCT_GROUP && j < left; j++)
                t[j / OCT_GROUP] = t[j / OCT_GROUP] + xs[j];
        for (int i = 0; i < many; i++) to[g + i].sum = t[i];
    }
}

static inline void side_row(sides *s, const oct_rows *x, int r, int bias)
{
    const size_t row = (size_t)(s->row + r);
    const size_t at = row * (size_t)(x->kp / OCT_GROUP) + (size_t)s->from;
    side *to = s->value + (size_t)r * (size_t)s->groups;
    if (x->act == OCT_A32) {
        const int from = s->from * OCT_GROUP;
        if (HAS_MIN) sum_groups(x->x + row * x->ldx + from, x->k - from, s->groups, to);
        return;
    }
    const int32_t *sum = x->sum + at;
    if (!HAS_MIN)
        for (int g = 0; g < s->groups; g++) to[g].dot = -bias * sum[g];
    else if (x->act != OCT_A8G32)
        for (int g = 0; g < s->groups; g++) to[g].sum = (float)sum[g];
    else
        for (int g = 0; g < s->groups; g++) to[g].sum = (float)sum[g] * x->scale[at + (size_t)g];
}

/* Make the window hold these rows of group g. */
static inline void side_window(sides *s, const oct_rows *x, const oct_tile *t, int g, int bias)
{
    const int from = g / SIDE_GROUPS * SIDE_GROUPS, all = group_count(x->k) - from;
    if (s->row == t->row && s->from == from) return;
    s->row = t->row;
    s->from = from;
    s->groups = all < SIDE_GROUPS ? all : SIDE_GROUPS;
    for (int r = 0; r < t->rows; r++) side_row(s, x, r, bias);
}

#endif
