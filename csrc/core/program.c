/* program.c: a program's tables and all the memory that a step of it needs. */
#include "csrc/core/program.h"

#include <string.h>

#include "csrc/core/mem.h"

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

/* Entries of an op's `matrices`, and of its `biases` where it has some. */
static size_t matrices_of(const oct_op_desc *o)
{
    if (o->kind == OCT_OP_MOE) return 3 * (size_t)o->moe.experts;
    return o->kind == OCT_OP_HEAD_LINEAR ? (size_t)o->heads : 0;
}

static size_t biases_of(const oct_op_desc *o)
{
    return o->kind == OCT_OP_MOE && o->biases ? matrices_of(o) : 0;
}

/* Copies a list to *to, which moves on. */
static const int *take_list(int **to, const int *from, size_t n)
{
    const int *at = *to;
    if (n) memcpy(*to, from, n * sizeof *from);
    *to += n;
    return at;
}

static bool copy_tables(oct_program *p, const oct_weights *w, const oct_program_desc *d)
{
    p->ops = copy(d->ops, (size_t)d->n_ops, sizeof *p->ops);
    p->widths = copy(d->widths, (size_t)d->n_buffers, sizeof *p->widths);
    p->matrix = copy(w->matrix, (size_t)w->matrices, sizeof *p->matrix);
    p->vector = copy(w->vector, (size_t)w->vectors, sizeof *p->vector);
    if (!p->ops || !p->widths || !p->matrix || !p->vector) return false;
    size_t total = 0;
    for (int i = 0; i < d->n_ops; i++) total += matrices_of(&d->ops[i]) + biases_of(&d->ops[i]);
    int *to = p->lists = oct_alloc(OCT_TAG_SCRATCH, total + !total, sizeof *to);
    for (int i = 0; to && i < d->n_ops; i++) {
        const oct_op_desc *o = &d->ops[i];
        p->ops[i].matrices = take_list(&to, o->matrices, matrices_of(o));
        if (o->biases) p->ops[i].biases = take_list(&to, o->biases, biases_of(o));
    }
    return p->lists;
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
    oct_free(p->lists);
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
    oct_moe_free(p->moe);
    oct_heads_free(p->heads);
    oct_weights_unref(p->w);
    oct_free(p);
}

/* The most that any op asks for. */
typedef struct {
    int input, inner, heads, head_k;
    oct_moe_sizes moe;
} sizes;

static sizes sizes_of(const oct_weights *w, oct_act act, const oct_program_desc *d)
{
    sizes z = {.input = 1, .inner = 1};
    for (int i = 0; i < d->n_ops; i++) {
        const oct_op_desc *o = &d->ops[i];
        const int in = o->kind == OCT_OP_EMBED ? 0 : d->widths[o->in];
        if (o->kind != OCT_OP_HEAD_LINEAR) z.input = at_least(z.input, in);
        if (oct_op_norms_output(o)) z.input = at_least(z.input, d->widths[o->out[0]]);
        if (o->kind == OCT_OP_GATED_MLP) z.inner = at_least(z.inner, w->matrix[o->w[0]].m.n);
        if (o->kind == OCT_OP_MOE) {
            z.moe.experts = at_least(z.moe.experts, o->moe.experts);
            z.moe.top = at_least(z.moe.top, o->moe.top);
            z.moe.width = at_least(z.moe.width, at_least(in, d->widths[o->out[0]]));
            z.moe.inner = at_least(z.moe.inner, w->matrix[o->matrices[0]].m.n);
        }
        for (int h = 0; o->kind == OCT_OP_HEAD_LINEAR && h < o->heads; h++) {
            const oct_stored_matrix *m = &w->matrix[o->matrices[h]];
            z.heads = at_least(z.heads, o->heads);
            if (oct_effective_act(&w->rt->kernels, m->format, act) != OCT_A32)
                z.head_k = at_least(z.head_k, m->m.k);
        }
    }
    return z;
}

oct_status oct_program_open(oct_program **out, oct_weights *w, const oct_program_desc *d)
{
    *out = NULL;
    const oct_status status = oct_program_check(w, d);
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
    const sizes z = sizes_of(w, p->act, d);
    bool good = copy_tables(p, w, d) && copy_ropes(p, d) && alloc_buffers(p, z.input, z.inner);
    if (good && z.moe.experts) good = (p->moe = oct_moe_open(&z.moe, p->max_rows));
    if (good && z.heads) good = (p->heads = oct_heads_open(z.heads, z.head_k, p->max_rows));
    if (!good) {
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
