/* rows.c: what a step does to the store. Reserve everything, write rows into open slots, encode the
 * pages that the step fills, then commit or roll back.
 *
 * Reserved pages and slots stand in the block table beyond the committed length already, so that
 * attention finds them; nothing but the length makes them part of the sequence. */
#include <string.h>

#include "csrc/core/cache.h"
#include "csrc/core/mem.h"
#include "kernels/num.h"

static int64_t pages_of(int64_t tokens)
{
    return (tokens + P - 1) / P;
}

/* Units of page i that a sequence of `length` tokens uses. */
static int units_of(int64_t length, int64_t i)
{
    const int64_t rows = length - i * P < P ? length - i * P : P;
    return rows <= 0 ? 0 : (int)((rows + OCT_UNIT_TOKENS - 1) / OCT_UNIT_TOKENS);
}

typedef struct {
    int64_t pages, slots, units;
} demand;

static demand demand_of(const oct_cache *c, int64_t start, int64_t n)
{
    const int64_t end = start + n, first = start / P, last = pages_of(end);
    demand d = {oct_sealed_end(c, end) - oct_sealed_end(c, start), 0, 0};
    if (n <= 0 || last <= first) return (demand){0};
    d.slots = last - first - (start % P != 0);
    /* All pages between the first and the last take all their units. */
    d.units = (last - first - 1) * UNITS + units_of(end, last - 1);
    d.units -= start % P ? units_of(start, first) : 0;
    return d;
}

size_t oct_step_bytes(const oct_cache *c, const oct_sequence *s, int64_t n)
{
    const demand d = demand_of(c, s->length, n);
    size_t a, b;
    if (!oct_mul((size_t)d.pages, c->page_bytes, &a) ||
        !oct_mul((size_t)d.units, c->unit_bytes, &b) || !oct_add(a, b, &a))
        return SIZE_MAX;
    return a;
}

static oct_status grow_table(oct_sequence *s, const char *operation, int64_t pages)
{
    if (pages <= s->capacity) return OCT_OK;
    int64_t to = s->capacity ? s->capacity : 4;
    while (to < pages) to *= 2;
    oct_entry *table = oct_regrow(OCT_TAG_TABLES, s->table, (size_t)to, sizeof *table);
    if (!table) return oct_fail_memory(operation, "a block table");
    for (int64_t i = s->capacity; i < to; i++) table[i] = (oct_entry){-1, -1, -1};
    s->table = table;
    s->capacity = (int32_t)to;
    return OCT_OK;
}

static void take_for(oct_cache *c, const oct_part_of_step *p)
{
    const int64_t end = p->start + p->n;
    oct_entry *table = p->seq->table;
    for (int64_t i = p->start / P; i < pages_of(end); i++) {
        if (i > p->start / P || p->start % P == 0)
            table[i] = (oct_entry){-1, oct_slot_take(c), -1};
        oct_slot_grow(c, table[i].slot, units_of(end, i));
    }
    for (int64_t i = oct_sealed_end(c, p->start); i < oct_sealed_end(c, end); i++)
        table[i].page = oct_page_take(c);
}

oct_status oct_step_reserve(oct_cache *c, const char *operation, oct_part_of_step *part, int count)
{
    size_t pages = 0, slots = 0, units = 0;
    oct_status status = OCT_OK;
    for (int i = 0; i < count && !status; i++) {
        if (part[i].start + (int64_t)part[i].n > OCT_MAX_TOKENS)
            return oct_fail(OCT_E_VALUE, "%s: %lld tokens are more than a sequence can hold",
                            operation, (long long)(part[i].start + part[i].n));
        const demand d = demand_of(c, part[i].start, part[i].n);
        pages += (size_t)d.pages;
        slots += (size_t)d.slots;
        units += (size_t)d.units;
        status = grow_table(part[i].seq, operation, pages_of(part[i].start + part[i].n));
    }
    if (status) return status;
    if (c->prefix) status = oct_prefix_reserve(c, operation, pages);
    if (!status) status = oct_pool_reserve(c, operation, pages, slots, units);
    if (status) return status;
    for (int i = 0; i < count; i++) take_for(c, &part[i]);
    return OCT_OK;
}

static void rollback_one(oct_cache *c, oct_part_of_step *p)
{
    const int64_t end = p->start + p->n, first = p->start / P;
    oct_entry *table = p->seq->table;
    for (int64_t i = oct_sealed_end(c, p->start); i < oct_sealed_end(c, end); i++) {
        oct_page_free(c, table[i].page);
        table[i].page = -1;
    }
    for (int64_t i = first; i < pages_of(end); i++) {
        if (i == first && p->start % P) {
            oct_slot_shrink(c, table[i].slot, units_of(p->start, i));
        } else {
            oct_slot_let_go(c, table[i].slot);
            table[i].slot = -1;
        }
    }
}

