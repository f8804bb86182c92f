/* grouped_avx2.h: linears of the grouped formats with 16-bit pair products. A template like
 * grouped.h.
 *
 * Byte products saturate in 16 bits, so weights (u - z) and inputs (a8x2: Q itself, which fits) are
 * widened to int16 and vpmaddwd adds their pairs in 32 bits: exact for every format and form. Where
 * bytes are safe they are used (nibbles_avx2.h). Masks and shifts bring pairs of codes together;
 * rows are laid out to match (pairs_avx2.h). Few rows read stored codes, many a panel. */
#include "kernels/ahead.h"
#include "kernels/weight/grouped.h"
#include "kernels/weight/pairs_avx2.h"
#include "kernels/weight/sides.h"
#include "kernels/weight/tile_avx2.h"

enum {
    MR = 4,
    PAIRS = OCT_GROUP / 2,                   /* of a group */
    PANEL_GROUPS = 16,                       /* 512 inputs: a panel of 32 KB */
    PANEL_PAIRS = PAIRS * OCT_BLOCK_N,       /* of a group: [2 halves][PAIRS][16 channels] */
    CHAIN_GROUPS = 8,                        /* 32 KB too, in floats */
    ROW_GROUPS = 32,                         /* of a full tile's rows at a time */
    BIAS = HAS_MIN ? 0 : ZERO_CODE
};

typedef struct {
    _Alignas(64) float acc[OCT_TILE_M * OCT_BLOCK_N];
    union {
        _Alignas(64) int32_t pairs[PANEL_GROUPS * PANEL_PAIRS];
        float chain[CHAIN_GROUPS * OCT_GROUP * OCT_BLOCK_N];
    } panel;
    int row, from, groups; /* what `rows` holds */
    _Alignas(64) int32_t rows[OCT_TILE_M * ROW_GROUPS * PAIRS]; /* [row][groups][PAIRS] */
    sides side;
} scratch;
static_assert(sizeof(scratch) <= OCT_LANE_BYTES, "a lane's scratch holds all");
static_assert(SIDE_GROUPS % ROW_GROUPS == 0 && ROW_GROUPS % PANEL_GROUPS == 0, "windows nest");
static_assert(MR * SIDE_GROUPS <= OCT_TILE_M * ROW_GROUPS, "few rows fit with a whole window");

/* A few rows against the 32 channels of a block, over `groups` groups. */
typedef struct {
    const int32_t *panel; /* or NULL: codes as stored */
    const uint8_t *group; /* the stored group */
    oct_dtype scale_type;
    const int32_t *pairs; /* inputs, [rows][pairs_ld] */
    size_t pairs_ld;
    const int8_t *hi; /* the same as bytes, [rows][kp], and what comes after the window */
    size_t kp;
    oct_asker ask; /* its work: groups of all strips */
    const float *x; /* a32: [rows][ldx] */
    size_t ldx;
    const float *scale; /* a8g32: [rows][scale_ld] */
    size_t scale_ld;
    const side *side; /* [rows][side_ld] */
    size_t side_ld;
    float *acc; /* [rows][32], in and out */
    int groups;
} strip;

