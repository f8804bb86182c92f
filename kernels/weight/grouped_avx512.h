/* grouped_avx512.h: linears of the grouped formats with VNNI byte dots. A template like grouped.h.
 *
 * Lane = output channel, so nothing is ever summed across a register and k ascends by itself. One
 * micro-kernel, `dot_rows`, takes up to MR rows against 32 channels over a window of groups that
 * stays in L1 while all rows pass; it reads either stored codes or, for many rows, a panel of bytes
 * in the lane's scratch, into which nibbles are unpacked once per row tile. While a window is in
 * work its successor is asked for (ahead.h). Rows of a single strip use nothing twice: they take
 * all of k as one window, and ask WINDOW_GROUPS ahead of themselves. Integer sums are exact and the
 * float chain is one fma per group, so the path taken changes no bit. */
#include "kernels/ahead.h"
#include "kernels/weight/lines_avx512.h"
#include "kernels/weight/sides.h"
#include "kernels/weight/tile_avx512.h"

enum {
    MR = 6,  /* most rows of dot_rows */
    MR2 = 4, /* of a8x2, which has twice the accumulators */
    STORED_ROWS = CODE_BITS == 8 ? OCT_TILE_M : 24, /* most rows that read stored codes */
    WINDOW_GROUPS = CODE_BITS == 8 ? 8 : 16,        /* some 9 KB, and 16 KB as a panel */
    PANEL_BYTES = OCT_BLOCK_N * OCT_GROUP,
    ASKS = 4, /* for memory, a group */
    CHAIN_GROUPS = 8, /* a panel of 32 KB in floats */
    /* What is subtracted from the bytes of a panel. Zero points are folded into its bytes (u - z +
     * 128), so that all channels share one number. */
    BIAS = HAS_MIN ? 0 : HAS_ZERO ? 128 : ZERO_CODE
};

typedef struct {
    _Alignas(64) float acc[OCT_TILE_M * OCT_BLOCK_N];
    union {
        _Alignas(64) uint8_t bytes[WINDOW_GROUPS * PANEL_BYTES];
        float chain[CHAIN_GROUPS * OCT_GROUP * OCT_BLOCK_N];
    } panel;
    sides side;
} scratch;
static_assert(sizeof(scratch) <= OCT_LANE_BYTES, "a lane's scratch holds all");
static_assert(MR <= STORED_ROWS, "a single strip, whose window is long, needs no panel");

/* A few rows against the 32 channels of a block, over `groups` groups. */
typedef struct {
    const uint8_t *codes; /* of the first group: as stored, or of the panel */
    size_t stride;        /* bytes from one group's codes to the next */
    const uint8_t *group; /* the stored group: its scales, minima and zeros */
    oct_dtype scale_type;
    const int8_t *hi, *lo; /* [rows][kp] */
    size_t kp;
    const float *x; /* a32: [rows][ldx] */
    size_t ldx;
    const float *scale; /* a8g32: [rows][kp / 32] */
    const side *side; /* [rows][side_ld] */
    size_t side_ld;
    float *acc; /* [rows][32], in and out */
    int groups;
    oct_asker ask; /* its work: ASKS for each group of all strips */
} strip;

OCT_INLINE __m512i broadcast4(const int8_t *p)
{
    int32_t four;
    memcpy(&four, p, sizeof four);
    return _mm512_set1_epi32(four);
}

/* 128 - z in each of a channel's four bytes; the zero points of half h. */
OCT_INLINE __m512i zero_fold(const uint8_t *group, int h)
{
    if (!HAS_ZERO) return _mm512_setzero_si512();
    return _mm512_sub_epi8(_mm512_set1_epi8((char)128), zeros16(group, h));
}

/* Inputs 8i..8i+3 and 8i+4..8i+7 of half h as unsigned bytes. */
OCT_INLINE void load_lines(const uint8_t *codes, bool nibbles, int h, int i, __m512i fold,
                           __m512i w[2])
{
    if (!nibbles) {
        w[0] = _mm512_loadu_si512(codes + h * (PANEL_BYTES / 2) + i * 2 * LINE_BYTES);
        w[1] = _mm512_loadu_si512(codes + h * (PANEL_BYTES / 2) + (i * 2 + 1) * LINE_BYTES);
        return;
    }
    split_line(codes + h * HALF_BYTES + i * LINE_BYTES, w);
    if (HAS_ZERO) {
        w[0] = _mm512_add_epi8(w[0], fold);
        w[1] = _mm512_add_epi8(w[1], fold);
    }
}

