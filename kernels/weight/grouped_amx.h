/* grouped_amx.h: linears of the grouped formats with the tile products of AMX. A template like
 * grouped.h.
 *
 * A tile product takes 16 rows x 16 channels over one group of 32 inputs, from a panel of signed
 * bytes. Its integers pass through memory to the float step, which is the one of the other columns:
 * one fma per group, k ascending. So four things are at work at once, on different groups: codes
 * are unpacked (of the next group), dots (of this one), their sums stored (of the group before
 * last, of a8x2 of the last), and added up as floats, in registers (of the one before that).
 *
 * The rows of a tile are strips of up to 16. The first strip fills a panel that the others read; of
 * a single strip, as an expert's rows often are, nobody reads it again, so that it takes two groups
 * and runs on from block to block. Tiles of few rows are left to the AVX-512 column, which gives
 * the same bits. */
#include "kernels/ahead.h"
#include "kernels/simd/nibbles_gfni.h"
#include "kernels/simd/tiles_amx.h"
#include "kernels/weight/lines_avx512.h"
#include "kernels/weight/tile_avx512.h"

enum {
    MR = 16,                 /* rows of a strip */
    WINDOW_GROUPS = 128,     /* a panel of 128 KB, which the second cache hands out fast enough */
    PANEL_HALF = 8 * LINE_BYTES,
    PANEL_BYTES = 2 * PANEL_HALF,
    SUMS = MR * HALF_N,      /* int32 of a C tile */
    AHEAD_GROUPS = 8,        /* how far ahead of itself a single strip asks for memory */
    FEW_ROWS = 6             /* most rows of a tile that vectors take in less time */
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

/* Strips of as many rows each against the 32 channels of a block, over a window of groups; or one
 * strip against blocks that follow each other, over all groups. `scale` and what follows it stand
 * at the group whose float step is next. */
typedef struct {
    int strips; /* or blocks */
    int rows, groups;
    bool single; /* whose panel nobody uses after it: two groups of it are enough */
    int fills;   /* groups to unpack, beside the rest: a single strip's all, else the first one's */
    bool first, last; /* of all windows: sums begin at zero; they become outputs */
    const int8_t *hi, *lo; /* [strips * rows][kp] */
    size_t kp;
    oct_asker ask; /* its work: half groups of all strips */
    const uint8_t *group; /* as stored, the window's first */
    size_t tile; /* of the block whose float steps are next */
    oct_dtype scale_type;
    const float *scale, *sum; /* of `sides`, at a group of a strip */
    ptrdiff_t side_skip; /* from behind a strip's groups of this window to the next strip's first */
    float *acc; /* [strips][16][32], in and out */
} strips;

/* ---- the panel ---- */

/* Half h of a stored group as signed bytes [8 lines][16 channels][4]. */
OCT_INLINE void fill_half(const uint8_t *group, int h, int8_t *to)
{
    const uint8_t *line = group + h * HALF_BYTES;
    const bool centred = CODE_BITS == 4 && !HAS_ZERO && !HAS_MIN;
    const __m512i zero = HAS_ZERO ? zeros16(group, h) : _mm512_set1_epi8((char)ZERO_CODE);
    static_assert(CODE_BITS == 8 || HAS_ZERO || HAS_MIN || ZERO_CODE == 8, "8 is subtracted");
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2, to += 2 * LINE_BYTES) {
        __m512i w[2];
        if (CODE_BITS == 4) {
            const __m512i v = _mm512_loadu_si512(line + i / 2 * LINE_BYTES);
            if (centred) oct_centred_nibbles(v, w);
            else oct_nibbles(v, w);
        } else {
            w[0] = _mm512_loadu_si512(line + i * LINE_BYTES);
            w[1] = _mm512_loadu_si512(line + (i + 1) * LINE_BYTES);
        }
        for (int j = 0; j < 2; j++) {
            if (!centred && !HAS_MIN) w[j] = _mm512_sub_epi8(w[j], zero);
            _mm512_store_si512(to + j * LINE_BYTES, w[j]);
        }
    }
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

/* The same of a group for both halves of all rows of a strip. */
OCT_INLINE void fold_group(const strips *s, const uint8_t *group, const int32_t *dots,
                           __m512 acc[MR][2], const int rows, const oct_act act)
{
    __m512 scale[2], min[2];
    for (int h = 0; h < 2; h++) {
        scale[h] = widen16(group + SCALES_AT + h * 32, s->scale_type);
        min[h] = HAS_MIN ? widen16(group + EXTRA_AT + h * 32, s->scale_type) : scale[h];
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++)
            acc[r][h] = fold_row(acc[r][h], dots + h * SUMS + r * HALF_N, 2 * SUMS, scale[h],
                                 min[h], s->scale + r, s->sum + r, act);
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

/* All strips over a window, a strip's sums in registers; in the last window each goes to its
 * outputs, which are those of t. rows: at least s->rows; what is computed for those past it is of
 * whatever lies there, and nobody reads it. */
OCT_INLINE void strips_of_rows(const oct_linear_args *a, oct_tile t, strips *s, scratch *l,
                               const int rows, const oct_act act)
{
    const int n = s->strips * s->groups, lag = act == OCT_A8X2 ? 1 : 2;
    const ptrdiff_t skip = (s->single ? 0 : (ptrdiff_t)s->kp * s->rows) - s->groups * OCT_GROUP;
    const int8_t *hi = s->hi, *lo = s->lo;
    const uint8_t *group = s->group;
    __m512 acc[MR][2];
    int g = 0, folded = 0;
    t.rows = s->rows;
    for (int h = 0; s->fills && h < 2; h++) fill_half(group, h, l->panel + h * PANEL_HALF);
    for (int i = 0; i < n + lag + 1; i += 2) {
#pragma GCC unroll 2
        for (int parity = 0; parity < 2; parity++) {
            const int j = i + parity;
            const bool store = j >= lag && j < n + lag, dot = j < n;
            const int8_t *panel = l->panel + (s->single ? parity : g) * PANEL_BYTES;
            int8_t *next = l->panel + (s->single ? 1 - parity : g + 1) * PANEL_BYTES;
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                if (j + 1 < s->fills)
                    fill_half(s->group + (size_t)(j + 1) * GROUP_BYTES, h, next + h * PANEL_HALF);
                if (act == OCT_A8X2)
                    dot_half_x2(hi, lo, s->kp, panel, l->sums[parity], h, store, dot);
                else
                    dot_half(hi, s->kp, panel, l->sums[parity], parity, h, store, dot);
                if (dot) oct_ask(&s->ask, 1);
            }
            if (dot) {
                hi += OCT_GROUP;
                if (act == OCT_A8X2) lo += OCT_GROUP;
                if (++g == s->groups) {
                    g = 0;
                    hi += skip;
                    if (act == OCT_A8X2) lo += skip;
                }
            }
            if (j <= lag || j > n + lag) continue;
            if (folded == 0) {
                if (s->last) oct_tile_ask(a, &t, t.row, t.rows);
#pragma GCC unroll 16
                for (int r = 0; r < rows; r++)
                    for (int h = 0; h < 2; h++) {
                        const float *at = s->acc + r * OCT_BLOCK_N + h * HALF_N;
                        acc[r][h] = s->first ? _mm512_setzero_ps() : _mm512_load_ps(at);
                    }
            }
            fold_group(s, group, l->sums[1 - parity], acc, rows, act);
            group += GROUP_BYTES;
            if (HAS_MIN) s->sum += MR;
            if (act == OCT_A8G32) s->scale += MR;
            if (++folded < s->groups) continue;
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++)
                for (int h = 0; h < 2; h++)
                    _mm512_store_ps(s->acc + r * OCT_BLOCK_N + h * HALF_N, acc[r][h]);
            if (s->last) oct_tile_finish(a, &t, s->acc);
            folded = 0;
            if (HAS_MIN) s->sum += s->side_skip;
            if (act == OCT_A8G32) s->scale += s->side_skip;
            if (s->single) {
                t = oct_tile_at(a, ++s->tile);
            } else {
                group = s->group;
                t.row += t.rows;
                s->acc += MR * OCT_BLOCK_N;
            }
        }
    }
}