void oct_step_rollback(oct_cache *c, oct_part_of_step *part, int count)
{
    for (int i = 0; i < count; i++) rollback_one(c, &part[i]);
}

/* ---- commit ---------------------------------------------------------------------------------- */

/* The 64 ids of page i, from the open page's and the step's. Only for pages at or past start / P. */
static void page_tokens(const oct_part_of_step *p, int64_t i, int32_t *out)
{
    for (int t = 0; t < P; t++) {
        const int64_t at = i * P + t;
        out[t] = at < p->start ? p->seq->tail[at % P] : p->tokens[at - p->start];
    }
}

/* An equal page that another sequence made meanwhile has the same bytes (law one): keep one. */
static void index_page(oct_cache *c, const oct_part_of_step *p, int64_t i)
{
    oct_entry *table = p->seq->table;
    const int32_t up = i > 0 ? table[i - 1].node : -1;
    if (i > 0 && up < 0) return; /* a page whose history is not indexed */
    const uint64_t parent = i > 0 ? c->node[up].uid : p->seq->salt;
    int32_t tokens[P];
    page_tokens(p, i, tokens);
    const int32_t known = oct_prefix_find(c, parent, tokens);
    if (known < 0) {
        table[i].node = oct_prefix_insert(c, parent, up, tokens, table[i].page);
        return;
    }
    oct_page_let_go(c, table[i].page);
    table[i] = (oct_entry){c->node[known].page, table[i].slot, known};
    oct_page_hold(c, table[i].page);
}

static void commit_one(oct_cache *c, oct_part_of_step *p)
{
    const int64_t end = p->start + p->n;
    oct_entry *table = p->seq->table;
    p->seq->feed = p->seq->feed && p->feed && p->tokens;
    for (int64_t i = oct_sealed_end(c, p->start); i < oct_sealed_end(c, end); i++) {
        oct_page_publish(c, table[i].page);
        if (c->prefix && p->seq->feed) index_page(c, p, i);
        oct_slot_let_go(c, table[i].slot);
        table[i].slot = -1;
    }
    for (int64_t at = end - end % P > p->start ? end - end % P : p->start; p->tokens && at < end; at++)
        p->seq->tail[at % P] = p->tokens[at - p->start];
    p->seq->length = end;
}

void oct_step_commit(oct_cache *c, oct_part_of_step *part, int count)
{
    for (int i = 0; i < count; i++) {
        if (atomic_load(&part[i].bad)) rollback_one(c, &part[i]);
        else commit_one(c, &part[i]);
    }
}

/* ---- rows in, pages sealed ------------------------------------------------------------------- */

static size_t element_bytes(oct_dtype type)
{
    return type == OCT_F32 ? 4 : 2;
}

/* One row of one head into its unit: K units are [width][16], V units [16][width]. */
static void put_row(char *unit, const char *row, int width, int at, size_t size, bool key)
{
    if (!key) {
        memcpy(unit + (size_t)at * (size_t)width * size, row, (size_t)width * size);
    } else if (size == 2) {
        uint16_t *to = (uint16_t *)unit + at;
        for (int ch = 0; ch < width; ch++) to[ch * OCT_UNIT_TOKENS] = ((const uint16_t *)row)[ch];
    } else {
        float *to = (float *)unit + at;
        for (int ch = 0; ch < width; ch++) to[ch * OCT_UNIT_TOKENS] = ((const float *)row)[ch];
    }
}

static oct_part_of_step *part_of_row(oct_part_of_step *part, int count, int64_t row)
{
    int i = 0;
    while (i + 1 < count && part[i + 1].row <= row) i++;
    return &part[i];
}

static void round_bf16(float *row, int n)
{
    for (int i = 0; i < n; i++) row[i] = oct_bf16_to_f32(oct_f32_to_bf16(row[i]));
}


