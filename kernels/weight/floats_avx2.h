/* floats_avx2.h: linears of f32, f16 and bf16. A template like floats.h.
 *
 * Lane = output channel and every output is one chain of fma over k, so speed is a matter of having
 * enough chains in flight: few rows take several column blocks at once, straight from the stream;
 * many rows take MR at a time against one block, widened once per row tile into the lane's scratch
 * (f32 needs no widening). */
#include "kernels/weight/floats.h"
#include "kernels/weight/tile_avx2.h"

enum {
    MR = 6,
    STREAM_ROWS = 2,
    STREAM_BLOCKS = 2,  /* column blocks taken at once by one row */
    PANEL_INPUTS = 256, /* a panel of 32 KB */
};

typedef struct {
    _Alignas(64) float sums[OCT_TILE_M * OCT_BLOCK_N];
    _Alignas(64) float panel[PANEL_INPUTS * OCT_BLOCK_N];
} scratch;
static_assert(sizeof(scratch) <= OCT_LANE_BYTES, "a lane's scratch holds all");

OCT_INLINE __m256 widen8(const element *p)
{
    if (TYPE == OCT_F32) return _mm256_loadu_ps((const float *)p);
    const __m128i h = _mm_loadu_si128((const __m128i *)p);
    return TYPE == OCT_F16 ? _mm256_cvtph_ps(h)
                           : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

/* One row against `blocks` blocks, or up to STREAM_ROWS rows against one, from the stored values.
 * sums: [blocks][rows][32], written. */
OCT_INLINE void stream(const oct_linear_args *a, const oct_tile *t, const int rows,
                       const int blocks, float *sums)
{
    const int k = a->w->k, chains = rows * blocks;
    const float *x = a->x->x + (size_t)t->row * a->x->ldx;
    const element *w = block_at(a->w, t->block);
    __m256 sum[STREAM_BLOCKS][4];
#pragma GCC unroll 2
    for (int i = 0; i < chains; i++)
        for (int o = 0; o < 4; o++) sum[i][o] = _mm256_setzero_ps();
    for (int j = 0; j < k; j++)
#pragma GCC unroll 2
        for (int b = 0; b < blocks; b++) {
            const element *at = w + ((size_t)b * (size_t)k + (size_t)j) * OCT_BLOCK_N;
#pragma GCC unroll 4
            for (int o = 0; o < 4; o++) {
                const __m256 values = widen8(at + 8 * o);
#pragma GCC unroll 2
                for (int r = 0; r < rows; r++) {
                    const __m256 xs = _mm256_set1_ps(x[(size_t)r * a->x->ldx + (size_t)j]);
                    sum[b * rows + r][o] = _mm256_fmadd_ps(xs, values, sum[b * rows + r][o]);
                }
            }
        }
#pragma GCC unroll 2
    for (int i = 0; i < chains; i++)
        for (int o = 0; o < 4; o++) _mm256_store_ps(sums + i * 32 + o * 8, sum[i][o]);
}

/* The tiles from the one at `first` that one call of `stream` takes; they lie in one row tile. */
static int stream_tiles(const oct_linear_args *a, size_t first, int many, float *sums)
{
    const oct_tile t = oct_tile_at(a, first);
    if (t.rows == STREAM_ROWS) stream(a, &t, STREAM_ROWS, many = 1, sums);
    else if (many == STREAM_BLOCKS) stream(a, &t, 1, STREAM_BLOCKS, sums);
    else stream(a, &t, 1, 1, sums);
    for (int b = 0; b < many; b++) {
        const oct_tile tile = oct_tile_at(a, first + (size_t)b);
        oct_tile_finish(a, &tile, sums + (size_t)b * OCT_BLOCK_N * (size_t)t.rows);
    }
    return many;
}

/* sums [rows][32] continue over `inputs` inputs of a panel [inputs][32], 16 channels at a time. */
OCT_INLINE void panel_rows(const float *x, size_t ldx, const float *panel, int inputs,
                           const int rows, float *sums)
{
    for (int h = 0; h < 2; h++, panel += 16, sums += 16) {
        __m256 sum[MR][2];
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < 2; v++) sum[r][v] = _mm256_load_ps(sums + r * 32 + v * 8);
        for (int j = 0; j < inputs; j++) {
            const __m256 w0 = _mm256_load_ps(panel + j * 32);
            const __m256 w1 = _mm256_load_ps(panel + j * 32 + 8);
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) {
                const __m256 xs = _mm256_set1_ps(x[(size_t)r * ldx + (size_t)j]);
                sum[r][0] = _mm256_fmadd_ps(xs, w0, sum[r][0]);
                sum[r][1] = _mm256_fmadd_ps(xs, w1, sum[r][1]);
            }
        }
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < 2; v++) _mm256_store_ps(sums + r * 32 + v * 8, sum[r][v]);
    }
}

static const float *panel_of(const element *w, int inputs, float *panel)
{
    if (TYPE == OCT_F32) return (const float *)w;
    for (int i = 0; i < inputs * 4; i++) _mm256_store_ps(panel + i * 8, widen8(w + i * 8));
    return panel;
}

static void tile(const oct_linear_args *a, const oct_tile *t, scratch *l)
{
    memset(l->sums, 0, (size_t)t->rows * OCT_BLOCK_N * sizeof *l->sums);
    for (int j = 0; j < a->w->k; j += PANEL_INPUTS) {
        const int left = a->w->k - j, inputs = left < PANEL_INPUTS ? left : PANEL_INPUTS;
        const element *w = block_at(a->w, t->block) + (size_t)j * OCT_BLOCK_N;
        const float *panel = panel_of(w, inputs, l->panel);
        for (int r = 0; r < t->rows;) {
            const float *x = a->x->x + (size_t)(t->row + r) * a->x->ldx + j;
            float *sums = l->sums + r * OCT_BLOCK_N;
            const int rows = t->rows - r;
            if (rows >= MR) panel_rows(x, a->x->ldx, panel, inputs, MR, sums), r += MR;
            else if (rows >= 3) panel_rows(x, a->x->ldx, panel, inputs, 3, sums), r += 3;
            else if (rows >= 2) panel_rows(x, a->x->ldx, panel, inputs, 2, sums), r += 2;
            else panel_rows(x, a->x->ldx, panel, inputs, 1, sums), r += 1;
        }
    }
    oct_tile_finish(a, t, l->sums);
}

static oct_kstatus linear_a32(const oct_linear_args *a, size_t lo, size_t hi, void *lane)
{
    scratch *l = lane;
    const size_t blocks = ((size_t)a->w->n + OCT_BLOCK_N - 1) / OCT_BLOCK_N;
    assert(a->x->act == OCT_A32 && a->x->k == a->w->k && (uintptr_t)lane % 64 == 0);
    for (size_t i = lo; i < hi;) {
        const oct_tile t = oct_tile_at(a, i);
        if (t.rows > STREAM_ROWS) {
            tile(a, &t, l);
            i++;
            continue;
        }
        const size_t end = (i / blocks + 1) * blocks, many = (end < hi ? end : hi) - i;
        i += (size_t)stream_tiles(a, i, many < STREAM_BLOCKS ? (int)many : STREAM_BLOCKS, l->sums);
    }
    return OCT_K_OK;
}
