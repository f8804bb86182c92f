#include "kernels/page/generic.h"

#include <assert.h>

oct_kstatus oct_page_generic_scores(const oct_scores_args *a, void *lane)
{
    assert(a->d <= OCT_MAX_HEAD_DIM && a->form == OCT_FORM_F32);
    const int tokens = oct_visible_max(a->visible, a->nq);
    const oct_decode_args decode = {
        a->block, a->unit_stride, a->d, tokens, OCT_ROLE_K, lane,
    };
    a->self->decode(&decode);
    const oct_scores_f32_args scores = {
        a->q->x, a->q->ldx, a->nq, a->d, lane, NULL, a->visible, a->s, a->lds,
    };
    return a->ops->scores_f32(&scores, 0, (size_t)a->nq);
}

oct_kstatus oct_page_generic_mix(const oct_mix_args *a, void *lane)
{
    assert(a->d <= OCT_MAX_HEAD_DIM && a->form == OCT_FORM_F32);
    const int tokens = oct_visible_max(a->visible, a->nq);
    const oct_decode_args decode = {
        a->block, a->unit_stride, a->d, tokens, OCT_ROLE_V, lane,
    };
    a->self->decode(&decode);
    const oct_mix_f32_args mix = {
        a->p, a->ldp, a->nq, a->d, lane, NULL, a->visible, a->o, a->ldo,
    };
    return a->ops->mix_f32(&mix, 0, (size_t)a->nq);
}
