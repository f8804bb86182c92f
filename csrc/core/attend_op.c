/* attend_op.c: the op that attends. Norms of heads and positions, rows of K and V into the open pages,
 * the pages that this step fills, and then attention over all of them. */
#include "csrc/core/step.h"

typedef oct_step_state step;

/* Each head's own norm, as wide as its vector. */
static void head_norm(const step *s, int buffer, int heads, int norm, size_t lo, size_t hi)
{
    const size_t width = (size_t)s->p->widths[buffer];
    if (norm < 0) return;
    const oct_rmsnorm_args args = {
        s->p->buffer[buffer], width, s->p->vector[norm].n, heads, oct_step_vector(s, norm),
        s->op->eps, s->p->buffer[buffer], width,
    };
    s->c->rt->kernels.op.rmsnorm(&args, lo, hi);
}

/* The last channels of each head, all but those of a latent. */
static void rotate(const step *s, int buffer, int heads, size_t lo, size_t hi)
{
    const size_t width = (size_t)s->p->widths[buffer], each = width / (size_t)heads;
    if (s->op->rope < 0) return;
    const oct_rope *r = &s->p->ropes[s->op->rope];
    const oct_rope_args args = {
        s->p->buffer[buffer] + each - (size_t)r->dim, width, each, heads, r->dim, r->half_split,
        r->cs,
    };
    s->c->rt->kernels.op.rope(&args, lo, hi);
}

/* Norm, position, and the rows of K and V into the open pages. */
static void place_rows(void *ctx, size_t lo, size_t hi, int lane)
{
    const step *s = ctx;
    const oct_op_desc *o = s->op;
    const oct_layer *l = &s->c->layer[o->layer];
    const int kv_heads = l->kv_heads;
    float *v = l->latent ? s->p->buffer[o->in2] + l->side[OCT_SEGMENT_K].width
                         : s->p->buffer[o->in3];
    void *scratch = s->c->rt->lanes[lane];
    head_norm(s, o->in, o->heads, o->q_norm, lo, hi);
    head_norm(s, o->in2, kv_heads, o->k_norm, lo, hi);
    rotate(s, o->in, o->heads, lo, hi);
    rotate(s, o->in2, kv_heads, lo, hi);
    oct_rows_store(s->c, s->part, s->parts, o->layer, OCT_SEGMENT_K, s->p->buffer[o->in2],
                   (size_t)s->p->widths[o->in2], (int64_t)lo, (int64_t)hi, scratch);
    oct_rows_store(s->c, s->part, s->parts, o->layer, OCT_SEGMENT_V, v,
                   (size_t)s->p->widths[l->latent ? o->in2 : o->in3], (int64_t)lo, (int64_t)hi,
                   scratch);
}

void oct_attend_op_run(step *s)
{
    const oct_op_desc *o = s->op;
    oct_step_loop(s, s->rows, place_rows, s);
    oct_step_lap(s, OCT_COST_STORE);
    oct_rows_seal(s->c, s->part, s->parts, o->layer);
    oct_step_lap(s, OCT_COST_SEAL);
    const oct_attend_args args = {
        .cache = s->c,
        .part = s->part,
        .parts = s->parts,
        .layer = o->layer,
        .heads = o->heads,
        .scale = o->scale,
        .window = o->window,
        .sinks = oct_step_vector(s, o->sinks),
        .q = s->p->buffer[o->in],
        .ldq = (size_t)s->p->widths[o->in],
        .out = s->p->buffer[o->out[0]],
        .ldo = (size_t)s->p->widths[o->out[0]],
        .rows = s->rows,
        .scratch = s->p->attend,
    };
    oct_attend_run(&args);
    oct_step_lap(s, OCT_COST_ATTEND);
}
