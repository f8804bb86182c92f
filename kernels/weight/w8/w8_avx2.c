/* w8, AVX2 column: 16-bit pair products whose integer sums run over all of k.
 *
 * Codes are widened to int16 with their bias, whose share is taken out of the sums, and vpmaddwd
 * adds pairs in 32 bits. A window of rows is laid out as pairs and used again while it serves.
 * a8x2 sums its two terms apart, since their sum leaves 32 bits, and joins them in float64, where
 * both and their sum are exact. */
#include "kernels/weight/pairs_avx2.h"
#include "kernels/weight/tile_avx2.h"
#include "kernels/weight/w8/w8.h"

enum {
    MR = 4,
    WINDOW_GROUPS = 16,
    PAIRS = OCT_GROUP / 2, /* of a group */
    ROW_PAIRS = WINDOW_GROUPS * PAIRS,
    TILE = OCT_TILE_M * OCT_BLOCK_N
};

typedef struct {
    _Alignas(64) union {
        float sums[TILE];
        int32_t dots[TILE];
    };
    _Alignas(64) int32_t low[TILE];
    _Alignas(64) union {
        int32_t pairs[2][OCT_TILE_M * ROW_PAIRS]; /* of hi and lo */
        float panel[WINDOW_GROUPS * GROUP_BYTES]; /* a32: a window in floats */
    };
    int row, from; /* whose tile `total`, and which groups `pairs` hold */
    int32_t total[OCT_TILE_M];
} scratch;
static_assert(sizeof(scratch) <= OCT_LANE_BYTES, "a lane's scratch holds all");

/* A few rows against a window of a block. */
typedef struct {
    const uint8_t *codes;
    int groups, inputs;
    const int32_t *pairs; /* [rows][ROW_PAIRS] */
    const float *floats;  /* a32: [rows][ldx] */
    size_t ldx;
    const float *panel;
    const float *scale; /* a8g32: [rows][ld], and so the sums */
    const int32_t *sum;
    size_t ld;
} strip;

/* dot[r] += `steps` times four inputs against 16 channels. */
OCT_INLINE void add_steps(const uint8_t *codes, const int32_t *pairs, int steps, const int rows,
                          __m256i dot[][2])
{
    const __m256i low = _mm256_set1_epi16(255);
    for (int i = 0; i < steps; i++, codes += STEP_BYTES, pairs += 2) {
        const __m256i v = _mm256_loadu_si256((const __m256i *)codes);
        const __m256i u = _mm256_loadu_si256((const __m256i *)(codes + 32));
        const __m256i v0 = _mm256_and_si256(v, low), v1 = _mm256_srli_epi16(v, 8);
        const __m256i u0 = _mm256_and_si256(u, low), u1 = _mm256_srli_epi16(u, 8);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const int32_t *x = pairs + r * ROW_PAIRS;
            dot[r][0] = madd(madd(dot[r][0], v0, x[0]), v1, x[1]);
            dot[r][1] = madd(madd(dot[r][1], u0, x[0]), u1, x[1]);
        }
    }
}

/* dots [rows][32] continue over the window. */
OCT_INLINE void dot_rows(const strip *s, int32_t *dots, const int rows)
{
    for (int h = 0; h < 2; h++) {
        __m256i dot[MR][2];
        __m256i *at = (__m256i *)(dots + 16 * h);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
            for (int o = 0; o < 2; o++) dot[r][o] = _mm256_load_si256(at + 4 * r + o);
        add_steps(s->codes + 64 * h, s->pairs, s->groups * OCT_GROUP / 4, rows, dot);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
            for (int o = 0; o < 2; o++) _mm256_store_si256(at + 4 * r + o, dot[r][o]);
    }
}

/* a8g32: sums [rows][32], acc = fma(I, sx, acc) at the end of each group. */
OCT_INLINE void group_rows(const strip *s, float *sums, const int rows)
{
    for (int g = 0; g < s->groups; g++)
        for (int h = 0; h < 2; h++) {
            __m256i dot[MR][2];
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
                dot[r][0] = dot[r][1] =
                    _mm256_set1_epi32(-BIAS * s->sum[(size_t)r * s->ld + (size_t)g]);
            add_steps(s->codes + (size_t)g * GROUP_BYTES + 64 * h, s->pairs + g * PAIRS,
                      OCT_GROUP / 4, rows, dot);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                const __m256 sx = _mm256_set1_ps(s->scale[(size_t)r * s->ld + (size_t)g]);
                float *acc = sums + r * OCT_BLOCK_N + 16 * h;
                for (int o = 0; o < 2; o++, acc += 8)
                    _mm256_store_ps(acc, _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[r][o]), sx,
                                                         _mm256_load_ps(acc)));
            }
        }
}

