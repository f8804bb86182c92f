/* int4 page, AVX2 column. The order of float steps is that of the scalar column; the templates
 * are page/codes_avx2.h (seal, decode) and page/dot_avx2.h (q8, q8x2). */
#include "kernels/page/dot_avx2.h"
#include "kernels/page/int4/int4.h"
#include "kernels/page/turn_x86.h"

static oct_kstatus seal(const oct_seal_args *a)
{
    return oct_seal_ranged(a, 15.0f, oct_encode16_int4);
}

static oct_kstatus decode(const oct_decode_args *a)
{
    return oct_expand(a, OCT_CODE_INT4, true);
}

static oct_kstatus scores_q8(const oct_scores_args *a, void *lane)
{
    (void)lane;
    return oct_scores_dot(a, 4, 1);
}

static oct_kstatus mix_q8(const oct_mix_args *a, void *lane)
{
    (void)lane;
    return oct_mix_dot(a, 4, 1);
}

static oct_kstatus scores_q8x2(const oct_scores_args *a, void *lane)
{
    (void)lane;
    return oct_scores_dot(a, 4, 2);
}

static oct_kstatus mix_q8x2(const oct_mix_args *a, void *lane)
{
    (void)lane;
    return oct_mix_dot(a, 4, 2);
}

static oct_kstatus turn(const oct_turn_args *a)
{
    return oct_turn4_x86(a, oct_int4_codes_at(a->d));
}

const oct_page_kernels oct_page_int4_avx2 = {
    .seal = seal, .decode = decode, .turn = turn,
    .scores = {NULL, scores_q8, scores_q8x2},
    .mix = {NULL, mix_q8, mix_q8x2},
};
