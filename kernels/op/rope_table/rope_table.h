/* rope_table.h: cos and sin of position * frequency, the same bits on every machine.
 *
 * No libm: the angle (one float64 product) is reduced by pi/2 in three fused steps and a Taylor
 * polynomial is summed by Horner, all in float64; one rounding to float32 ends it. Every column is
 * this very code, compiled for its ISA.
 *
 * Reduction: PIO2_1 is the float64 nearest to pi/2, so angle - n * PIO2_1 is a multiple of 2^-53
 * below 1 and comes out of the first fma exact; the second rounds once, and what PIO2_3 leaves is
 * below n * 2^-160. So for |angle| < 2^31 the reduced angle is good to 2^-53 (1.2e-16 rad), the
 * polynomial on |r| <= pi/4 to 4e-17 and the value before rounding to 3e-16 relative: the float32
 * is within 0.500001 ulp of the true one. */
#ifndef OCT_ROPE_TABLE_H
#define OCT_ROPE_TABLE_H

#include <assert.h>
#include <math.h>

#include "kernels/kernels.h"

static const double PIO2_1 = 0x1.921fb54442d18p+0, PIO2_2 = 0x1.1a62633145c07p-54,
                    PIO2_3 = -0x1.f1976b7ed8fbcp-110, TWO_OVER_PI = 0x1.45f306dc9c883p-1;

static inline double rope_sin(double r) /* |r| <= pi/4; truncation below r^19 / 19! */
{
    const double z = r * r;
    double p = 1.0 / 355687428096000.0; /* 1/17! */
    p = fma(p, z, -1.0 / 1307674368000.0);
    p = fma(p, z, 1.0 / 6227020800.0);
    p = fma(p, z, -1.0 / 39916800.0);
    p = fma(p, z, 1.0 / 362880.0);
    p = fma(p, z, -1.0 / 5040.0);
    p = fma(p, z, 1.0 / 120.0);
    p = fma(p, z, -1.0 / 6.0);
    return fma(p * z, r, r);
}

static inline double rope_cos(double r) /* truncation below r^18 / 18! */
{
    const double z = r * r;
    double p = 1.0 / 20922789888000.0; /* 1/16! */
    p = fma(p, z, -1.0 / 87178291200.0);
    p = fma(p, z, 1.0 / 479001600.0);
    p = fma(p, z, -1.0 / 3628800.0);
    p = fma(p, z, 1.0 / 40320.0);
    p = fma(p, z, -1.0 / 720.0);
    p = fma(p, z, 1.0 / 24.0);
    p = fma(p, z, -0.5);
    return fma(p, z, 1.0);
}

static inline void rope_angle(double angle, float mscale, float cs[2])
{
    assert(fabs(angle) < 0x1p31);
    const double n = rint(angle * TWO_OVER_PI);
    double r = fma(-n, PIO2_1, angle);
    r = fma(-n, PIO2_2, r);
    r = fma(-n, PIO2_3, r);
    const double s = rope_sin(r), c = rope_cos(r);
    const int64_t quarter = (int64_t)n;
    const double cos_abs = quarter & 1 ? s : c, sin_abs = quarter & 1 ? c : s;
    /* Quarters 0..3: cos is c, -s, -c, s; sin is s, c, -s, -c. */
    cs[0] = (float)((quarter + 1) & 2 ? -cos_abs : cos_abs) * mscale;
    cs[1] = (float)(quarter & 2 ? -sin_abs : sin_abs) * mscale;
}

static inline void rope_table_rows(const oct_rope_table_args *a, size_t lo, size_t hi)
{
    assert(a->d > 0 && a->d % 2 == 0);
    for (size_t row = lo; row < hi; row++)
        for (int i = 0; i < a->d / 2; i++)
            rope_angle((double)a->pos[row] * a->freq[i], a->mscale,
                       a->cs + row * (size_t)a->d + 2 * i);
}

#endif
