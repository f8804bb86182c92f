/* step.c: one pass of the whole model over a ragged batch. Validate, reserve, compute, judge,
 * commit or roll back (law one's five phases). Only the commit changes the cache. */
#include <math.h>
#include <string.h>

#include "csrc/core/mem.h"
#include "csrc/core/program.h"
#include "kernels/num.h" /* oct_finite_bits */

typedef struct {
    oct_program *p;
    oct_cache *c;
    oct_step_args *args;
    oct_part_of_step *part;
    int parts;
    int64_t rows;
    const oct_op_desc *op; /* the one that runs */
    int *wanted_part;      /* of each wanted row, then its row in the batch */
    int64_t *wanted_row;
    int64_t wanted;
} step;

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
        if (!l || o->heads % l->kv_heads || widths[o->in] != o->heads * l->side[0].width ||
            widths[o->in2] != l->kv_heads * l->side[0].width ||
            widths[o->in3] != l->kv_heads * l->side[1].width ||
            widths[o->out[0]] != o->heads * l->side[1].width)
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

/* ---- compute --------------------------------------------------------------------------------- */

static void loop(const step *s, int64_t rows, oct_task_fn fn)
{
    const size_t n = (size_t)rows, lanes = (size_t)s->c->rt->threads;
    /* One row is microseconds: a barrier would cost more than it saves below a few rows a lane. */
    oct_parallel(s->c->rt->pool, n, n < 2 * lanes ? n : n / (4 * lanes) + 1, fn, (void *)(uintptr_t)s);
}

static void embed(const step *s)
{
    const oct_stored_matrix *w = &s->p->matrix[s->op->w[0]];
    const size_t width = (size_t)s->p->widths[s->op->out[0]];
    for (int i = 0; i < s->parts; i++) {
        float *y = s->p->buffer[s->op->out[0]] + (size_t)s->part[i].row * width;
        const oct_gather_args args = {&w->m, s->part[i].tokens, s->part[i].n, y, width};
        s->c->rt->kernels.weight[w->format].gather(&args, 0, (size_t)s->part[i].n);
        if (s->op->scale != 0.0f && s->op->scale != 1.0f)
            for (size_t e = 0; e < (size_t)s->part[i].n * width; e++) y[e] *= s->op->scale;
    }
}

static const float *norm_weights(const step *s, int id)
{
    return id < 0 ? NULL : s->p->vector[id].values;
}

static void norm_rows(void *ctx, size_t lo, size_t hi, int lane)
{
    const step *s = ctx;
    const size_t in = (size_t)s->p->widths[s->op->in];
    (void)lane;
    const oct_rmsnorm_args args = {
        s->p->buffer[s->op->in], in, (int)in, 1, norm_weights(s, s->op->norm), s->op->eps,
        s->p->buffer[s->op->out[0]], in,
    };
    s->c->rt->kernels.op.rmsnorm(&args, lo, hi);
}

/* p->rows describes the input of the next products; quantizing is one row's own business. */
static void quantize(const step *s, size_t lo, size_t hi)
{
    const oct_quantize_args args = {&s->p->rows, NULL};
    if (s->p->rows.act != OCT_A32) s->c->rt->kernels.op.quantize(&args, lo, hi);
}

static void set_input(const step *s, const float *x, int k, int64_t rows)
{
    oct_rows *r = &s->p->rows;
    r->act = s->p->act;
    r->m = (int)rows;
    r->k = k;
    r->kp = (k + OCT_GROUP - 1) / OCT_GROUP * OCT_GROUP;
    r->x = x;
    r->ldx = (size_t)k;
}

static void norm_and_quantize(void *ctx, size_t lo, size_t hi, int lane)
{
    const step *s = ctx;
    const size_t in = (size_t)s->p->widths[s->op->in];
    (void)lane;
    if (s->op->norm >= 0) {
        const oct_rmsnorm_args args = {
            s->p->buffer[s->op->in], in, (int)in, 1, norm_weights(s, s->op->norm), s->op->eps,
            s->p->normed, in,
        };
        s->c->rt->kernels.op.rmsnorm(&args, lo, hi);
    }
    quantize(s, lo, hi);
}

