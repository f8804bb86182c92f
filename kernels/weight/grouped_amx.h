/* grouped_amx.h: linears of the grouped formats with the tile products of AMX. A template like
 * grouped.h.
 *
 * A tile product takes 16 rows x 16 channels over one group of 32 inputs, from a panel of signed
 * bytes into which a window of groups is unpacked once per row tile. Its integers pass through
 * memory to the float step, which is the one of the other columns: one fma per group, k ascending.
 * So the sums wait in L1, and three units work at once on different groups: dots, stores (of the
 * sums of the group before last, of a8x2 of the last), and float steps (of the one before that).
 * A single strip, as an expert's rows often are, unpacks nothing twice: it takes 16 channels at a
 * time with their sums in registers, and unpacks beside the other three. Tiles of few rows are left
 * to the AVX-512 column, which gives the same bits. */
#include "kernels/ahead.h"
#include "kernels/simd/tiles_amx.h"
#include "kernels/weight/lines_avx512.h"
#include "kernels/weight/tile_avx512.h"

enum {
    MR = 16,                 /* rows of a strip */
    WINDOW_GROUPS = 16,      /* a panel of 16 KB, half of L1 with the sums */
    PANEL_HALF = 8 * LINE_BYTES,
    PANEL_BYTES = 2 * PANEL_HALF,
    SUMS = MR * HALF_N,      /* int32 of a C tile */
    STRIP_GROUPS = 64,       /* a window of a single strip */
    RING = 4,                /* of its halves in flight */
    FEW_ROWS = 8,            /* most rows of a tile that vectors take in less time */
    FEW_ROWS_X2 = 6
};

/* What the rows of a tile bring to every column block, for groups [from, from + groups), as the
 * float step reads it: [strip][group][row of the strip]. */
typedef struct {
    int row, from, groups;
    float scale[OCT_TILE_M * SIDE_GROUPS]; /* a8g32 */
    float sum[OCT_TILE_M * SIDE_GROUPS];   /* minima: X (a8, a8x2), X * scale (a8g32) */
} sides;

typedef struct {
    _Alignas(64) float acc[OCT_TILE_M * OCT_BLOCK_N]; /* [strips][16][32] */
    _Alignas(64) int8_t panel[WINDOW_GROUPS * PANEL_BYTES];
    _Alignas(64) int32_t sums[2][4 * SUMS]; /* of two groups in flight */
    sides side;
    int shaped; /* rows that the tile registers are shaped for */
} scratch;
static_assert(sizeof(scratch) <= OCT_LANE_BYTES, "a lane's scratch holds all");
static_assert(OCT_TILE_M % MR == 0, "a strip has room for 16 rows");

/* Strips of as many rows each against the 32 channels of a block, over a window of groups. `group`
 * and what follows it stand at the group whose float step is next. */
typedef struct {
    int strips, rows, groups;
    const int8_t *panel;
    const int8_t *hi, *lo; /* [strips * rows][kp] */
    size_t kp;
    oct_asker ask; /* its work: groups of all strips */
    const uint8_t *group; /* as stored: its scales and minima */
    oct_dtype scale_type;
    const float *scale, *sum; /* of `sides`, at a group of a strip */
    size_t side_skip; /* from behind a strip's groups of this window to the next strip's first */
    float *acc; /* [strips][16][32], in and out */
} strips;

/* ---- the panel ---- */

/* Half h of a stored group as signed bytes [8 lines][16 channels][4]. */
OCT_INLINE void fill_half(const uint8_t *group, int h, int8_t *to)
{
    const uint8_t *line = group + h * HALF_BYTES;
    const __m512i zero = HAS_ZERO ? zeros16(group, h)
                                  : _mm512_set1_epi8((char)(HAS_MIN ? 0 : ZERO_CODE));
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2, to += 2 * LINE_BYTES) {
        __m512i w[2];
        if (CODE_BITS == 4) {
            split_line(line + i / 2 * LINE_BYTES, w);
        } else {
            w[0] = _mm512_loadu_si512(line + i * LINE_BYTES);
            w[1] = _mm512_loadu_si512(line + (i + 1) * LINE_BYTES);
        }
        _mm512_store_si512(to, _mm512_sub_epi8(w[0], zero));
        _mm512_store_si512(to + LINE_BYTES, _mm512_sub_epi8(w[1], zero));
    }
}

