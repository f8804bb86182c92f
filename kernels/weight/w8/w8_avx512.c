/* w8, AVX-512 column: byte dot products whose integer sums run over all of k.
 *
 * Lane = output channel. A window of inputs stays in L1 while all rows of a tile pass, MR at a
 * time, and asks for the window that comes next; between windows sums wait in the lane's scratch. */
#include "kernels/ahead.h"
#include "kernels/weight/w8/w8_sums_avx512.h"

enum {
    MR = 8,        /* most rows against 32 channels */
    MR_GROUPS = 6, /* of a8g32, which has float sums beside the integers */
    WINDOW_GROUPS = 16, /* 16 KB, half of it for few rows: memory is asked for that far ahead */
    FEW_ROWS = 16,
    LINE_BYTES = 64
};

typedef struct {
    w8_sums tile;
    _Alignas(64) float panel[WINDOW_GROUPS * GROUP_BYTES]; /* a32: a window in floats */
} scratch;
static_assert(sizeof(scratch) <= OCT_LANE_BYTES, "a lane's scratch holds all");

/* A few rows against a window of a block. */
typedef struct {
    const uint8_t *codes;
    int groups, inputs;
    oct_asker ask; /* its work: groups */
    const int8_t *x; /* [rows][kp] */
    size_t kp;
    const float *floats; /* a32: [rows][ldx] */
    size_t ldx;
    const float *panel;
    const float *scale; /* a8g32: [rows][kp / 32], and so the sums */
    const int32_t *sum;
} strip;

/* dot[r] += group g against row r. */
OCT_INLINE void add_group(const strip *s, int g, const int rows, __m512i dot[][2])
{
#pragma GCC unroll 8
    for (int i = 0; i < OCT_GROUP / 4; i++) {
        const uint8_t *at = s->codes + (size_t)g * GROUP_BYTES + i * STEP_BYTES;
        const __m512i w0 = _mm512_loadu_si512(at), w1 = _mm512_loadu_si512(at + LINE_BYTES);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, s->x + (size_t)r * s->kp + (size_t)(g * OCT_GROUP + 4 * i), sizeof four);
            const __m512i x = _mm512_set1_epi32(four);
            dot[r][0] = _mm512_dpbusd_epi32(dot[r][0], w0, x);
            dot[r][1] = _mm512_dpbusd_epi32(dot[r][1], w1, x);
        }
    }
}

/* dots [rows][32] continue over the window. */
OCT_INLINE void dot_rows(strip *s, int32_t *dots, const int rows)
{
    __m512i dot[MR][2];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++) dot[r][h] = _mm512_load_si512(dots + r * 32 + h * 16);
    for (int g = 0; g < s->groups; g++) {
        oct_ask(&s->ask, 1);
        add_group(s, g, rows, dot);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++) _mm512_store_si512(dots + r * 32 + h * 16, dot[r][h]);
}

/* a8g32: sums [rows][32], acc = fma(I, sx, acc) at the end of each group. */
OCT_INLINE void group_rows(strip *s, float *sums, const int rows)
{
    const size_t ld = s->kp / OCT_GROUP;
    __m512 acc[MR_GROUPS][2];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++) acc[r][h] = _mm512_load_ps(sums + r * 32 + h * 16);
    for (int g = 0; g < s->groups; g++) {
        __m512i dot[MR_GROUPS][2];
        oct_ask(&s->ask, 1);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
            dot[r][0] = dot[r][1] = _mm512_set1_epi32(-BIAS * s->sum[(size_t)r * ld + (size_t)g]);
        add_group(s, g, rows, dot);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            const __m512 sx = _mm512_set1_ps(s->scale[(size_t)r * ld + (size_t)g]);
            for (int h = 0; h < 2; h++)
                acc[r][h] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r][h]), sx, acc[r][h]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++) _mm512_store_ps(sums + r * 32 + h * 16, acc[r][h]);
}

/* a32: sums [rows][32], one chain over all of k. */
OCT_INLINE void float_rows(strip *s, float *sums, const int rows)
{
    __m512 sum[MR][2];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++) sum[r][h] = _mm512_load_ps(sums + r * 32 + h * 16);
    for (int j = 0; j < s->inputs; j++) {
        const float *at = s->panel + j * OCT_BLOCK_N;
        const __m512 w0 = _mm512_load_ps(at), w1 = _mm512_load_ps(at + 16);
        if (j % OCT_GROUP == 0) oct_ask(&s->ask, 1);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const __m512 x = _mm512_set1_ps(s->floats[(size_t)r * s->ldx + (size_t)j]);
            sum[r][0] = _mm512_fmadd_ps(x, w0, sum[r][0]);
            sum[r][1] = _mm512_fmadd_ps(x, w1, sum[r][1]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++) _mm512_store_ps(sums + r * 32 + h * 16, sum[r][h]);
}

