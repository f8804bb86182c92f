/* fp8 page, scalar column: what the format means. Every other column must give these bytes and
 * these floats. It computes in the form f32 only. */
#include <assert.h>

#include "kernels/page/fp8/fp8.h"
#include "kernels/page/generic.h"

static oct_kstatus layout(int d, oct_role role, oct_page_layout *out)
{
    const int group = oct_page_group(d);
    if (!group) return OCT_K_NONFINITE;
    const size_t at = oct_fp8_codes_at(d);
    *out = (oct_page_layout){
        .bytes = at + OCT_PAGE_TOKENS * (size_t)d, .group = group, .parts = 2,
        .part = {oct_part_groups("scales", d, 0), oct_part_codes8(OCT_E4M3, d, role, at, 0)},
    };
    return OCT_K_OK;
}

/* The scale of one group, as stored. */
static uint16_t scale_of(const uint16_t *x, int n)
{
    float amax = 0.0f;
    for (int c = 0; c < n; c++) amax = fmaxf(amax, fabsf(oct_bf16_to_f32(x[c])));
    return amax < OCT_PAGE_TINY ? 0 : oct_bf16_up(amax / 448.0f);
}

static uint8_t code_of(uint16_t x, float scale)
{
    if (scale == 0.0f) return 0;
    return oct_f32_to_e4m3(fminf(fmaxf(oct_bf16_to_f32(x) / scale, -448.0f), 448.0f));
}

static oct_kstatus seal(const oct_seal_args *a)
{
    assert(oct_page_group(a->d) && (uintptr_t)a->block % 64 == 0);
    const int d = a->d, group = oct_page_group(d);
    uint16_t *scales = a->block;
    uint8_t *codes = (uint8_t *)a->block + oct_fp8_codes_at(d);
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
                codes[oct_page_at8(a->role, d, t, c)] = code_of(row[c], s);
        }
    }
    return status;
}

/* value = e4m3 * scale, or the bare e4m3 where the scale is applied after the chain. */
static oct_kstatus expand(const oct_decode_args *a, bool scaled)
{
    assert(oct_page_group(a->d) && a->tokens >= 0 && a->tokens <= OCT_PAGE_TOKENS);
    const uint16_t *scales = a->block;
    const uint8_t *codes = (const uint8_t *)a->block + oct_fp8_codes_at(a->d);
    const int group = oct_page_group(a->d), whole = oct_page_whole_units(a->tokens);
    for (int t = 0; t < whole; t++)
        for (int c = 0; c < a->d; c++) {
            const float s = oct_bf16_to_f32(scales[c / group * OCT_PAGE_TOKENS + t]);
            const float x = oct_e4m3_to_f32(codes[oct_page_at8(a->role, a->d, t, c)]);
            a->out[oct_page_image(a->role, a->d, t, c)] = scaled ? x * s : x;
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

const oct_page_kernels oct_page_fp8_scalar = {
    .layout = layout, .seal = seal, .decode = decode,
    .scores = {[OCT_FORM_F32] = scores_f32},
    .mix = {[OCT_FORM_F32] = mix_f32},
};