/* The float step of one group: acc[h] = fma(I, s, acc[h]), and the minima where there are any. */
OCT_INLINE void fold_group(const strip *s, int r, int g, const oct_act act, const __m512 *scale,
                           const __m512 *min, const __m512i *dot, __m512 *acc)
{
    const side *mine = s->side + (size_t)r * s->side_ld + g;
    for (int h = 0; h < 2; h++) {
        __m512 by = scale[h];
        if (act == OCT_A8G32)
            by = _mm512_mul_ps(by, _mm512_set1_ps(s->scale[(size_t)r * (s->kp / 32) + (size_t)g]));
        acc[h] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[h]), by, acc[h]);
        if (HAS_MIN) acc[h] = _mm512_fmadd_ps(_mm512_set1_ps(mine->sum), min[h], acc[h]);
    }
}

OCT_INLINE void dot_rows(strip *s, const int rows, const oct_act act, const bool nibbles)
{
    __m512 acc[MR][2];
    oct_asker ask = s->ask;
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++) acc[r][h] = _mm512_load_ps(s->acc + r * 32 + h * 16);
    for (int g = 0; g < s->groups; g++) {
        const uint8_t *codes = s->codes + (size_t)g * s->stride;
        const uint8_t *group = s->group + (size_t)g * GROUP_BYTES;
        const __m512i fold[2] = {zero_fold(group, 0), zero_fold(group, 1)};
        __m512i dot[MR][2], high[MR][2]; /* a8x2 sums its high terms apart */
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
            for (int h = 0; h < 2; h++) {
                const side *mine = s->side + (size_t)r * s->side_ld + g;
                dot[r][h] = _mm512_set1_epi32(HAS_MIN ? 0 : mine->dot);
                high[r][h] = _mm512_setzero_si512();
            }
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            __m512i w[2][2];
            oct_ask(&ask, 1);
            load_lines(codes, nibbles, 0, i, fold[0], w[0]);
            load_lines(codes, nibbles, 1, i, fold[1], w[1]);
#pragma GCC unroll 2
            for (int q = 0; q < 2; q++)
#pragma GCC unroll 6
                for (int r = 0; r < rows; r++) {
                    const size_t at = (size_t)r * s->kp + (size_t)(g * 32 + i * 8 + q * 4);
                    const __m512i hi = broadcast4(s->hi + at);
                    if (act == OCT_A8X2) {
                        const __m512i lo = broadcast4(s->lo + at);
                        high[r][0] = _mm512_dpbusd_epi32(high[r][0], w[0][q], hi);
                        high[r][1] = _mm512_dpbusd_epi32(high[r][1], w[1][q], hi);
                        dot[r][0] = _mm512_dpbusd_epi32(dot[r][0], w[0][q], lo);
                        dot[r][1] = _mm512_dpbusd_epi32(dot[r][1], w[1][q], lo);
                    } else {
                        dot[r][0] = _mm512_dpbusd_epi32(dot[r][0], w[0][q], hi);
                        dot[r][1] = _mm512_dpbusd_epi32(dot[r][1], w[1][q], hi);
                    }
                }
        }
        const __m512 scale[2] = {widen16(group + SCALES_AT, s->scale_type),
                                 widen16(group + SCALES_AT + 32, s->scale_type)};
        const __m512 min[2] = {
            HAS_MIN ? widen16(group + EXTRA_AT, s->scale_type) : scale[0],
            HAS_MIN ? widen16(group + EXTRA_AT + 32, s->scale_type) : scale[1],
        };
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            if (act == OCT_A8X2)
                for (int h = 0; h < 2; h++)
                    dot[r][h] = _mm512_add_epi32(_mm512_slli_epi32(high[r][h], 7), dot[r][h]);
            fold_group(s, r, g, act, scale, min, dot[r], acc[r]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++) _mm512_store_ps(s->acc + r * 32 + h * 16, acc[r][h]);
    s->ask = ask;
}