/* A window of stored groups, half by half. */
static void fill_panel(const uint8_t *group, int groups, int8_t *to)
{
    for (int g = 0; g < groups; g++, group += GROUP_BYTES)
        for (int h = 0; h < 2; h++, to += PANEL_HALF) fill_half(group, h, to);
}

/* ---- what rows bring ---- */

/* The strips of a tile: so many, of which the first few have a row more. */
static inline int strips_of(int rows, int *longer)
{
    const int all = (rows + MR - 1) / MR;
    *longer = rows % all;
    return all;
}

/* Make the window hold these rows of group g, and zeros for those that a strip lacks. */
static inline void side_window(sides *s, const oct_rows *x, const oct_tile *t, int g)
{
    const int from = g / SIDE_GROUPS * SIDE_GROUPS, left = group_count(x->k) - from;
    if (s->row == t->row && s->from == from) return;
    int longer;
    const int all = strips_of(t->rows, &longer);
    s->row = t->row;
    s->from = from;
    s->groups = left < SIDE_GROUPS ? left : SIDE_GROUPS;
    for (int i = 0, row = t->row, rows; i < all; i++, row += rows) {
        rows = t->rows / all + (i < longer);
        for (int r = 0; r < MR; r++) {
            const bool there = r < rows;
            const size_t at = (size_t)(row + r) * (size_t)(x->kp / OCT_GROUP) + (size_t)from;
            float *scale = s->scale + (size_t)i * (size_t)s->groups * MR + r;
            float *sum = s->sum + (size_t)i * (size_t)s->groups * MR + r;
            for (int j = 0; j < s->groups; j++, scale += MR, sum += MR) {
                const float by = there && x->act == OCT_A8G32 ? x->scale[at + (size_t)j] : 1.0f;
                if (x->act == OCT_A8G32) *scale = there ? by : 0.0f;
                if (HAS_MIN) *sum = there ? (float)x->sum[at + (size_t)j] * by : 0.0f;
            }
        }
    }
}

/* ---- the float step ---- */

/* fma(I, s, acc) of a row with 16 channels of a group, and the minima if any. dots: the integers I,
 * of a8x2 those of hi, with those of lo `lo` further. */
OCT_INLINE __m512 fold_row(__m512 acc, const int32_t *dots, size_t lo, __m512 scale, __m512 min,
                           const float *row_scale, const float *row_sum, const oct_act act)
{
    __m512i dot = _mm512_load_si512(dots);
    __m512 by = scale;
    if (act == OCT_A8X2)
        dot = _mm512_add_epi32(_mm512_slli_epi32(dot, 7), _mm512_load_si512(dots + lo));
    if (act == OCT_A8G32) by = _mm512_mul_ps(scale, _mm512_set1_ps(*row_scale));
    acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), by, acc);
    if (HAS_MIN) acc = _mm512_fmadd_ps(_mm512_set1_ps(*row_sum), min, acc);
    return acc;
}

/* The same of one group's half h for all rows of a strip, whose sums wait in memory. */
OCT_INLINE void fold_rows(const strips *s, const int32_t *sums, const int h, const int rows,
                          const oct_act act)
{
    const __m512 scale = widen16(s->group + SCALES_AT + h * 32, s->scale_type);
    const __m512 min = HAS_MIN ? widen16(s->group + EXTRA_AT + h * 32, s->scale_type) : scale;
    const int32_t *dots = sums + h * SUMS;
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
        float *at = s->acc + r * OCT_BLOCK_N + h * HALF_N;
        _mm512_store_ps(at, fold_row(_mm512_load_ps(at), dots + r * HALF_N, 2 * SUMS, scale, min,
                                     s->scale + r, s->sum + r, act));
    }
}

/* Rows in pairs: what a lone one is computed beside is nobody's, times a scale of zero. */
OCT_INLINE void fold(const strips *s, const int32_t *sums, const int h, const oct_act act)
{
    switch ((s->rows + 1) / 2) {
    case 1: case 2: case 3: case 4: fold_rows(s, sums, h, 8, act); break;
    case 5: fold_rows(s, sums, h, 10, act); break;
    case 6: fold_rows(s, sums, h, 12, act); break;
    case 7: fold_rows(s, sums, h, 14, act); break;
    default: fold_rows(s, sums, h, MR, act); break;
    }
}

