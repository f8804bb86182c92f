/* step.h: one step in flight, shared by its phases (step.c) and its ops (ops.c). */
#ifndef OCT_CORE_STEP_H
#define OCT_CORE_STEP_H

#include "csrc/core/program.h"

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
    int64_t mark; /* when the work that runs began */
} oct_step_state;

/* ops.c, for ops that have a file of their own. The work since the last lap was of this kind. */
void oct_step_lap(oct_step_state *, oct_cost_kind);
/* fn(ctx, lo, hi, lane) over rows, on the pool. */
void oct_step_loop(const oct_step_state *, int64_t rows, oct_task_fn fn, const void *ctx);
/* p->rows becomes the op's input, normed if it says so and quantized. */
void oct_step_read_input(oct_step_state *);

/* The op's activation of rows [lo, hi) of gates and what they gate. */
void oct_step_gate(const oct_step_state *, const oct_swiglu_args *, size_t lo, size_t hi);
/* Values of a vector; NULL for id -1. */
const float *oct_step_vector(const oct_step_state *, int id);

void oct_attend_op_run(oct_step_state *); /* attend_op.c */
void oct_moe_run(oct_step_state *);       /* moe.c */
void oct_heads_run(oct_step_state *);     /* heads.c */

/* cost.c: the bytes and operations of a validated step, from its shapes. */
void oct_cost_of_step(const oct_step_state *);
/* One matrix over so many rows; for experts, which are known only once they are chosen. */
void oct_cost_add_product(const oct_step_state *, int w, int64_t rows, oct_cost *to);

/* ops.c: every op of the program over the batch, captures included; stops early when cancelled. */
void oct_ops_run(oct_step_state *);
bool oct_all_finite(const float *x, size_t n);

#endif
