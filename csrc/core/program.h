/* program.h: a validated flat list of ops, with the memory that a step of it needs.
 *
 * Everything a step indexes is checked when the program is opened: operands, widths against the
 * matrices' shapes, aliasing, order. Below, asserts only. */
#ifndef OCT_CORE_PROGRAM_H
#define OCT_CORE_PROGRAM_H

#include "csrc/core/cache.h"
#include "csrc/core/heads.h"
#include "csrc/core/moe.h"
#include "csrc/core/weights.h"

#define OCT_HEAD_ROWS 64 /* rows of logits that are held at once */

typedef struct {
    int dim;
    bool half_split;
    float mscale;
    double *freq; /* [dim/2] */
    float *cs;    /* [max_rows][dim], of the step's positions */
} oct_rope;

struct oct_program {
    oct_weights *w; /* keeps the data alive; its tables move when something is added */
    oct_runtime *rt;
    oct_stored_matrix *matrix; /* as they were when the program was opened */
    oct_stored_vector *vector;
    oct_act act;
    int max_rows, vocab, head_rows;

    oct_op_desc *ops;
    int n_ops;
    int *lists; /* what `matrices` and `biases` of the ops point into */
    int *widths;
    float **buffer; /* [n_buffers] of [max_rows][width] */
    int n_buffers;
    oct_rope *ropes;
    int n_ropes;

    float *normed;    /* [max_rows][widest input of a product, or output that is normed] */
    float *gate, *up; /* [max_rows][widest gated mlp] */
    oct_rows rows;    /* quantized inputs, capacity max_rows x widest input */
    float *logits;    /* [head_rows][vocab] */
    float *lse;       /* [head_rows] */
    int32_t *ids;     /* [head_rows] */
    int64_t *positions;
    oct_attend_scratch *attend;
    oct_moe_scratch *moe; /* NULL: there is none; so are heads */
    oct_heads_scratch *heads;
    _Atomic bool busy;
};

/* Whether what an op adds is normed first. */
static inline bool oct_op_norms_output(const oct_op_desc *o)
{
    return (o->kind == OCT_OP_LINEAR_ADD || o->kind == OCT_OP_GATED_MLP) && o->out_norm >= 0;
}

oct_status oct_program_check(const oct_weights *, const oct_program_desc *);

#endif