/* ---- tile products ---- */

#define STORE(t, i) OCT_TILE_STORE(t, sums + (i) * SUMS, LINE_BYTES)
#define DOT(c, a, b)      \
    do {                  \
        OCT_TILE_ZERO(c); \
        OCT_TILE_DOT_SS(c, a, b); \
    } while (0)

/* Half 0 or 1 of a group: stores the sums that lie in this parity's tile, from two groups ago, and
 * puts the group's there. The rows are loaded with half 0. */
OCT_INLINE void dot_half(const int8_t *x, size_t kp, const int8_t *panel, int32_t *sums,
                         const int parity, const int h, bool store, bool dot)
{
    if (dot && h == 0) OCT_TILE_LOAD(4, x, kp);
    if (dot) OCT_TILE_LOAD(6, panel + h * PANEL_HALF, LINE_BYTES);
    switch (2 * parity + h) {
    case 0:
        if (store) STORE(0, 0);
        if (dot) DOT(0, 4, 6);
        break;
    case 1:
        if (store) STORE(1, 1);
        if (dot) DOT(1, 4, 6);
        break;
    case 2:
        if (store) STORE(2, 0);
        if (dot) DOT(2, 4, 6);
        break;
    default:
        if (store) STORE(3, 1);
        if (dot) DOT(3, 4, 6);
        break;
    }
}

/* The same for a8x2, which needs all four tiles for a group: the sums are of one group ago. */
OCT_INLINE void dot_half_x2(const int8_t *hi, const int8_t *lo, size_t kp, const int8_t *panel,
                            int32_t *sums, const int h, bool store, bool dot)
{
    if (dot && h == 0) OCT_TILE_LOAD(4, hi, kp);
    if (dot && h == 0) OCT_TILE_LOAD(5, lo, kp);
    if (dot) OCT_TILE_LOAD(6, panel + h * PANEL_HALF, LINE_BYTES);
    if (h == 0) {
        if (store) STORE(0, 0);
        if (dot) DOT(0, 4, 6);
        if (store) STORE(2, 2);
        if (dot) DOT(2, 5, 6);
    } else {
        if (store) STORE(1, 1);
        if (dot) DOT(1, 4, 6);
        if (store) STORE(3, 3);
        if (dot) DOT(3, 5, 6);
    }
}

/* All strips over a window; in the last window each goes to its outputs, which are those of t. */
OCT_INLINE void run_strips(const oct_linear_args *a, oct_tile t, strips *s, scratch *l, bool last,
                           const oct_act act)
{
    const int n = s->strips * s->groups, lag = act == OCT_A8X2 ? 1 : 2;
    const ptrdiff_t stride = (ptrdiff_t)s->kp * s->rows - s->groups * OCT_GROUP;
    const int8_t *hi = s->hi, *lo = s->lo;
    const uint8_t *first = s->group;
    int g = 0, folded = 0;
    t.rows = s->rows;
    for (int i = 0; i < n + lag + 1; i += 2) {
#pragma GCC unroll 2
        for (int parity = 0; parity < 2; parity++) {
            const int j = i + parity;
            const bool store = j >= lag && j < n + lag, dot = j < n;
            const bool add = j > lag && j <= n + lag;
            const int8_t *panel = s->panel + g * PANEL_BYTES;
            if (last && add && folded == 0) oct_tile_ask(a, &t, t.row, t.rows);
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                if (act == OCT_A8X2)
                    dot_half_x2(hi, lo, s->kp, panel, l->sums[parity], h, store, dot);
                else
                    dot_half(hi, s->kp, panel, l->sums[parity], parity, h, store, dot);
                if (add) fold(s, l->sums[1 - parity], h, act);
            }
            if (dot) {
                oct_ask(&s->ask, 1);
                hi += OCT_GROUP;
                if (act == OCT_A8X2) lo += OCT_GROUP;
                if (++g == s->groups) {
                    g = 0;
                    hi += stride;
                    if (act == OCT_A8X2) lo += stride;
                }
            }
            if (!add) continue;
            s->group += GROUP_BYTES;
            if (HAS_MIN) s->sum += MR;
            if (act == OCT_A8G32) s->scale += MR;
            if (++folded < s->groups) continue;
            if (last) oct_tile_finish(a, &t, s->acc);
            folded = 0;
            t.row += t.rows;
            s->group = first;
            s->acc += MR * OCT_BLOCK_N;
            if (HAS_MIN) s->sum += s->side_skip;
            if (act == OCT_A8G32) s->scale += s->side_skip;
        }
    }
}

