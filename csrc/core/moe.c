/* moe.c: a mixture of experts. Each row chooses a few of many gated MLPs; what a row gets is a chain
 * over its own experts in ascending order, so neither its batch nor the order of work changes a bit.
 *
 * Every (row, expert) chosen is a slot. Slots are put in order of expert, then row, so an expert's
 * rows lie together and each of its matrices is read once for all of them. They are worked off in
 * passes of whole experts that fit the scratch: gather their rows, gate and up of all experts as one
 * loop over tiles, the activation, down of all, and each row adds the pieces that this pass holds.
 *
 *     rows of the step      places: expert 0   | expert 2        | expert 5 | ...
 *     0 -> 2, 5                     row 1, ... | row 0, row 1, ..| row 0    |
 *     1 -> 0, 2             start:  0          n0                n0+n2 */
#include <assert.h>
#include <string.h>

#include "csrc/core/mem.h"
#include "csrc/core/moe.h"
#include "csrc/core/step.h"

static_assert((int)OCT_ROUTER_TOP == (int)OCT_SCORE_TOP, "the kernels' scores, in their order");

typedef oct_step_state step;

/* ---- memory ---------------------------------------------------------------------------------- */

static void *room(size_t rows, size_t width, size_t size, bool *good)
{
    size_t n = 0;
    void *p = oct_mul(rows, width, &n) ? oct_alloc(OCT_TAG_SCRATCH, n ? n : 1, size) : NULL;
    *good = *good && p;
    return p;
}

oct_moe_scratch *oct_moe_open(const oct_moe_sizes *z, int max_rows)
{
    oct_moe_scratch *m = oct_zalloc(OCT_TAG_SCRATCH, 1, sizeof *m);
    bool good = true;
    if (!m) return NULL;
    const size_t rows = (size_t)max_rows, top = (size_t)z->top, experts = (size_t)z->experts;
    /* Each pass looks at all slots when it combines, so there are not many. */
    const size_t few = rows * top / OCT_MOE_PASSES;
    const size_t most = few > OCT_MOE_SLOTS ? few : OCT_MOE_SLOTS;
    const size_t slots = rows * top < most ? rows * top : most;
    m->slots = (int)slots;
    m->id = room(rows, top, sizeof *m->id, &good);
    m->at = room(rows, top, sizeof *m->at, &good);
    m->row = room(rows, top, sizeof *m->row, &good);
    m->gate = room(rows, top, sizeof *m->gate, &good);
    m->start = room(experts + 1, 1, sizeof *m->start, &good);
    m->y = room(rows, (size_t)z->width, sizeof *m->y, &good);
    m->x = room(slots, (size_t)z->width, sizeof *m->x, &good);
    m->gated = room(slots, (size_t)z->inner, sizeof *m->gated, &good);
    m->up = room(slots, (size_t)z->inner, sizeof *m->up, &good);
    m->view = room(2 * experts, 1, sizeof *m->view, &good);
    m->product = room(2 * experts, 1, sizeof *m->product, &good);
    m->tiles = room(2 * experts + 1, 1, sizeof *m->tiles, &good);
    const int widest = z->width > z->inner ? z->width : z->inner;
    if (good) good = !oct_rows_alloc(&m->rows, "program", (int)slots, widest);
    if (!good) oct_moe_free(m), m = NULL;
    return m;
}

void oct_moe_free(oct_moe_scratch *m)
{
    if (!m) return;
    oct_free(m->id);
    oct_free(m->at);
    oct_free(m->row);
    oct_free(m->gate);
    oct_free(m->start);
    oct_free(m->y);
    oct_free(m->x);
    oct_free(m->gated);
    oct_free(m->up);
    oct_free(m->view);
    oct_free(m->product);
    oct_free(m->tiles);
    oct_rows_free(&m->rows);
    oct_free(m);
}

/* ---- routing --------------------------------------------------------------------------------- */

static void route_rows(void *ctx, size_t lo, size_t hi, int lane)
{
    const step *s = ctx;
    const oct_moe_desc *d = &s->op->moe;
    oct_moe_scratch *m = s->p->moe;
    const size_t ld = (size_t)s->p->widths[s->op->out[1]];
    float *record = s->p->buffer[s->op->out[1]];
    (void)lane;
    const oct_route_args args = {
        .logits = record, .ld = ld, .n = d->experts,
        .bias = oct_step_vector(s, s->op->bias[1]),
        .score = (oct_score)d->score,
        .groups = d->groups, .groups_kept = d->groups_kept, .outside_zero = d->outside_zero,
        .top = d->top, .renorm = d->renorm, .scale = s->op->scale,
        .score_of = record, .lds = ld, .id = m->id, .gate = m->gate,
    };
    s->c->rt->kernels.op.route(&args, lo, hi); /* a row without a choice has NaN gates: judged last */
}

