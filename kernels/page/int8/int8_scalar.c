/* int8 page, scalar column: what the format means. Every other column must give these bytes and
 * these floats. */
#include <assert.h>

#include "kernels/page/dot.h"
#include "kernels/page/generic.h"
#include "kernels/page/int8/int8.h"

static oct_kstatus layout(int d, oct_role role, oct_page_layout *out)
{
    const int group = oct_page_group(d);
    if (!group) return OCT_K_NONFINITE;
    const size_t at = oct_int8_codes_at(d);
    *out = (oct_page_layout){
        .bytes = at + OCT_PAGE_TOKENS * (size_t)d, .group = group, .parts = 2,
        .part = {oct_part_groups("scales", d, 0),
                 oct_part_codes8(OCT_U8, d, role, at, -OCT_INT8_BIAS)},
    };
    return OCT_K_OK;
}

/* The scale of one group, as stored. */
static uint16_t scale_of(const uint16_t *x, int n)
{
    float amax = 0.0f;
    for (int c = 0; c < n; c++) amax = fmaxf(amax, fabsf(oct_bf16_to_f32(x[c])));
    return amax < OCT_PAGE_TINY ? 0 : oct_bf16_up(amax / 127.0f);
}

static int code_of(uint16_t x, float scale)
{
    if (scale == 0.0f) return 0;
    const float q = rintf(oct_bf16_to_f32(x) / scale);
    return (int)fminf(fmaxf(q, -127.0f), 127.0f);
}

static oct_kstatus seal(const oct_seal_args *a)
{
    assert(oct_page_group(a->d) && (uintptr_t)a->block % 64 == 0);
    const int d = a->d, group = oct_page_group(d);
    uint16_t *scales = a->block;
    uint8_t *codes = (uint8_t *)a->block + oct_int8_codes_at(d);
    oct_kstatus status = OCT_K_OK;
    for (int t = 0; t < OCT_PAGE_TOKENS; t++) {
        const uint16_t *row = (const uint16_t *)a->x + (size_t)t * a->ldx;
        for (int g = 0; g < d / group; g++) {
            const int bad = oct_page_first_large(row + g * group, group);
            if (bad >= 0) oct_page_bad(a, &status, t, g * group + bad);
            const uint16_t scale = bad >= 0 ? OCT_BF16_NAN : scale_of(row + g * group, group);
            const float s = bad >= 0 ? 0.0f : oct_bf16_to_f32(scale);
            scales[g * OCT_PAGE_TOKENS + t] = scale;
            for (int c = g * group; c < (g + 1) * group; c++)
                codes[oct_page_at8(a->role, d, t, c)] =
                    (uint8_t)(OCT_INT8_BIAS + code_of(row[c], s));
        }
    }
    return status;
}

static int code_at(const void *block, oct_role role, int d, int t, int c)
{
    const uint8_t *codes = (const uint8_t *)block + oct_int8_codes_at(d);
    return codes[oct_page_at8(role, d, t, c)] - OCT_INT8_BIAS;
}

/* value = code * scale, or the bare code where the scale is applied after the chain. */
static oct_kstatus expand(const oct_decode_args *a, bool scaled)
{
    assert(oct_page_group(a->d) && a->tokens >= 0 && a->tokens <= OCT_PAGE_TOKENS);
    const uint16_t *scales = a->block;
    const int group = oct_page_group(a->d), whole = oct_page_whole_units(a->tokens);
    for (int t = 0; t < whole; t++)
        for (int c = 0; c < a->d; c++) {
            const float s = oct_bf16_to_f32(scales[c / group * OCT_PAGE_TOKENS + t]);
            const float q = (float)code_at(a->block, a->role, a->d, t, c);
            a->out[oct_page_image(a->role, a->d, t, c)] = scaled ? q * s : q;
        }
    return OCT_K_OK;
}

static oct_kstatus decode(const oct_decode_args *a)
{
    return expand(a, true);
}

static oct_kstatus decode_codes(const oct_decode_args *a)
{
    return expand(a, false);
}

static oct_kstatus scores_f32(const oct_scores_args *a, void *lane)
{
    return oct_page_scaled_scores(a, decode_codes, lane);
}

static oct_kstatus mix_f32(const oct_mix_args *a, void *lane)
{
    return oct_page_scaled_mix(a, decode_codes, lane);
}

static oct_kstatus scores_q8(const oct_scores_args *a, void *lane)
{
    (void)lane;
    return oct_dot_scores(a, &(oct_dot_format){code_at, 0, a->block, NULL});
}

static oct_kstatus mix_q8(const oct_mix_args *a, void *lane)
{
    (void)lane;
    return oct_dot_mix(a, &(oct_dot_format){code_at, 0, a->block, NULL});
}

const oct_page_kernels oct_page_int8_scalar = {
    .layout = layout, .seal = seal, .decode = decode,
    .scores = {scores_f32, scores_q8, scores_q8},
    .mix = {mix_f32, mix_q8, mix_q8},
};
