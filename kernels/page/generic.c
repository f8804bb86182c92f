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
