/* topk: the largest logits of each row, in order: descending, equals by index, NaN last.
 *
 * The outputs serve as a heap with the worst kept element on top. Few logits beat it once it holds
 * good ones, so the scan is one comparison per logit; the heap is then sorted in place. */
#include <assert.h>

#include "kernels/kernels.h"
#include "kernels/num.h"

/* Greater, where NaN is below everything. */
static bool above(float x, float y)
{
    return x > y || (x == x && y != y);
}

static bool worse(const int32_t *index, const float *value, int i, int j)
{
    if (above(value[j], value[i])) return true;
    return !above(value[i], value[j]) && index[i] > index[j];
}

static void swap(int32_t *index, float *value, int i, int j)
{
    const int32_t k = index[i];
    const float v = value[i];
    index[i] = index[j], value[i] = value[j];
    index[j] = k, value[j] = v;
}

static void sift(int32_t *index, float *value, int i, int size)
{
    for (int child; (child = 2 * i + 1) < size; i = child) {
        if (child + 1 < size && worse(index, value, child + 1, child)) child++;
        if (!worse(index, value, child, i)) return;
        swap(index, value, i, child);
    }
}

static void select_row(const float *x, int n, int count, int32_t *index, float *value)
{
    for (int i = 0; i < count; i++) index[i] = i, value[i] = x[i];
    for (int i = count / 2 - 1; i >= 0; i--) sift(index, value, i, count);
    for (int i = count; i < n; i++) {
        if (!above(x[i], value[0])) continue; /* an equal with a higher index loses */
        index[0] = i, value[0] = x[i];
        sift(index, value, 0, count);
    }
    for (int end = count - 1; end > 0; end--) { /* the worst goes to the end */
        swap(index, value, 0, end);
        sift(index, value, 0, end);
    }
}

oct_kstatus oct_op_topk_scalar(const oct_topk_args *a, size_t lo, size_t hi)
{
    assert(a->count >= 1 && a->count <= a->n);
    for (size_t row = lo; row < hi; row++) {
        const size_t at = row * (size_t)a->count;
        select_row(a->x + row * a->ldx, a->n, a->count, a->index + at, a->value + at);
    }
    return OCT_K_OK;
}