static void quantize_task(void *ctx, size_t lo, size_t hi, int lane)
{
    (void)lane;
    quantize(ctx, lo, hi);
}

/* Up to three products over p->rows; matrices without the program's activation form read a32. */
static void products(const step *s, oct_product *list, int count)
{
    oct_rows exact = s->p->rows;
    exact.act = OCT_A32;
    for (int i = 0; i < count; i++) {
        const oct_act act = oct_effective_act(&s->c->rt->kernels, list[i].w->format, s->p->rows.act);
        list[i].x = act == s->p->rows.act ? &s->p->rows : &exact;
    }
    oct_products_run(s->c->rt, list, count);
}

static oct_product product(const step *s, int w, float *y, size_t ldy, int bias, bool add)
{
    return (oct_product){&s->p->matrix[w], NULL, y, ldy, norm_weights(s, bias), add};
}

static void norm_linear(const step *s)
{
    const oct_op_desc *o = s->op;
    oct_product list[OCT_MAX_PRODUCTS];
    set_input(s, o->norm >= 0 ? s->p->normed : s->p->buffer[o->in], s->p->widths[o->in], s->rows);
    loop(s, s->rows, norm_and_quantize);
    for (int i = 0; i < o->n_out; i++)
        list[i] = product(s, o->w[i], s->p->buffer[o->out[i]], (size_t)s->p->widths[o->out[i]],
                          o->bias[i], false);
    products(s, list, o->n_out);
}

static void linear_add(const step *s)
{
    const oct_op_desc *o = s->op;
    set_input(s, s->p->buffer[o->in], s->p->widths[o->in], s->rows);
    loop(s, s->rows, quantize_task);
    oct_product list[] = {product(s, o->w[0], s->p->buffer[o->out[0]],
                                  (size_t)s->p->widths[o->out[0]], o->bias[0], true)};
    products(s, list, 1);
}

static void swiglu_and_quantize(void *ctx, size_t lo, size_t hi, int lane)
{
    const step *s = ctx;
    const int inner = s->p->matrix[s->op->w[0]].m.n;
    const size_t ld = (size_t)inner;
    (void)lane;
    const oct_swiglu_args args = {s->p->gate, s->p->up, ld, ld, inner, s->p->gate, ld};
    s->c->rt->kernels.op.swiglu(&args, lo, hi);
    quantize(s, lo, hi);
}

static void gated_mlp(const step *s)
{
    const oct_op_desc *o = s->op;
    const int inner = s->p->matrix[o->w[0]].m.n;
    set_input(s, o->norm >= 0 ? s->p->normed : s->p->buffer[o->in], s->p->widths[o->in], s->rows);
    loop(s, s->rows, norm_and_quantize);
    oct_product both[] = {product(s, o->w[0], s->p->gate, (size_t)inner, -1, false),
                          product(s, o->w[1], s->p->up, (size_t)inner, -1, false)};
    products(s, both, 2);
    set_input(s, s->p->gate, inner, s->rows);
    loop(s, s->rows, swiglu_and_quantize);
    oct_product down[] = {product(s, o->w[2], s->p->buffer[o->out[0]],
                                  (size_t)s->p->widths[o->out[0]], -1, true)};
    products(s, down, 1);
}

static void head_norm(const step *s, int buffer, int heads, int norm, size_t lo, size_t hi)
{
    const size_t width = (size_t)s->p->widths[buffer];
    if (norm < 0) return;
    const oct_rmsnorm_args args = {
        s->p->buffer[buffer], width, (int)width / heads, heads, norm_weights(s, norm), s->op->eps,
        s->p->buffer[buffer], width,
    };
    s->c->rt->kernels.op.rmsnorm(&args, lo, hi);
}

