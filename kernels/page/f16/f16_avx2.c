/* f16 page, AVX2 column. */
#include "kernels/page/f16/f16.h"
#include "kernels/page/turn_x86.h"
#include "kernels/page/units_x86.h"

static inline void widen16(float *out, const void *x)
{
    for (int i = 0; i < 16; i += 8)
        _mm256_storeu_ps(
            out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)((const uint16_t *)x + i))));
}

static oct_kstatus seal(const oct_seal_args *a)
{
    return oct_units_seal(OCT_F16, a);
}

static oct_kstatus decode(const oct_decode_args *a)
{
    return oct_units_decode16(a, 2, widen16);
}

static oct_kstatus turn(const oct_turn_args *a)
{
    return oct_turn16_x86(a);
}

const oct_page_kernels oct_page_f16_avx2 = {.seal = seal, .decode = decode, .turn = turn};
