/* program.c: the door of a program. Every operand, width and shape is checked here once, and all the
 * memory that a step of it needs is allocated, so that a step below asserts at most. */
#include "csrc/core/program.h"

#include <math.h>
#include <string.h>

#include "csrc/core/mem.h"

#define MAX_OPS 100000
#define MAX_BUFFERS 64
#define MAX_ROWS 65536
#define MAX_WIDTH (1 << 24)

/* ---- validation ------------------------------------------------------------------------------ */

static const char *const kind_names[OCT_OP_KIND_COUNT] = {
    "embed", "norm", "norm_linear", "attend", "linear_add", "gated_mlp", "head",
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
    oct_status status = buffer_ok(c, "in2 (k)", o->in2);
    if (!status) status = buffer_ok(c, "in3 (v)", o->in3);
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
    const int dim = widths[o->in] / o->heads;
    if (o->rope >= 0 && c->d->ropes[o->rope].dim != dim)
        return bad_op(c, "width of rope", c->d->ropes[o->rope].dim, dim);
    if (!isfinite(o->scale)) return bad_op(c, "scale (not finite)", 0, 1);
    status = vector_ok(c, "q_norm", o->q_norm, dim);
    if (!status) status = vector_ok(c, "k_norm", o->k_norm, dim);
    return status;
}

