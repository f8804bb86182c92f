/* threads.h: a persistent pool whose lanes spin, then sleep.
 *
 * A parallel loop hands out tasks [0, n) in claims of `grain` through an atomic counter. Which lane
 * runs a task never changes a result (tasks are cut by shape alone). The calling thread is lane 0.
 * A worker that is not running a task is never waited for, so a descheduled worker costs nothing
 * but its share. oct_pool_enter / leave bracket a step: one caller at a time, fork noticed, the
 * floating-point control word set to round-to-nearest without FTZ or DAZ, and restored. Short work
 * on the calling thread sets the word alone (oct_fp_enter): it never waits, so that its caller may
 * hold a host lock that a running step's poll needs. */
#ifndef OCT_CORE_THREADS_H
#define OCT_CORE_THREADS_H

#include <stddef.h>

#include "csrc/core/status.h"
#include "kernels/cpu.h"

#define OCT_MAX_THREADS 256

typedef struct oct_pool oct_pool;
typedef void (*oct_task_fn)(void *ctx, size_t lo, size_t hi, int lane);

oct_status oct_pool_open(oct_pool **out, int threads);
void oct_pool_close(oct_pool **);
int oct_pool_threads(const oct_pool *);
/* Between enter and leave only. */
void oct_pool_resize(oct_pool *, int threads);

/* Waits for the pool. If the poll cancels while it waits, enter returns false and there is nothing
 * to leave; later, the remaining tasks of every loop are skipped until leave. */
bool oct_pool_enter(oct_pool *, oct_poll);
bool oct_pool_cancelled(const oct_pool *);
void oct_pool_cancel(oct_pool *); /* as if the poll had */
bool oct_pool_leave(oct_pool *); /* false: cancelled, and tasks were skipped */

int64_t oct_now_ns(void); /* monotonic */

void oct_parallel(oct_pool *, size_t n, size_t grain, oct_task_fn, void *ctx);
/* The same with claims that shrink: a share of the tasks that are left, at most `most`. For streams
 * through memory, which long runs serve best, while the last claims even the lanes out. */
void oct_parallel_shares(oct_pool *, size_t n, size_t most, oct_task_fn, void *ctx);

#endif
