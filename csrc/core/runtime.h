/* runtime.h: the kernels of one ISA level, a pool, and one scratch per lane. */
#ifndef OCT_CORE_RUNTIME_H
#define OCT_CORE_RUNTIME_H

#include <stdatomic.h>

#include "csrc/core/threads.h"
#include "kernels/kernels.h"

struct oct_runtime {
    oct_kernels kernels;
    oct_pool *pool;
    void **lanes; /* [threads], OCT_LANE_BYTES each */
    int threads;
    _Atomic int refs; /* weights, caches and the owner */
};

oct_runtime *oct_runtime_ref(oct_runtime *);
void oct_runtime_unref(oct_runtime *);

/* Index of a name in a table of names, -1 if absent; the error lists what exists. */
int oct_weight_by_name(const char *name);
int oct_page_by_name(const char *name);
int oct_act_by_name(const char *name);
int oct_form_by_name(const char *name);
oct_status oct_dtype_by_name(const char *operation, const char *name, oct_dtype *out);
const char *oct_dtype_name(oct_dtype);

#endif
