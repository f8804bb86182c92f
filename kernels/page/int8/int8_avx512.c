/* int8 page, AVX-512 column. The order of float steps is that of the scalar column; the
 * templates are page/codes_avx512.h (seal, decode) and page/dot_avx512.h (q8, q8x2). */
#include "kernels/page/dot_avx512.h"
#include "kernels/page/float_avx512.h"
#include "kernels/page/int8/int8.h"
#include "kernels/page/turn_avx512.h"

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

static inline void load4(__m512 x[4], const char *at, size_t step)
{
    (void)step;
    __m512 codes[8];
    oct_codes_of(OCT_CODE_INT8, _mm512_load_si512(at), codes);
    for (int k = 0; k < 4; k++) x[k] = codes[k];
}

static bool many(int nq, int d)
{
    return nq > OCT_FLOAT_ROWS || oct_page_group(d) < d;
}

static oct_kstatus scores_f32(const oct_scores_args *a, void *lane)
{
    if (many(a->nq, a->d)) return oct_page_scaled_scores(a, decode_codes, lane);
    oct_float_scores(a, (oct_float_format){1, true, load4});
    return OCT_K_OK;
}

static oct_kstatus mix_f32(const oct_mix_args *a, void *lane)
{
    if (many(a->nq, a->d)) return oct_page_scaled_mix(a, decode_codes, lane);
    oct_float_mix(a, (oct_float_format){1, true, load4});
    return OCT_K_OK;
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
    return oct_turn8_avx512(a, oct_int8_codes_at(a->d));
}

const oct_page_kernels oct_page_int8_avx512 = {
    .seal = seal, .decode = decode, .turn = turn,
    .scores = {scores_f32, scores_q8, scores_q8x2},
    .mix = {mix_f32, mix_q8, mix_q8x2},
};
