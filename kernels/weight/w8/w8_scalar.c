/* w8, scalar column: what the format means. Rounding happens only where docs/formats.md B3 writes
 * an operation; integer sums are exact, and rounded to float32 once. */
#include "kernels/weight/tile.h"
#include "kernels/weight/w8/w8.h"

static size_t block_bytes(int k)
{
    return CODES_AT + (size_t)group_count(k) * GROUP_BYTES;
}

static inline size_t code_at(int c, int j)
{
    return CODES_AT + (size_t)(j / 4) * STEP_BYTES + (size_t)(4 * c + j % 4);
}

static inline int code_get(const uint8_t *block, int c, int j)
{
    return block[code_at(c, j)] - BIAS;
}

static inline float scale_get(const uint8_t *block, int c)
{
    float s;
    memcpy(&s, block + (size_t)c * sizeof s, sizeof s);
    return s;
}

/* Channel c of a block from its source row; past k, and in a channel without a row, all is zero. */
static void pack_channel(const oct_pack_args *a, uint8_t *block, int c, const uint8_t *codes,
                         const uint8_t *scale)
{
    memset(block + (size_t)c * 4, 0, 4);
    if (scale) memcpy(block + (size_t)c * 4, scale, 4);
    for (int j = 0; j < group_count(a->k) * OCT_GROUP; j++) {
        const bool held = codes && j < a->k;
        const size_t at = (size_t)(j / OCT_GROUP) * a->src->group_stride + (size_t)(j % OCT_GROUP);
        block[code_at(c, j)] = held ? codes[at] ^ BIAS : BIAS;
    }
}

static oct_kstatus pack(const oct_pack_args *a, size_t lo, size_t hi)
{
    const oct_source *s = a->src;
    assert(a->n > 0 && a->k > 0 && s->codes && s->scales && s->kind == OCT_SRC_BYTES);
    for (size_t b = lo; b < hi; b++) {
        uint8_t *block = (uint8_t *)a->data + b * block_bytes(a->k);
        for (int c = 0; c < OCT_BLOCK_N; c++) {
            const size_t i = b * OCT_BLOCK_N + (size_t)c;
            const bool held = i < (size_t)a->n;
            const size_t row = held && s->row_map ? (size_t)s->row_map[i] : i;
            pack_channel(a, block, c, held ? s->codes + row * s->row_stride : NULL,
                         held ? s->scales + row * s->scale_row_stride : NULL);
        }
    }
    return OCT_K_OK;
}

static oct_kstatus unpack(const oct_unpack_args *a, size_t lo, size_t hi)
{
    const size_t k = (size_t)a->w->k;
    for (size_t i = lo * OCT_BLOCK_N; i < hi * OCT_BLOCK_N && i < (size_t)a->w->n; i++) {
        const uint8_t *block = block_at(a->w, i / OCT_BLOCK_N);
        const int c = (int)(i % OCT_BLOCK_N);
        if (a->scales) memcpy((char *)a->scales + i * 4, block + (size_t)c * 4, 4);
        for (size_t j = 0; a->codes && j < k; j++)
            a->codes[i * k + j] = (uint8_t)code_get(block, c, (int)j);
    }
    return OCT_K_OK;
}

static oct_kstatus gather(const oct_gather_args *a, size_t lo, size_t hi)
{
    for (size_t i = lo; i < hi; i++) {
        assert(a->ids[i] >= 0 && a->ids[i] < a->w->n);
        const size_t id = (size_t)a->ids[i];
        const uint8_t *block = block_at(a->w, id / OCT_BLOCK_N);
        const int c = (int)(id % OCT_BLOCK_N);
        for (int j = 0; j < a->w->k; j++)
            a->y[i * a->ldy + (size_t)j] = (float)code_get(block, c, j) * scale_get(block, c);
    }
    return OCT_K_OK;
}

/* ---- linear ---- */

/* I over inputs [from, to), exactly. */
static int64_t dot_of(const oct_rows *x, int row, const uint8_t *block, int c, int from, int to)
{
    const size_t at = (size_t)row * (size_t)x->kp;
    int64_t dot = 0;
    for (int j = from; j < to; j++) {
        const int hi = x->hi[at + (size_t)j];
        const int q = x->act == OCT_A8X2 ? 128 * hi + x->lo[at + (size_t)j] : hi;
        dot += code_get(block, c, j) * q;
    }
    return dot;
}

/* The sum that s multiplies. */
static float sum_of(const oct_rows *x, int row, const uint8_t *block, int c)
{
    float t = 0.0f;
    if (x->act == OCT_A32) {
        for (int j = 0; j < x->k; j++)
            t = fmaf(x->x[(size_t)row * x->ldx + (size_t)j], (float)code_get(block, c, j), t);
        return t;
    }
    const int groups = group_count(x->k);
    if (x->act != OCT_A8G32) return (float)dot_of(x, row, block, c, 0, groups * OCT_GROUP);
    for (int g = 0; g < groups; g++) {
        const float sx = x->scale[(size_t)row * (size_t)(x->kp / OCT_GROUP) + (size_t)g];
        t = fmaf((float)dot_of(x, row, block, c, g * OCT_GROUP, (g + 1) * OCT_GROUP), sx, t);
    }
    return t;
}

static oct_kstatus linear(const oct_linear_args *a, size_t lo, size_t hi, void *lane)
{
    (void)lane;
    assert(a->x->k == a->w->k && a->x->kp >= group_count(a->w->k) * OCT_GROUP);
    for (size_t i = lo; i < hi; i++) {
        const oct_tile t = oct_tile_at(a, i);
        const uint8_t *block = block_at(a->w, t.block);
        for (int r = t.row; r < t.row + t.rows; r++)
            for (int c = 0; c < t.channels; c++)
                oct_tile_put(a, r, t.channel + c, sum_of(a->x, r, block, c) * scale_get(block, c));
    }
    return OCT_K_OK;
}

const oct_weight_kernels oct_w8_scalar = {
    block_bytes, pack, unpack, gather, {linear, linear, linear, linear},
};
