/* int8 page, AVX2 column. The order of float steps is that of the scalar column; the templates
 * are page/codes_avx2.h (seal, decode) and page/dot_avx2.h (q8, q8x2). */
#include "kernels/page/dot_avx2.h"
#include "kernels/page/int8/int8.h"
#include "kernels/page/turn_x86.h"

static oct_kstatus seal(const oct_seal_args *a)
{
    return oct_seal_scaled(a, 127.0f, 128, oct_encode16_int8);
}

static oct_kstatus decode(const oct_decode_args *a)
{
    return oct_expand(a, OCT_CODE_INT8, true);
}

static oct_kstatus decode_codes(const oct_decode_args *a)
{
    return oct_expand(a, OCT_CODE_INT8, false);
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
    return oct_scores_dot(a, 8, 1);
}

static oct_kstatus mix_q8(const oct_mix_args *a, void *lane)
{
    (void)lane;
    return oct_mix_dot(a, 8, 1);
}

static oct_kstatus scores_q8x2(const oct_scores_args *a, void *lane)
{
    (void)lane;
    return oct_scores_dot(a, 8, 2);
}

static oct_kstatus mix_q8x2(const oct_mix_args *a, void *lane)
{
    (void)lane;
    return oct_mix_dot(a, 8, 2);
}

static oct_kstatus turn(const oct_turn_args *a)
{
    return oct_turn8_x86(a, oct_int8_codes_at(a->d));
}

const oct_page_kernels oct_page_int8_avx2 = {
    .seal = seal, .decode = decode, .turn = turn,
    .scores = {scores_f32, scores_q8, scores_q8x2},
    .mix = {mix_f32, mix_q8, mix_q8x2},
};
