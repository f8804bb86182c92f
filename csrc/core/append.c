/* append.c: the user's own rows, without a model: append them to every layer, attend over them. The
 * same reserving, storing, sealing and attention that a step uses. */
#include <string.h>

#include "csrc/core/cache.h"
#include "csrc/core/mem.h"

typedef struct {
    oct_cache *c;
    oct_part_of_step *part;
    int layer;
    float *row[2];  /* k and v of the layer: the caller's, or a copy where a transform writes */
    float *copy[2]; /* room for one layer's; NULL where no layer has a transform */
} store_job;

static void store_rows(void *ctx, size_t lo, size_t hi, int lane)
{
    const store_job *j = ctx;
    const oct_layer *l = &j->c->layer[j->layer];
    void *scratch = j->c->rt->lanes[lane];
    for (int side = 0; side < 2; side++) {
        const size_t row = (size_t)l->kv_heads * (size_t)l->side[side].width;
        oct_rows_store(j->c, j->part, 1, j->layer, side, j->row[side], row, (int64_t)lo, (int64_t)hi,
                       scratch);
    }
}

static bool transforms(const oct_cache *c, int side)
{
    bool any = false;
    for (int i = 0; i < c->layers; i++) any = any || c->layer[i].side[side].transform.on;
    return any;
}

/* What oct_rows_store may overwrite: it does so only where it transforms. */
static float *rows_to_store(const store_job *j, int side, const float *from, size_t count)
{
    if (!j->c->layer[j->layer].side[side].transform.on) return (float *)(uintptr_t)from;
    memcpy(j->copy[side], from, count * sizeof *from);
    return j->copy[side];
}

static void append_layers(oct_cache *c, oct_part_of_step *part, const oct_rows_desc *d,
                          store_job *job, oct_attend_scratch *scratch)
{
    const float *k = d->k, *v = d->v, *q = d->q;
    float *out = d->out;
    for (int i = 0; i < c->layers && !oct_pool_cancelled(c->rt->pool); i++) {
        const oct_layer *l = &c->layer[i];
        const size_t n = (size_t)d->n, heads = (size_t)d->heads;
        const size_t dq = (size_t)l->q_width, dv = (size_t)l->v_width;
        const size_t kn = n * (size_t)l->kv_heads * (size_t)l->side[0].width;
        const size_t vn = n * (size_t)l->kv_heads * (size_t)l->side[1].width;
        job->layer = i;
        job->row[0] = rows_to_store(job, OCT_SEGMENT_K, k, kn);
        job->row[1] = rows_to_store(job, OCT_SEGMENT_V, v, vn);
        oct_parallel(c->rt->pool, n, 16, store_rows, job);
        oct_rows_seal(c, part, 1, i);
        k += kn;
        v += vn;
        if (!q) continue;
        const oct_attend_args args = {
            .cache = c, .part = part, .parts = 1, .layer = i, .heads = d->heads, .scale = d->scale,
            .window = d->window, .sinks = d->sinks, .q = q, .ldq = heads * dq, .out = out,
            .ldo = heads * dv, .rows = d->n, .scratch = scratch,
        };
        oct_attend_run(&args);
        q += n * heads * dq;
        out += n * heads * dv;
    }
}

static oct_status run_reserved(oct_cache *c, oct_part_of_step *part, const oct_rows_desc *d,
                               store_job *job, oct_attend_scratch *scratch)
{
    bool whole = oct_pool_enter(c->rt->pool, d->poll);
    if (whole) {
        append_layers(c, part, d, job, scratch);
        whole = oct_pool_leave(c->rt->pool);
    }
    if (!whole) {
        oct_step_rollback(c, part, 1);
        return oct_fail(OCT_E_CANCELLED, "append: cancelled. Nothing was changed.");
    }
    oct_step_commit(c, part, 1);
    if (!atomic_load(&part->bad)) return OCT_OK;
    return oct_fail(OCT_E_NUMERIC, "append: k or v holds a value that is not finite or too large for a "
                    "page (|x| >= 2^56). Nothing was changed.");
}