/* Scores are in the record already. */
static void record_rows(void *ctx, size_t lo, size_t hi, int lane)
{
    const step *s = ctx;
    const oct_moe_desc *d = &s->op->moe;
    const oct_moe_scratch *m = s->p->moe;
    const size_t ld = (size_t)s->p->widths[s->op->out[1]], top = (size_t)d->top;
    float *record = s->p->buffer[s->op->out[1]];
    (void)lane;
    for (size_t r = lo; r < hi; r++)
        for (size_t j = 0; j < top; j++) {
            record[r * ld + (size_t)d->experts + j] = (float)m->id[r * top + j];
            record[r * ld + (size_t)d->experts + top + j] = m->gate[r * top + j];
        }
}

/* What the caller makes of the choice. */
static void ask_hook(const step *s)
{
    const oct_route_hook *hook = &s->args->route;
    const int op = (int)(s->op - s->p->ops);
    oct_pool *pool = s->c->rt->pool;
    if (!hook->ask || !hook->ops[op] || oct_pool_cancelled(pool)) return;
    const oct_routing routing = {
        op, s->op->moe.experts, s->op->moe.top, s->rows, s->p->buffer[s->op->out[1]],
        (size_t)s->p->widths[s->op->out[1]], s->p->moe->id, s->p->moe->gate,
    };
    if (!hook->ask(hook->arg, &routing)) oct_pool_cancel(pool);
}

static void route(step *s)
{
    const oct_op_desc *o = s->op;
    oct_rows exact = s->p->rows;
    exact.act = OCT_A32; /* always: a choice is not a matter of rounding */
    const oct_product router = {
        &s->p->matrix[o->w[0]], &exact, s->p->buffer[o->out[1]], (size_t)s->p->widths[o->out[1]],
        oct_step_vector(s, o->bias[0]), false,
    };
    oct_products_run(s->c->rt, &router, 1);
    oct_step_loop(s, s->rows, route_rows, s);
    ask_hook(s);
    oct_step_loop(s, s->rows, record_rows, s);
}

/* Puts slots in order of expert, then row: start[e], at[slot], row[place]. */
static void arrange(const step *s)
{
    const int experts = s->op->moe.experts, top = s->op->moe.top;
    oct_moe_scratch *m = s->p->moe;
    const int64_t slots = s->rows * top;
    memset(m->start, 0, ((size_t)experts + 1) * sizeof *m->start);
    for (int64_t i = 0; i < slots; i++) m->start[m->id[i] + 1]++;
    for (int e = 0; e < experts; e++) m->start[e + 1] += m->start[e];
    for (int64_t i = 0; i < slots; i++) {
        m->at[i] = m->start[m->id[i]]++;
        m->row[m->at[i]] = (int32_t)(i / top);
    }
    for (int e = experts; e > 0; e--) m->start[e] = m->start[e - 1];
    m->start[0] = 0;
}

/* ---- passes ---------------------------------------------------------------------------------- */

/* Places [first, first + n) in work; the passes of an op share the rest of the step's state. */
typedef struct {
    const step *s;
    int first, n;
    bool floats; /* some expert reads float rows */
} pass;

static oct_act act_of(const step *s, int w)
{
    return oct_effective_act(&s->c->rt->kernels, s->p->matrix[w].format, s->p->act);
}

static void gather(void *ctx, size_t lo, size_t hi, int lane)
{
    const pass *p = ctx;
    const oct_moe_scratch *m = p->s->p->moe;
    const oct_rows *from = &p->s->p->rows, *to = &m->rows;
    const size_t kp = (size_t)from->kp, groups = kp / OCT_GROUP;
    const size_t scales = from->act == OCT_A8G32 ? groups : 1;
    (void)lane;
    for (size_t i = lo; i < hi; i++) {
        const size_t r = (size_t)m->row[(size_t)p->first + i];
        if (p->floats)
            memcpy(m->x + i * (size_t)from->k, from->x + r * from->ldx, (size_t)from->k * sizeof(float));
        if (from->act == OCT_A32) continue;
        memcpy((int8_t *)(uintptr_t)to->hi + i * kp, from->hi + r * kp, kp);
        if (from->act == OCT_A8X2)
            memcpy((int8_t *)(uintptr_t)to->lo + i * kp, from->lo + r * kp, kp);
        memcpy((float *)(uintptr_t)to->scale + i * scales, from->scale + r * scales,
               scales * sizeof(float));
        memcpy((int32_t *)(uintptr_t)to->sum + i * groups, from->sum + r * groups,
               groups * sizeof(int32_t));
    }
}

static void gate_and_quantize(void *ctx, size_t lo, size_t hi, int lane)
{
    const pass *p = ctx;
    const oct_moe_scratch *m = p->s->p->moe;
    const size_t ld = (size_t)m->rows.k;
    (void)lane;
    const oct_swiglu_args gate = {m->gated, m->up, ld, ld, m->rows.k, m->gated, ld};
    oct_step_gate(p->s, &gate, lo, hi);
    const oct_quantize_args args = {(oct_rows *)(uintptr_t)&m->rows, NULL};
    if (m->rows.act != OCT_A32) p->s->c->rt->kernels.op.quantize(&args, lo, hi);
}