OCT_INLINE void run_strips(const oct_linear_args *a, oct_tile t, strips *s, scratch *l,
                           const oct_act act)
{
    switch ((s->rows + 1) / 2) {
    case 1: case 2: case 3: case 4: strips_of_rows(a, t, s, l, 8, act); break;
    case 5: strips_of_rows(a, t, s, l, 10, act); break;
    case 6: strips_of_rows(a, t, s, l, 12, act); break;
    case 7: strips_of_rows(a, t, s, l, 14, act); break;
    default: strips_of_rows(a, t, s, l, MR, act); break;
    }
}

/* Groups [g, g + groups) of tiles from `tile` on that differ in their block alone: of several only
 * if they are of a single strip and all groups. */
OCT_INLINE void tile_groups(const oct_linear_args *a, size_t tile, size_t tiles, scratch *l, int g,
                            int groups, const oct_act act)
{
    oct_tile t = oct_tile_at(a, tile);
    const oct_rows *x = a->x;
    const uint8_t *group = block_at(a->w, t.block) + (size_t)g * GROUP_BYTES;
    int longer;
    const int all = strips_of(t.rows, &longer), rows = t.rows / all;
    strips s = {.groups = groups, .single = all == 1, .first = g == 0, .tile = tile,
                .last = g + groups == group_count(x->k), .kp = (size_t)x->kp, .acc = l->acc,
                .scale_type = a->w->scale_type, .scale = l->side.scale, .sum = l->side.sum};
    if (HAS_MIN || act == OCT_A8G32) {
        side_window(&l->side, x, &t, g);
        s.scale = l->side.scale + (g - l->side.from) * MR;
        s.sum = l->side.sum + (g - l->side.from) * MR;
        s.side_skip = ((s.single ? 0 : l->side.groups) - groups) * MR;
    }
    const size_t work = tiles * (size_t)groups;
    const size_t ahead = s.single && work > AHEAD_GROUPS ? AHEAD_GROUPS : work;
    const char *next = (const char *)group + ahead * GROUP_BYTES;
    s.ask = oct_asker_of((oct_ahead){next, next + work * GROUP_BYTES}, 2 * all * (int)work);
    for (int part = 0; part < 2; part++) {
        const size_t at = (size_t)t.row * (size_t)x->kp + (size_t)g * OCT_GROUP;
        s.strips = part ? (all - longer) * (int)tiles : longer;
        s.rows = rows + (part ? 0 : 1);
        if (!s.strips) continue;
        s.fills = part && longer ? 0 : (int)work;
        if (l->shaped != s.rows) oct_tiles_shape(s.rows, s.rows, OCT_GROUP);
        l->shaped = s.rows;
        s.group = group;
        s.hi = x->hi + at;
        if (act == OCT_A8X2) s.lo = x->lo + at;
        run_strips(a, t, &s, l, act);
        t.row += s.strips * s.rows;
    }
}

OCT_INLINE oct_kstatus linear(const oct_linear_args *a, size_t lo, size_t hi, void *lane,
                              const oct_act act, oct_linear_fn few)
{
    scratch *l = lane;
    const int all = group_count(a->w->k);
    const size_t stop = oct_tile_few(a, FEW_ROWS, lo, hi);
    const size_t blocks = ((size_t)a->w->n + OCT_BLOCK_N - 1) / OCT_BLOCK_N;
    assert(a->x->act == act && a->x->k == a->w->k && (uintptr_t)lane % 64 == 0);
    l->side.row = -1;
    l->shaped = 0;
    for (size_t i = lo, tiles; i < stop; i += tiles) {
        const bool single = oct_tile_at(a, i).rows <= MR;
        const int step = window_groups(all, single ? SIDE_GROUPS : WINDOW_GROUPS);
        const size_t left = blocks - i % blocks;
        tiles = !single || step < all ? 1 : stop - i < left ? stop - i : left;
        for (int g = 0; g < all; g += step)
            tile_groups(a, i, tiles, l, g, all - g < step ? all - g : step, act);
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
