/* route: which experts a row goes to, and with what weight (DeepSeek-V3's noaux_tc, Qwen3-MoE,
 * Mixtral, gpt-oss). kernels.h has the definition.
 *
 * A few hundred logits a row take microseconds, where the experts' own weights take milliseconds:
 * there is no other column. */
#include <assert.h>

#include "kernels/kernels.h"
#include "kernels/num.h"

/* Scores from logits. */
static void score_row(oct_score score, const float *l, int n, float *s)
{
    float max = -INFINITY, acc[16] = {0};
    for (int e = 0; e < n; e++) max = l[e] > max ? l[e] : max;
    for (int e = 0; e < n; e++)
        s[e] = score == OCT_SCORE_SIGMOID   ? 1.0f / (1.0f + oct_exp(-l[e]))
               : score == OCT_SCORE_SOFTMAX ? oct_exp(l[e] - max)
                                            : l[e];
    if (score != OCT_SCORE_SOFTMAX) return;
    for (int e = 0; e < n; e++) acc[e % 16] += s[e];
    const float sum = oct_reduce_tree(acc);
    for (int e = 0; e < n; e++) s[e] /= sum;
}

/* The `count` largest of n candidates to id[0..count), descending, equals by index; a candidate of
 * a group that is not kept is none. */
static void choose(const float *c, const bool *kept, int per_group, int n, int count, int32_t *id)
{
    int have = 0;
    for (int e = 0; e < n; e++) {
        if (kept && !kept[e / per_group]) continue;
        if (have == count && !(c[e] > c[id[have - 1]])) continue;
        int at = have < count ? have++ : have - 1;
        for (; at > 0 && c[e] > c[id[at - 1]]; at--) id[at] = id[at - 1];
        id[at] = e;
    }
    assert(have == count);
}

/* kept[g]: the groups whose two best candidates have the largest sums; false: a sum is NaN. */
static bool keep_groups(const oct_route_args *a, const float *c, bool *kept)
{
    const int size = a->n / a->groups;
    float sum[OCT_MAX_EXPERTS];
    int32_t best[OCT_MAX_EXPERTS];
    for (int g = 0; g < a->groups; g++) {
        float first = -INFINITY, second = -INFINITY;
        for (int e = g * size; e < (g + 1) * size; e++) {
            if (c[e] > first) second = first, first = c[e];
            else if (c[e] > second) second = c[e];
        }
        sum[g] = size > 1 ? first + second : first;
        if (sum[g] != sum[g]) return false; /* of two infinities */
        kept[g] = false;
    }
    choose(sum, NULL, 1, a->groups, a->groups_kept, best);
    for (int i = 0; i < a->groups_kept; i++) kept[best[i]] = true;
    return true;
}

static void sort_ascending(int32_t *id, int n)
{
    for (int i = 1; i < n; i++) {
        const int32_t e = id[i];
        int at = i;
        for (; at > 0 && id[at - 1] > e; at--) id[at] = id[at - 1];
        id[at] = e;
    }
}

static void weigh(const oct_route_args *a, const float *s, const int32_t *id, float *gate)
{
    float max = -INFINITY, sum = 0.0f;
    for (int i = 0; i < a->top; i++) max = s[id[i]] > max ? s[id[i]] : max;
    for (int i = 0; i < a->top; i++) {
        gate[i] = a->score == OCT_SCORE_TOP ? oct_exp(s[id[i]] - max) : s[id[i]];
        sum += gate[i];
    }
    const bool renormed = a->renorm || a->score == OCT_SCORE_TOP;
    for (int i = 0; i < a->top; i++)
        gate[i] = (renormed ? gate[i] / (sum + 1e-20f) : gate[i]) * a->scale;
}

static bool route_row(const oct_route_args *a, const float *l, float *s, int32_t *id, float *gate)
{
    float c[OCT_MAX_EXPERTS];
    bool kept[OCT_MAX_EXPERTS], sound = true;
    score_row(a->score, l, a->n, s);
    for (int e = 0; e < a->n; e++) {
        c[e] = a->bias ? s[e] + a->bias[e] : s[e];
        sound = sound && c[e] == c[e];
    }
    if (sound && a->groups > 1) sound = keep_groups(a, c, kept);
    if (sound) {
        if (a->groups > 1 && a->outside_zero)
            for (int e = 0; e < a->n; e++) c[e] = kept[e / (a->n / a->groups)] ? c[e] : 0.0f;
        choose(c, a->groups > 1 && !a->outside_zero ? kept : NULL, a->n / a->groups, a->n, a->top, id);
        sort_ascending(id, a->top);
        weigh(a, s, id, gate);
        for (int i = 0; i < a->top; i++) sound = sound && oct_finite_bits(oct_bits(gate[i]));
    }
    for (int i = 0; i < a->top && !sound; i++) id[i] = i, gate[i] = NAN;
    return sound;
}

oct_kstatus oct_op_route_scalar(const oct_route_args *a, size_t lo, size_t hi)
{
    assert(a->n >= 1 && a->n <= OCT_MAX_EXPERTS && a->top >= 1 && a->groups >= 1);
    assert(a->n % a->groups == 0 && a->groups_kept >= 1 && a->groups_kept <= a->groups);
    assert(a->top <= a->n / a->groups * (a->outside_zero ? a->groups : a->groups_kept));
    oct_kstatus status = OCT_K_OK;
    for (size_t i = lo; i < hi; i++)
        if (!route_row(a, a->logits + i * a->ld, a->score_of + i * a->lds, a->id + i * (size_t)a->top,
                       a->gate + i * (size_t)a->top))
            status = OCT_K_NONFINITE;
    return status;
}