static oct_status check_queries(const oct_cache *c, const char *operation, int lo, int hi,
                                const oct_rows_desc *d)
{
    for (int i = lo; i < hi; i++)
        if (d->heads < 1 || d->heads > 65536 || d->heads % c->layer[i].kv_heads)
            return oct_fail(OCT_E_VALUE, "%s: %d heads are no multiple of layer %d's %d kv_heads",
                            operation, d->heads, i, c->layer[i].kv_heads);
    if (d->window >= 0) return OCT_OK;
    return oct_fail(OCT_E_VALUE, "%s: window is %d, legal are 0 (none) and more", operation,
                    d->window);
}

static oct_status append_taken(oct_cache *c, oct_seq seq, const oct_rows_desc *d)
{
    oct_part_of_step part = {.n = (int32_t)d->n};
    store_job job = {c, &part, 0, {NULL, NULL}, {NULL, NULL}};
    oct_attend_scratch *scratch = NULL;
    oct_status status = oct_seq_find_idle(c, "append", seq, &part.seq);
    if (status) return status;
    part.start = part.seq->length;
    for (int side = 0; side < 2; side++) {
        if (!transforms(c, side)) continue;
        const size_t row = oct_widest_rows(c, side) * sizeof(float);
        job.copy[side] = oct_alloc(OCT_TAG_SCRATCH, (size_t)d->n, row);
        if (!job.copy[side]) status = oct_fail_memory("append", "a copy of the rows");
    }
    if (!status && d->q)
        status = oct_attend_fit(&scratch, c, "append", d->n, d->heads, part.start + d->n);
    if (!status) status = oct_step_reserve(c, "append", &part, 1);
    if (!status) status = run_reserved(c, &part, d, &job, scratch);
    oct_free(job.copy[0]);
    oct_free(job.copy[1]);
    oct_attend_free(scratch);
    return status;
}

oct_status oct_cache_append(oct_cache *c, oct_seq seq, const oct_rows_desc *d)
{
    if (d->n < 1 || d->n > 1 << 20)
        return oct_fail(OCT_E_VALUE, "append: %lld rows, legal are 1 to %d", (long long)d->n, 1 << 20);
    oct_status status = d->q ? check_queries(c, "append", 0, c->layers, d) : OCT_OK;
    if (!status) status = oct_cache_take(c, "append");
    if (status) return status;
    status = append_taken(c, seq, d);
    oct_cache_drop(c);
    return status;
}

static oct_status attend_taken(oct_cache *c, oct_seq seq, int layer, const oct_rows_desc *d)
{
    oct_part_of_step part = {.n = (int32_t)d->n};
    oct_attend_scratch *scratch = NULL;
    oct_status status = oct_seq_find_idle(c, "attend", seq, &part.seq);
    if (status) return status;
    part.start = part.seq->length;
    status = oct_attend_fit(&scratch, c, "attend", d->n, d->heads, part.start);
    if (!status) {
        const oct_layer *l = &c->layer[layer];
        const size_t heads = (size_t)d->heads;
        const oct_attend_args args = {
            .cache = c, .part = &part, .parts = 1, .layer = layer, .heads = d->heads,
            .scale = d->scale, .window = d->window, .sinks = d->sinks, .after = true, .q = d->q,
            .ldq = heads * (size_t)l->q_width, .out = d->out, .ldo = heads * (size_t)l->v_width,
            .rows = d->n, .scratch = scratch,
        };
        bool whole = oct_pool_enter(c->rt->pool, d->poll);
        if (whole) {
            oct_attend_run(&args);
            whole = oct_pool_leave(c->rt->pool);
        }
        if (!whole) status = oct_fail(OCT_E_CANCELLED, "attend: cancelled");
    }
    oct_attend_free(scratch);
    return status;
}

oct_status oct_cache_attend(oct_cache *c, oct_seq seq, int layer, const oct_rows_desc *d)
{
    if (layer < 0 || layer >= c->layers)
        return oct_fail(OCT_E_VALUE, "attend: layer is %d, the cache has %d", layer, c->layers);
    if (d->n < 1 || d->n > 1 << 16)
        return oct_fail(OCT_E_VALUE, "attend: %lld queries, legal are 1 to %d", (long long)d->n,
                        1 << 16);
    oct_status status = check_queries(c, "attend", layer, layer + 1, d);
    if (!status) status = oct_cache_take(c, "attend");
    if (status) return status;
    status = attend_taken(c, seq, layer, d);
    oct_cache_drop(c);
    return status;
}
