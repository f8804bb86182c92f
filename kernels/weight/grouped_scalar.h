/* grouped_scalar.h: what the grouped formats mean, in plain C. A template like grouped.h: the file
 * that includes it has included its format's header first.
 *
 * Rounding happens only where docs/formats.md B3 writes an operation; integer sums are exact. */
#include "kernels/weight/grouped_pack.h"
#include "kernels/weight/tile.h"

static size_t block_bytes(int k)
{
    return (size_t)group_count(k) * GROUP_BYTES;
}

static inline int code_get(const uint8_t *group, int c, int j)
{
    return group[code_at(c, j)] >> shift_of(j) & (CODE_BITS == 4 ? 15 : 255);
}

static inline uint16_t half_get(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return h;
}

static inline float widen(uint16_t h, oct_dtype type)
{
    assert(type == OCT_F16 || type == OCT_BF16);
    return type == OCT_F16 ? oct_f16_to_f32(h) : oct_bf16_to_f32(h);
}

static inline float scale_get(const uint8_t *group, int c, oct_dtype type)
{
    return widen(half_get(group + SCALES_AT + 2 * c), type);
}

static inline float min_get(const uint8_t *group, int c, oct_dtype type)
{
    return widen(half_get(group + EXTRA_AT + 2 * c), type);
}

static inline int zero_get(const uint8_t *group, int c)
{
    return HAS_ZERO ? group[EXTRA_AT + c] : ZERO_CODE;
}

/* ---- unpack and gather ---- */

static void unpack_channel(const oct_unpack_args *a, const uint8_t *block, int c, size_t i)
{
    const int k = a->w->k, groups = group_count(k);
    for (int g = 0; g < groups; g++) {
        const uint8_t *group = block + (size_t)g * GROUP_BYTES;
        const size_t at = i * (size_t)groups + (size_t)g;
        if (a->scales) memcpy((char *)a->scales + 2 * at, group + SCALES_AT + 2 * c, 2);
        if (HAS_ZERO && a->zeros) a->zeros[at] = group[EXTRA_AT + c];
        if (HAS_MIN && a->mins) a->mins[at] = half_get(group + EXTRA_AT + 2 * c);
        if (!a->codes) continue;
        uint8_t *codes = a->codes + i * (size_t)k + (size_t)g * OCT_GROUP;
        for (int j = 0; j < OCT_GROUP && g * OCT_GROUP + j < k; j++)
            codes[j] = (uint8_t)(code_get(group, c, j) ^ (CODE_BITS == 8 ? 0x80 : 0));
    }
}

static oct_kstatus unpack(const oct_unpack_args *a, size_t lo, size_t hi)
{
    for (size_t i = lo * OCT_BLOCK_N; i < hi * OCT_BLOCK_N && i < (size_t)a->w->n; i++)
        unpack_channel(a, block_at(a->w, i / OCT_BLOCK_N), (int)(i % OCT_BLOCK_N), i);
    return OCT_K_OK;
}

static oct_kstatus gather(const oct_gather_args *a, size_t lo, size_t hi)
{
    const oct_dtype type = a->w->scale_type;
    for (size_t i = lo; i < hi; i++) {
        const size_t id = (size_t)a->ids[i];
        assert(a->ids[i] >= 0 && a->ids[i] < a->w->n);
        const uint8_t *block = block_at(a->w, id / OCT_BLOCK_N);
        const int c = (int)(id % OCT_BLOCK_N);
        float *y = a->y + i * a->ldy;
        for (int j = 0; j < a->w->k; j++) {
            const uint8_t *group = block + (size_t)(j / OCT_GROUP) * GROUP_BYTES;
            const float s = scale_get(group, c, type);
            const int u = code_get(group, c, j % OCT_GROUP);
            y[j] = HAS_MIN ? fmaf((float)u, s, min_get(group, c, type))
                           : (float)(u - zero_get(group, c)) * s;
        }
    }
    return OCT_K_OK;
}

/* ---- linear ---- */

