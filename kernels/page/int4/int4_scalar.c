/* int4 page, scalar column: what the format means. Every other column must give these bytes and
 * these floats. Its f32 form is the default: decode, then the float op. */
#include <assert.h>

#include "kernels/page/dot.h"
#include "kernels/page/int4/int4.h"

static oct_kstatus layout(int d, oct_role role, oct_page_layout *out)
{
    const int group = oct_page_group(d);
    if (!group) return OCT_K_NONFINITE;
    const size_t at = oct_int4_codes_at(d);
    *out = (oct_page_layout){
        .bytes = at + OCT_PAGE_TOKENS / 2 * (size_t)d, .group = group, .parts = 3,
        .part = {oct_part_groups("scales", d, 0), oct_part_groups("zeros", d, oct_int4_zeros_at(d)),
                 oct_part_codes4(d, role, at)},
    };
    return OCT_K_OK;
}

/* Scale and zero of one group, as stored. Adding 0 makes a minimum of -0 (or of both) +0. */
static uint16_t range_of(const uint16_t *x, int n, uint16_t *zero)
{
    float least = INFINITY, most = -INFINITY;
    for (int c = 0; c < n; c++) {
        least = fminf(least, oct_bf16_to_f32(x[c]));
        most = fmaxf(most, oct_bf16_to_f32(x[c]));
    }
    least += 0.0f;
    *zero = oct_f32_to_bf16(least); /* exact */
    return most - least < OCT_PAGE_TINY ? 0 : oct_bf16_up((most - least) / 15.0f);
}

static int code_of(uint16_t x, float scale, float zero)
{
    if (scale == 0.0f) return 0;
    const float q = rintf((oct_bf16_to_f32(x) - zero) / scale);
    return (int)fminf(fmaxf(q, 0.0f), 15.0f);
}

static void put(uint8_t *codes, oct_role role, int d, int t, int c, int code)
{
    int shift;
    uint8_t *at = codes + oct_page_at4(role, d, t, c, &shift);
    *at = (uint8_t)((*at & (0xF0 >> shift)) | code << shift);
}

static oct_kstatus seal(const oct_seal_args *a)
{
    assert(oct_page_group(a->d) && (uintptr_t)a->block % 64 == 0);
    const int d = a->d, group = oct_page_group(d);
    uint16_t *scales = a->block, *zeros = (uint16_t *)((char *)a->block + oct_int4_zeros_at(d));
    uint8_t *codes = (uint8_t *)a->block + oct_int4_codes_at(d);
    oct_kstatus status = OCT_K_OK;
    for (int t = 0; t < OCT_PAGE_TOKENS; t++) {
        const uint16_t *row = (const uint16_t *)a->x + (size_t)t * a->ldx;
        for (int g = 0; g < d / group; g++) {
            const int bad = oct_page_first_large(row + g * group, group);
            if (bad >= 0) oct_page_bad(a, &status, t, g * group + bad);
            uint16_t zero = 0, scale = OCT_BF16_NAN;
            if (bad < 0) scale = range_of(row + g * group, group, &zero);
            scales[g * OCT_PAGE_TOKENS + t] = scale;
            zeros[g * OCT_PAGE_TOKENS + t] = zero;
            const float s = bad >= 0 ? 0.0f : oct_bf16_to_f32(scale), z = oct_bf16_to_f32(zero);
            for (int c = g * group; c < (g + 1) * group; c++)
                put(codes, a->role, d, t, c, code_of(row[c], s, z));
        }
    }
    return status;
}

static int code_at(const void *block, oct_role role, int d, int t, int c)
{
    int shift;
    const uint8_t *codes = (const uint8_t *)block + oct_int4_codes_at(d);
    const size_t at = oct_page_at4(role, d, t, c, &shift);
    return codes[at] >> shift & 15;
}

static oct_kstatus decode(const oct_decode_args *a)
{
    assert(oct_page_group(a->d) && a->tokens >= 0 && a->tokens <= OCT_PAGE_TOKENS);
    const uint16_t *scales = a->block;
    const uint16_t *zeros =
        (const uint16_t *)((const char *)a->block + oct_int4_zeros_at(a->d));
    const int group = oct_page_group(a->d), whole = oct_page_whole_units(a->tokens);
    for (int t = 0; t < whole; t++)
        for (int c = 0; c < a->d; c++) {
            const int at = c / group * OCT_PAGE_TOKENS + t;
            const float s = oct_bf16_to_f32(scales[at]), z = oct_bf16_to_f32(zeros[at]);
            const float q = (float)code_at(a->block, a->role, a->d, t, c);
            a->out[oct_page_image(a->role, a->d, t, c)] = fmaf(q, s, z);
        }
    return OCT_K_OK;
}

static oct_dot_format format_of(const void *block, int d)
{
    const char *base = block;
    return (oct_dot_format){
        code_at, OCT_INT4_CENTRE, block, (const uint16_t *)(base + oct_int4_zeros_at(d)),
    };
}

static oct_kstatus scores_q8(const oct_scores_args *a, void *lane)
{
    (void)lane;
    const oct_dot_format format = format_of(a->block, a->d);
    return oct_dot_scores(a, &format);
}

static oct_kstatus mix_q8(const oct_mix_args *a, void *lane)
{
    (void)lane;
    const oct_dot_format format = format_of(a->block, a->d);
    return oct_dot_mix(a, &format);
}

const oct_page_kernels oct_page_int4_scalar = {
    .layout = layout, .seal = seal, .decode = decode,
    .scores = {NULL, scores_q8, scores_q8},
    .mix = {NULL, mix_q8, mix_q8},
};
