/* floats_avx512.h: linears of f32, f16 and bf16. A template like floats.h.
 *
 * Lane = output channel and every output is one chain of fma over k, so speed is a matter of having
 * enough chains in flight: one row takes several column blocks at once; up to MR rows take one,
 * straight from the stream; more take MR at a time against a window of a block, widened once per
 * row tile into the lane's scratch (f32 needs no widening). All ask for what comes next. */
#include "kernels/ahead.h"
#include "kernels/weight/floats.h"
#include "kernels/weight/tile_avx512.h"

enum {
    MR = 8,
    STREAM_BLOCKS = 4, /* column blocks taken at once by one row */
    AHEAD_BYTES = 8192, /* how far a stream asks ahead */
    WINDOW_INPUTS = 256, /* a panel of 32 KB */
    STEP_INPUTS = 8, /* a panel asks for lines once in so many inputs */
    LINE = 64
};

typedef struct {
    _Alignas(64) float sums[OCT_TILE_M * OCT_BLOCK_N];
    _Alignas(64) float panel[WINDOW_INPUTS * OCT_BLOCK_N];
} scratch;
static_assert(sizeof(scratch) <= OCT_LANE_BYTES, "a lane's scratch holds all");

OCT_INLINE __m512 widen16(const element *p)
{
    if (TYPE == OCT_F32) return _mm512_loadu_ps(p);
    const __m256i h = _mm256_loadu_si256((const __m256i *)p);
    return TYPE == OCT_F16 ? _mm512_cvtph_ps(h)
                           : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

/* One row against `blocks` blocks, or up to MR rows against one, from the stored values.
 * sums: [blocks][rows][32], written. */
OCT_INLINE void stream(const oct_linear_args *a, const oct_tile *t, const int rows,
                       const int blocks, float *sums)
{
    const int k = a->w->k, chains = rows * blocks;
    const float *x = a->x->x + (size_t)t->row * a->x->ldx;
    const element *w = block_at(a->w, t->block);
    __m512 sum[MR][2];
#pragma GCC unroll 8
    for (int i = 0; i < chains; i++) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
    for (int j = 0; j < k; j++)
#pragma GCC unroll 8
        for (int b = 0; b < blocks; b++) {
            const element *at = w + ((size_t)b * (size_t)k + (size_t)j) * OCT_BLOCK_N;
            const __m512 w0 = widen16(at), w1 = widen16(at + 16);
            for (int i = 0; rows > 1 && i < INPUT_BYTES; i += LINE)
                __builtin_prefetch((const char *)at + AHEAD_BYTES + i, 0, 2);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                const __m512 xs = _mm512_set1_ps(x[(size_t)r * a->x->ldx + (size_t)j]);
                sum[b * rows + r][0] = _mm512_fmadd_ps(xs, w0, sum[b * rows + r][0]);
                sum[b * rows + r][1] = _mm512_fmadd_ps(xs, w1, sum[b * rows + r][1]);
            }
        }
#pragma GCC unroll 8
    for (int i = 0; i < chains; i++)
        for (int h = 0; h < 2; h++) _mm512_store_ps(sums + i * 32 + h * 16, sum[i][h]);
}

/* The tiles from the one at `first` that one call of `stream` takes; they lie in one row tile. */
static int stream_tiles(const oct_linear_args *a, size_t first, int many, float *sums)
{
    const oct_tile t = oct_tile_at(a, first);
    if (t.rows > 1) many = 1;
    switch (t.rows) {
    case 1:
        if (many >= 4) stream(a, &t, 1, many = 4, sums);
        else if (many >= 2) stream(a, &t, 1, many = 2, sums);
        else stream(a, &t, 1, 1, sums);
        break;
    case 2: stream(a, &t, 2, 1, sums); break;
    case 3: stream(a, &t, 3, 1, sums); break;
    case 4: stream(a, &t, 4, 1, sums); break;
    case 5: stream(a, &t, 5, 1, sums); break;
    case 6: stream(a, &t, 6, 1, sums); break;
    case 7: stream(a, &t, 7, 1, sums); break;
    default: stream(a, &t, MR, 1, sums); break;
    }
    for (int b = 0; b < many; b++) {
        const oct_tile tile = oct_tile_at(a, first + (size_t)b);
        oct_tile_finish(a, &tile, sums + (size_t)b * OCT_BLOCK_N * (size_t)t.rows);
    }
    return many;
}

