/* v16_rows.h: what several ops ask of a row of floats. Include after v16_avx2.h or v16_avx512.h. */
#ifndef OCT_V16_ROWS_H
#define OCT_V16_ROWS_H

/* The largest element that is not NaN, -inf if there is none; *nan tells whether one is. */
static inline float v16_row_max(const float *x, int n, bool *nan)
{
    const v16 low = v16_set1(-INFINITY);
    v16 m0 = low, m1 = low; /* two chains hide the latency of max */
    unsigned unordered = 0;
    int i = 0;
    for (; i + 32 <= n; i += 32) {
        const v16 a = v16_load(x + i), b = v16_load(x + i + 16);
        unordered |= v16m_bits(v16_isnan(a)) | v16m_bits(v16_isnan(b));
        m0 = v16_max(a, m0);
        m1 = v16_max(b, m1);
    }
    for (; i < n; i += 16) {
        const v16 a = v16_load_or(x + i, n - i, low);
        unordered |= v16m_bits(v16_isnan(a));
        m0 = v16_max(a, m0);
    }
    *nan = unordered != 0;
    return v16_largest(v16_max(m0, m1));
}

/* The first element equal to `value`, -1 if there is none. */
static inline int v16_row_find(const float *x, int n, float value)
{
    const v16 want = v16_set1(value);
    for (int i = 0; i < n; i += 16) {
        const unsigned hit = v16m_bits(v16_eq(v16_load_or(x + i, n - i, v16_set1(NAN)), want));
        if (hit) return i + __builtin_ctz(hit);
    }
    return -1;
}

#endif