/* The same in floats, from a chain panel: t over the group's inputs, then acc = fma(t, s, acc). */
OCT_INLINE void chain_rows(strip *s, const float *panel, int inputs, const int rows)
{
    __m512 acc[MR][2];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++) acc[r][h] = _mm512_load_ps(s->acc + r * 32 + h * 16);
    for (int g = 0; g < s->groups; g++) {
        const uint8_t *group = s->group + (size_t)g * GROUP_BYTES;
        const int end = inputs - g * 32 < 32 ? inputs : g * 32 + 32;
        oct_ask(&s->ask, ASKS);
        __m512 t[MR][2];
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) t[r][0] = t[r][1] = _mm512_setzero_ps();
        for (int j = g * 32; j < end; j++) {
            const float *at = panel + j * OCT_BLOCK_N;
            const __m512 w0 = _mm512_load_ps(at), w1 = _mm512_load_ps(at + 16);
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) {
                const __m512 x = _mm512_set1_ps(s->x[(size_t)r * s->ldx + (size_t)j]);
                t[r][0] = _mm512_fmadd_ps(x, w0, t[r][0]);
                t[r][1] = _mm512_fmadd_ps(x, w1, t[r][1]);
            }
        }
        for (int h = 0; h < 2; h++) {
            const __m512 scale = widen16(group + SCALES_AT + h * 32, s->scale_type);
            const __m512 min = HAS_MIN ? widen16(group + EXTRA_AT + h * 32, s->scale_type) : scale;
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) {
                acc[r][h] = _mm512_fmadd_ps(t[r][h], scale, acc[r][h]);
                if (HAS_MIN) {
                    const float sum = s->side[(size_t)r * s->side_ld + (size_t)g].sum;
                    acc[r][h] = _mm512_fmadd_ps(_mm512_set1_ps(sum), min, acc[r][h]);
                }
            }
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++) _mm512_store_ps(s->acc + r * 32 + h * 16, acc[r][h]);
}

static void fill_bytes(const uint8_t *group, int groups, uint8_t *to)
{
    for (int g = 0; g < groups; g++, group += GROUP_BYTES)
        for (int h = 0; h < 2; h++) {
            const __m512i fold = zero_fold(group, h);
            for (int i = 0; i < 4; i++, to += 2 * LINE_BYTES) {
                __m512i w[2];
                load_lines(group, true, h, i, fold, w);
                _mm512_store_si512(to, w[0]);
                _mm512_store_si512(to + LINE_BYTES, w[1]);
            }
        }
}

static void fill_chain(const uint8_t *group, int groups, float *to)
{
    const __m512i byte = _mm512_set1_epi32(255);
    for (int g = 0; g < groups; g++, group += GROUP_BYTES)
        for (int h = 0; h < 2; h++) {
            const __m512i fold = zero_fold(group, h), bias = _mm512_set1_epi32(BIAS);
            for (int i = 0; i < 4; i++) {
                __m512i w[2];
                load_lines(group, CODE_BITS == 4, h, i, fold, w);
                for (int j = 0; j < 8; j++) {
                    const __m512i u = _mm512_srli_epi32(w[j / 4], (unsigned)(j % 4 * 8));
                    const __m512i v = _mm512_sub_epi32(_mm512_and_si512(u, byte), bias);
                    _mm512_store_ps(to + (g * 32 + i * 8 + j) * 32 + h * 16, _mm512_cvtepi32_ps(v));
                }
            }
        }
}

OCT_INLINE void rows_of(strip *s, const int rows, const oct_act act, const bool nibbles,
                        const float *chain, int inputs)
{
    if (act == OCT_A32)
        chain_rows(s, chain, inputs, rows);
    else
        dot_rows(s, rows, act, nibbles);
}

OCT_INLINE int strip_rows(const oct_act act)
{
    return act == OCT_A8X2 ? MR2 : MR;
}

/* All rows of a tile, in strips that differ by one row at most; s describes the first
 * and is left past the last. After the last window a strip goes straight to its outputs: their
 * lines are waited for while the next strip computes. */
OCT_INLINE void tile_rows(strip *s, const oct_linear_args *a, oct_tile t, bool last,
                          const oct_act act, const bool nibbles, const float *chain, int inputs)
{
    int rows = t.rows;
    const int most = strip_rows(act);
    int strips = (rows + most - 1) / most;
    const int ahead = strips == 1 && s->groups > WINDOW_GROUPS ? WINDOW_GROUPS : s->groups;
    const char *next = (const char *)s->group + (size_t)ahead * GROUP_BYTES;
    s->ask = oct_asker_of((oct_ahead){next, next + (size_t)s->groups * GROUP_BYTES},
                          strips * s->groups * ASKS);
    for (int n; rows > 0; rows -= n, strips--) {
        n = (rows + strips - 1) / strips;
        if (last) oct_tile_ask(a, &t, t.row + n, n); /* the next strip's */
        switch (n) {
        case 1: rows_of(s, 1, act, nibbles, chain, inputs); break;
        case 2: rows_of(s, 2, act, nibbles, chain, inputs); break;
        case 3: rows_of(s, 3, act, nibbles, chain, inputs); break;
        case 4: rows_of(s, 4, act, nibbles, chain, inputs); break;
        case 5: rows_of(s, most < 5 ? most : 5, act, nibbles, chain, inputs); break;
        default: rows_of(s, most, act, nibbles, chain, inputs); break;
        }
        t.rows = n;
        if (last) oct_tile_finish(a, &t, s->acc);
        t.row += n;
        s->acc += n * OCT_BLOCK_N;
        s->x += (size_t)n * s->ldx;
        s->side += (size_t)n * s->side_ld;
        if (act == OCT_A32) continue;
        s->hi += (size_t)n * s->kp;
        if (act == OCT_A8X2) s->lo += (size_t)n * s->kp;
        if (act == OCT_A8G32) s->scale += (size_t)n * (s->kp / OCT_GROUP);
    }
}