/* A few rows against a window of a block. */
typedef struct {
    const float *x; /* [rows][ldx] */
    size_t ldx;
    const float *panel; /* [inputs][32] */
    int inputs;
    oct_asker ask; /* its work: STEP_INPUTS inputs of all strips */
    float *sums; /* [rows][32], in and out */
} strip;

OCT_INLINE void panel_rows(strip *s, const int rows)
{
    __m512 sum[MR][2];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++) sum[r][h] = _mm512_load_ps(s->sums + r * 32 + h * 16);
    for (int j = 0; j < s->inputs; j++) {
        const float *at = s->panel + j * OCT_BLOCK_N;
        const __m512 w0 = _mm512_load_ps(at), w1 = _mm512_load_ps(at + 16);
        if (j % STEP_INPUTS == 0) oct_ask(&s->ask, 1);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const __m512 xs = _mm512_set1_ps(s->x[(size_t)r * s->ldx + (size_t)j]);
            sum[r][0] = _mm512_fmadd_ps(xs, w0, sum[r][0]);
            sum[r][1] = _mm512_fmadd_ps(xs, w1, sum[r][1]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++) _mm512_store_ps(s->sums + r * 32 + h * 16, sum[r][h]);
}

static const float *panel_of(const element *w, int inputs, float *panel)
{
    if (TYPE == OCT_F32) return (const float *)w;
    for (int i = 0; i < inputs * 2; i++) _mm512_store_ps(panel + i * 16, widen16(w + i * 16));
    return panel;
}

/* All rows of a tile, in strips that differ by one row at most; after the last window a strip goes
 * straight to its outputs, whose lines are waited for while the next one computes. */
static void tile_rows(strip *s, const oct_linear_args *a, oct_tile t, bool last)
{
    int strips = (t.rows + MR - 1) / MR, rows = t.rows;
    for (; rows > 0; rows -= t.rows, strips--) {
        t.rows = (rows + strips - 1) / strips;
        if (last) oct_tile_ask(a, &t, t.row + t.rows, t.rows); /* the next strip's */
        switch (t.rows) { /* more than MR rows make strips of at least MR / 2 */
        case 4: panel_rows(s, 4); break;
        case 5: panel_rows(s, 5); break;
        case 6: panel_rows(s, 6); break;
        case 7: panel_rows(s, 7); break;
        case 8: panel_rows(s, 8); break;
        default: assert(!"a strip's height");
        }
        if (last) oct_tile_finish(a, &t, s->sums);
        t.row += t.rows;
        s->x += (size_t)t.rows * s->ldx;
        s->sums += t.rows * OCT_BLOCK_N;
    }
}

static void tile(const oct_linear_args *a, const oct_tile *t, scratch *l)
{
    memset(l->sums, 0, (size_t)t->rows * OCT_BLOCK_N * sizeof *l->sums);
    for (int j = 0; j < a->w->k; j += WINDOW_INPUTS) {
        const int left = a->w->k - j, inputs = left < WINDOW_INPUTS ? left : WINDOW_INPUTS;
        const element *w = block_at(a->w, t->block) + (size_t)j * OCT_BLOCK_N;
        strip s = {.inputs = inputs, .ldx = a->x->ldx, .sums = l->sums};
        s.x = a->x->x + (size_t)t->row * a->x->ldx + j;
        s.panel = panel_of(w, inputs, l->panel);
        const int steps = (inputs + STEP_INPUTS - 1) / STEP_INPUTS;
        const int work = (t->rows + MR - 1) / MR * steps;
        s.ask = oct_asker_past(w, (size_t)inputs * INPUT_BYTES, work);
        tile_rows(&s, a, *t, left == inputs);
    }
}

static oct_kstatus linear_a32(const oct_linear_args *a, size_t lo, size_t hi, void *lane)
{
    scratch *l = lane;
    const size_t blocks = ((size_t)a->w->n + OCT_BLOCK_N - 1) / OCT_BLOCK_N;
    assert(a->x->act == OCT_A32 && a->x->k == a->w->k && (uintptr_t)lane % 64 == 0);
    for (size_t i = lo; i < hi;) {
        const oct_tile t = oct_tile_at(a, i);
        if (t.rows > MR) {
            tile(a, &t, l);
            i++;
            continue;
        }
        const size_t end = (i / blocks + 1) * blocks, many = (end < hi ? end : hi) - i;
        i += (size_t)stream_tiles(a, i, many < STREAM_BLOCKS ? (int)many : STREAM_BLOCKS, l->sums);
    }
    return OCT_K_OK;
}