OCT_INLINE __m256 widen8(const uint8_t *p, oct_dtype type)
{
    const __m128i h = _mm_loadu_si128((const __m128i *)p);
    return type == OCT_F16 ? _mm256_cvtph_ps(h)
                           : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

/* What is subtracted from the codes of 8 channels, as int16 pairs: octet o of the block. */
OCT_INLINE __m256i zero_pairs(const uint8_t *group, int o)
{
    if (!HAS_ZERO) return _mm256_set1_epi16(BIAS);
    const __m128i bytes = _mm_loadl_epi64((const __m128i *)(group + EXTRA_AT + 8 * o));
    const __m256i z = _mm256_cvtepu8_epi32(bytes);
    return _mm256_or_si256(z, _mm256_slli_epi32(z, 16));
}

/* Inputs 8i..8i+7 of octet o (8 channels) as four vectors of pairs, less the zero point. */
OCT_INLINE void load_pairs(const uint8_t *codes, int o, int i, __m256i zero, __m256i w[4])
{
    const uint8_t *at = codes + o / 2 * HALF_BYTES + o % 2 * 32;
    if (CODE_BITS == 4) {
        const __m256i v = _mm256_loadu_si256((const __m256i *)(at + i * LINE_BYTES));
        const __m256i low = _mm256_set1_epi16(15);
        w[0] = _mm256_and_si256(v, low);
        w[1] = _mm256_and_si256(_mm256_srli_epi16(v, 8), low);
        w[2] = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
        w[3] = _mm256_srli_epi16(v, 12);
    } else {
        const __m256i low = _mm256_set1_epi16(255);
        const __m256i v = _mm256_loadu_si256((const __m256i *)(at + 2 * i * LINE_BYTES));
        const __m256i u = _mm256_loadu_si256((const __m256i *)(at + (2 * i + 1) * LINE_BYTES));
        w[0] = _mm256_and_si256(v, low);
        w[1] = _mm256_srli_epi16(v, 8);
        w[2] = _mm256_and_si256(u, low);
        w[3] = _mm256_srli_epi16(u, 8);
    }
    for (int p = 0; p < 4 && BIAS + HAS_ZERO > 0; p++) w[p] = _mm256_sub_epi16(w[p], zero);
}

/* Scales and minima of octet o of a group. */
typedef struct {
    __m256 scale, min;
} sizes;

OCT_INLINE sizes sizes_of(const strip *s, int g, int o)
{
    const uint8_t *group = s->group + (size_t)g * GROUP_BYTES;
    const __m256 scale = widen8(group + SCALES_AT + 16 * o, s->scale_type);
    return (sizes){scale, HAS_MIN ? widen8(group + EXTRA_AT + 16 * o, s->scale_type) : scale};
}

/* The float step of one group for octet o: acc = fma(I, s, acc), and the minima if any. */
OCT_INLINE void fold_group(const strip *s, int r, int g, int o, const oct_act act, sizes by,
                           __m256i dot)
{
    __m256 scale = by.scale, acc = _mm256_load_ps(s->acc + r * 32 + o * 8);
    if (act == OCT_A8G32)
        scale = _mm256_mul_ps(scale, _mm256_set1_ps(s->scale[(size_t)r * s->scale_ld + (size_t)g]));
    acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, acc);
    if (HAS_MIN) {
        const float sum = s->side[(size_t)r * s->side_ld + (size_t)g].sum;
        acc = _mm256_fmadd_ps(_mm256_set1_ps(sum), by.min, acc);
    }
    _mm256_store_ps(s->acc + r * 32 + o * 8, acc);
}

/* Keeps the compiler from carrying a group's broadcast inputs over the loop of channels: it would
 * spill all of them to reload them one by one. */
OCT_INLINE void forget_loads(void)
{
    __asm__ volatile("" ::: "memory");
}

#include "kernels/weight/nibbles_avx2.h"

/* From stored codes, 8 channels at a time. */
OCT_INLINE void dot_stored(const strip *s, const int rows, const oct_act act)
{
    for (int g = 0; g < s->groups; g++) {
        const uint8_t *codes = s->group + (size_t)g * GROUP_BYTES;
        const int32_t *pairs = s->pairs + g * PAIRS;
        for (int o = 0; o < 4; o++) {
            const __m256i zero = zero_pairs(codes, o);
            __m256i dot[MR];
            forget_loads();
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) dot[r] = _mm256_setzero_si256();
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                __m256i w[4];
                load_pairs(codes, o, i, zero, w);
#pragma GCC unroll 4
                for (int p = 0; p < 4; p++)
#pragma GCC unroll 4
                    for (int r = 0; r < rows; r++) {
                        const int32_t *of_row = pairs + (size_t)r * s->pairs_ld;
                        dot[r] = madd(dot[r], w[p], of_row[4 * i + p]);
                    }
            }
            const sizes by = sizes_of(s, g, o);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) fold_group(s, r, g, o, act, by, dot[r]);
        }
    }
}

/* From a panel, 16 channels at a time. */
OCT_INLINE void dot_panel(const strip *s, const int rows, const oct_act act)
{
    for (int g = 0; g < s->groups; g++) {
        const int32_t *pairs = s->pairs + g * PAIRS;
        for (int h = 0; h < 2; h++) {
            const int32_t *panel = s->panel + g * PANEL_PAIRS + h * PAIRS * HALF_N;
            __m256i dot[MR][2];
            forget_loads();
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) dot[r][0] = dot[r][1] = _mm256_setzero_si256();
#pragma GCC unroll 4
            for (int p = 0; p < PAIRS; p++) {
                const __m256i *at = (const __m256i *)(panel + p * HALF_N);
                const __m256i w0 = _mm256_load_si256(at), w1 = _mm256_load_si256(at + 1);
#pragma GCC unroll 4
                for (int r = 0; r < rows; r++) {
                    const int32_t pair = pairs[(size_t)r * s->pairs_ld + (size_t)p];
                    dot[r][0] = madd(dot[r][0], w0, pair);
                    dot[r][1] = madd(dot[r][1], w1, pair);
                }
            }
            const sizes by[2] = {sizes_of(s, g, 2 * h), sizes_of(s, g, 2 * h + 1)};
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
                for (int v = 0; v < 2; v++) fold_group(s, r, g, 2 * h + v, act, by[v], dot[r][v]);
        }
    }
}