/* Groups [g, g + groups) of a tile, added to l->acc. */
OCT_INLINE void tile_groups(const oct_linear_args *a, const oct_tile *t, scratch *l, int g,
                            int groups, const oct_act act)
{
    const oct_rows *x = a->x;
    const size_t row = (size_t)t->row, at = row * (size_t)x->kp + (size_t)g * OCT_GROUP;
    const bool stored = t->rows <= STORED_ROWS;
    const uint8_t *group = block_at(a->w, t->block) + (size_t)g * GROUP_BYTES;
    const bool last = g + groups == group_count(x->k);
    side_window(&l->side, x, t, g, BIAS);
    strip s = {.group = group, .scale_type = a->w->scale_type, .groups = groups, .acc = l->acc};
    s.x = x->x + row * x->ldx + (size_t)g * OCT_GROUP;
    s.ldx = x->ldx;
    s.kp = (size_t)x->kp;
    s.side = &l->side.value[g - l->side.from];
    s.side_ld = (size_t)l->side.groups;
    if (act == OCT_A32) {
        fill_chain(group, groups, l->panel.chain);
        tile_rows(&s, a, *t, last, act, false, l->panel.chain, x->k - g * OCT_GROUP);
        return;
    }
    s.hi = x->hi + at;
    if (act == OCT_A8X2) s.lo = x->lo + at;
    if (act == OCT_A8G32) s.scale = x->scale + at / OCT_GROUP;
    s.codes = stored ? group : l->panel.bytes;
    s.stride = stored ? GROUP_BYTES : PANEL_BYTES;
    if (stored) {
        tile_rows(&s, a, *t, last, act, CODE_BITS == 4, NULL, 0);
    } else if (CODE_BITS == 4) {
        fill_bytes(group, groups, l->panel.bytes);
        tile_rows(&s, a, *t, last, act, false, NULL, 0);
    }
}

OCT_INLINE oct_kstatus linear(const oct_linear_args *a, size_t lo, size_t hi, void *lane,
                              const oct_act act)
{
    scratch *l = lane;
    const int all = group_count(a->w->k);
    const int most = act == OCT_A32 ? CHAIN_GROUPS : WINDOW_GROUPS;
    assert(a->x->act == act && a->x->k == a->w->k && (uintptr_t)lane % 64 == 0);
    l->side.row = -1;
    for (size_t i = lo; i < hi; i++) {
        const oct_tile t = oct_tile_at(a, i);
        memset(l->acc, 0, (size_t)t.rows * OCT_BLOCK_N * sizeof *l->acc);
        const bool one = act != OCT_A32 && t.rows <= strip_rows(act);
        const int step = window_groups(all, one ? SIDE_GROUPS : most);
        for (int g = 0; g < all; g += step)
            tile_groups(a, &t, l, g, all - g < step ? all - g : step, act);
    }
    return OCT_K_OK;
}

static oct_kstatus linear_a32(const oct_linear_args *a, size_t lo, size_t hi, void *lane)
{
    return linear(a, lo, hi, lane, OCT_A32);
}

static oct_kstatus linear_a8(const oct_linear_args *a, size_t lo, size_t hi, void *lane)
{
    return linear(a, lo, hi, lane, OCT_A8);
}

static oct_kstatus linear_a8g32(const oct_linear_args *a, size_t lo, size_t hi, void *lane)
{
    return linear(a, lo, hi, lane, OCT_A8G32);
}

static oct_kstatus linear_a8x2(const oct_linear_args *a, size_t lo, size_t hi, void *lane)
{
    return linear(a, lo, hi, lane, OCT_A8X2);
}
