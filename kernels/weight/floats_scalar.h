/* floats_scalar.h: what f32, f16 and bf16 weights mean, in plain C. A template like floats.h: the
 * file that includes it has included its format's header first. */
#include "kernels/weight/floats.h"
#include "kernels/weight/tile.h"

static size_t block_bytes(int k)
{
    return (size_t)k * INPUT_BYTES;
}

static inline size_t dtype_bytes(oct_dtype type)
{
    return type == OCT_F32 ? 4 : 2;
}

/* One stored element to float32, from bytes of any alignment. */
static inline float widen(const void *p, oct_dtype type)
{
    uint32_t word;
    uint16_t half;
    if (type == OCT_F32) {
        memcpy(&word, p, sizeof word);
        return oct_float(word);
    }
    memcpy(&half, p, sizeof half);
    return type == OCT_F16 ? oct_f16_to_f32(half) : oct_bf16_to_f32(half);
}

static inline void narrow(float x, void *p)
{
    const uint16_t h = TYPE == OCT_F16 ? oct_f32_to_f16(x) : oct_f32_to_bf16(x);
    memcpy(p, TYPE == OCT_F32 ? (const void *)&x : (const void *)&h, sizeof(element));
}

enum { PACK_RUN = 64 }; /* inputs of all channels in turn, so that half-written lines stay in L1 */

/* Inputs [lo, hi) of channel c. The same type keeps its bits, NaNs included; another is widened
 * exactly, then rounded once. */
static void pack_channel(const oct_pack_args *a, element *block, int c, const uint8_t *row, int lo,
                         int hi)
{
    const size_t step = dtype_bytes(a->src->values_type);
    if (a->src->values_type == TYPE)
        for (int j = lo; j < hi; j++)
            memcpy(block + (size_t)j * OCT_BLOCK_N + c, row + (size_t)j * sizeof(element),
                   sizeof(element));
    else
        for (int j = lo; j < hi; j++)
            narrow(widen(row + (size_t)j * step, a->src->values_type),
                   block + (size_t)j * OCT_BLOCK_N + c);
}

static void pack_nothing(element *block, int c, int lo, int hi)
{
    for (int j = lo; j < hi; j++) block[(size_t)j * OCT_BLOCK_N + (size_t)c] = 0;
}

static oct_kstatus pack(const oct_pack_args *a, size_t lo, size_t hi)
{
    const oct_source *s = a->src;
    assert(a->n > 0 && a->k > 0 && s->codes && s->kind == OCT_SRC_VALUES);
    assert(s->values_type == OCT_F32 || s->values_type == OCT_F16 || s->values_type == OCT_BF16);
    for (size_t b = lo; b < hi; b++) {
        element *block = (element *)a->data + b * (size_t)a->k * OCT_BLOCK_N;
        for (int j = 0; j < a->k; j += PACK_RUN) {
            const int end = a->k - j < PACK_RUN ? a->k : j + PACK_RUN;
            for (int c = 0; c < OCT_BLOCK_N; c++) {
                const size_t i = b * OCT_BLOCK_N + (size_t)c;
                if (i >= (size_t)a->n) {
                    pack_nothing(block, c, j, end);
                    continue;
                }
                const size_t row = s->row_map ? (size_t)s->row_map[i] : i;
                pack_channel(a, block, c, s->codes + row * s->row_stride, j, end);
            }
        }
    }
    return OCT_K_OK;
}

static oct_kstatus unpack(const oct_unpack_args *a, size_t lo, size_t hi)
{
    if (!a->values) return OCT_K_OK;
    for (size_t i = lo * OCT_BLOCK_N; i < hi * OCT_BLOCK_N && i < (size_t)a->w->n; i++) {
        const element *block = block_at(a->w, i / OCT_BLOCK_N) + i % OCT_BLOCK_N;
        element *values = (element *)a->values + i * (size_t)a->w->k;
        for (int j = 0; j < a->w->k; j++) /* bits, not values: a NaN keeps its payload */
            memcpy(values + j, block + (size_t)j * OCT_BLOCK_N, sizeof(element));
    }
    return OCT_K_OK;
}

static oct_kstatus gather(const oct_gather_args *a, size_t lo, size_t hi)
{
    for (size_t i = lo; i < hi; i++) {
        assert(a->ids[i] >= 0 && a->ids[i] < a->w->n);
        const size_t id = (size_t)a->ids[i];
        const element *block = block_at(a->w, id / OCT_BLOCK_N) + id % OCT_BLOCK_N;
        for (int j = 0; j < a->w->k; j++)
            a->y[i * a->ldy + (size_t)j] = widen(block + (size_t)j * OCT_BLOCK_N, TYPE);
    }
    return OCT_K_OK;
}

static oct_kstatus linear_a32(const oct_linear_args *a, size_t lo, size_t hi, void *lane)
{
    (void)lane;
    assert(a->x->act == OCT_A32 && a->x->k == a->w->k);
    for (size_t i = lo; i < hi; i++) {
        const oct_tile t = oct_tile_at(a, i);
        const element *block = block_at(a->w, t.block);
        for (int r = t.row; r < t.row + t.rows; r++) {
            const float *x = a->x->x + (size_t)r * a->x->ldx;
            float sum[OCT_BLOCK_N] = {0.0f};
            for (int j = 0; j < a->w->k; j++)
                for (int c = 0; c < t.channels; c++)
                    sum[c] = fmaf(x[j], widen(block + (size_t)j * OCT_BLOCK_N + c, TYPE), sum[c]);
            for (int c = 0; c < t.channels; c++) oct_tile_put(a, r, t.channel + c, sum[c]);
        }
    }
    return OCT_K_OK;
}
