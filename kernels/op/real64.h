/* real64.h: exp and log in float64 for lse and kl, without libm, so that every machine gives the
 * same bits. Taylor and atanh series, summed by Horner with fma; SIMD columns repeat oct_exp64
 * operation by operation (simd/v16_*.h), oct_log64 is called once a row and stays scalar. */
#ifndef OCT_REAL64_H
#define OCT_REAL64_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define OCT_EXP64_MIN (-708.0)
#define OCT_LOG2E 0x1.71547652b82fep+0
/* ln 2 in two parts; the first ends in 16 zero bits, so n * LN2_HI is exact for |n| < 2^16. */
#define OCT_LN2_HI 0x1.62e42fefap-1
#define OCT_LN2_LO 0x1.cf79abc9e3b3ap-40
#define OCT_EXP64_TERMS 13
static const double oct_exp64_term[OCT_EXP64_TERMS + 1] = {
    1.0,
    1.0,
    1.0 / 2.0,
    1.0 / 6.0,
    1.0 / 24.0,
    1.0 / 120.0,
    1.0 / 720.0,
    1.0 / 5040.0,
    1.0 / 40320.0,
    1.0 / 362880.0,
    1.0 / 3628800.0,
    1.0 / 39916800.0,
    1.0 / 479001600.0,
    1.0 / 6227020800.0,
};

static inline double oct_double(uint64_t u)
{
    double x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* exp(x) for x <= 0; 0 below -708; NaN stays NaN. Relative error below 4e-16: r is good to
 * 2^-54 + 2^-60, the series leaves r^14/14! < 5e-18, Horner's last steps round at about 1. */
static inline double oct_exp64(double x)
{
    if (x < OCT_EXP64_MIN) return 0.0;
    if (x != x) return x;
    const double n = rint(x * OCT_LOG2E);
    double r = fma(-n, OCT_LN2_HI, x);
    r = fma(-n, OCT_LN2_LO, r);
    double p = oct_exp64_term[OCT_EXP64_TERMS];
    for (int i = OCT_EXP64_TERMS - 1; i >= 0; i--) p = fma(p, r, oct_exp64_term[i]);
    return p * oct_double((uint64_t)((int64_t)n + 1023) << 52);
}

/* log(x) for a positive normal x: x = 2^e m with m in [sqrt(1/2), sqrt(2)), s = (m-1)/(m+1),
 * log m = 2 atanh(s) = 2 (s + s^3/3 + ...), |s| < 0.1716. Relative error below 1e-15. */
static inline double oct_log64(double x)
{
    uint64_t u;
    memcpy(&u, &x, sizeof u);
    int e = (int)(u >> 52) - 1023;
    double m = oct_double((u & 0xFFFFFFFFFFFFFu) | (uint64_t)1023 << 52);
    if (m > 0x1.6a09e667f3bcdp+0) {
        m *= 0.5;
        e++;
    }
    const double f = m - 1.0, s = f / (m + 1.0), z = s * s;
    double p = 1.0 / 21.0;
    for (int k = 19; k >= 3; k -= 2) p = fma(p, z, 1.0 / k);
    /* f - s f = 2 s, with the larger part exact: what is rounded is the small rest. */
    const double rest = fma(2.0 * s * z, p, (double)e * OCT_LN2_LO) - s * f;
    return (double)e * OCT_LN2_HI + (f + rest);
}

/* The shape of oct_reduce_tree (num.h), in float64. */
static inline double oct_reduce_tree64(double acc[16])
{
    for (int h = 8; h >= 1; h /= 2)
        for (int j = 0; j < h; j++) acc[j] += acc[j + h];
    return acc[0];
}

#endif
