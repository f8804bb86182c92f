/* ops.c: what each op of a program does to the rows of a step. Loops over rows and tiles run on the
 * pool; which lane takes what changes no bit. */
#include <math.h>
#include <string.h>

#include "csrc/core/step.h"
#include "kernels/num.h" /* oct_bits */

typedef oct_step_state step;

bool oct_all_finite(const float *x, size_t n)
{
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++) bad |= (uint32_t)((oct_bits(x[i]) & 0x7F800000u) == 0x7F800000u);
    return !bad;
}

/* The work since the last mark was of this kind. */
void oct_step_lap(step *s, oct_cost_kind kind)
{
    if (!s->args->timed) return;
    const int64_t now = oct_now_ns();
    s->args->cost[kind].ns += now - s->mark;
    s->mark = now;
}

void oct_step_loop(const step *s, int64_t rows, oct_task_fn fn, const void *ctx)
{
    const size_t n = (size_t)rows, lanes = (size_t)s->c->rt->threads;
    /* One row is microseconds: a barrier would cost more than it saves below a few rows a lane. */
    oct_parallel(s->c->rt->pool, n, n < 2 * lanes ? n : n / (4 * lanes) + 1, fn,
                 (void *)(uintptr_t)ctx);
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

const float *oct_step_vector(const step *s, int id)
{
    return id < 0 ? NULL : s->p->vector[id].values;
}

static void norm_rows(void *ctx, size_t lo, size_t hi, int lane)
{
    const step *s = ctx;
    const size_t in = (size_t)s->p->widths[s->op->in];
    (void)lane;
    const oct_rmsnorm_args args = {
        s->p->buffer[s->op->in], in, (int)in, 1, oct_step_vector(s, s->op->norm), s->op->eps,
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
    r->kp = oct_rows_kp(k);
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
            s->p->buffer[s->op->in], in, (int)in, 1, oct_step_vector(s, s->op->norm), s->op->eps,
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
    return (oct_product){&s->p->matrix[w], NULL, y, ldy, oct_step_vector(s, bias), add};
}

void oct_step_read_input(step *s)
{
    const oct_op_desc *o = s->op;
    set_input(s, o->norm >= 0 ? s->p->normed : s->p->buffer[o->in], s->p->widths[o->in], s->rows);
    oct_step_loop(s, s->rows, norm_and_quantize, s);
    oct_step_lap(s, OCT_COST_NORM);
}

static void norm_linear(step *s)
{
    const oct_op_desc *o = s->op;
    oct_product list[OCT_MAX_PRODUCTS];
    oct_step_read_input(s);
    for (int i = 0; i < o->n_out; i++)
        list[i] = product(s, o->w[i], s->p->buffer[o->out[i]], (size_t)s->p->widths[o->out[i]],
                          o->bias[i], false);
    products(s, list, o->n_out);
    oct_step_lap(s, OCT_COST_LINEAR);
}

static void norm_and_add(void *ctx, size_t lo, size_t hi, int lane)
{
    const step *s = ctx;
    const size_t width = (size_t)s->p->widths[s->op->out[0]];
    float *out = s->p->buffer[s->op->out[0]], *y = s->p->normed;
    (void)lane;
    const oct_rmsnorm_args args = {y, width, (int)width, 1, oct_step_vector(s, s->op->out_norm),
                                   s->op->eps, y, width};
    s->c->rt->kernels.op.rmsnorm(&args, lo, hi);
    for (size_t i = lo * width; i < hi * width; i++) out[i] += y[i];
}

/* The product that ends a branch: added in its epilogue, or normed first. Its input is not in
 * p->normed any more. */
static void add_product(step *s, int w, int bias)
{
    const oct_op_desc *o = s->op;
    const bool normed = o->out_norm >= 0;
    oct_product list[] = {product(s, w, normed ? s->p->normed : s->p->buffer[o->out[0]],
                                  (size_t)s->p->widths[o->out[0]], bias, !normed)};
    products(s, list, 1);
    oct_step_lap(s, OCT_COST_LINEAR);
    if (!normed) return;
    oct_step_loop(s, s->rows, norm_and_add, s);
    oct_step_lap(s, OCT_COST_NORM);
}

static void linear_add(step *s)
{
    const oct_op_desc *o = s->op;
    set_input(s, s->p->buffer[o->in], s->p->widths[o->in], s->rows);
    oct_step_loop(s, s->rows, quantize_task, s);
    oct_step_lap(s, OCT_COST_NORM);
    add_product(s, o->w[0], o->bias[0]);
}

void oct_step_gate(const step *s, const oct_swiglu_args *args, size_t lo, size_t hi)
{
    const oct_op_kernels *op = &s->c->rt->kernels.op;
    switch (s->op->activation) {
    case OCT_ACTIVATION_GELU_TANH: op->geglu(args, lo, hi); break;
    case OCT_ACTIVATION_CLAMPED_SILU: op->clamped_swiglu(args, lo, hi); break;
    default: op->swiglu(args, lo, hi); break;
    }
}

static void gate_and_quantize(void *ctx, size_t lo, size_t hi, int lane)
{
    const step *s = ctx;
    const int inner = s->p->matrix[s->op->w[0]].m.n;
    const size_t ld = (size_t)inner;
    (void)lane;
    const oct_swiglu_args args = {s->p->gate, s->p->up, ld, ld, inner, s->p->gate, ld};
    oct_step_gate(s, &args, lo, hi);
    quantize(s, lo, hi);
}

static void gated_mlp(step *s)
{
    const oct_op_desc *o = s->op;
    const int inner = s->p->matrix[o->w[0]].m.n;
    oct_step_read_input(s);
    oct_product both[] = {product(s, o->w[0], s->p->gate, (size_t)inner, -1, false),
                          product(s, o->w[1], s->p->up, (size_t)inner, -1, false)};
    products(s, both, 2);
    oct_step_lap(s, OCT_COST_LINEAR);
    set_input(s, s->p->gate, inner, s->rows);
    oct_step_loop(s, s->rows, gate_and_quantize, s);
    oct_step_lap(s, OCT_COST_GATE);
    add_product(s, o->w[2], -1);
}

/* ---- head ------------------------------------------------------------------------------------ */

/* What the item asked for, of wanted row `w` whose logits are row `at` of p->logits. */
static void reduce_row(const step *s, int64_t w, size_t at)
{
    oct_part_of_step *part = &s->part[s->wanted_part[w]];
    const oct_step_item *it = &s->args->items[s->wanted_part[w]];
    const oct_op_kernels *op = &s->c->rt->kernels.op;
    const size_t vocab = (size_t)s->p->vocab;
    const size_t r = (size_t)(s->wanted_row[w] - part->row - it->first);
    const float *logits = s->p->logits + at * vocab;
    if (!oct_all_finite(logits, vocab)) atomic_store(&part->bad, true);
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

static void head(step *s)
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
        oct_step_loop(s, n, quantize_task, s);
        oct_step_lap(s, OCT_COST_NORM);
        oct_product list[] = {
            product(s, o->w[0], s->p->logits, (size_t)s->p->vocab, -1, false),
        };
        products(s, list, 1);
        oct_step_lap(s, OCT_COST_HEAD);
        reduce_job job = {s, first};
        oct_parallel(s->c->rt->pool, (size_t)n, 1, reduce_rows, &job);
        oct_step_lap(s, OCT_COST_PICK);
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

static void run_op(step *s)
{
    switch (s->op->kind) {
    case OCT_OP_EMBED:
        embed(s);
        oct_step_lap(s, OCT_COST_EMBED);
        break;
    case OCT_OP_NORM:
        oct_step_loop(s, s->rows, norm_rows, s);
        oct_step_lap(s, OCT_COST_NORM);
        break;
    case OCT_OP_NORM_LINEAR: norm_linear(s); break;
    case OCT_OP_ATTEND: oct_attend_op_run(s); break;
    case OCT_OP_HEAD_LINEAR: oct_heads_run(s); break;
    case OCT_OP_LINEAR_ADD: linear_add(s); break;
    case OCT_OP_GATED_MLP: gated_mlp(s); break;
    case OCT_OP_MOE: oct_moe_run(s); break;
    default: head(s); break;
    }
}

void oct_ops_run(step *s)
{
    s->mark = oct_now_ns();
    make_positions(s);
    oct_step_lap(s, OCT_COST_STORE);
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