static void rotate(const step *s, int buffer, int heads, size_t lo, size_t hi)
{
    const size_t width = (size_t)s->p->widths[buffer];
    if (s->op->rope < 0) return;
    const oct_rope *r = &s->p->ropes[s->op->rope];
    const oct_rope_args args = {s->p->buffer[buffer], width, heads, r->dim, r->half_split, r->cs};
    s->c->rt->kernels.op.rope(&args, lo, hi);
}

/* Norm, position, and the rows of K and V into the open pages. */
static void place_rows(void *ctx, size_t lo, size_t hi, int lane)
{
    const step *s = ctx;
    const oct_op_desc *o = s->op;
    const int kv_heads = s->c->layer[o->layer].kv_heads;
    void *scratch = s->c->rt->lanes[lane];
    head_norm(s, o->in, o->heads, o->q_norm, lo, hi);
    head_norm(s, o->in2, kv_heads, o->k_norm, lo, hi);
    rotate(s, o->in, o->heads, lo, hi);
    rotate(s, o->in2, kv_heads, lo, hi);
    oct_rows_store(s->c, s->part, s->parts, o->layer, OCT_SEGMENT_K, s->p->buffer[o->in2],
                   (size_t)s->p->widths[o->in2], (int64_t)lo, (int64_t)hi, scratch);
    oct_rows_store(s->c, s->part, s->parts, o->layer, OCT_SEGMENT_V, s->p->buffer[o->in3],
                   (size_t)s->p->widths[o->in3], (int64_t)lo, (int64_t)hi, scratch);
}

static void attend(const step *s)
{
    const oct_op_desc *o = s->op;
    loop(s, s->rows, place_rows);
    oct_rows_seal(s->c, s->part, s->parts, o->layer);
    const oct_attend_args args = {
        .cache = s->c,
        .part = s->part,
        .parts = s->parts,
        .layer = o->layer,
        .heads = o->heads,
        .scale = o->scale,
        .q = s->p->buffer[o->in],
        .ldq = (size_t)s->p->widths[o->in],
        .out = s->p->buffer[o->out[0]],
        .ldo = (size_t)s->p->widths[o->out[0]],
        .rows = s->rows,
        .scratch = s->p->attend,
    };
    oct_attend_run(&args);
}

/* ---- head ------------------------------------------------------------------------------------ */

static bool all_finite(const float *x, size_t n)
{
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++) bad |= (uint32_t)((oct_bits(x[i]) & 0x7F800000u) == 0x7F800000u);
    return !bad;
}

/* What the item asked for, of wanted row `w` whose logits are row `at` of p->logits. */
static void reduce_row(const step *s, int64_t w, size_t at)
{
    oct_part_of_step *part = &s->part[s->wanted_part[w]];
    const oct_step_item *it = &s->args->items[s->wanted_part[w]];
    const oct_op_kernels *op = &s->c->rt->kernels.op;
    const size_t vocab = (size_t)s->p->vocab;
    const size_t r = (size_t)(s->wanted_row[w] - part->row - it->first);
    const float *logits = s->p->logits + at * vocab;
    if (!all_finite(logits, vocab)) atomic_store(&part->bad, true);
    if (it->logits) memcpy(it->logits + r * vocab, logits, vocab * sizeof *logits);
    if (it->argmax) {
        const oct_argmax_args args = {logits, vocab, (int)vocab, it->argmax + r};
        op->argmax(&args, 0, 1);
    }
    if (it->logprob || it->topk > 0) {
        const oct_lse_args args = {logits, vocab, (int)vocab, s->p->lse + at};
        op->lse(&args, 0, 1);
    }
    if (it->logprob)
        it->logprob[r] = it->target[r] < 0 ? NAN : logits[it->target[r]] - s->p->lse[at];
    if (it->topk > 0) {
        const size_t k = (size_t)it->topk;
        float *value = it->topk_logprob + r * k;
        const oct_topk_args args = {logits, vocab, (int)vocab, it->topk, it->topk_id + r * k, value};
        op->topk(&args, 0, 1);
        for (size_t i = 0; i < k; i++) value[i] -= s->p->lse[at];
    }
}

typedef struct {
    const step *s;
    int64_t first;
} reduce_job;