/* Float inputs: t over the group's inputs, then acc = fma(t, s, acc). */
OCT_INLINE void chain_rows(const strip *s, const float *panel, int inputs, const int rows)
{
    for (int g = 0; g < s->groups; g++) {
        const uint8_t *group = s->group + (size_t)g * GROUP_BYTES;
        const int end = inputs - g * 32 < 32 ? inputs : g * 32 + 32;
        for (int h = 0; h < 2; h++) {
            __m256 t[MR][2];
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) t[r][0] = t[r][1] = _mm256_setzero_ps();
            for (int j = g * 32; j < end; j++) {
                const float *at = panel + j * 32 + h * 16;
                const __m256 w0 = _mm256_load_ps(at), w1 = _mm256_load_ps(at + 8);
#pragma GCC unroll 4
                for (int r = 0; r < rows; r++) {
                    const __m256 x = _mm256_set1_ps(s->x[(size_t)r * s->ldx + (size_t)j]);
                    t[r][0] = _mm256_fmadd_ps(x, w0, t[r][0]);
                    t[r][1] = _mm256_fmadd_ps(x, w1, t[r][1]);
                }
            }
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
                for (int v = 0; v < 2; v++) {
                    const int o = 2 * h + v;
                    float *to = s->acc + r * 32 + o * 8;
                    const __m256 scale = widen8(group + SCALES_AT + 16 * o, s->scale_type);
                    __m256 acc = _mm256_fmadd_ps(t[r][v], scale, _mm256_load_ps(to));
                    if (HAS_MIN) {
                        const __m256 min = widen8(group + EXTRA_AT + 16 * o, s->scale_type);
                        const float sum = s->side[(size_t)r * s->side_ld + (size_t)g].sum;
                        acc = _mm256_fmadd_ps(_mm256_set1_ps(sum), min, acc);
                    }
                    _mm256_store_ps(to, acc);
                }
        }
    }
}

static void fill_pairs(const uint8_t *group, int groups, int32_t *to)
{
    for (int g = 0; g < groups; g++, group += GROUP_BYTES, to += PANEL_PAIRS)
        for (int o = 0; o < 4; o++) {
            const __m256i zero = zero_pairs(group, o);
            for (int i = 0; i < 4; i++) {
                __m256i w[4];
                load_pairs(group, o, i, zero, w);
                int32_t *at = to + (o / 2 * PAIRS + 4 * i) * HALF_N + o % 2 * 8;
                for (int p = 0; p < 4; p++)
                    _mm256_store_si256((__m256i *)(at + p * HALF_N), w[p]);
            }
        }
}

static void fill_chain(const uint8_t *group, int groups, float *to)
{
    static const int first[4] = {0, 1, 4, 5}; /* the lower input of each pair; the other is + 2 */
    for (int g = 0; g < groups; g++, group += GROUP_BYTES, to += OCT_GROUP * OCT_BLOCK_N)
        for (int o = 0; o < 4; o++) {
            const __m256i zero = zero_pairs(group, o);
            for (int i = 0; i < 4; i++) {
                __m256i w[4];
                load_pairs(group, o, i, zero, w);
                for (int p = 0; p < 4; p++) {
                    float *at = to + (i * 8 + first[p]) * OCT_BLOCK_N + o * 8;
                    const __m256i low = _mm256_srai_epi32(_mm256_slli_epi32(w[p], 16), 16);
                    _mm256_store_ps(at, _mm256_cvtepi32_ps(low));
                    _mm256_store_ps(at + 2 * OCT_BLOCK_N,
                                    _mm256_cvtepi32_ps(_mm256_srai_epi32(w[p], 16)));
                }
            }
        }
}

/* Make l->rows hold `groups` groups from `from` of a tile's rows. */
static void rows_window(scratch *l, const oct_rows *x, const oct_tile *t, int from, int groups)
{
    if (l->row == t->row && l->from == from && l->groups == groups) return;
    l->row = t->row;
    l->from = from;
    l->groups = groups;
    int32_t *to = l->rows;
    for (int r = 0; r < t->rows; r++) {
        const size_t at = (size_t)(t->row + r) * (size_t)x->kp + (size_t)from * OCT_GROUP;
        for (int j = 0; j < groups * OCT_GROUP; j += 16, to += 8)
            lay_out(x->hi + at + j, x->act == OCT_A8X2 ? x->lo + at + j : NULL, to);
    }
}

