/* program_check.c: the door of a program. Every operand, width and shape is checked here once, so that
 * a step below asserts at most. */
#include <math.h>

#include "csrc/core/program.h"

#define MAX_OPS 100000
#define MAX_BUFFERS 64
#define MAX_ROWS 65536
#define MAX_WIDTH (1 << 24)

static const char *const kind_names[OCT_OP_KIND_COUNT] = {
    "embed", "norm", "norm_linear", "attend", "head_linear", "linear_add", "gated_mlp", "moe",
    "head",
};

typedef struct {
    const oct_weights *w;
    const oct_program_desc *d;
    const oct_op_desc *op;
    int index;
} check;

static oct_status bad_op(const check *c, const char *what, long long value, long long limit)
{
    return oct_fail(OCT_E_VALUE, "program: op %d (%s): %s is %lld, must be %lld", c->index,
                    kind_names[c->op->kind], what, value, limit);
}

static oct_status buffer_ok(const check *c, const char *what, int buffer)
{
    if (buffer >= 0 && buffer < c->d->n_buffers) return OCT_OK;
    return oct_fail(OCT_E_VALUE, "program: op %d (%s): %s is buffer %d, there are %d", c->index,
                    kind_names[c->op->kind], what, buffer, c->d->n_buffers);
}

/* Matrix w[i] reads `k` inputs; n < 0: any. */
static oct_status matrix_ok(const check *c, int i, long long n, long long k)
{
    const int id = c->op->w[i];
    if (id < 0 || id >= c->w->matrices)
        return oct_fail(OCT_E_VALUE, "program: op %d (%s): w[%d] is matrix %d, there are %d", c->index,
                        kind_names[c->op->kind], i, id, c->w->matrices);
    const oct_matrix *m = &c->w->matrix[id].m;
    if (n >= 0 && m->n != n) return bad_op(c, "rows of the matrix", m->n, n);
    if (k >= 0 && m->k != k) return bad_op(c, "columns of the matrix", m->k, k);
    return OCT_OK;
}

static oct_status vector_ok(const check *c, const char *what, int id, long long n)
{
    if (id < 0) return OCT_OK;
    if (id >= c->w->vectors)
        return oct_fail(OCT_E_VALUE, "program: op %d (%s): %s is vector %d, there are %d", c->index,
                        kind_names[c->op->kind], what, id, c->w->vectors);
    return c->w->vector[id].n == n ? OCT_OK : bad_op(c, what, c->w->vector[id].n, n);
}

static oct_status check_eps(const check *c)
{
    if (isfinite(c->op->eps) && c->op->eps >= 0) return OCT_OK;
    return oct_fail(OCT_E_VALUE, "program: op %d (%s): eps is %g", c->index,
                    kind_names[c->op->kind], (double)c->op->eps);
}

static oct_status check_norm_linear(const check *c)
{
    const oct_op_desc *o = c->op;
    const int width = c->d->widths[o->in];
    if (o->n_out < 1 || o->n_out > 3) return bad_op(c, "n_out", o->n_out, 1);
    oct_status status = vector_ok(c, "norm", o->norm, width);
    for (int i = 0; i < o->n_out && !status; i++) {
        status = buffer_ok(c, "out", o->out[i]);
        if (!status) status = matrix_ok(c, i, c->d->widths[o->out[i]], width);
        if (!status) status = vector_ok(c, "bias", o->bias[i], c->d->widths[o->out[i]]);
        for (int j = -1; j < i && !status; j++)
            if (o->out[i] == (j < 0 ? o->in : o->out[j]))
                status = oct_fail(OCT_E_VALUE, "program: op %d (norm_linear): out[%d] aliases another "
                                  "operand (buffer %d)", c->index, i, o->out[i]);
    }
    return status;
}