/* ---- a single strip ---- */

/* Unit i's products, of group g: rows by panel. */
OCT_INLINE void dot_group(const strips *s, const int8_t *panel, int i, int g, const oct_act act)
{
    const size_t at = (size_t)g * OCT_GROUP;
    OCT_TILE_LOAD(4, s->hi + at, s->kp);
    if (act == OCT_A8X2) OCT_TILE_LOAD(5, s->lo + at, s->kp);
    OCT_TILE_LOAD(6, panel, LINE_BYTES);
    if (i % 2) {
        DOT(1, 4, 6);
        if (act == OCT_A8X2) DOT(3, 5, 6);
    } else {
        DOT(0, 4, 6);
        if (act == OCT_A8X2) DOT(2, 5, 6);
    }
}

OCT_INLINE void store_group(int32_t *sums, int i, const oct_act act)
{
    if (i % 2) {
        STORE(1, 0);
        if (act == OCT_A8X2) STORE(3, 1);
    } else {
        STORE(0, 0);
        if (act == OCT_A8X2) STORE(2, 1);
    }
}

/* A window's half 0 and then its half 1, with the sums of up to `rows` rows in registers; those past
 * s->rows are of whatever lies there, and nobody reads them. */
OCT_INLINE void strip_rows(strips *s, scratch *l, const int rows, const oct_act act)
{
    const int n = s->groups;
    __m512 acc[MR];
    float *at = s->acc;
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) acc[r] = _mm512_load_ps(at + r * OCT_BLOCK_N);
    for (int i = 0; i < 2 * n + 3; i++) {
        const int dot = i - 1, store = i - 2, add = i - 3;
        if (i < 2 * n) {
            oct_ask(&s->ask, 1);
            fill_half(s->group + (size_t)(i < n ? i : i - n) * GROUP_BYTES, i >= n,
                      l->panel + i % RING * PANEL_HALF);
        }
        if (dot >= 0 && dot < 2 * n)
            dot_group(s, l->panel + dot % RING * PANEL_HALF, dot, dot < n ? dot : dot - n, act);
        if (store >= 0 && store < 2 * n)
            store_group(l->sums[0] + store % RING * 2 * SUMS, store, act);
        if (add < 0) continue;
        const int h = add >= n, g = h ? add - n : add;
        const uint8_t *group = s->group + (size_t)g * GROUP_BYTES;
        const int32_t *sums = l->sums[0] + add % RING * 2 * SUMS;
        const float *row = s->scale + g * MR, *sum = s->sum + g * MR;
        const __m512 scale = widen16(group + SCALES_AT + h * 32, s->scale_type);
        const __m512 min = HAS_MIN ? widen16(group + EXTRA_AT + h * 32, s->scale_type) : scale;
        if (add == n) {
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++) {
                _mm512_store_ps(at + r * OCT_BLOCK_N, acc[r]);
                acc[r] = _mm512_load_ps(at + r * OCT_BLOCK_N + HALF_N);
            }
            at += HALF_N;
        }
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++)
            acc[r] = fold_row(acc[r], sums + r * HALF_N, SUMS, scale, min, row + r, sum + r, act);
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) _mm512_store_ps(at + r * OCT_BLOCK_N, acc[r]);
}

OCT_INLINE void run_strip(strips *s, scratch *l, const oct_act act)
{
    switch ((s->rows + 1) / 2) {
    case 1: case 2: case 3: case 4: strip_rows(s, l, 8, act); break;
    case 5: strip_rows(s, l, 10, act); break;
    case 6: strip_rows(s, l, 12, act); break;
    case 7: strip_rows(s, l, 14, act); break;
    default: strip_rows(s, l, MR, act); break;
    }
}

