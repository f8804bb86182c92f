/* fp8 page, AVX2 column. The order of float steps is that of the scalar column; the templates
 * are page/codes_avx2.h (seal, decode). */
#include "kernels/page/codes_avx2.h"
#include "kernels/page/fp8/fp8.h"
#include "kernels/page/generic.h"
#include "kernels/page/turn_x86.h"

static oct_kstatus seal(const oct_seal_args *a)
{
    return oct_seal_scaled(a, 448.0f, 0, oct_encode16_fp8);
}

static oct_kstatus decode(const oct_decode_args *a)
{
    return oct_expand(a, OCT_CODE_FP8, true);
}

static oct_kstatus decode_codes(const oct_decode_args *a)
{
    return oct_expand(a, OCT_CODE_FP8, false);
}

static oct_kstatus scores_f32(const oct_scores_args *a, void *lane)
{
    return oct_page_scaled_scores(a, decode_codes, lane);
}

static oct_kstatus mix_f32(const oct_mix_args *a, void *lane)
{
    return oct_page_scaled_mix(a, decode_codes, lane);
}

static oct_kstatus turn(const oct_turn_args *a)
{
    return oct_turn8_x86(a, oct_fp8_codes_at(a->d));
}

const oct_page_kernels oct_page_fp8_avx2 = {
    .seal = seal, .decode = decode, .turn = turn,
    .scores = {[OCT_FORM_F32] = scores_f32},
    .mix = {[OCT_FORM_F32] = mix_f32},
};