static oct_status check_gated_mlp(const check *c)
{
    const oct_op_desc *o = c->op;
    const int width = c->d->widths[o->in], out = c->d->widths[o->out[0]];
    oct_status status = vector_ok(c, "norm", o->norm, width);
    if (!status) status = matrix_ok(c, 0, -1, width);
    if (status) return status;
    const int inner = c->w->matrix[o->w[0]].m.n;
    status = matrix_ok(c, 1, inner, width);
    return status ? status : matrix_ok(c, 2, out, inner);
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
    case OCT_OP_LINEAR_ADD:
        status = matrix_ok(c, 0, widths[o->out[0]], widths[o->in]);
        if (!status && o->in == o->out[0])
            status = oct_fail(OCT_E_VALUE, "program: op %d (linear_add): in is out", c->index);
        return status ? status : vector_ok(c, "bias", o->bias[0], widths[o->out[0]]);
    case OCT_OP_GATED_MLP:
        return check_gated_mlp(c);
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

static oct_status check_desc(const oct_weights *w, const oct_program_desc *d)
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

/* ---- memory ---------------------------------------------------------------------------------- */

static int at_least(int a, int b)
{
    return a > b ? a : b;
}

static float *floats(size_t rows, size_t width)
{
    size_t n;
    return oct_mul(rows, width, &n) ? oct_alloc(OCT_TAG_SCRATCH, n ? n : 1, sizeof(float)) : NULL;
}

static bool alloc_buffers(oct_program *p, int input, int inner)
{
    const size_t rows = (size_t)p->max_rows;
    p->buffer = oct_zalloc(OCT_TAG_SCRATCH, (size_t)p->n_buffers, sizeof *p->buffer);
    for (int i = 0; p->buffer && i < p->n_buffers; i++)
        if (!(p->buffer[i] = floats(rows, (size_t)p->widths[i]))) return false;
    p->normed = floats(rows, (size_t)input);
    p->gate = floats(rows, (size_t)inner);
    p->up = floats(rows, (size_t)inner);
    p->logits = floats((size_t)p->head_rows, (size_t)p->vocab);
    p->lse = floats((size_t)p->head_rows, 1);
    p->ids = oct_alloc(OCT_TAG_SCRATCH, (size_t)p->head_rows, sizeof *p->ids);
    p->positions = oct_alloc(OCT_TAG_SCRATCH, rows, sizeof *p->positions);
    return p->buffer && p->normed && p->gate && p->up && p->logits && p->lse && p->ids &&
           p->positions && !oct_rows_alloc(&p->rows, "program", p->max_rows, at_least(input, inner));
}

static bool copy_ropes(oct_program *p, const oct_program_desc *d)
{
    p->ropes = oct_zalloc(OCT_TAG_SCRATCH, (size_t)at_least(d->n_ropes, 1), sizeof *p->ropes);
    if (!p->ropes) return false;
    p->n_ropes = d->n_ropes;
    for (int i = 0; i < d->n_ropes; i++) {
        const oct_rope_desc *from = &d->ropes[i];
        oct_rope *r = &p->ropes[i];
        *r = (oct_rope){from->dim, from->half_split, from->mscale, NULL, NULL};
        r->freq = oct_alloc(OCT_TAG_SCRATCH, (size_t)from->dim / 2, sizeof *r->freq);
        r->cs = floats((size_t)p->max_rows, (size_t)from->dim);
        if (!r->freq || !r->cs) return false;
        memcpy(r->freq, from->freq, (size_t)from->dim / 2 * sizeof *r->freq);
    }
    return true;
}

static void *copy(const void *from, size_t count, size_t size)
{
    void *to = oct_alloc(OCT_TAG_SCRATCH, count + !count, size);
    if (to && count) memcpy(to, from, count * size);
    return to;
}

static bool copy_tables(oct_program *p, const oct_weights *w, const oct_program_desc *d)
{
    p->ops = copy(d->ops, (size_t)d->n_ops, sizeof *p->ops);
    p->widths = copy(d->widths, (size_t)d->n_buffers, sizeof *p->widths);
    p->matrix = copy(w->matrix, (size_t)w->matrices, sizeof *p->matrix);
    p->vector = copy(w->vector, (size_t)w->vectors, sizeof *p->vector);
    return p->ops && p->widths && p->matrix && p->vector;
}

void oct_program_close(oct_program **program)
{
    oct_program *p = *program;
    *program = NULL;
    if (!p) return;
    for (int i = 0; p->buffer && i < p->n_buffers; i++) oct_free(p->buffer[i]);
    for (int i = 0; p->ropes && i < p->n_ropes; i++) {
        oct_free(p->ropes[i].freq);
        oct_free(p->ropes[i].cs);
    }
    oct_free(p->buffer);
    oct_free(p->ropes);
    oct_free(p->matrix);
    oct_free(p->vector);
    oct_free(p->ops);
    oct_free(p->widths);
    oct_free(p->normed);
    oct_free(p->gate);
    oct_free(p->up);
    oct_free(p->logits);
    oct_free(p->lse);
    oct_free(p->ids);
    oct_free(p->positions);
    oct_rows_free(&p->rows);
    oct_attend_free(p->attend);
    oct_weights_unref(p->w);
    oct_free(p);
}

oct_status oct_program_open(oct_program **out, oct_weights *w, const oct_program_desc *d)
{
    *out = NULL;
    const oct_status status = check_desc(w, d);
    if (status) return status;
    oct_program *p = oct_zalloc(OCT_TAG_SCRATCH, 1, sizeof *p);
    if (!p) return oct_fail_memory("program", "itself");
    p->w = oct_weights_ref(w);
    p->rt = w->rt;
    p->act = (oct_act)oct_act_by_name(d->act);
    p->max_rows = d->max_rows;
    p->n_buffers = d->n_buffers;
    p->n_ops = d->n_ops;
    p->vocab = w->matrix[d->ops[d->n_ops - 1].w[0]].m.n;
    p->head_rows = d->max_rows < OCT_HEAD_ROWS ? d->max_rows : OCT_HEAD_ROWS;
    int input = 1, inner = 1;
    for (int i = 0; i < d->n_ops; i++) {
        const oct_op_desc *o = &d->ops[i];
        if (o->kind != OCT_OP_EMBED) input = at_least(input, d->widths[o->in]);
        if (o->kind == OCT_OP_GATED_MLP) inner = at_least(inner, w->matrix[o->w[0]].m.n);
    }
    if (!copy_tables(p, w, d) || !copy_ropes(p, d) || !alloc_buffers(p, input, inner)) {
        oct_program_close(&p);
        return oct_fail_memory("program", "its row buffers; use a smaller max_rows");
    }
    *out = p;
    return OCT_OK;
}

int oct_program_vocab(const oct_program *p)
{
    return p->vocab;
}