static oct_status check_attend(const check *c)
{
    const oct_op_desc *o = c->op;
    const int *widths = c->d->widths;
    const bool latent = o->in3 < 0;
    oct_status status = buffer_ok(c, "in2 (k)", o->in2);
    if (!status && !latent) status = buffer_ok(c, "in3 (v)", o->in3);
    if (status) return status;
    if (o->heads < 1 || widths[o->in] % o->heads || widths[o->out[0]] % o->heads)
        return oct_fail(OCT_E_VALUE, "program: op %d (attend): %d heads do not divide the width of q "
                        "(%d) or of the output (%d)", c->index, o->heads, widths[o->in],
                        widths[o->out[0]]);
    if (o->in == o->in2 || o->in == o->in3 || o->in2 == o->in3 || o->out[0] == o->in ||
        o->out[0] == o->in2 || o->out[0] == o->in3)
        return oct_fail(OCT_E_VALUE, "program: op %d (attend): q, k, v and out must be four buffers",
                        c->index);
    if (o->layer < 0 || o->rope < -1 || o->rope >= c->d->n_ropes)
        return oct_fail(OCT_E_VALUE, "program: op %d (attend): layer is %d, rope %d of %d", c->index,
                        o->layer, o->rope, c->d->n_ropes);
    const int dim = widths[o->in] / o->heads, rank = widths[o->out[0]] / o->heads;
    if (latent && (widths[o->in2] != dim || rank >= dim || o->q_norm >= 0))
        return oct_fail(OCT_E_VALUE, "program: op %d (attend): a latent layer's in2 is %d wide, must be "
                        "%d like a query, and a head's output %d, which must be less; q_norm must be "
                        "-1", c->index, widths[o->in2], dim, rank);
    const int rotated = latent ? dim - rank : dim;
    if (o->rope >= 0 && c->d->ropes[o->rope].dim != rotated)
        return bad_op(c, "width of rope", c->d->ropes[o->rope].dim, rotated);
    if (!isfinite(o->scale)) return bad_op(c, "scale (not finite)", 0, 1);
    if (o->window < 0)
        return oct_fail(OCT_E_VALUE, "program: op %d (attend): window is %d, legal are 0 (none) and "
                        "more", c->index, o->window);
    status = vector_ok(c, "sinks", o->sinks, o->heads);
    if (!status) status = vector_ok(c, "q_norm", o->q_norm, dim);
    if (!status) status = vector_ok(c, "k_norm", o->k_norm, latent ? rank : dim);
    return status;
}

static oct_status check_head_linear(const check *c)
{
    const oct_op_desc *o = c->op;
    const int in = c->d->widths[o->in], out = c->d->widths[o->out[0]];
    if (o->heads < 1 || in % o->heads || out % o->heads || o->in == o->out[0])
        return oct_fail(OCT_E_VALUE, "program: op %d (head_linear): %d heads do not divide the width of "
                        "in (%d) or of out (%d), or in is out", c->index, o->heads, in, out);
    int n = 0, k = 0;
    for (int h = 0; h < o->heads; h++) {
        const int id = o->matrices[h];
        if (id < 0 || id >= c->w->matrices)
            return oct_fail(OCT_E_VALUE, "program: op %d (head_linear): head %d has matrix %d, there are "
                            "%d", c->index, h, id, c->w->matrices);
        const oct_matrix *m = &c->w->matrix[id].m;
        if (!h) n = m->n, k = m->k;
        if (m->n != n || m->k != k || in / o->heads < k || in / o->heads - k != out / o->heads - n)
            return oct_fail(OCT_E_VALUE, "program: op %d (head_linear): matrix of head %d is %d x %d; all "
                            "must be alike, and pass on what of %d inputs makes %d outputs", c->index,
                            h, m->n, m->k, in / o->heads, out / o->heads);
    }
    return OCT_OK;
}

static oct_status check_activation(const check *c)
{
    if ((int)c->op->activation >= 0 && c->op->activation < OCT_ACTIVATION_COUNT) return OCT_OK;
    return oct_fail(OCT_E_VALUE, "program: op %d (%s): activation is %d, legal are 0 to %d", c->index,
                    kind_names[c->op->kind], (int)c->op->activation, OCT_ACTIVATION_COUNT - 1);
}

static oct_status check_gated_mlp(const check *c)
{
    const oct_op_desc *o = c->op;
    const int width = c->d->widths[o->in], out = c->d->widths[o->out[0]];
    oct_status status = check_activation(c);
    if (!status) status = vector_ok(c, "norm", o->norm, width);
    if (!status) status = vector_ok(c, "out_norm", o->out_norm, out);
    if (!status) status = matrix_ok(c, 0, -1, width);
    if (status) return status;
    const int inner = c->w->matrix[o->w[0]].m.n;
    status = matrix_ok(c, 1, inner, width);
    return status ? status : matrix_ok(c, 2, out, inner);
}

