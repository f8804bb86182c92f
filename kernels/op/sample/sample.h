/* sample.h: one token from a row of weights, exactly and without sorting the row.
 *
 * The definition, shared by all columns and by the NumPy oracle (order: logit descending, equal
 * logits by id; -0 equals +0):
 *   z = x == max ? 0 : (x - max) * (1 / T)   float32, each operation rounded
 *   w = oct_exp(z), 0 for NaN                float32 in [0, 1]
 *   W = trunc(w * 2^44)                      integers: sums are exact, in any order
 *   top_k   keeps the first top_k in order
 *   top_p   keeps the first j in order whose sum of W reaches trunc(top_p * (double)(sum of kept))
 *   min_p   keeps those with w >= min_p
 *   token   the first in order whose running sum of W exceeds trunc(u * (double)(sum of kept))
 * A weight below 2^-44 of the largest is never drawn: 5e-14 of probability.
 *
 * `find_mass` answers "first in order whose running sum exceeds t" by a radix descent: a histogram
 * of mass over the top 11 bits of the key, then 11 more inside the bucket found, then 10, then the
 * equals by id. Four scans of the row, whatever its distribution. */
#ifndef OCT_SAMPLE_H
#define OCT_SAMPLE_H

#include <assert.h>

#include "kernels/kernels.h"
#include "kernels/num.h"

typedef struct {
    const uint32_t *key; /* [n] ascending with the logit; 0 for NaN */
    float *w;            /* [n] weights; an element that is cut gets 0 */
    int n;
} sample_row;

typedef struct {
    uint32_t key;
    int id;         /* the element found */
    uint64_t total; /* the running sum up to and including it */
} sample_place;

static inline uint32_t sample_key(float x)
{
    if (x != x) return 0;
    const uint32_t u = oct_bits(x + 0.0f); /* -0 becomes +0 */
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

static inline uint64_t sample_mass(float w)
{
    return (uint64_t)(int64_t)((double)w * 0x1p44);
}

static inline uint64_t mass_at(const sample_row *r, int i, bool count)
{
    return count ? 1 : sample_mass(r->w[i]);
}

/* One level: among keys with (key ^ prefix) >> high == 0, the bucket of bits [low, high) that holds
 * mass t. Adds what lies before it to *before and returns the longer prefix. */
static inline uint32_t narrow(const sample_row *r, bool count, uint64_t t, uint32_t prefix, int high,
                              int low, uint64_t *before)
{
    uint64_t sum[2048] = {0};
    const uint32_t mask = (1u << (high - low)) - 1;
    for (int i = 0; i < r->n; i++)
        if ((uint64_t)(r->key[i] ^ prefix) >> high == 0)
            sum[r->key[i] >> low & mask] += mass_at(r, i, count);
    uint32_t b = mask;
    while (b > 0 && *before + sum[b] <= t) *before += sum[b--];
    return prefix | b << low;
}

/* The first element in order whose running sum of mass (of elements, if count) exceeds t. The total
 * must exceed t. */
static inline sample_place find_mass(const sample_row *r, bool count, uint64_t t)
{
    uint64_t before = 0;
    uint32_t key = narrow(r, count, t, 0, 32, 21, &before);
    key = narrow(r, count, t, key, 21, 10, &before);
    key = narrow(r, count, t, key, 10, 0, &before);
    for (int i = 0; i < r->n; i++) {
        if (r->key[i] != key) continue;
        before += mass_at(r, i, count);
        if (before > t) return (sample_place){key, i, before};
    }
    assert(!"the mass of the row exceeds t");
    return (sample_place){key, -1, before};
}

static inline void cut_after(const sample_row *r, sample_place last)
{
    for (int i = 0; i < r->n; i++)
        if (r->key[i] < last.key || (r->key[i] == last.key && i > last.id)) r->w[i] = 0.0f;
}

static inline uint64_t total_mass(const sample_row *r)
{
    uint64_t sum = 0;
    for (int i = 0; i < r->n; i++) sum += sample_mass(r->w[i]);
    return sum;
}

/* The row has at least one weight of 1. */
static inline int sample_draw(const sample_row *r, const oct_sample_args *a, double u)
{
    assert(u >= 0.0 && u < 1.0 && a->top_p > 0.0f && a->top_k >= 0 && a->min_p <= 1.0f);
    if (a->top_k > 0 && a->top_k < r->n)
        cut_after(r, find_mass(r, true, (uint64_t)a->top_k - 1));
    if (a->top_p < 1.0f) {
        const uint64_t reach = (uint64_t)((double)a->top_p * (double)total_mass(r));
        cut_after(r, find_mass(r, false, reach > 0 ? reach - 1 : 0));
    }
    if (a->min_p > 0.0f)
        for (int i = 0; i < r->n; i++)
            if (r->w[i] < a->min_p) r->w[i] = 0.0f;
    const uint64_t total = total_mass(r);
    const uint64_t t = (uint64_t)(u * (double)total);
    return find_mass(r, false, t < total ? t : total - 1).id;
}

#endif
