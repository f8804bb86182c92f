/* num.h: the scalar arithmetic that every column must reproduce.
 *
 * Conversions between stored types and float32 (round to nearest even), the one `exp`, and the one
 * shape of a float sum. Static inline so that no object compiled for a wider ISA can end up serving
 * a narrower one. A multiplication followed by an addition is fused only where fmaf is written. */
#ifndef OCT_NUM_H
#define OCT_NUM_H

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline uint32_t oct_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline float oct_float(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static inline float oct_bf16_to_f32(uint16_t b)
{
    return oct_float((uint32_t)b << 16);
}

static inline uint16_t oct_f32_to_bf16(float x)
{
    const uint32_t u = oct_bits(x);
    if ((u & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)((u >> 16) | 0x40); /* keep it a NaN */
    return (uint16_t)((u + 0x7FFF + ((u >> 16) & 1)) >> 16);
}

/* Towards +inf, for x >= 0: a scale that never lets a code exceed its range. */
static inline uint16_t oct_bf16_up(float x)
{
    return (uint16_t)((oct_bits(x) + 0xFFFF) >> 16);
}

static inline float oct_f16_to_f32(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7FFF;
    if (rest >= 0x7C00) return oct_float(sign | 0x7F800000u | (rest & 0x3FF) << 13);
    if (rest >= 0x400) return oct_float(sign | (rest + 0x1C000u) << 13);
    const float x = (float)rest * 0x1p-24f; /* subnormal or zero: exact */
    return sign ? -x : x;
}

static inline uint16_t oct_f32_to_f16(float x)
{
    const uint32_t u = oct_bits(x), sign = u >> 16 & 0x8000, rest = u & 0x7FFFFFFFu;
    if (rest > 0x7F800000u) return (uint16_t)(sign | 0x7E00 | (rest >> 13 & 0x3FF));
    if (rest >= 0x477FF000u) return (uint16_t)(sign | 0x7C00); /* rounds to 2^16 or more */
    if (rest < 0x38800000u) /* subnormal: let float addition at 2^-24 granularity round */
        return (uint16_t)(sign | (oct_bits(oct_float(rest) + 0.5f) - 0x3F000000u));
    return (uint16_t)(sign | (rest - 0x38000000u + 0xFFF + (rest >> 13 & 1)) >> 13);
}

/* e4m3fn: bias 7, largest 448, subnormal step 2^-9, 0x7F and 0xFF are NaN, no infinity. */
static inline float oct_e4m3_to_f32(uint8_t e)
{
    const uint32_t sign = (uint32_t)(e & 0x80) << 24, rest = e & 0x7F;
    if (rest == 0x7F) return oct_float(sign | 0x7FC00000u);
    if (rest >= 8) return oct_float(sign | ((rest << 20) + (120u << 23)));
    const float x = (float)rest * 0x1p-9f;
    return sign ? -x : x;
}

/* |x| <= 448 after the caller's clamp; NaN gives 0x7F with the sign. */
static inline uint8_t oct_f32_to_e4m3(float x)
{
    const uint32_t u = oct_bits(x), sign = u >> 24 & 0x80, rest = u & 0x7FFFFFFFu;
    if (rest > 0x7F800000u) return (uint8_t)(sign | 0x7F);
    if (rest < 0x3C800000u) /* below 2^-6: subnormal, step 2^-9 */
        return (uint8_t)(sign | (oct_bits(oct_float(rest) + 0x1p14f) - 0x46800000u));
    return (uint8_t)(sign | ((rest - (120u << 23) + 0x7FFFF + (rest >> 20 & 1)) >> 20));
}

static inline int oct_finite_bits(uint32_t u)
{
    return (u & 0x7F800000u) != 0x7F800000u;
}

/* exp by 2^n * p(r), r = x - n ln 2 in two steps, p the Cephes polynomial of degree 7. Error below
 * 1 ulp and a bit; what counts is that every column does these very operations in this order.
 * Below -87.3365 it is 0, above 88.3762 +inf; NaN stays NaN. */
#define OCT_EXP_MIN (-87.3365478515625f)
#define OCT_EXP_MAX 88.3762588500976562f
static inline float oct_exp(float x)
{
    if (x < OCT_EXP_MIN) return 0.0f;
    if (x > OCT_EXP_MAX) return INFINITY;
    if (x != x) return x;
    const float n = rintf(x * 1.44269504088896341f);
    float r = fmaf(n, -0.693359375f, x);
    r = fmaf(n, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    p = fmaf(p, r, 1.3981999507e-3f);
    p = fmaf(p, r, 8.3334519073e-3f);
    p = fmaf(p, r, 4.1665795894e-2f);
    p = fmaf(p, r, 1.6666665459e-1f);
    p = fmaf(p, r, 5.0000001201e-1f);
    const float y = fmaf(p, r * r, r) + 1.0f;
    return y * oct_float((uint32_t)((int32_t)n + 127) << 23);
}

/* The one shape of a float sum: 16 accumulators from +0, element i goes to accumulator i % 16 in
 * ascending order, then acc[j] += acc[j + 8], + 4, + 2, + 1. One zmm, two ymm, or this array. */
static inline float oct_reduce_tree(float acc[16])
{
    for (int h = 8; h >= 1; h /= 2)
        for (int j = 0; j < h; j++) acc[j] += acc[j + h];
    return acc[0];
}

#endif