static void reduce_rows(void *ctx, size_t lo, size_t hi, int lane)
{
    const reduce_job *job = ctx;
    (void)lane;
    for (size_t i = lo; i < hi; i++) reduce_row(job->s, job->first + (int64_t)i, i);
}

static void head(const step *s)
{
    const oct_op_desc *o = s->op;
    const int k = s->p->widths[o->in];
    const size_t width = (size_t)k;
    for (int64_t first = 0; first < s->wanted; first += s->p->head_rows) {
        const int64_t left = s->wanted - first;
        const int64_t n = left < s->p->head_rows ? left : s->p->head_rows;
        if (oct_pool_cancelled(s->c->rt->pool)) return;
        for (int64_t i = 0; i < n; i++)
            memcpy(s->p->normed + (size_t)i * width,
                   s->p->buffer[o->in] + (size_t)s->wanted_row[first + i] * width,
                   width * sizeof(float));
        set_input(s, s->p->normed, k, n);
        loop(s, n, quantize_task);
        oct_product list[] = {
            product(s, o->w[0], s->p->logits, (size_t)s->p->vocab, -1, false),
        };
        products(s, list, 1);
        reduce_job job = {s, first};
        oct_parallel(s->c->rt->pool, (size_t)n, 1, reduce_rows, &job);
    }
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

static void make_positions(const step *s)
{
    for (int i = 0; i < s->parts; i++)
        for (int64_t r = 0; r < s->part[i].n; r++)
            s->p->positions[s->part[i].row + r] = s->part[i].start + r;
    for (int i = 0; i < s->p->n_ropes; i++) {
        const oct_rope *r = &s->p->ropes[i];
        const oct_rope_table_args args = {s->p->positions, r->freq, r->dim, r->mscale, r->cs};
        s->c->rt->kernels.op.rope_table(&args, 0, (size_t)s->rows);
    }
}

static void run_op(const step *s)
{
    switch (s->op->kind) {
    case OCT_OP_EMBED: embed(s); break;
    case OCT_OP_NORM: loop(s, s->rows, norm_rows); break;
    case OCT_OP_NORM_LINEAR: norm_linear(s); break;
    case OCT_OP_ATTEND: attend(s); break;
    case OCT_OP_LINEAR_ADD: linear_add(s); break;
    case OCT_OP_GATED_MLP: gated_mlp(s); break;
    default: head(s); break;
    }
}

static void run_ops(step *s)
{
    make_positions(s);
    for (int i = 0; i < s->p->n_ops && !oct_pool_cancelled(s->c->rt->pool); i++) {
        s->op = &s->p->ops[i];
        run_op(s);
        for (int k = 0; k < s->args->n_captures; k++) {
            const oct_capture *cap = &s->args->captures[k];
            if (cap->op != i) continue;
            const size_t n = (size_t)s->rows * (size_t)s->p->widths[cap->buffer];
            memcpy(cap->dst, s->p->buffer[cap->buffer], n * sizeof *cap->dst);
        }
    }
}

/* A sequence whose hidden state is not finite fails, even where none of its logits was wanted. */
static void judge(const step *s)
{
    const oct_op_desc *o = &s->p->ops[s->p->n_ops - 1];
    const size_t width = (size_t)s->p->widths[o->in];
    for (int i = 0; i < s->parts; i++) {
        const oct_part_of_step *p = &s->part[i];
        if (!all_finite(s->p->buffer[o->in] + (size_t)p->row * width, (size_t)p->n * width))
            atomic_store(&s->part[i].bad, true);
        s->args->items[i].status = atomic_load(&p->bad) ? OCT_E_NUMERIC : OCT_OK;
    }
}

static oct_status run_reserved(step *s)
{
    oct_pool *pool = s->c->rt->pool;
    list_wanted(s);
    oct_pool_enter(pool, s->args->poll, s->args->poll_arg);
    run_ops(s);
    const bool cancelled = oct_pool_cancelled(pool);
    oct_pool_leave(pool);
    if (cancelled) {
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
    if (!status) status = find_parts(s);
    if (status) return status;
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
