/* weights.h: packed matrices and float vectors, by small integer ids. */
#ifndef OCT_CORE_WEIGHTS_H
#define OCT_CORE_WEIGHTS_H

#include "csrc/core/runtime.h"

typedef struct {
    oct_weight_id format;
    oct_matrix m; /* data in one of the store's batches */
    size_t bytes;
} oct_stored_matrix;

typedef struct {
    float *values;
    int n;
} oct_stored_vector;

struct oct_weights {
    oct_runtime *rt;
    oct_stored_matrix *matrix;
    oct_stored_vector *vector;
    void **batch; /* blocks of matrices that were added together */
    int matrices, vectors, batches;
    size_t bytes;
    _Atomic int refs;  /* programs and the owner */
    _Atomic bool busy; /* a call that adds, or a linear that uses the pool */
};

/* Whoever adds, or computes on the pool, has the store alone; BUSY otherwise. */
oct_status oct_weights_take(oct_weights *, const char *operation);
void oct_weights_drop(oct_weights *);

oct_weights *oct_weights_ref(oct_weights *);
void oct_weights_unref(oct_weights *);

/* One product for the executor: y (+)= rows * w. Tiles of several run as one parallel loop. */
typedef struct {
    const oct_stored_matrix *w;
    const oct_rows *x;
    float *y;
    size_t ldy;
    const float *bias;
    bool add;
} oct_product;

#define OCT_MAX_PRODUCTS 3
void oct_products_run(oct_runtime *, const oct_product *, int count);
/* Any number of them; first: room for count + 1. */
void oct_products_list(oct_runtime *, const oct_product *, int count, size_t *first);

/* The form in which matrices of this format read their input when `act` is asked for: float formats
 * read a32. */
oct_act oct_effective_act(const oct_kernels *, oct_weight_id, oct_act);

/* Rows [at, at + n) of r, as the form `act` reads them; r has codes. */
oct_rows oct_rows_at(const oct_rows *r, oct_act act, int at, int n);

/* Arrays behind an oct_rows of up to m rows of up to k; every pointer of `rows` is set. */
oct_status oct_rows_alloc(oct_rows *rows, const char *operation, int m, int k);
void oct_rows_free(oct_rows *rows);

#endif
