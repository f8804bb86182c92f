/* bf16 page, AVX-512 column. */
#include "kernels/page/bf16/bf16.h"
#include "kernels/page/units_x86.h"

static inline void widen16(float *out, const void *x)
{
    const __m512i v = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x));
    _mm512_storeu_ps(out, _mm512_castsi512_ps(_mm512_slli_epi32(v, 16)));
}

static oct_kstatus seal(const oct_seal_args *a)
{
    return oct_units_seal(OCT_BF16, a);
}

static oct_kstatus decode(const oct_decode_args *a)
{
    return oct_units_decode16(a, 2, widen16);
}

const oct_page_kernels oct_page_bf16_avx512 = {.seal = seal, .decode = decode};
