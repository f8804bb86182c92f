/* step.c: one pass of the whole model over a ragged batch. Validate, reserve, compute, judge,
 * commit or roll back (law one's five phases). Only the commit changes the cache. */
#include "csrc/core/mem.h"
#include "csrc/core/step.h"

typedef oct_step_state step;

/* ---- validate -------------------------------------------------------------------------------- */

static oct_status check_item(const step *s, int i)
{
    const oct_step_item *it = &s->args->items[i];
    const int vocab_in = s->p->matrix[s->p->ops[0].w[0]].m.n;
    if (it->n < 1 || it->first < 0 || it->first > it->n)
        return oct_fail(OCT_E_VALUE, "step: item %d has %d tokens (at least 1) and first %d (0 to n)", i,
                        it->n, it->first);
    if (it->topk < 0 || it->topk > s->p->vocab)
        return oct_fail(OCT_E_VALUE, "step: item %d: topk is %d, legal are 0 to %d", i, it->topk,
                        s->p->vocab);
    for (int t = 0; t < it->n; t++)
        if (it->tokens[t] < 0 || it->tokens[t] >= vocab_in)
            return oct_fail(OCT_E_VALUE, "step: item %d: token %d is %d, legal are 0 to %d", i, t,
                            it->tokens[t], vocab_in - 1);
    for (int r = 0; it->logprob && r < it->n - it->first; r++)
        if (it->target[r] < -1 || it->target[r] >= s->p->vocab)
            return oct_fail(OCT_E_VALUE, "step: item %d: target %d is %d, legal are -1 to %d", i, r,
                            it->target[r], s->p->vocab - 1);
    return OCT_OK;
}

static oct_status check_attends(const step *s)
{
    const int *widths = s->p->widths;
    for (int i = 0; i < s->p->n_ops; i++) {
        const oct_op_desc *o = &s->p->ops[i];
        if (o->kind != OCT_OP_ATTEND) continue;
        const oct_layer *l = o->layer < s->c->layers ? &s->c->layer[o->layer] : NULL;
        if (!l || l->latent != (o->in3 < 0) || o->heads % l->kv_heads ||
            widths[o->in] != o->heads * l->q_width || widths[o->out[0]] != o->heads * l->v_width ||
            widths[o->in2] != l->kv_heads * (l->latent ? l->q_width : l->side[0].width) ||
            (!l->latent && widths[o->in3] != l->kv_heads * l->side[1].width))
            return oct_fail(OCT_E_VALUE, "step: op %d attends over layer %d, whose shape in this cache "
                            "is another", i, o->layer);
    }
    return OCT_OK;
}

static oct_status check_captures(const step *s)
{
    for (int i = 0; i < s->args->n_captures; i++) {
        const oct_capture *k = &s->args->captures[i];
        if (k->op < 0 || k->op >= s->p->n_ops - 1 || k->buffer < 0 || k->buffer >= s->p->n_buffers)
            return oct_fail(OCT_E_VALUE, "step: capture %d: op %d of %d, buffer %d of %d", i, k->op,
                            s->p->n_ops - 1, k->buffer, s->p->n_buffers);
    }
    return OCT_OK;
}

static oct_status check_route(const step *s)
{
    for (int i = 0; s->args->route.ask && i < s->p->n_ops; i++)
        if (s->args->route.ops[i] && s->p->ops[i].kind != OCT_OP_MOE)
            return oct_fail(OCT_E_VALUE, "step: route: op %d has no router", i);
    return OCT_OK;
}

static oct_status find_parts(step *s)
{
    s->rows = s->wanted = 0;
    for (int i = 0; i < s->parts; i++) {
        const oct_step_item *it = &s->args->items[i];
        oct_sequence *seq;
        oct_status status = check_item(s, i);
        if (!status) status = oct_seq_find_idle(s->c, "step", it->seq, &seq);
        if (status) return status;
        for (int j = 0; j < i; j++)
            if (s->part[j].seq == seq)
                return oct_fail(OCT_E_VALUE, "step: items %d and %d are the same sequence", j, i);
        s->part[i].seq = seq;
        s->part[i].tokens = it->tokens;
        s->part[i].n = it->n;
        s->part[i].row = s->rows;
        s->part[i].start = seq->length;
        s->part[i].feed = !s->args->quiet && !seq->edited;
        s->rows += it->n;
        s->wanted += it->n - it->first;
    }
    if (s->rows > s->p->max_rows)
        return oct_fail(OCT_E_VALUE, "step: %lld rows, this program was opened for max_rows=%d",
                        (long long)s->rows, s->p->max_rows);
    return OCT_OK;
}