/* a32: sums [rows][32], one chain over all of k. */
OCT_INLINE void float_rows(const strip *s, float *sums, const int rows)
{
    for (int h = 0; h < 2; h++) {
        __m256 sum[MR][2];
        float *at = sums + 16 * h;
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
            for (int o = 0; o < 2; o++) sum[r][o] = _mm256_load_ps(at + r * OCT_BLOCK_N + 8 * o);
        for (int j = 0; j < s->inputs; j++) {
            const float *w = s->panel + j * OCT_BLOCK_N + 16 * h;
            const __m256 w0 = _mm256_load_ps(w), w1 = _mm256_load_ps(w + 8);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                const __m256 x = _mm256_set1_ps(s->floats[(size_t)r * s->ldx + (size_t)j]);
                sum[r][0] = _mm256_fmadd_ps(x, w0, sum[r][0]);
                sum[r][1] = _mm256_fmadd_ps(x, w1, sum[r][1]);
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
            for (int o = 0; o < 2; o++) _mm256_store_ps(at + r * OCT_BLOCK_N + 8 * o, sum[r][o]);
    }
}

static void dot_strip(const strip *s, int32_t *dots, int rows)
{
    switch (rows) {
    case 1: dot_rows(s, dots, 1); break;
    case 2: dot_rows(s, dots, 2); break;
    case 3: dot_rows(s, dots, 3); break;
    default: dot_rows(s, dots, MR); break;
    }
}

static void group_strip(const strip *s, float *sums, int rows)
{
    switch (rows) {
    case 1: group_rows(s, sums, 1); break;
    case 2: group_rows(s, sums, 2); break;
    case 3: group_rows(s, sums, 3); break;
    default: group_rows(s, sums, MR); break;
    }
}

static void float_strip(const strip *s, float *sums, int rows)
{
    switch (rows) {
    case 1: float_rows(s, sums, 1); break;
    case 2: float_rows(s, sums, 2); break;
    case 3: float_rows(s, sums, 3); break;
    default: float_rows(s, sums, MR); break;
    }
}

/* A window's codes as floats [inputs][32]. */
static void fill_panel(const uint8_t *codes, int groups, float *to)
{
    const __m256i byte = _mm256_set1_epi32(255), bias = _mm256_set1_epi32(BIAS);
    for (int i = 0; i < groups * OCT_GROUP / 4; i++, codes += STEP_BYTES)
        for (int o = 0; o < 4; o++) {
            __m256i w = _mm256_loadu_si256((const __m256i *)(codes + 32 * o));
            for (int b = 0; b < 4; b++, w = _mm256_srli_epi32(w, 8)) {
                const __m256i q = _mm256_sub_epi32(_mm256_and_si256(w, byte), bias);
                _mm256_store_ps(to + (4 * i + b) * OCT_BLOCK_N + 8 * o, _mm256_cvtepi32_ps(q));
            }
        }
}

/* Make l->pairs hold groups [g, g + groups) of a tile's rows, l->total their sums over all of k. */
static void rows_window(scratch *l, const oct_rows *x, const oct_tile *t, int g, int groups)
{
    const size_t from = (size_t)g * OCT_GROUP;
    if (x->act == OCT_A32 || (l->row == t->row && l->from == g)) return;
    for (int r = 0; r < t->rows; r++) {
        const size_t at = (size_t)(t->row + r) * (size_t)x->kp + from;
        int32_t *hi = l->pairs[0] + r * ROW_PAIRS, *lo = l->pairs[1] + r * ROW_PAIRS;
        for (int j = 0; j < groups * OCT_GROUP; j += 16) {
            lay_out(x->hi + at + j, NULL, hi + j / 2);
            if (x->act == OCT_A8X2) lay_out(x->lo + at + j, NULL, lo + j / 2);
        }
        if (l->row != t->row) l->total[r] = row_total(x, t->row + r);
    }
    l->row = t->row;
    l->from = g;
}

/* 128 * hi + lo - 128 * total, exact in float64, then rounded once. */
static __m128 join4(const int32_t *hi, const int32_t *lo, __m256d bias)
{
    const __m256d h = _mm256_cvtepi32_pd(_mm_load_si128((const __m128i *)hi));
    const __m256d l = _mm256_cvtepi32_pd(_mm_load_si128((const __m128i *)lo));
    return _mm256_cvtpd_ps(_mm256_add_pd(_mm256_fmadd_pd(h, _mm256_set1_pd(128.0), l), bias));
}

/* From the sums of a tile over all of k to outputs. The dots' bias goes here: int32 holds it. */
static void finish(const oct_linear_args *a, const oct_tile *t, scratch *l)
{
    const float *scale = (const float *)block_at(a->w, t->block);
    const oct_act act = a->x->act;
    for (int r = 0; r < t->rows; r++) {
        float *sum = l->sums + r * OCT_BLOCK_N;
        int32_t *dot = l->dots + r * OCT_BLOCK_N, *low = l->low + r * OCT_BLOCK_N;
        const __m256d bias = _mm256_set1_pd(act == OCT_A8X2 ? -BIAS * (double)l->total[r] : 0.0);
        const __m256i start = _mm256_set1_epi32(act == OCT_A8 ? -BIAS * l->total[r] : 0);
        for (int i = 0; act == OCT_A8X2 && i < OCT_BLOCK_N; i += 4)
            _mm_store_ps(sum + i, join4(dot + i, low + i, bias));
        for (int i = 0; i < OCT_BLOCK_N; i += 8) {
            const __m256i d = _mm256_add_epi32(_mm256_load_si256((__m256i *)(dot + i)), start);
            const __m256 f = act == OCT_A8 ? _mm256_cvtepi32_ps(d) : _mm256_load_ps(sum + i);
            _mm256_store_ps(sum + i, _mm256_mul_ps(f, _mm256_loadu_ps(scale + i)));
        }
    }
    oct_tile_finish(a, t, l->sums);
}

/* Groups [g, g + s->groups) against all rows of a tile. */
static void window(const oct_linear_args *a, const oct_tile *t, scratch *l, strip *s, int g)
{
    const oct_rows *x = a->x;
    rows_window(l, x, t, g, s->groups);
    if (x->act == OCT_A32) fill_panel(s->codes, s->groups, l->panel);
    for (int r = 0; r < t->rows; r += MR) {
        const int rows = t->rows - r < MR ? t->rows - r : MR, at = r * OCT_BLOCK_N;
        const size_t row = (size_t)(t->row + r);
        s->floats = x->x + row * x->ldx + (size_t)g * OCT_GROUP;
        s->pairs = l->pairs[0] + r * ROW_PAIRS;
        if (x->act == OCT_A8G32) {
            s->scale = x->scale + row * s->ld + (size_t)g;
            s->sum = x->sum + row * s->ld + (size_t)g;
            group_strip(s, l->sums + at, rows);
            continue;
        }
        if (x->act == OCT_A32) float_strip(s, l->sums + at, rows);
        else dot_strip(s, l->dots + at, rows);
        if (x->act != OCT_A8X2) continue;
        s->pairs = l->pairs[1] + r * ROW_PAIRS;
        dot_strip(s, l->low + at, rows);
    }
}

static oct_kstatus linear(const oct_linear_args *a, size_t lo, size_t hi, void *lane)
{
    scratch *l = lane;
    const int all = group_count(a->w->k);
    assert(a->x->k == a->w->k && (uintptr_t)lane % 64 == 0);
    l->row = -1;
    for (size_t i = lo; i < hi; i++) {
        const oct_tile t = oct_tile_at(a, i);
        memset(l->dots, 0, (size_t)t.rows * OCT_BLOCK_N * sizeof *l->dots);
        memset(l->low, 0, (size_t)t.rows * OCT_BLOCK_N * sizeof *l->low);
        for (int g = 0; g < all; g += WINDOW_GROUPS) {
            strip s = {.groups = all - g < WINDOW_GROUPS ? all - g : WINDOW_GROUPS};
            const int left = a->x->k - g * OCT_GROUP;
            s.inputs = left < s.groups * OCT_GROUP ? left : s.groups * OCT_GROUP;
            s.codes = block_at(a->w, t.block) + CODES_AT + (size_t)g * GROUP_BYTES;
            s.ldx = a->x->ldx;
            s.panel = l->panel;
            s.ld = (size_t)(a->x->kp / OCT_GROUP);
            window(a, &t, l, &s, g);
        }
        finish(a, &t, l);
    }
    return OCT_K_OK;
}

const oct_weight_kernels oct_w8_avx2 = {.linear = {linear, linear, linear, linear}};
