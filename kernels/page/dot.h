/* dot.h: the forms q8 and q8x2 in plain C, for formats with integer codes (docs/formats.md, A4).
 *
 * Here is their meaning, one query and one token or channel at a time; the SIMD columns have
 * dot_avx2.h, dot_avx512.h and dot_amx.h, of which the last two share dot_fold_avx512.h. A format
 * gives its codes by a function, and its scales and zeros.
 *   scores  per group g ascending: I = sum Q*code; acc = fma(I, s, acc), then with zeros
 *           acc = fma(sum Q, z, acc); score = acc * sq.
 *   mix     per group: w_t = p_t * s_t, m = max |w_t|, P_t = rne(w_t * (N / m)), sp = m / N with
 *           N = 127 or 16256; I = sum P * (code - centre); o[c] = fma(I, sp, o[c]); then with zeros
 *           zc_t = fma(centre, s_t, z_t), zacc = reduce(p_t, zc_t), o[c] += zacc.
 * Tokens at and past visible[i] take no part: neither their p nor their scale is used. Scales
 * have any sign (edited pages), so P is in -N..N; a w_t that is not finite makes the group NaN. */
#ifndef OCT_PAGE_DOT_H
#define OCT_PAGE_DOT_H

#include <assert.h>

#include "kernels/page/page.h"

/* Below this m counts as 0: N / m must stay finite. */
#define OCT_DOT_TINY 0x1p-100f

typedef struct {
    int (*code)(const void *block, oct_role role, int d, int t, int c); /* as stored; K uses this */
    int centre;             /* mix takes code - centre */
    const uint16_t *scales; /* [d/G][64] bf16 */
    const uint16_t *zeros;  /* the same shape; NULL: zero is 0 and centre adds nothing */
} oct_dot_format;

static inline int oct_dot_steps(oct_form form)
{
    return form == OCT_FORM_Q8X2 ? 16256 : 127;
}

/* Sum of one group's query codes. A width that is no multiple of 32 is one group: the whole row. */
static inline int32_t oct_dot_query_sum(const oct_rows *q, int i, int g, int group)
{
    const int parts = q->kp / OCT_GROUP;
    const int lo = group % OCT_GROUP ? 0 : g * (group / OCT_GROUP);
    const int hi = group % OCT_GROUP ? parts : lo + group / OCT_GROUP;
    int32_t sum = 0;
    for (int j = lo; j < hi; j++) sum += q->sum[(size_t)i * (size_t)parts + (size_t)j];
    return sum;
}

static inline float oct_dot_score(const oct_scores_args *a, const oct_dot_format *f, int i, int t)
{
    const int group = oct_page_group(a->d);
    const int8_t *hi = a->q->hi + (size_t)i * (size_t)a->q->kp;
    const int8_t *lo = a->form == OCT_FORM_Q8X2 ? a->q->lo + (size_t)i * (size_t)a->q->kp : NULL;
    float acc = 0.0f;
    for (int g = 0; g < a->d / group; g++) {
        int32_t dot = 0;
        for (int c = g * group; c < (g + 1) * group; c++)
            dot += (lo ? 128 * hi[c] + lo[c] : hi[c]) * f->code(a->block, OCT_ROLE_K, a->d, t, c);
        const size_t at = (size_t)g * OCT_PAGE_TOKENS + (size_t)t;
        acc = fmaf((float)dot, oct_bf16_to_f32(f->scales[at]), acc);
        if (f->zeros)
            acc = fmaf((float)oct_dot_query_sum(a->q, i, g, group), oct_bf16_to_f32(f->zeros[at]),
                       acc);
    }
    return acc * a->q->scale[i];
}

static inline oct_kstatus oct_dot_scores(const oct_scores_args *a, const oct_dot_format *f)
{
    assert(a->q->act == (a->form == OCT_FORM_Q8X2 ? OCT_A8X2 : OCT_A8) && a->q->k == a->d);
    for (int i = 0; i < a->nq; i++)
        for (int t = 0; t < OCT_PAGE_TOKENS; t++)
            a->s[(size_t)i * a->lds + (size_t)t] =
                t < a->visible[i] ? oct_dot_score(a, f, i, t) : -INFINITY;
    return OCT_K_OK;
}

/* Codes of the weights w_t = p_t * s_t of one query and group; returns their scale sp. A NaN or
 * infinite weight gives codes 0 and sp NaN, so that it reaches the output. */
static inline float oct_dot_weights(const float *p, const uint16_t *scales, int visible, int steps,
                                    int32_t codes[OCT_PAGE_TOKENS])
{
    float w[OCT_PAGE_TOKENS];
    uint32_t top = 0; /* bits of magnitudes order as the magnitudes do, NaN above all */
    for (int t = 0; t < OCT_PAGE_TOKENS; t++) {
        w[t] = t < visible ? p[t] * oct_bf16_to_f32(scales[t]) : 0.0f;
        const uint32_t u = oct_bits(w[t]) & 0x7FFFFFFFu;
        top = u > top ? u : top;
        codes[t] = 0;
    }
    const float most = oct_float(top);
    if (!oct_finite_bits(top)) return NAN;
    if (most < OCT_DOT_TINY) return 0.0f;
    const float ratio = (float)steps / most;
    for (int t = 0; t < visible; t++) codes[t] = (int32_t)rintf(w[t] * ratio);
    return most / (float)steps;
}

static inline float oct_dot_zero(const float *p, const uint16_t *scales, const uint16_t *zeros,
                                 int visible, int centre)
{
    float acc[16] = {0};
    for (int t = 0; t < visible; t++) {
        const float zc = fmaf((float)centre, oct_bf16_to_f32(scales[t]), oct_bf16_to_f32(zeros[t]));
        acc[t % 16] = fmaf(p[t], zc, acc[t % 16]);
    }
    return oct_reduce_tree(acc);
}

static inline void oct_dot_mix_group(const oct_mix_args *a, const oct_dot_format *f, int i, int g)
{
    const int group = oct_page_group(a->d), visible = a->visible[i];
    const uint16_t *scales = f->scales + g * OCT_PAGE_TOKENS;
    const float *p = a->p + (size_t)i * a->ldp;
    float *o = a->o + (size_t)i * a->ldo;
    int32_t codes[OCT_PAGE_TOKENS];
    const float sp = oct_dot_weights(p, scales, visible, oct_dot_steps(a->form), codes);
    for (int c = g * group; c < (g + 1) * group; c++) {
        int32_t dot = 0;
        for (int t = 0; t < visible; t++)
            dot += codes[t] * (f->code(a->block, OCT_ROLE_V, a->d, t, c) - f->centre);
        o[c] = fmaf((float)dot, sp, o[c]);
    }
    if (!f->zeros) return;
    const float zacc = oct_dot_zero(p, scales, f->zeros + g * OCT_PAGE_TOKENS, visible, f->centre);
    for (int c = g * group; c < (g + 1) * group; c++) o[c] += zacc;
}

static inline oct_kstatus oct_dot_mix(const oct_mix_args *a, const oct_dot_format *f)
{
    assert(a->form == OCT_FORM_Q8 || a->form == OCT_FORM_Q8X2);
    for (int i = 0; i < a->nq; i++)
        for (int g = 0; g < a->d / oct_page_group(a->d); g++) oct_dot_mix_group(a, f, i, g);
    return OCT_K_OK;
}

#endif
