/* f16 page, AVX-512 column. */
#include "kernels/page/f16/f16.h"
#include "kernels/page/float_avx512.h"
#include "kernels/page/turn_x86.h"
#include "kernels/page/units_x86.h"

static inline __m512 widen(const void *x)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)x));
}

static inline void widen16(float *out, const void *x)
{
    _mm512_storeu_ps(out, widen(x));
}

static inline void load4(__m512 x[4], const char *at, size_t step)
{
    for (size_t k = 0; k < 4; k++) x[k] = widen(at + k * step);
}

static oct_kstatus seal(const oct_seal_args *a)
{
    return oct_units_seal(OCT_F16, a);
}

static oct_kstatus decode(const oct_decode_args *a)
{
    return oct_units_decode16(a, 2, widen16);
}

static oct_kstatus scores(const oct_scores_args *a, void *lane)
{
    if (a->nq > OCT_FLOAT_ROWS) return oct_page_generic_scores(a, lane);
    oct_float_scores(a, (oct_float_format){2, false, load4});
    return OCT_K_OK;
}

static oct_kstatus mix(const oct_mix_args *a, void *lane)
{
    if (a->nq > OCT_FLOAT_ROWS) return oct_page_generic_mix(a, lane);
    oct_float_mix(a, (oct_float_format){2, false, load4});
    return OCT_K_OK;
}

static oct_kstatus turn(const oct_turn_args *a)
{
    return oct_turn16_x86(a);
}

const oct_page_kernels oct_page_f16_avx512 = {
    .seal = seal, .decode = decode, .turn = turn,
    .scores = {[OCT_FORM_F32] = scores},
    .mix = {[OCT_FORM_F32] = mix},
};