void oct_rows_store(oct_cache *c, oct_part_of_step *part, int count, int layer, int side, float *x,
                    size_t ldx, int64_t lo, int64_t hi, void *lane)
{
    const oct_layer *l = &c->layer[layer];
    const oct_side *s = &l->side[side];
    const oct_op_kernels *op = &c->rt->kernels.op;
    const size_t size = element_bytes(s->open_type);
    int bad;
    for (int64_t r = lo; r < hi; r++) {
        oct_part_of_step *p = part_of_row(part, count, r);
        const int64_t at = p->start + (r - p->row);
        const int32_t slot = p->seq->table[at / P].slot;
        float *row = x + (size_t)r * ldx;
        if (s->transform.on) {
            /* The transform is of the row as a plain cache would hold it, so that a fork into this
             * scheme and a run in it give the same bytes. */
            if (s->open_type == OCT_BF16) round_bf16(row, l->kv_heads * s->width);
            const oct_hadamard_args had = {row, ldx, l->kv_heads, s->width, s->transform.block,
                                           s->transform.signs, false, row, ldx};
            op->hadamard(&had, 0, 1);
        }
        for (int h = 0; h < l->kv_heads; h++) {
            const oct_cast_args cast = {row + (size_t)h * (size_t)s->width, 0, s->width,
                                        s->open_type, lane, 0, &bad};
            op->cast(&cast, 0, 1);
            if (bad >= 0) atomic_store(&p->bad, true);
            char *unit = oct_open_block(c, layer, slot, h, side) +
                         (size_t)(at % P / OCT_UNIT_TOKENS) * c->unit_bytes;
            put_row(unit, lane, s->width, (int)(at % OCT_UNIT_TOKENS), size, s->role == OCT_ROLE_K);
        }
    }
}

/* A page of the rows' own type is its four open units, one after the other: their values were checked
 * when they were stored. */
static void copy_units(const oct_cache *c, const char *open, const oct_side *s, char *sealed)
{
    for (int u = 0; u < UNITS; u++)
        memcpy(sealed + (size_t)u * s->unit_bytes, open + (size_t)u * c->unit_bytes, s->unit_bytes);
}

/* An open page's head as 64 plain rows, what `seal` takes. */
static void gather_rows(const oct_cache *c, const char *block, const oct_side *s, char *out)
{
    const size_t size = element_bytes(s->open_type), row = (size_t)s->width * size;
    for (int t = 0; t < P; t++) {
        const char *unit = block + (size_t)(t / OCT_UNIT_TOKENS) * c->unit_bytes;
        const int at = t % OCT_UNIT_TOKENS;
        char *to = out + (size_t)t * row;
        if (s->role == OCT_ROLE_V) memcpy(to, unit + (size_t)at * row, row);
        else if (size == 2)
            for (int ch = 0; ch < s->width; ch++)
                ((uint16_t *)to)[ch] = ((const uint16_t *)unit)[ch * OCT_UNIT_TOKENS + at];
        else
            for (int ch = 0; ch < s->width; ch++)
                ((float *)to)[ch] = ((const float *)unit)[ch * OCT_UNIT_TOKENS + at];
    }
}

void oct_seal_head(oct_cache *c, int layer, const oct_entry *e, int head, void *lane)
{
    for (int side = 0; side < 2; side++) {
        const oct_side *s = &c->layer[layer].side[side];
        const char *open = oct_open_block(c, layer, e->slot, head, side);
        int token, channel;
        if (s->format == s->open_format) {
            copy_units(c, open, s, oct_sealed_block(c, layer, e->page, head, side));
            continue;
        }
        gather_rows(c, open, s, lane);
        const oct_seal_args args = {
            lane, (size_t)s->width, s->width, s->role,
            oct_sealed_block(c, layer, e->page, head, side), &token, &channel,
        };
        c->rt->kernels.page[s->format].seal(&args);
    }
}

typedef struct {
    oct_cache *c;
    oct_part_of_step *part;
    int count, layer;
} seal_job;

/* Task i is head i % kv_heads of the (i / kv_heads)-th page that the step fills. Rows that are not
 * finite were found when they were stored; their part is rolled back, whatever is sealed here. */
static void seal_tasks(void *ctx, size_t lo, size_t hi, int lane)
{
    const seal_job *job = ctx;
    oct_cache *c = job->c;
    const size_t heads = (size_t)c->layer[job->layer].kv_heads;
    for (size_t task = lo; task < hi; task++) {
        int64_t page = (int64_t)(task / heads);
        for (int i = 0; i < job->count; i++) {
            const oct_part_of_step *p = &job->part[i];
            const int64_t first = oct_sealed_end(c, p->start);
            const int64_t pages = oct_sealed_end(c, p->start + p->n) - first;
            if (page < pages) {
                oct_seal_head(c, job->layer, &p->seq->table[first + page], (int)(task % heads),
                              c->rt->lanes[lane]);
                break;
            }
            page -= pages;
        }
    }
}

void oct_rows_seal(oct_cache *c, oct_part_of_step *part, int count, int layer)
{
    int64_t pages = 0;
    for (int i = 0; i < count; i++)
        pages += oct_sealed_end(c, part[i].start + part[i].n) - oct_sealed_end(c, part[i].start);
    seal_job job = {c, part, count, layer};
    oct_parallel(c->rt->pool, (size_t)pages * (size_t)c->layer[layer].kv_heads, 1, seal_tasks, &job);
}
