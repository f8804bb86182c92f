/* logits.c: the columns' reductions on the host's arrays, and the counter-based uniform. What is
 * not marked [slow] runs on the calling thread and never waits for the pool: the host may hold a
 * lock that a running step needs to finish. */
#include <limits.h>

#include "csrc/core/mem.h"
#include "csrc/core/runtime.h"

static oct_status shape_ok(const char *operation, int64_t m, int64_t n)
{
    if (m >= 0 && n >= 1 && n <= INT_MAX) return OCT_OK;
    return oct_fail(OCT_E_VALUE, "%s: shape is [%lld, %lld], legal are [0.., 1..2^31-1]", operation,
                    (long long)m, (long long)n);
}

typedef struct {
    const oct_kernels *kernels;
    oct_kl_args args;
} kl_job;

static void kl_rows(void *ctx, size_t lo, size_t hi, int lane)
{
    const kl_job *job = ctx;
    (void)lane;
    job->kernels->op.kl(&job->args, lo, hi);
}

oct_status oct_logits_kl(oct_runtime *rt, const float *base, const float *other, int64_t m, int64_t n,
                         double *kl)
{
    const oct_status status = shape_ok("kl", m, n);
    if (status) return status;
    kl_job job = {&rt->kernels, {base, other, (size_t)n, (int)n, kl}};
    oct_pool_enter(rt->pool, (oct_poll){0});
    oct_parallel(rt->pool, (size_t)m, 1, kl_rows, &job);
    oct_pool_leave(rt->pool);
    return OCT_OK;
}

oct_status oct_logits_lse(oct_runtime *rt, const float *x, int64_t m, int64_t n, float *lse)
{
    const oct_status status = shape_ok("lse", m, n);
    if (status) return status;
    const oct_lse_args args = {x, (size_t)n, (int)n, lse};
    const oct_fp_word host = oct_fp_enter();
    rt->kernels.op.lse(&args, 0, (size_t)m);
    oct_fp_leave(host);
    return OCT_OK;
}

oct_status oct_logits_argmax(oct_runtime *rt, const float *x, int64_t m, int64_t n, int32_t *index)
{
    const oct_status status = shape_ok("argmax", m, n);
    if (status) return status;
    const oct_argmax_args args = {x, (size_t)n, (int)n, index};
    const oct_fp_word host = oct_fp_enter(); /* DAZ would make tiny logits equal */
    rt->kernels.op.argmax(&args, 0, (size_t)m);
    oct_fp_leave(host);
    return OCT_OK;
}

oct_status oct_logits_topk(oct_runtime *rt, const float *x, int64_t m, int64_t n, int count,
                           int32_t *index, float *value)
{
    const oct_status status = shape_ok("topk", m, n);
    if (status) return status;
    if (count < 0 || count > n)
        return oct_fail(OCT_E_VALUE, "topk: count is %d, legal are 0 to %lld", count, (long long)n);
    const oct_topk_args args = {x, (size_t)n, (int)n, count, index, value};
    const oct_fp_word host = oct_fp_enter(); /* DAZ would make tiny logits equal */
    rt->kernels.op.topk(&args, 0, (size_t)m);
    oct_fp_leave(host);
    return OCT_OK;
}

static oct_status check_sample(const oct_sample_opts *o, const double *u, int64_t m)
{
    if (!(o->temperature >= 0) || !(o->top_p >= 0 && o->top_p <= 1) ||
        !(o->min_p >= 0 && o->min_p <= 1) || o->top_k < 0)
        return oct_fail(OCT_E_VALUE, "sample: temperature %g (>= 0), top_p %g and min_p %g (0 to 1), "
                        "top_k %d (>= 0)", (double)o->temperature, (double)o->top_p,
                        (double)o->min_p, o->top_k);
    for (int64_t i = 0; i < m; i++)
        if (!(u[i] >= 0 && u[i] < 1))
            return oct_fail(OCT_E_VALUE, "sample: u[%lld] is %g, legal are 0 <= u < 1", (long long)i,
                            u[i]);
    return OCT_OK;
}

oct_status oct_logits_sample(oct_runtime *rt, const float *x, int64_t m, int64_t n,
                             const oct_sample_opts *o, const double *u, int32_t *token)
{
    oct_status status = shape_ok("sample", m, n);
    if (!status) status = check_sample(o, u, m);
    if (status) return status;
    void *work = oct_alloc(OCT_TAG_SCRATCH, (size_t)n, 16);
    if (!work) return oct_fail_memory("sample", "its scratch");
    const oct_sample_args args = {x,     (size_t)n, (int)n, o->temperature, o->top_p, o->min_p,
                                  o->top_k, u,         token,  work};
    const oct_fp_word host = oct_fp_enter();
    rt->kernels.op.sample(&args, 0, (size_t)m);
    oct_fp_leave(host);
    oct_free(work);
    return OCT_OK;
}

/* SplitMix64's output function over a key of the three counters: 53 bits of a double. */
static uint64_t mix64(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

double oct_uniform(uint64_t seed, uint64_t sequence, uint64_t position)
{
    uint64_t h = mix64(seed + 0x9E3779B97F4A7C15u);
    h = mix64(h ^ (sequence + 0x9E3779B97F4A7C15u));
    h = mix64(h ^ (position + 0x9E3779B97F4A7C15u));
    return (double)(h >> 11) * 0x1p-53;
}
