/* w8, AMX column: tile products whose integer sums stay in the tile registers over a window of
 * inputs, 32 rows x 32 channels at a time; between windows they wait in the lane's scratch.
 * Floats, scales per group, and tiles of few rows are left to the AVX-512 column. */
#include "kernels/ahead.h"
#include "kernels/simd/tiles_amx.h"
#include "kernels/weight/w8/w8_sums_avx512.h"

enum {
    MR = 32,            /* most rows of a strip */
    WINDOW_GROUPS = 32, /* 32 KB of codes */
    DEEP = 64,          /* inputs of a tile product; an odd last group is half as deep */
    LINE_BYTES = 64,
    FEW_ROWS = 8
};

/* Rows [0, upper + lower) of a strip against a window of a block. */
typedef struct {
    int upper, lower; /* rows of the upper two C tiles, and of the lower two: both 1..16 */
    const uint8_t *codes;
    const int8_t *x; /* [upper + lower][kp] */
    size_t kp;
    int32_t *dots; /* [upper + lower][32], in and out */
    oct_asker *ask; /* its work: steps of four tile products */
} strip;

typedef struct {
    w8_sums tile;
    int upper, lower, inputs; /* what the registers are shaped for */
} scratch;
static_assert(sizeof(scratch) <= OCT_LANE_BYTES, "a lane's scratch holds all");

static void shape(scratch *l, const strip *s, int inputs)
{
    if (l->upper == s->upper && l->lower == s->lower && l->inputs == inputs) return;
    l->upper = s->upper;
    l->lower = s->lower;
    l->inputs = inputs;
    oct_tiles_shape(s->upper, s->lower, inputs);
}

/* `steps` tile products, each so many inputs deep, added to dots. */
static void dot_strip(const strip *s, int steps, int inputs)
{
    enum { ROW = OCT_BLOCK_N * (int)sizeof(int32_t) };
    int32_t *lower = s->dots + s->upper * OCT_BLOCK_N;
    const int8_t *x = s->x, *below = s->x + (size_t)s->upper * s->kp;
    const uint8_t *codes = s->codes;
    OCT_TILE_LOAD(0, s->dots, ROW);
    OCT_TILE_LOAD(1, s->dots + 16, ROW);
    OCT_TILE_LOAD(2, lower, ROW);
    OCT_TILE_LOAD(3, lower + 16, ROW);
    for (int i = 0; i < steps; i++, x += inputs, below += inputs, codes += inputs * OCT_BLOCK_N) {
        oct_ask(s->ask, 1);
        OCT_TILE_LOAD(6, codes, STEP_BYTES);
        OCT_TILE_LOAD(4, x, s->kp);
        OCT_TILE_DOT_SU(0, 4, 6);
        OCT_TILE_LOAD(7, codes + LINE_BYTES, STEP_BYTES);
        OCT_TILE_DOT_SU(1, 4, 7);
        OCT_TILE_LOAD(5, below, s->kp);
        OCT_TILE_DOT_SU(2, 5, 6);
        OCT_TILE_DOT_SU(3, 5, 7);
    }
    OCT_TILE_STORE(0, s->dots, ROW);
    OCT_TILE_STORE(1, s->dots + 16, ROW);
    OCT_TILE_STORE(2, lower, ROW);
    OCT_TILE_STORE(3, lower + 16, ROW);
}

static void dot_window(scratch *l, strip s, int groups)
{
    const int deep = groups / 2;
    if (deep) {
        shape(l, &s, DEEP);
        dot_strip(&s, deep, DEEP);
    }
    if (groups % 2 == 0) return;
    s.codes += (size_t)deep * DEEP * OCT_BLOCK_N;
    s.x += deep * DEEP;
    shape(l, &s, OCT_GROUP);
    dot_strip(&s, 1, OCT_GROUP);
}

/* Groups [g, g + groups) against all rows of t, in strips that differ by one row at most; after the
 * last window a strip goes straight to its outputs. */
static void window(const oct_linear_args *a, oct_tile t, scratch *l, int g, int groups)
{
    const oct_rows *x = a->x;
    const bool last = g + groups == group_count(x->k), two = x->act == OCT_A8X2;
    int rows = t.rows, strips = (rows + MR - 1) / MR;
    size_t at = 0;
    strip s = {.kp = (size_t)x->kp};
    s.codes = block_at(a->w, t.block) + CODES_AT + (size_t)g * GROUP_BYTES;
    oct_asker ask = oct_asker_past(s.codes, (size_t)groups * GROUP_BYTES,
                                   (two ? 2 * strips : strips) * ((groups + 1) / 2));
    s.ask = &ask;
    for (; rows > 0; rows -= t.rows, strips--) {
        const size_t from = (size_t)t.row * s.kp + (size_t)g * OCT_GROUP;
        t.rows = (rows + strips - 1) / strips;
        s.upper = (t.rows + 1) / 2;
        s.lower = t.rows / 2;
        if (last) oct_tile_ask(a, &t, t.row, t.rows);
        s.x = x->hi + from;
        s.dots = l->tile.dots + at;
        dot_window(l, s, groups);
        if (two) {
            s.x = x->lo + from;
            s.dots = l->tile.low + at;
            dot_window(l, s, groups);
        }
        if (last) finish(a, &t, &l->tile, at);
        t.row += t.rows;
        at += (size_t)t.rows * OCT_BLOCK_N;
    }
}

extern const oct_weight_kernels oct_w8_avx512;

static oct_kstatus linear(const oct_linear_args *a, size_t lo, size_t hi, void *lane)
{
    scratch *l = lane;
    const int all = group_count(a->w->k);
    const size_t stop = oct_tile_few(a, FEW_ROWS, lo, hi);
    assert(a->x->k == a->w->k && (uintptr_t)lane % 64 == 0);
    l->tile.row = -1;
    l->inputs = 0;
    for (size_t i = lo; i < stop; i++) {
        const oct_tile t = oct_tile_at(a, i);
        start(a->x, &t, &l->tile);
        for (int g = 0; g < all; g += WINDOW_GROUPS)
            window(a, t, l, g, all - g < WINDOW_GROUPS ? all - g : WINDOW_GROUPS);
    }
    if (lo < stop) oct_tiles_release();
    return stop < hi ? oct_w8_avx512.linear[a->x->act](a, stop, hi, lane) : OCT_K_OK;
}

const oct_weight_kernels oct_w8_amx = {.linear = {[OCT_A8] = linear, [OCT_A8X2] = linear}};