static oct_status check_router(const check *c)
{
    const oct_moe_desc *d = &c->op->moe;
    const bool grouped = d->groups > 1;
    if (d->experts < 1 || d->experts > OCT_MAX_EXPERTS)
        return oct_fail(OCT_E_VALUE, "program: op %d (moe): experts is %d, legal are 1 to %d", c->index,
                        d->experts, OCT_MAX_EXPERTS);
    if (d->groups < 1 || d->experts % d->groups || d->groups_kept < 1 || d->groups_kept > d->groups)
        return oct_fail(OCT_E_VALUE, "program: op %d (moe): groups is %d, which must divide %d experts, "
                        "and groups_kept %d of them", c->index, d->groups, d->experts, d->groups_kept);
    const int most = grouped && !d->outside_zero ? d->experts / d->groups * d->groups_kept : d->experts;
    if (d->top < 1 || d->top > most)
        return oct_fail(OCT_E_VALUE, "program: op %d (moe): top is %d, legal are 1 to %d", c->index,
                        d->top, most);
    if ((int)d->score < 0 || d->score >= OCT_ROUTER_SCORE_COUNT || !isfinite(c->op->scale))
        return oct_fail(OCT_E_VALUE, "program: op %d (moe): score is %d, scale %g; legal are 0 to %d, "
                        "and a finite scale", c->index, (int)d->score, (double)c->op->scale,
                        OCT_ROUTER_SCORE_COUNT - 1);
    oct_status status = matrix_ok(c, 0, d->experts, c->d->widths[c->op->in]);
    if (!status) status = vector_ok(c, "bias[0] (of the logits)", c->op->bias[0], d->experts);
    if (!status) status = vector_ok(c, "bias[1] (of the choice)", c->op->bias[1], d->experts);
    if (!status && oct_weight_traits_of[c->w->matrix[c->op->w[0]].format].code_bits)
        status = oct_fail(OCT_E_VALUE, "program: op %d (moe): the router's matrix is held as %s; it must "
                          "be f32, f16 or bf16", c->index,
                          oct_weight_traits_of[c->w->matrix[c->op->w[0]].format].name);
    return status;
}

/* The three matrices of expert e; inner: rows of gate and up, of expert 0. */
static oct_status check_expert(const check *c, int e, int inner)
{
    static const char *const names[] = {"gate", "up", "down"};
    const int in = c->d->widths[c->op->in], out = c->d->widths[c->op->out[0]];
    for (int i = 0; i < 3; i++) {
        const int id = c->op->matrices[3 * e + i];
        if (id < 0 || id >= c->w->matrices)
            return oct_fail(OCT_E_VALUE, "program: op %d (moe): %s of expert %d is matrix %d, there are "
                            "%d", c->index, names[i], e, id, c->w->matrices);
        const oct_matrix *m = &c->w->matrix[id].m;
        const int n = i < 2 ? inner : out, k = i < 2 ? in : inner;
        if (m->n != n || m->k != k)
            return oct_fail(OCT_E_VALUE, "program: op %d (moe): %s of expert %d is %d x %d, must be "
                            "%d x %d", c->index, names[i], e, m->n, m->k, n, k);
        const int bias = c->op->biases ? c->op->biases[3 * e + i] : -1;
        if (bias >= c->w->vectors || (bias >= 0 && c->w->vector[bias].n != n))
            return oct_fail(OCT_E_VALUE, "program: op %d (moe): bias of %s of expert %d is vector %d, of "
                            "%d values; there are %d, and it must have %d", c->index, names[i], e, bias,
                            bias < c->w->vectors ? c->w->vector[bias].n : 0, c->w->vectors, n);
    }
    return OCT_OK;
}

static oct_status check_moe(const check *c)
{
    const oct_op_desc *o = c->op;
    oct_status status = check_router(c);
    if (!status) status = check_activation(c);
    if (!status && o->n_out != 2) status = bad_op(c, "n_out", o->n_out, 2);
    if (!status) status = buffer_ok(c, "out[1]", o->out[1]);
    if (!status) status = vector_ok(c, "norm", o->norm, c->d->widths[o->in]);
    if (status) return status;
    if (o->out[1] == o->in || o->out[1] == o->out[0])
        return oct_fail(OCT_E_VALUE, "program: op %d (moe): out[1] aliases another operand (buffer %d)",
                        c->index, o->out[1]);
    const int record = o->moe.experts + 2 * o->moe.top;
    if (c->d->widths[o->out[1]] != record)
        return bad_op(c, "width of out[1] (experts + 2 * top)", c->d->widths[o->out[1]], record);
    const int first = o->matrices[0];
    const int inner = first >= 0 && first < c->w->matrices ? c->w->matrix[first].m.n : 0;
    for (int e = 0; e < o->moe.experts && !status; e++) status = check_expert(c, e, inner);
    return status;
}

