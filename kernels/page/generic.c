/* generic.c: the default slots of a page format: decode into the lane, then the float op. */
#include "kernels/page/generic.h"

#include <assert.h>

#include "kernels/page/page.h"

_Static_assert((OCT_MAX_HEAD_DIM + 1) * OCT_PAGE_TOKENS * sizeof(float) <= OCT_LANE_BYTES,
               "a decoded page and one row of scales fit the lane");

static oct_kstatus scores(const oct_scores_args *a, oct_decode_fn decode, const float *scale,
                          float *image)
{
    assert(a->d <= OCT_MAX_HEAD_DIM && a->form == OCT_FORM_F32);
    const oct_decode_args page = {
        a->block, a->unit_stride, a->d, oct_visible_max(a->visible, a->nq), OCT_ROLE_K, image,
    };
    decode(&page);
    const oct_scores_f32_args args = {
        a->q->x, a->q->ldx, a->nq, a->d, image, scale, a->visible, a->s, a->lds,
        a->add,
    };
    return a->ops->scores_f32(&args, 0, (size_t)a->nq);
}

static oct_kstatus mix(const oct_mix_args *a, oct_decode_fn decode, const float *scale,
                       float *image)
{
    assert(a->d <= OCT_MAX_HEAD_DIM && a->form == OCT_FORM_F32);
    const oct_decode_args page = {
        a->block, a->unit_stride, a->d, oct_visible_max(a->visible, a->nq), OCT_ROLE_V, image,
    };
    decode(&page);
    const oct_mix_f32_args args = {
        a->p, a->ldp, a->nq, a->d, image, scale, a->visible, a->o, a->ldo,
    };
    return a->ops->mix_f32(&args, 0, (size_t)a->nq);
}

oct_kstatus oct_page_generic_scores(const oct_scores_args *a, void *lane)
{
    return scores(a, a->self->decode, NULL, lane);
}

oct_kstatus oct_page_generic_mix(const oct_mix_args *a, void *lane)
{
    return mix(a, a->self->decode, NULL, lane);
}

/* The 64 scales of a page with one group, widened, at the head of the lane. */
static float *widen_scales(const void *block, float *lane)
{
    for (int t = 0; t < OCT_PAGE_TOKENS; t++)
        lane[t] = oct_bf16_to_f32(((const uint16_t *)block)[t]);
    return lane + OCT_PAGE_TOKENS;
}

oct_kstatus oct_page_scaled_scores(const oct_scores_args *a, oct_decode_fn codes, void *lane)
{
    if (oct_page_group(a->d) < a->d) return oct_page_generic_scores(a, lane);
    return scores(a, codes, lane, widen_scales(a->block, lane));
}

oct_kstatus oct_page_scaled_mix(const oct_mix_args *a, oct_decode_fn codes, void *lane)
{
    if (oct_page_group(a->d) < a->d) return oct_page_generic_mix(a, lane);
    return mix(a, codes, lane, widen_scales(a->block, lane));
}

/* ---- turn ------------------------------------------------------------------------------------ */

typedef struct {
    size_t element;
    int shift; /* of a code in its byte */
} place;

/* Where element `logical` of a part's [rows][cols] is stored: see oct_part. */
static place place_of(const oct_part *p, int logical)
{
    const int n = p->ndim + (p->split > 1), split_at = p->split > 1 ? p->split_axis : -1;
    int full[5], at[5];
    place out = {0, 0};
    for (int a = 0, stored = 0; a < n; a++) full[a] = a == split_at ? p->split : p->shape[stored++];
    for (int a = n; a-- > 0; logical /= full[p->axes[a]])
        at[p->axes[a]] = logical % full[p->axes[a]];
    for (int a = 0; a < n; a++) {
        if (a == split_at) out.shift = at[a] * (8 / p->split);
        else out.element = out.element * (size_t)full[a] + (size_t)at[a];
    }
    return out;
}

static size_t size_of(oct_dtype type)
{
    return type == OCT_F32 || type == OCT_I32 ? 4 : type == OCT_F16 || type == OCT_BF16 ? 2 : 1;
}

static void turn_part(const oct_part *k, const oct_part *v, const char *block, char *out)
{
    const size_t size = size_of(k->dtype);
    for (int i = 0; i < k->rows * k->cols; i++) {
        const place from = place_of(k, i), to = place_of(v, i);
        const char *x = block + k->offset + from.element * size;
        char *y = out + v->offset + to.element * size;
        if (k->split == 1) memcpy(y, x, size);
        else *y = (char)(*y | ((*x >> from.shift) & ((1 << 8 / k->split) - 1)) << to.shift);
    }
}

oct_kstatus oct_page_generic_turn(const oct_turn_args *a)
{
    oct_page_layout k, v;
    a->self->layout(a->d, OCT_ROLE_K, &k);
    a->self->layout(a->d, OCT_ROLE_V, &v);
    assert(k.bytes == v.bytes && k.parts == v.parts);
    memset(a->out, 0, v.bytes);
    for (int i = 0; i < k.parts; i++) turn_part(&k.part[i], &v.part[i], a->block, a->out);
    return OCT_K_OK;
}
