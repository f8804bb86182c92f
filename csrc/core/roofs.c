/* roofs.c: what this machine does at best, in this process, on this runtime's pool. */
#include <string.h>

#include "csrc/core/mem.h"
#include "csrc/core/runtime.h"

enum { TASKS_A_LANE = 8 }; /* so that lanes even out */

typedef struct {
    const oct_kernels *kernels;
    oct_roof_args args;
} roof_job;

static double now_s(void)
{
    return 1e-9 * (double)oct_now_ns();
}

static void fill_rows(void *ctx, size_t lo, size_t hi, int lane)
{
    const roof_job *j = ctx;
    (void)lane;
    memset((char *)(uintptr_t)j->args.data + lo * j->args.bytes, 1, (hi - lo) * j->args.bytes);
}

static void roof_rows(void *ctx, size_t lo, size_t hi, int lane)
{
    const roof_job *j = ctx;
    (void)lane;
    j->kernels->op.roof(&j->args, lo, hi);
}

/* Work per second of one pass over all tasks; `took` is its length. */
static double pass(oct_pool *pool, roof_job *j, size_t tasks, double *took)
{
    uint64_t work = 0;
    const double begin = now_s();
    oct_parallel(pool, tasks, 1, roof_rows, j);
    *took = now_s() - begin;
    for (size_t i = 0; i < tasks; i++) work += j->args.work[i];
    return (double)work / (*took > 1e-9 ? *took : 1e-9);
}

/* The best of many passes: what others lose to neighbours and interrupts is not the machine's. */
static double best(oct_pool *pool, roof_job *j, size_t tasks, double seconds)
{
    double took, most = 0.0;
    while (j->args.kind != OCT_ROOF_READ && j->args.steps < 1u << 28) {
        pass(pool, j, tasks, &took);
        if (took > 0.002 || oct_pool_cancelled(pool)) break;
        j->args.steps *= 2;
    }
    for (const double end = now_s() + seconds; !oct_pool_cancelled(pool);) {
        const double rate = pass(pool, j, tasks, &took);
        most = rate > most ? rate : most;
        if (now_s() >= end) break;
    }
    return most;
}

oct_status oct_runtime_roofs(oct_runtime *rt, size_t bytes, double seconds, oct_poll poll,
                             oct_roofs *out)
{
    *out = (oct_roofs){0};
    if (bytes < 1 << 20 || bytes > (size_t)1 << 36)
        return oct_fail(OCT_E_VALUE, "roofs: %zu bytes to read, legal are 2^20 to 2^36", bytes);
    if (!(seconds > 0.0 && seconds <= 60.0))
        return oct_fail(OCT_E_VALUE, "roofs: %g seconds a roof, legal are more than 0, at most 60",
                        seconds);
    if (!oct_pool_enter(rt->pool, poll)) return oct_fail(OCT_E_CANCELLED, "roofs: cancelled");
    const size_t tasks = (size_t)oct_pool_threads(rt->pool) * TASKS_A_LANE;
    const size_t each = bytes / tasks / 1024 * 1024 + 1024;
    void *data = oct_alloc(OCT_TAG_SCRATCH, tasks, each);
    uint64_t *work = oct_alloc(OCT_TAG_SCRATCH, tasks, sizeof *work);
    uint32_t *check = oct_alloc(OCT_TAG_SCRATCH, tasks, sizeof *check);
    oct_status status = OCT_OK;
    if (data && work && check) {
        roof_job job = {&rt->kernels, {OCT_ROOF_INT8, 1024, data, each, work, check}};
        memset(work, 0, tasks * sizeof *work); /* a cancelled pass leaves some unwritten */
        oct_parallel(rt->pool, tasks, 1, fill_rows, &job);
        out->int8_ops = 2.0 * best(rt->pool, &job, tasks, seconds);
        if (rt->kernels.isa >= OCT_AMX) {
            job.args.kind = OCT_ROOF_TILE;
            job.args.steps = 1024;
            out->tile_ops = 2.0 * best(rt->pool, &job, tasks, seconds);
        }
        job.args.kind = OCT_ROOF_F32;
        job.args.steps = 1024;
        out->f32_ops = 2.0 * best(rt->pool, &job, tasks, seconds);
        job.args.kind = OCT_ROOF_READ;
        out->read_bytes = best(rt->pool, &job, tasks, seconds);
    } else {
        status = oct_fail_memory("roofs", "what is to be read");
    }
    if (!oct_pool_leave(rt->pool) && !status) status = oct_fail(OCT_E_CANCELLED, "roofs: cancelled");
    oct_free(data);
    oct_free(work);
    oct_free(check);
    if (status) *out = (oct_roofs){0};
    return status;
}
