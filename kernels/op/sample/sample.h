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
 * of mass over the top 11 bits of the key, then two more levels among the elements of the bucket
 * found, then the equals by id: linear in n, whatever the distribution. */
#ifndef OCT_SAMPLE_H
#define OCT_SAMPLE_H

#include <assert.h>

#include "kernels/kernels.h"
#include "kernels/num.h"

typedef struct {
    uint32_t *key; /* [n] ascending with the logit; 0 for NaN */
    float *w;      /* [n] weights; an element that is cut gets 0 */
    int32_t *list; /* [n] scratch */
    int n;
} sample_row;

/* The caller's work area, 12 of its 16 bytes per logit. */
static inline sample_row sample_row_at(void *work, int n)
{
    uint32_t *key = work;
    float *w = (float *)(key + n);
    return (sample_row){key, w, (int32_t *)(w + n), n};
}

typedef struct {
    uint32_t key;
    int id;
} sample_place; /* an element, by its place in order */

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

/* Walks buckets downwards from the highest to the one that holds mass t; *before grows by those
 * above it. */
static inline uint32_t descend(const uint64_t *sum, uint32_t buckets, uint64_t t, uint64_t *before)
{
    uint32_t b = buckets - 1;
    while (b > 0 && *before + sum[b] <= t) *before += sum[b--];
    return b;
}

/* Fills r->list with the elements of the first-level bucket (11 bits of key) that holds mass t. */
static inline int shortlist(const sample_row *r, bool count, uint64_t t, uint64_t *before)
{
    uint64_t sum[2048] = {0};
    int size = 0;
    for (int i = 0; i < r->n; i++) sum[r->key[i] >> 21] += mass_at(r, i, count);
    const uint32_t b = descend(sum, 2048, t, before);
    for (int i = 0; i < r->n; i++) {
        r->list[size] = i; /* always written, kept or not: no branch to mispredict */
        size += r->key[i] >> 21 == b;
    }
    return size;
}

/* The same among the listed, by bits [low, low + 11); keeps the elements of the bucket found. */
static inline int narrow(const sample_row *r, bool count, uint64_t t, int size, int low,
                         uint64_t *before)
{
    uint64_t sum[2048] = {0};
    int kept = 0;
    for (int k = 0; k < size; k++)
        sum[r->key[r->list[k]] >> low & 2047] += mass_at(r, r->list[k], count);
    const uint32_t b = descend(sum, 2048, t, before);
    for (int k = 0; k < size; k++)
        if ((r->key[r->list[k]] >> low & 2047) == b) r->list[kept++] = r->list[k];
    return kept;
}

/* The first element in order whose running sum of mass (of elements, if count) exceeds t. The total
 * must exceed t. */
static inline sample_place find_mass(const sample_row *r, bool count, uint64_t t)
{
    uint64_t before = 0;
    int size = shortlist(r, count, t, &before);
    size = narrow(r, count, t, size, 10, &before);
    size = narrow(r, count, t, size, 0, &before); /* bit 10 is the same in all of them */
    for (int k = 0; k < size; k++) {
        const int i = r->list[k];
        before += mass_at(r, i, count);
        if (before > t) return (sample_place){r->key[i], i};
    }
    assert(false); /* the mass of the row must exceed t */
    return (sample_place){0, -1};
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
    assert(r->n < 1 << 19); /* or the masses may overflow */
    assert(u >= 0.0 && u < 1.0 && a->top_k >= 0 && a->top_p > 0.0f && a->min_p <= 1.0f);
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