/* ---- the whole -------------------------------------------------------------------------------- */

static void list_wanted(step *s)
{
    int64_t w = 0;
    for (int i = 0; i < s->parts; i++)
        for (int r = s->args->items[i].first; r < s->args->items[i].n; r++) {
            s->wanted_part[w] = i;
            s->wanted_row[w++] = s->part[i].row + r;
        }
}

/* A sequence whose hidden state is not finite fails, even where none of its logits was wanted. */
static void judge(const step *s)
{
    const oct_op_desc *o = &s->p->ops[s->p->n_ops - 1];
    const size_t width = (size_t)s->p->widths[o->in];
    for (int i = 0; i < s->parts; i++) {
        const oct_part_of_step *p = &s->part[i];
        if (!oct_all_finite(s->p->buffer[o->in] + (size_t)p->row * width, (size_t)p->n * width))
            atomic_store(&s->part[i].bad, true);
        s->args->items[i].status = atomic_load(&p->bad) ? OCT_E_NUMERIC : OCT_OK;
    }
}

static oct_status run_reserved(step *s)
{
    oct_pool *pool = s->c->rt->pool;
    list_wanted(s);
    bool whole = oct_pool_enter(pool, s->args->poll);
    if (whole) {
        oct_ops_run(s);
        whole = oct_pool_leave(pool);
    }
    if (!whole) {
        oct_step_rollback(s->c, s->part, s->parts);
        return oct_fail(OCT_E_CANCELLED, "step: cancelled. Nothing was changed.");
    }
    judge(s);
    oct_step_commit(s->c, s->part, s->parts);
    return OCT_OK;
}

static int64_t longest(const step *s)
{
    int64_t most = 0;
    for (int i = 0; i < s->parts; i++)
        most = s->part[i].start + s->part[i].n > most ? s->part[i].start + s->part[i].n : most;
    return most;
}

static int most_heads(const oct_program *p)
{
    int heads = 1;
    for (int i = 0; i < p->n_ops; i++)
        if (p->ops[i].kind == OCT_OP_ATTEND && p->ops[i].heads > heads) heads = p->ops[i].heads;
    return heads;
}

static oct_status step_taken(step *s)
{
    oct_status status = check_attends(s);
    if (!status) status = check_captures(s);
    if (!status) status = check_route(s);
    if (!status) status = find_parts(s);
    if (status) return status;
    oct_cost_of_step(s);
    s->wanted_part = oct_alloc(OCT_TAG_SCRATCH, (size_t)s->wanted + 1, sizeof *s->wanted_part);
    s->wanted_row = oct_alloc(OCT_TAG_SCRATCH, (size_t)s->wanted + 1, sizeof *s->wanted_row);
    if (!s->wanted_part || !s->wanted_row) status = oct_fail_memory("step", "its row lists");
    if (!status)
        status = oct_attend_fit(&s->p->attend, s->c, "step", s->rows, most_heads(s->p), longest(s));
    if (!status) status = oct_step_reserve(s->c, "step", s->part, s->parts);
    if (!status) status = run_reserved(s);
    oct_free(s->wanted_part);
    oct_free(s->wanted_row);
    return status;
}

oct_status oct_step(oct_program *p, oct_cache *c, oct_step_args *args)
{
    step s = {.p = p, .c = c, .args = args, .parts = args->n_items};
    bool idle = false;
    if (args->n_items < 1 || args->n_items > p->max_rows)
        return oct_fail(OCT_E_VALUE, "step: %d items, legal are 1 to max_rows=%d", args->n_items,
                        p->max_rows);
    if (c->rt != p->rt)
        return oct_fail(OCT_E_VALUE, "step: the program and the cache are of different runtimes");
    oct_status status = oct_cache_take(c, "step");
    if (status) return status;
    if (!atomic_compare_exchange_strong(&p->busy, &idle, true)) {
        status = oct_fail(OCT_E_BUSY, "step: the program is in use by another call");
    } else {
        s.part = oct_zalloc(OCT_TAG_SCRATCH, (size_t)s.parts, sizeof *s.part);
        status = s.part ? step_taken(&s) : oct_fail_memory("step", "its list of sequences");
        oct_free(s.part);
        atomic_store(&p->busy, false);
    }
    oct_cache_drop(c);
    return status;
}