/* A window's codes as floats [inputs][32]. */
static void fill_panel(const uint8_t *codes, int groups, float *to)
{
    const __m512i byte = _mm512_set1_epi32(255), bias = _mm512_set1_epi32(BIAS);
    for (int i = 0; i < groups * OCT_GROUP / 4; i++, codes += STEP_BYTES)
        for (int h = 0; h < 2; h++) {
            const __m512i w = _mm512_loadu_si512(codes + h * LINE_BYTES);
            for (int b = 0; b < 4; b++) {
                const __m512i u = _mm512_and_si512(_mm512_srli_epi32(w, (unsigned)(8 * b)), byte);
                _mm512_store_ps(to + (4 * i + b) * OCT_BLOCK_N + h * 16,
                                _mm512_cvtepi32_ps(_mm512_sub_epi32(u, bias)));
            }
        }
}

static void dot_strip(strip *s, int32_t *dots, int rows)
{
    switch (rows) {
    case 1: dot_rows(s, dots, 1); break;
    case 2: dot_rows(s, dots, 2); break;
    case 3: dot_rows(s, dots, 3); break;
    case 4: dot_rows(s, dots, 4); break;
    case 5: dot_rows(s, dots, 5); break;
    case 6: dot_rows(s, dots, 6); break;
    case 7: dot_rows(s, dots, 7); break;
    default: dot_rows(s, dots, MR); break;
    }
}

static void group_strip(strip *s, float *sums, int rows)
{
    switch (rows) {
    case 1: group_rows(s, sums, 1); break;
    case 2: group_rows(s, sums, 2); break;
    case 3: group_rows(s, sums, 3); break;
    case 4: group_rows(s, sums, 4); break;
    case 5: group_rows(s, sums, 5); break;
    default: group_rows(s, sums, MR_GROUPS); break;
    }
}

static void float_strip(strip *s, float *sums, int rows)
{
    switch (rows) {
    case 1: float_rows(s, sums, 1); break;
    case 2: float_rows(s, sums, 2); break;
    case 3: float_rows(s, sums, 3); break;
    case 4: float_rows(s, sums, 4); break;
    case 5: float_rows(s, sums, 5); break;
    case 6: float_rows(s, sums, 6); break;
    case 7: float_rows(s, sums, 7); break;
    default: float_rows(s, sums, MR); break;
    }
}

/* A window's groups [g, g + s->groups) against all rows, in strips that differ by one row at most;
 * after the last window a strip goes straight to its outputs, whose lines are waited for while the
 * next one computes. */
static void window(const oct_linear_args *a, oct_tile t, w8_sums *l, strip *s, int g)
{
    const oct_rows *x = a->x;
    const int most = x->act == OCT_A8G32 ? MR_GROUPS : MR;
    const bool last = g + s->groups == group_count(x->k);
    int rows = t.rows, strips = (rows + most - 1) / most;
    size_t at = 0;
    s->ask = oct_asker_past(s->codes, (size_t)s->groups * GROUP_BYTES,
                            (x->act == OCT_A8X2 ? 2 * strips : strips) * s->groups);
    for (; rows > 0; rows -= t.rows, strips--) {
        const size_t groups = (size_t)t.row * (s->kp / OCT_GROUP) + (size_t)g;
        t.rows = (rows + strips - 1) / strips;
        if (last) oct_tile_ask(a, &t, t.row + t.rows, t.rows); /* the next strip's */
        s->floats = x->x + (size_t)t.row * x->ldx + (size_t)g * OCT_GROUP;
        s->scale = x->scale + groups;
        s->sum = x->sum + groups;
        s->x = x->hi + groups * OCT_GROUP;
        if (x->act == OCT_A32) float_strip(s, l->sums + at, t.rows);
        else if (x->act == OCT_A8G32) group_strip(s, l->sums + at, t.rows);
        else dot_strip(s, l->dots + at, t.rows);
        if (x->act == OCT_A8X2) {
            s->x = x->lo + groups * OCT_GROUP;
            dot_strip(s, l->low + at, t.rows);
        }
        if (last) finish(a, &t, l, at);
        t.row += t.rows;
        at += (size_t)t.rows * OCT_BLOCK_N;
    }
}

static oct_kstatus linear(const oct_linear_args *a, size_t lo, size_t hi, void *lane)
{
    scratch *l = lane;
    const int all = group_count(a->w->k);
    const int most = a->x->m <= FEW_ROWS ? WINDOW_GROUPS / 2 : WINDOW_GROUPS;
    const int windows = (all + most - 1) / most, step = (all + windows - 1) / windows;
    assert(a->x->k == a->w->k && (uintptr_t)lane % 64 == 0);
    l->tile.row = -1;
    for (size_t i = lo; i < hi; i++) {
        const oct_tile t = oct_tile_at(a, i);
        start(a->x, &t, &l->tile);
        for (int g = 0; g < all; g += step) {
            strip s = {.groups = all - g < step ? all - g : step};
            const int left = a->x->k - g * OCT_GROUP;
            s.inputs = left < s.groups * OCT_GROUP ? left : s.groups * OCT_GROUP;
            s.codes = block_at(a->w, t.block) + CODES_AT + (size_t)g * GROUP_BYTES;
            s.kp = (size_t)a->x->kp;
            s.ldx = a->x->ldx;
            s.panel = l->panel;
            if (a->x->act == OCT_A32) fill_panel(s.codes, s.groups, l->panel);
            window(a, t, &l->tile, &s, g);
        }
    }
    return OCT_K_OK;
}

const oct_weight_kernels oct_w8_avx512 = {.linear = {linear, linear, linear, linear}};
