/* cost.c: what a step has to read and to compute, counted from its shapes before it runs, and of
 * experts once they are chosen. Stored bytes of weights and pages count once a step however often
 * caches are asked for them; operations are the useful ones, 2 per multiply-add, whatever form the
 * kernels give them. */
#include "csrc/core/attend.h"
#include "csrc/core/step.h"

typedef oct_step_state step;

/* (query row, token) pairs of all parts, and what is read for them, as it lies for the last row. */
typedef struct {
    double sealed_pairs, open_pairs;
    double sealed_pages, open_units;
} sight;

const char *oct_cost_name(oct_cost_kind kind)
{
    static const char *const names[OCT_COST_COUNT] = {
        "embed", "norm",   "linear", "gate", "route", "expert",
        "store", "seal",   "attend", "head", "pick",
    };
    return names[kind];
}

static int64_t largest(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* By the reading law: a query reads sealed what a history up to it holds sealed. Of the tokens from
 * `from` on that the query at t sees, those. */
static int64_t sealed_seen(const oct_cache *c, int64_t from, int64_t t)
{
    return largest(0, oct_sealed_end(c, t) * P - largest(from, (int64_t)c->sinks * P));
}

static sight sight_of(const step *s, int window)
{
    sight out = {0};
    for (int i = 0; i < s->parts; i++) {
        const int64_t end = s->part[i].start + s->part[i].n;
        for (int64_t t = s->part[i].start; t < end; t++) {
            const int64_t from = oct_seen_from(window, t), sealed = sealed_seen(s->c, from, t);
            out.sealed_pairs += (double)sealed;
            out.open_pairs += (double)(t + 1 - from - sealed);
        }
        /* Pages are read whole, those of the first row's window too. */
        const int64_t from = oct_seen_from(window, s->part[i].start) / P * P;
        const int64_t sealed = sealed_seen(s->c, from, end - 1);
        out.sealed_pages += (double)(sealed / P);
        out.open_units += (double)((end - from - sealed + OCT_UNIT_TOKENS - 1) / OCT_UNIT_TOKENS);
    }
    return out;
}

static void add_attend(const step *s, const oct_op_desc *o, const sight *seen, oct_cost *to)
{
    const oct_layer *l = &s->c->layer[o->layer];
    to->bytes += (double)l->kv_heads * (seen->sealed_pages * (double)l->head_bytes +
                                        seen->open_units * (double)l->head_unit_bytes);
    for (int i = 0; i < 2; i++) {
        const int uses = l->latent && i == OCT_SEGMENT_K ? 2 : 1; /* the latent is both */
        const double each = 2.0 * uses * o->heads * l->side[i].width;
        const bool exact = l->side[i].form == OCT_FORM_F32;
        to->f32_ops += each * (seen->open_pairs + (exact ? seen->sealed_pairs : 0.0));
        to->int8_ops += exact ? 0.0 : each * seen->sealed_pairs;
    }
}

void oct_cost_add_product(const step *s, int w, int64_t rows, oct_cost *to)
{
    const oct_stored_matrix *m = &s->p->matrix[w];
    const double ops = 2.0 * m->m.n * m->m.k * (double)rows;
    if (rows == 0) return;
    to->bytes += (double)m->bytes;
    if (oct_effective_act(&s->c->rt->kernels, m->format, s->p->act) == OCT_A32) to->f32_ops += ops;
    else to->int8_ops += ops;
}

static void add_embed(const step *s, const oct_op_desc *o, oct_cost *to)
{
    const oct_stored_matrix *m = &s->p->matrix[o->w[0]];
    to->bytes += (double)m->bytes / m->m.n * (double)s->rows;
}

/* The matrices of one op. */
static int products_of(const oct_op_desc *o)
{
    switch (o->kind) {
    case OCT_OP_NORM_LINEAR: return o->n_out;
    case OCT_OP_GATED_MLP: return 3;
    case OCT_OP_LINEAR_ADD:
    case OCT_OP_HEAD: return 1;
    default: return 0;
    }
}

void oct_cost_of_step(const step *s)
{
    oct_cost *cost = s->args->cost;
    sight seen = {0};
    int window = -1; /* of `seen` */
    for (int i = 0; i < OCT_COST_COUNT; i++) cost[i] = (oct_cost){0};
    for (int i = 0; i < s->p->n_ops; i++) {
        const oct_op_desc *o = &s->p->ops[i];
        const bool head = o->kind == OCT_OP_HEAD;
        if (o->kind == OCT_OP_EMBED) add_embed(s, o, &cost[OCT_COST_EMBED]);
        if (o->kind == OCT_OP_ATTEND) {
            if (o->window != window) seen = sight_of(s, window = o->window);
            add_attend(s, o, &seen, &cost[OCT_COST_ATTEND]);
        }
        if (o->kind == OCT_OP_MOE) oct_cost_add_product(s, o->w[0], s->rows, &cost[OCT_COST_ROUTE]);
        for (int h = 0; o->kind == OCT_OP_HEAD_LINEAR && h < o->heads; h++)
            oct_cost_add_product(s, o->matrices[h], s->rows, &cost[OCT_COST_LINEAR]);
        for (int w = 0; w < products_of(o); w++)
            oct_cost_add_product(s, o->w[w], head ? s->wanted : s->rows,
                                 &cost[head ? OCT_COST_HEAD : OCT_COST_LINEAR]);
    }
}