static void combine(void *ctx, size_t lo, size_t hi, int lane)
{
    const pass *p = ctx;
    const oct_moe_scratch *m = p->s->p->moe;
    const int width = p->s->p->widths[p->s->op->out[0]];
    (void)lane;
    const oct_combine_args args = {
        m->x, (size_t)width, m->at, m->gate, p->s->op->moe.top, p->first, p->n, width, m->y,
        (size_t)width,
    };
    p->s->c->rt->kernels.op.combine(&args, lo, hi);
}

/* Matrix `which` (0 gate, 1 up, 2 down) of every expert at work, over its places: views from `view`
 * on. Returns how many products that are. */
static int list_products(const pass *p, int which, oct_rows *view, oct_product *list, float *y,
                         size_t ldy)
{
    const step *s = p->s;
    const oct_moe_scratch *m = s->p->moe;
    int count = 0;
    for (int e = 0; e < s->op->moe.experts; e++) {
        const int lo = m->start[e] > p->first ? m->start[e] : p->first, end = p->first + p->n;
        const int n = (m->start[e + 1] < end ? m->start[e + 1] : end) - lo;
        const int w = s->op->matrices[3 * e + which];
        const int bias = s->op->biases ? s->op->biases[3 * e + which] : -1;
        if (n <= 0) continue;
        view[count] = oct_rows_at(&m->rows, act_of(s, w), lo - p->first, n);
        list[count] = (oct_product){
            &s->p->matrix[w], &view[count], y + (size_t)(lo - p->first) * ldy, ldy,
            oct_step_vector(s, bias), false,
        };
        count++;
        oct_cost *to = &s->args->cost[OCT_COST_EXPERT];
        oct_cost_add_product(s, w, n, to);
        if (lo > m->start[e]) to->bytes -= (double)s->p->matrix[w].bytes; /* counted once */
    }
    return count;
}

static void set_rows(oct_moe_scratch *m, oct_act act, const float *x, int k)
{
    m->rows.act = act;
    m->rows.k = k;
    m->rows.kp = oct_rows_kp(k);
    m->rows.x = x;
    m->rows.ldx = (size_t)k;
}

static void run_pass(pass *p)
{
    const step *s = p->s;
    const oct_op_desc *o = s->op;
    oct_runtime *rt = s->c->rt;
    oct_moe_scratch *m = s->p->moe;
    const int inner = s->p->matrix[o->matrices[0]].m.n, width = s->p->widths[o->out[0]];
    set_rows(m, s->p->rows.act, m->x, s->p->widths[o->in]);
    const int gates = list_products(p, 0, m->view, m->product, m->gated, (size_t)inner);
    const int ups = list_products(p, 1, m->view + gates, m->product + gates, m->up, (size_t)inner);
    for (int i = 0; i < gates + ups; i++) p->floats |= m->view[i].act == OCT_A32;
    oct_step_loop(s, p->n, gather, p);
    oct_products_list(rt, m->product, gates + ups, m->tiles);
    set_rows(m, s->p->act, m->gated, inner);
    oct_step_loop(s, p->n, gate_and_quantize, p);
    /* The inputs are done with, so m->x takes the outputs. */
    const int downs = list_products(p, 2, m->view, m->product, m->x, (size_t)width);
    oct_products_list(rt, m->product, downs, m->tiles);
    oct_step_loop(s, s->rows, combine, p);
}

/* The places of a pass that begins at `first`: whole experts, but for one too large. */
static int places(const step *s, int first)
{
    const oct_moe_scratch *m = s->p->moe;
    const int experts = s->op->moe.experts, total = m->start[experts];
    int end = first;
    for (int e = 0; e < experts && m->start[e + 1] <= first + m->slots; e++)
        if (m->start[e + 1] > end) end = m->start[e + 1];
    if (end == first) end = first + m->slots < total ? first + m->slots : total;
    return end - first;
}

static void add_rows(void *ctx, size_t lo, size_t hi, int lane)
{
    const step *s = ctx;
    const size_t width = (size_t)s->p->widths[s->op->out[0]];
    float *out = s->p->buffer[s->op->out[0]];
    (void)lane;
    for (size_t i = lo * width; i < hi * width; i++) out[i] += s->p->moe->y[i];
}

void oct_moe_run(step *s)
{
    oct_moe_scratch *m = s->p->moe;
    const size_t width = (size_t)s->p->widths[s->op->out[0]];
    oct_step_read_input(s);
    route(s);
    oct_step_lap(s, OCT_COST_ROUTE);
    if (oct_pool_cancelled(s->c->rt->pool)) return; /* rows that no lane took have no ids */
    arrange(s);
    memset(m->y, 0, (size_t)s->rows * width * sizeof *m->y);
    for (int first = 0, n; first < m->start[s->op->moe.experts]; first += n) {
        n = places(s, first);
        pass p = {s, first, n, false};
        run_pass(&p);
        if (oct_pool_cancelled(s->c->rt->pool)) return;
    }
    oct_step_loop(s, s->rows, add_rows, s);
    oct_step_lap(s, OCT_COST_EXPERT);
}
