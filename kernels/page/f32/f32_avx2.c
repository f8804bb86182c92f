/* f32 page, AVX2 column. */
#include "kernels/page/f32/f32.h"
#include "kernels/page/units_x86.h"

static inline void widen16(float *out, const void *x)
{
    for (int i = 0; i < 16; i += 8)
        _mm256_storeu_ps(out + i, _mm256_loadu_ps((const float *)x + i));
}

static oct_kstatus seal(const oct_seal_args *a)
{
    return oct_units_seal(OCT_F32, a);
}

static oct_kstatus decode(const oct_decode_args *a)
{
    return oct_units_decode16(a, 4, widen16);
}

const oct_page_kernels oct_page_f32_avx2 = {.seal = seal, .decode = decode};