static oct_status check_op(const check *c)
{
    const oct_op_desc *o = c->op;
    if (o->kind < 0 || o->kind >= OCT_OP_KIND_COUNT)
        return oct_fail(OCT_E_VALUE, "program: op %d: unknown kind %d", c->index, (int)o->kind);
    oct_status status = OCT_OK;
    if (o->kind != OCT_OP_EMBED) status = buffer_ok(c, "in", o->in);
    if (!status && o->kind != OCT_OP_HEAD) status = buffer_ok(c, "out", o->out[0]);
    if (!status) status = check_eps(c);
    if (!status && o->out_norm >= 0 && !oct_op_norms_output(o))
        status = oct_fail(OCT_E_VALUE, "program: op %d (%s): out_norm is %d; only linear_add and "
                          "gated_mlp have one, others take -1", c->index, kind_names[o->kind],
                          o->out_norm);
    if (status) return status;
    const int *widths = c->d->widths;
    switch (o->kind) {
    case OCT_OP_EMBED:
        return matrix_ok(c, 0, -1, widths[o->out[0]]);
    case OCT_OP_NORM:
        if (o->norm < 0 || widths[o->in] != widths[o->out[0]])
            return bad_op(c, "width of out (or norm is missing)", widths[o->out[0]], widths[o->in]);
        return vector_ok(c, "norm", o->norm, widths[o->in]);
    case OCT_OP_NORM_LINEAR:
        return check_norm_linear(c);
    case OCT_OP_ATTEND:
        return check_attend(c);
    case OCT_OP_HEAD_LINEAR:
        return check_head_linear(c);
    case OCT_OP_LINEAR_ADD:
        status = matrix_ok(c, 0, widths[o->out[0]], widths[o->in]);
        if (!status && o->in == o->out[0])
            status = oct_fail(OCT_E_VALUE, "program: op %d (linear_add): in is out", c->index);
        if (!status) status = vector_ok(c, "out_norm", o->out_norm, widths[o->out[0]]);
        return status ? status : vector_ok(c, "bias", o->bias[0], widths[o->out[0]]);
    case OCT_OP_GATED_MLP:
        return check_gated_mlp(c);
    case OCT_OP_MOE:
        return check_moe(c);
    default:
        return matrix_ok(c, 0, -1, widths[o->in]);
    }
}

static oct_status check_ropes(const oct_program_desc *d)
{
    for (int i = 0; i < d->n_ropes; i++) {
        const oct_rope_desc *r = &d->ropes[i];
        if (r->dim < 2 || r->dim % 2 || r->dim > OCT_MAX_HEAD_DIM || !isfinite(r->mscale))
            return oct_fail(OCT_E_VALUE, "program: rope %d: dim is %d (even, 2 to %d) and mscale %g", i,
                            r->dim, OCT_MAX_HEAD_DIM, (double)r->mscale);
        for (int f = 0; f < r->dim / 2; f++)
            if (!(fabs(r->freq[f]) <= 1.0))
                return oct_fail(OCT_E_VALUE, "program: rope %d: freq[%d] is %g, legal are -1 to 1", i, f,
                                r->freq[f]);
    }
    return OCT_OK;
}

oct_status oct_program_check(const oct_weights *w, const oct_program_desc *d)
{
    if (oct_act_by_name(d->act) < 0)
        return oct_fail(OCT_E_VALUE, "program: unknown activation form '%.32s'", d->act ? d->act : "");
    if (d->n_ops < 2 || d->n_ops > MAX_OPS || d->n_buffers < 1 || d->n_buffers > MAX_BUFFERS)
        return oct_fail(OCT_E_VALUE, "program: %d ops (2 to %d) over %d buffers (1 to %d)", d->n_ops,
                        MAX_OPS, d->n_buffers, MAX_BUFFERS);
    if (d->max_rows < 1 || d->max_rows > MAX_ROWS)
        return oct_fail(OCT_E_VALUE, "program: max_rows is %d, legal are 1 to %d", d->max_rows,
                        MAX_ROWS);
    for (int i = 0; i < d->n_buffers; i++)
        if (d->widths[i] < 1 || d->widths[i] > MAX_WIDTH)
            return oct_fail(OCT_E_VALUE, "program: buffer %d is %d wide, legal are 1 to %d", i,
                            d->widths[i], MAX_WIDTH);
    oct_status status = check_ropes(d);
    for (int i = 0; i < d->n_ops && !status; i++) {
        const check c = {w, d, &d->ops[i], i};
        status = check_op(&c);
        if (!status && (d->ops[i].kind == OCT_OP_HEAD) != (i == d->n_ops - 1))
            status = oct_fail(OCT_E_VALUE, "program: op %d: head must be the last op and only there", i);
        if (!status && (d->ops[i].kind == OCT_OP_EMBED) != (i == 0))
            status = oct_fail(OCT_E_VALUE, "program: op %d: embed must be the first op and only there",
                              i);
    }
    return status;
}