/* The weights of channel c in one group, as the integers that multiply the scale. */
static void read_values(const uint8_t *group, int c, int v[OCT_GROUP])
{
    const int zero = HAS_MIN ? 0 : zero_get(group, c);
    for (int j = 0; j < OCT_GROUP; j++) v[j] = code_get(group, c, j) - zero;
}

/* One group into one output's chain, activations in integers. */
static float add_dot(const oct_rows *x, int row, int g, const int *v, float s, float m, float acc)
{
    const size_t at = (size_t)row * (size_t)x->kp + (size_t)g * OCT_GROUP;
    const size_t side = (size_t)row * (size_t)(x->kp / OCT_GROUP) + (size_t)g;
    int32_t dot = 0;
    for (size_t j = 0; j < OCT_GROUP; j++) {
        const int q = x->act == OCT_A8X2 ? 128 * x->hi[at + j] + x->lo[at + j] : x->hi[at + j];
        dot += v[j] * q;
    }
    if (x->act == OCT_A8G32) {
        acc = fmaf((float)dot, s * x->scale[side], acc);
        return HAS_MIN ? fmaf((float)x->sum[side] * x->scale[side], m, acc) : acc;
    }
    acc = fmaf((float)dot, s, acc);
    return HAS_MIN ? fmaf((float)x->sum[side], m, acc) : acc;
}

/* The same for float activations; x past k is never read. */
static float add_chain(const oct_rows *x, int row, int g, const int *v, float s, float m, float acc)
{
    const float *xs = x->x + (size_t)row * x->ldx + (size_t)g * OCT_GROUP;
    const int left = x->k - g * OCT_GROUP, count = left < OCT_GROUP ? left : OCT_GROUP;
    float t = 0.0f, t1 = 0.0f;
    for (int j = 0; j < count; j++) {
        t = fmaf(xs[j], (float)v[j], t);
        t1 = t1 + xs[j];
    }
    acc = fmaf(t, s, acc);
    return HAS_MIN ? fmaf(t1, m, acc) : acc;
}

static void linear_channel(const oct_linear_args *a, const oct_tile *t, int c)
{
    const uint8_t *block = block_at(a->w, t->block);
    float acc[OCT_TILE_M] = {0.0f};
    for (int g = 0; g < group_count(a->w->k); g++) {
        const uint8_t *group = block + (size_t)g * GROUP_BYTES;
        const float s = scale_get(group, c, a->w->scale_type);
        const float m = HAS_MIN ? min_get(group, c, a->w->scale_type) : 0.0f;
        int v[OCT_GROUP];
        read_values(group, c, v);
        for (int r = 0; r < t->rows; r++)
            acc[r] = a->x->act == OCT_A32 ? add_chain(a->x, t->row + r, g, v, s, m, acc[r])
                                          : add_dot(a->x, t->row + r, g, v, s, m, acc[r]);
    }
    for (int r = 0; r < t->rows; r++) oct_tile_put(a, t->row + r, t->channel + c, acc[r]);
}

static oct_kstatus linear(const oct_linear_args *a, size_t lo, size_t hi, oct_act act)
{
    assert(a->x->act == act && a->x->k == a->w->k && a->x->kp >= group_count(a->w->k) * OCT_GROUP);
    (void)act;
    for (size_t i = lo; i < hi; i++) {
        const oct_tile t = oct_tile_at(a, i);
        for (int c = 0; c < t.channels; c++) linear_channel(a, &t, c);
    }
    return OCT_K_OK;
}

static oct_kstatus linear_a32(const oct_linear_args *a, size_t lo, size_t hi, void *lane)
{
    (void)lane;
    return linear(a, lo, hi, OCT_A32);
}

static oct_kstatus linear_a8(const oct_linear_args *a, size_t lo, size_t hi, void *lane)
{
    (void)lane;
    return linear(a, lo, hi, OCT_A8);
}

static oct_kstatus linear_a8g32(const oct_linear_args *a, size_t lo, size_t hi, void *lane)
{
    (void)lane;
    return linear(a, lo, hi, OCT_A8G32);
}

static oct_kstatus linear_a8x2(const oct_linear_args *a, size_t lo, size_t hi, void *lane)
{
    (void)lane;
    return linear(a, lo, hi, OCT_A8X2);
}