OCT_INLINE bool by_bytes(const oct_act act)
{
    return CODE_BITS == 4 && (act == OCT_A8 || act == OCT_A8G32);
}

OCT_INLINE void rows_of(strip *s, const int rows, const oct_act act, const float *chain,
                        int inputs)
{
    if (act == OCT_A32) chain_rows(s, chain, inputs, rows);
    else if (by_bytes(act)) dot_nibbles(s, rows, act);
    else if (s->panel) dot_panel(s, rows, act);
    else dot_stored(s, rows, act);
}

/* All rows of a tile, MR at a time; s describes the first and is left past the last. */
OCT_INLINE void tile_rows(strip *s, int rows, const oct_act act, const float *chain, int inputs)
{
    for (; rows > 0; rows -= MR) {
        switch (rows) {
        case 1: rows_of(s, 1, act, chain, inputs); break;
        case 2: rows_of(s, 2, act, chain, inputs); break;
        case 3: rows_of(s, 3, act, chain, inputs); break;
        default: rows_of(s, MR, act, chain, inputs); break;
        }
        s->acc += MR * OCT_BLOCK_N;
        s->x += MR * s->ldx;
        s->pairs += MR * s->pairs_ld;
        if (HAS_MIN || by_bytes(act)) s->side += MR * s->side_ld;
        if (by_bytes(act)) s->hi += MR * s->kp;
        if (act == OCT_A8G32) s->scale += MR * s->scale_ld;
    }
}

/* Groups [g, g + groups) of a tile, added to l->acc; they lie in one window of rows and sides. */
OCT_INLINE void tile_groups(const oct_linear_args *a, const oct_tile *t, scratch *l, int g,
                            int groups, const oct_act act)
{
    const oct_rows *x = a->x;
    const size_t row = (size_t)t->row;
    const int all = group_count(x->k), width = t->rows > MR ? ROW_GROUPS : SIDE_GROUPS;
    const int from = g / width * width, held = all - from < width ? all - from : width;
    strip s = {.scale_type = a->w->scale_type, .groups = groups, .acc = l->acc};
    s.group = block_at(a->w, t->block) + (size_t)g * GROUP_BYTES;
    s.x = x->x + row * x->ldx + (size_t)g * OCT_GROUP;
    s.ldx = x->ldx;
    if (HAS_MIN || by_bytes(act)) {
        side_window(&l->side, x, t, g, HAS_ZERO ? 1 : BIAS);
        s.side = &l->side.value[g - l->side.from];
        s.side_ld = (size_t)l->side.groups;
    }
    if (act == OCT_A32) {
        s.pairs = l->rows;
        fill_chain(s.group, groups, l->panel.chain);
        tile_rows(&s, t->rows, act, l->panel.chain, x->k - g * OCT_GROUP);
        return;
    }
    s.scale_ld = (size_t)(x->kp / OCT_GROUP);
    if (act == OCT_A8G32) s.scale = x->scale + row * s.scale_ld + (size_t)g;
    if (by_bytes(act)) {
        s.pairs = l->rows;
        s.kp = (size_t)x->kp;
        s.hi = x->hi + row * s.kp + (size_t)g * OCT_GROUP;
        s.ask = oct_asker_past(s.group, (size_t)groups * GROUP_BYTES,
                               (t->rows + MR - 1) / MR * groups);
        tile_rows(&s, t->rows, act, NULL, 0);
        return;
    }
    rows_window(l, x, t, from, held);
    s.pairs = l->rows + (g - from) * PAIRS;
    s.pairs_ld = (size_t)held * PAIRS;
    if (t->rows > MR) {
        fill_pairs(s.group, groups, l->panel.pairs);
        s.panel = l->panel.pairs;
    }
    tile_rows(&s, t->rows, act, NULL, 0);
}

OCT_INLINE oct_kstatus linear(const oct_linear_args *a, size_t lo, size_t hi, void *lane,
                              const oct_act act)
{
    scratch *l = lane;
    const int all = group_count(a->w->k);
    assert(a->x->act == act && a->x->k == a->w->k && (uintptr_t)lane % 64 == 0);
    l->row = l->side.row = -1;
    for (size_t i = lo; i < hi; i++) {
        const oct_tile t = oct_tile_at(a, i);
        const bool windows = t.rows > MR || by_bytes(act);
        const int step = act == OCT_A32 ? CHAIN_GROUPS : windows ? PANEL_GROUPS : SIDE_GROUPS;
        memset(l->acc, 0, (size_t)t.rows * OCT_BLOCK_N * sizeof *l->acc);
        for (int g = 0; g < all; g += step)
            tile_groups(a, &t, l, g, all - g < step ? all - g : step, act);
        oct_tile_finish(a, &t, l->acc);
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
