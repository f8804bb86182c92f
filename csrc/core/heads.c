/* heads.c: a product of its own for each head, over its part of the rows, as one loop over the tiles
 * of all. MLA's absorbed form is two of them: queries into the space of latents, what was gathered
 * of latents into outputs. */
#include "csrc/core/heads.h"

#include <limits.h>
#include <string.h>

#include "csrc/core/mem.h"
#include "csrc/core/step.h"

typedef oct_step_state step;

oct_heads_scratch *oct_heads_open(int heads, int k, int max_rows)
{
    oct_heads_scratch *h = oct_zalloc(OCT_TAG_SCRATCH, 1, sizeof *h);
    if (!h) return NULL;
    const size_t n = (size_t)heads;
    h->view = oct_alloc(OCT_TAG_SCRATCH, n, sizeof *h->view);
    h->product = oct_alloc(OCT_TAG_SCRATCH, n, sizeof *h->product);
    h->tiles = oct_alloc(OCT_TAG_SCRATCH, n + 1, sizeof *h->tiles);
    bool good = h->view && h->product && h->tiles && heads <= INT_MAX / max_rows;
    if (good && k) good = !oct_rows_alloc(&h->rows, "program", heads * max_rows, k);
    if (!good) oct_heads_free(h), h = NULL;
    return h;
}

void oct_heads_free(oct_heads_scratch *h)
{
    if (!h) return;
    oct_free(h->view);
    oct_free(h->product);
    oct_free(h->tiles);
    oct_rows_free(&h->rows);
    oct_free(h);
}

static void quantize_heads(void *ctx, size_t lo, size_t hi, int lane)
{
    const step *s = ctx;
    (void)lane;
    for (size_t h = lo; h < hi; h++) {
        oct_rows *rows = &s->p->heads->view[h];
        const oct_quantize_args args = {rows, NULL};
        if (rows->act != OCT_A32) s->c->rt->kernels.op.quantize(&args, 0, (size_t)rows->m);
    }
}

/* What the products leave alone, behind what they write. */
static void pass_on(void *ctx, size_t lo, size_t hi, int lane)
{
    const step *s = ctx;
    const oct_op_desc *o = s->op;
    const oct_matrix *m = &s->p->matrix[o->matrices[0]].m;
    const size_t in = (size_t)(s->p->widths[o->in] / o->heads), k = (size_t)m->k;
    const size_t out = (size_t)(s->p->widths[o->out[0]] / o->heads), n = (size_t)m->n;
    (void)lane;
    for (size_t i = lo * (size_t)o->heads; i < hi * (size_t)o->heads; i++)
        memcpy(s->p->buffer[o->out[0]] + i * out + n, s->p->buffer[o->in] + i * in + k,
               (in - k) * sizeof(float));
}

static oct_rows view_of(const step *s, int head)
{
    const oct_op_desc *o = s->op;
    const oct_stored_matrix *w = &s->p->matrix[o->matrices[head]];
    const size_t ld = (size_t)s->p->widths[o->in];
    const float *x = s->p->buffer[o->in] + (size_t)head * (ld / (size_t)o->heads);
    oct_rows *all = &s->p->heads->rows;
    const oct_act act = oct_effective_act(&s->c->rt->kernels, w->format, s->p->act);
    oct_rows out = {.act = act, .m = (int)s->rows, .k = w->m.k, .kp = oct_rows_kp(w->m.k)};
    if (act != OCT_A32) {
        all->act = act;
        all->k = out.k;
        all->kp = out.kp;
        out = oct_rows_at(all, act, head * (int)s->rows, (int)s->rows);
    }
    out.x = x;
    out.ldx = ld;
    return out;
}

void oct_heads_run(step *s)
{
    const oct_op_desc *o = s->op;
    oct_heads_scratch *all = s->p->heads;
    const oct_matrix *m = &s->p->matrix[o->matrices[0]].m;
    const size_t ld = (size_t)s->p->widths[o->out[0]];
    for (int h = 0; h < o->heads; h++) {
        float *y = s->p->buffer[o->out[0]] + (size_t)h * (ld / (size_t)o->heads);
        all->view[h] = view_of(s, h);
        all->product[h] = (oct_product){
            &s->p->matrix[o->matrices[h]], &all->view[h], y, ld, NULL, false,
        };
    }
    oct_step_loop(s, o->heads, quantize_heads, s);
    if (s->p->widths[o->in] / o->heads > m->k) oct_step_loop(s, s->rows, pass_on, s);
    oct_step_lap(s, OCT_COST_NORM);
    oct_products_list(s->c->rt, all->product, o->heads, all->tiles);
    oct_step_lap(s, OCT_COST_LINEAR);
}