/* Groups [g, g + groups) of a tile, added to l->acc. */
OCT_INLINE void tile_groups(const oct_linear_args *a, oct_tile t, scratch *l, int g, int groups,
                            const oct_act act)
{
    const oct_rows *x = a->x;
    const uint8_t *group = block_at(a->w, t.block) + (size_t)g * GROUP_BYTES;
    const bool last = g + groups == group_count(x->k);
    int longer;
    const int all = strips_of(t.rows, &longer), rows = t.rows / all;
    strips s = {.groups = groups, .panel = l->panel, .kp = (size_t)x->kp, .acc = l->acc,
                .scale = l->side.scale, .sum = l->side.sum};
    if (all > 1) fill_panel(group, groups, l->panel);
    s.scale_type = a->w->scale_type;
    if (HAS_MIN || act == OCT_A8G32) {
        side_window(&l->side, x, &t, g);
        s.scale = l->side.scale + (g - l->side.from) * MR;
        s.sum = l->side.sum + (g - l->side.from) * MR;
        s.side_skip = (size_t)(l->side.groups - groups) * MR;
    }
    s.ask = oct_asker_past(group, (size_t)groups * GROUP_BYTES, (all > 1 ? all : 2) * groups);
    for (int part = 0; part < 2; part++) {
        const size_t at = (size_t)t.row * (size_t)x->kp + (size_t)g * OCT_GROUP;
        s.strips = part ? all - longer : longer;
        s.rows = rows + (part ? 0 : 1);
        if (!s.strips) continue;
        if (l->shaped != s.rows) oct_tiles_shape(s.rows, s.rows, OCT_GROUP);
        l->shaped = s.rows;
        s.group = group;
        s.hi = x->hi + at;
        if (act == OCT_A8X2) s.lo = x->lo + at;
        if (all == 1) {
            if (last) oct_tile_ask(a, &t, t.row, t.rows);
            run_strip(&s, l, act);
            if (last) oct_tile_finish(a, &t, l->acc);
            return;
        }
        run_strips(a, t, &s, l, last, act);
        t.row += s.strips * s.rows;
    }
}

OCT_INLINE oct_kstatus linear(const oct_linear_args *a, size_t lo, size_t hi, void *lane,
                              const oct_act act, oct_linear_fn few)
{
    scratch *l = lane;
    const int all = group_count(a->w->k);
    const size_t stop = oct_tile_few(a, act == OCT_A8X2 ? FEW_ROWS_X2 : FEW_ROWS, lo, hi);
    assert(a->x->act == act && a->x->k == a->w->k && (uintptr_t)lane % 64 == 0);
    l->side.row = -1;
    l->shaped = 0;
    for (size_t i = lo; i < stop; i++) {
        const oct_tile t = oct_tile_at(a, i);
        const int step = window_groups(all, t.rows > MR ? WINDOW_GROUPS : STRIP_GROUPS);
        const size_t rows = ((size_t)t.rows + MR - 1) / MR * MR; /* of whole strips */
        memset(l->acc, 0, rows * OCT_BLOCK_N * sizeof *l->acc);
        for (int g = 0; g < all; g += step)
            tile_groups(a, t, l, g, all - g < step ? all - g : step, act);
    }
    if (lo < stop) oct_tiles_release();
    return stop < hi ? few(a, stop, hi, lane) : OCT_K_OK;
}

/* The slots of a format, and the column that takes few rows. */
#define OCT_GROUPED_AMX(name)                                                                      \
    extern const oct_weight_kernels oct_##name##_avx512;                                           \
    static oct_kstatus linear_a8(const oct_linear_args *a, size_t lo, size_t hi, void *lane)       \
    {                                                                                              \
        return linear(a, lo, hi, lane, OCT_A8, oct_##name##_avx512.linear[OCT_A8]);                \
    }                                                                                              \
    static oct_kstatus linear_a8g32(const oct_linear_args *a, size_t lo, size_t hi, void *lane)    \
    {                                                                                              \
        return linear(a, lo, hi, lane, OCT_A8G32, oct_##name##_avx512.linear[OCT_A8G32]);          \
    }                                                                                              \
    static oct_kstatus linear_a8x2(const oct_linear_args *a, size_t lo, size_t hi, void *lane)     \
    {                                                                                              \
        return linear(a, lo, hi, lane, OCT_A8X2, oct_##name##_avx512.linear[OCT_A8X2]);            \
    }                                                                                              \
    const oct_weight_kernels oct_##name##_amx = {                                                  \
        .linear = {[OCT_A8] = linear_a8, [OCT_A8G32] = linear_a8g32, [OCT_A8X2] = linear_a8x2},    \
    };
