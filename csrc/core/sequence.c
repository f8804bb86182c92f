/* sequence.c: block tables. Open, close, fork, truncate, match a prefix. A handle is a slot and a
 * generation, odd while the sequence lives, so a handle of a closed one is told from its successor. */
#include <string.h>

#include "csrc/core/cache.h"
#include "csrc/core/mem.h"

static const oct_entry none = {-1, -1, -1};

static oct_seq handle_of(const oct_cache *c, const oct_sequence *s)
{
    return (uint64_t)(s - c->seq) << 32 | s->generation;
}

oct_status oct_seq_find(oct_cache *c, const char *operation, oct_seq seq, oct_sequence **out)
{
    const uint64_t index = seq >> 32;
    const uint32_t generation = (uint32_t)seq;
    if (index >= (uint64_t)c->seqs || !(generation & 1) || c->seq[index].generation != generation)
        return oct_fail(OCT_E_CLOSED, "%s: the sequence is closed, or of another cache", operation);
    *out = &c->seq[index];
    return OCT_OK;
}

oct_status oct_seq_find_idle(oct_cache *c, const char *operation, oct_seq seq, oct_sequence **out)
{
    const oct_status status = oct_seq_find(c, operation, seq, out);
    if (status || (*out)->editing < 0) return status;
    oct_sequence *s = *out;
    if (atomic_load(&c->pins[s->table[s->editing].page]) & OCT_PIN_EDIT)
        return oct_fail(OCT_E_BUSY, "%s: page %d of the sequence is being edited", operation,
                        s->editing);
    s->editing = -1;
    return OCT_OK;
}

/* Most operations on one sequence start so. On success the cache is taken. */
static oct_status take(oct_cache *c, const char *operation, oct_seq seq, oct_sequence **out)
{
    oct_status status = oct_cache_take(c, operation);
    if (status) return status;
    status = oct_seq_find_idle(c, operation, seq, out);
    if (status) oct_cache_drop(c);
    return status;
}

/* What a new sequence takes, without making it: room in the table of sequences and a block table. */
static oct_status prepare_sequence(oct_cache *c, const char *operation, size_t entries,
                                   oct_entry **table)
{
    if (c->free_seq < 0 && c->seqs == c->seq_capacity) {
        const size_t to = c->seq_capacity ? 2 * (size_t)c->seq_capacity : 8;
        oct_sequence *seq = oct_regrow(OCT_TAG_TABLES, c->seq, to, sizeof *seq);
        if (!seq) return oct_fail_memory(operation, "the table of sequences");
        c->seq = seq;
        c->seq_capacity = (int32_t)to;
    }
    *table = entries ? oct_alloc(OCT_TAG_TABLES, entries, sizeof **table) : NULL;
    return entries && !*table ? oct_fail_memory(operation, "a block table") : OCT_OK;
}

static oct_sequence *make_sequence(oct_cache *c, size_t entries, oct_entry *table)
{
    const bool fresh = c->free_seq < 0;
    oct_sequence *s = &c->seq[fresh ? c->seqs : c->free_seq];
    const uint32_t generation = fresh ? 1 : s->generation + 1;
    if (fresh) c->seqs++;
    else c->free_seq = s->next;
    *s = (oct_sequence){.generation = generation, .feed = true, .editing = -1, .table = table};
    s->capacity = (int32_t)entries;
    for (size_t i = 0; i < entries; i++) table[i] = none;
    c->live_seqs++;
    return s;
}

oct_status oct_seq_make(oct_cache *c, const char *operation, oct_seq *out)
{
    oct_entry *table;
    *out = 0;
    const oct_status status = prepare_sequence(c, operation, 0, &table);
    if (!status) *out = handle_of(c, make_sequence(c, 0, table));
    return status;
}

oct_status oct_seq_open(oct_cache *c, oct_seq *out)
{
    *out = 0;
    oct_status status = oct_cache_take(c, "open");
    if (status) return status;
    status = oct_seq_make(c, "open", out);
    oct_cache_drop(c);
    return status;
}

oct_status oct_seq_length(oct_cache *c, oct_seq seq, int64_t *tokens)
{
    oct_sequence *s = NULL;
    const oct_status status = take(c, "length", seq, &s);
    if (status) return status;
    *tokens = s->length;
    oct_cache_drop(c);
    return OCT_OK;
}

/* Entries in use: full pages and the open one. */
static int64_t entries_of(const oct_sequence *s)
{
    return (s->length + P - 1) / P;
}

static void drop_entry(oct_cache *c, oct_entry *e)
{
    if (e->page >= 0) oct_page_let_go(c, e->page);
    if (e->slot >= 0) oct_slot_let_go(c, e->slot);
    *e = none;
}

/* Views of a page whose last table entry goes would outlive what they show. */
static oct_status check_pins(const oct_cache *c, const char *operation, const oct_sequence *s,
                             int64_t from)
{
    for (int64_t i = from; i < entries_of(s); i++) {
        const int32_t page = s->table[i].page;
        const uint32_t pins = page < 0 ? 0 : oct_views_of(c, page);
        if (pins > 0 && c->page[page].refs == 1)
            return oct_fail(OCT_E_PINNED, "%s: page %lld has %u views; delete them first. Nothing was "
                            "changed.", operation, (long long)i, pins);
    }
    return OCT_OK;
}

void oct_seq_discard(oct_cache *c, oct_sequence *s)
{
    for (int64_t i = 0; i < entries_of(s); i++) drop_entry(c, &s->table[i]);
    oct_free(s->table);
    s->table = NULL;
    s->capacity = 0;
    s->generation++;
    s->next = c->free_seq;
    c->free_seq = (int32_t)(s - c->seq);
    c->live_seqs--;
}

oct_status oct_seq_close(oct_cache *c, oct_seq seq, bool force)
{
    oct_sequence *s = NULL;
    oct_status status = oct_cache_take(c, "close");
    if (status) return status;
    status = (force ? oct_seq_find : oct_seq_find_idle)(c, "close", seq, &s);
    if (!status && !force) status = check_pins(c, "close", s, 0);
    if (!status) oct_seq_discard(c, s);
    oct_cache_drop(c);
    return status;
}

/* ---- fork ------------------------------------------------------------------------------------ */

static void share_entries(oct_cache *c, const oct_sequence *from, oct_sequence *to)
{
    const int64_t full = from->length / P;
    for (int64_t i = 0; i < full; i++) {
        const oct_entry *e = &from->table[i];
        if (e->page >= 0) oct_page_hold(c, e->page);
        if (e->slot >= 0) c->slot[e->slot].refs++;
        to->table[i] = *e;
    }
    if (from->length % P) {
        const int32_t slot = oct_slot_take(c);
        oct_slot_copy(c, from->table[full].slot, slot);
        to->table[full] = (oct_entry){-1, slot, -1};
    }
}

static oct_status fork_taken(oct_cache *c, oct_sequence *s, oct_seq *out)
{
    const int64_t entries = entries_of(s), index = s - c->seq;
    const int open = s->length % P ? c->slot[s->table[entries - 1].slot].units : 0;
    oct_entry *table;
    oct_status status = prepare_sequence(c, "fork", (size_t)entries, &table);
    if (status) return status;
    if ((status = oct_pool_reserve(c, "fork", 0, open ? 1 : 0, (size_t)open))) {
        oct_free(table);
        return status;
    }
    oct_sequence *copy = make_sequence(c, (size_t)entries, table);
    s = &c->seq[index]; /* the table of sequences may have moved */
    copy->feed = s->feed;
    copy->edited = s->edited;
    copy->length = s->length;
    copy->salt = s->salt;
    memcpy(copy->tail, s->tail, sizeof copy->tail);
    share_entries(c, s, copy);
    *out = handle_of(c, copy);
    return OCT_OK;
}

oct_status oct_seq_fork(oct_cache *c, oct_seq seq, oct_seq *out)
{
    oct_sequence *s = NULL;
    *out = 0;
    oct_status status = take(c, "fork", seq, &s);
    if (status) return status;
    status = fork_taken(c, s, out);
    oct_cache_drop(c);
    return status;
}

/* ---- truncate -------------------------------------------------------------------------------- */

/* The most tokens <= n that the sequence can be cut to without recomputing: an open page may be cut
 * anywhere, a sealed one only at its start, and the pages that a query at the cut would read as
 * rows must still be held as rows. */
static int64_t cut_point(const oct_cache *c, const oct_sequence *s, int64_t n)
{
    for (int64_t cut = n; cut > 0; cut = (cut - 1) / P * P) {
        const int64_t page = cut / P;
        bool whole = cut % P == 0 || s->table[page].slot >= 0;
        for (int64_t i = page - c->recent < 0 ? 0 : page - c->recent; whole && i < page; i++)
            whole = s->table[i].slot >= 0;
        if (whole) return cut;
    }
    return 0;
}

/* The page that becomes open again was full, so it may be shared: make it private. */
static oct_status reopen(oct_cache *c, oct_entry *e, int units)
{
    if (c->slot[e->slot].refs > 1) {
        const oct_status status =
            oct_pool_reserve(c, "truncate", 0, 1, (size_t)c->slot[e->slot].units);
        if (status) return status;
        const int32_t slot = oct_slot_take(c);
        oct_slot_copy(c, e->slot, slot);
        oct_slot_let_go(c, e->slot);
        e->slot = slot;
    }
    oct_slot_shrink(c, e->slot, units);
    if (e->page >= 0) oct_page_let_go(c, e->page);
    e->page = e->node = -1;
    return OCT_OK;
}

static oct_status truncate_taken(oct_cache *c, oct_sequence *s, int64_t n, int64_t *kept)
{
    if (n < 0 || n > s->length)
        return oct_fail(OCT_E_VALUE, "truncate: n is %lld, the sequence has %lld tokens",
                        (long long)n, (long long)s->length);
    const int64_t cut = n == s->length ? n : cut_point(c, s, n);
    const int64_t full = cut / P, used = entries_of(s);
    oct_status status = check_pins(c, "truncate", s, full);
    *kept = cut;
    if (status || cut == s->length) return status;
    if (cut % P) {
        const int units = (int)((cut % P + OCT_UNIT_TOKENS - 1) / OCT_UNIT_TOKENS);
        if ((status = reopen(c, &s->table[full], units))) return status;
        /* A page reopened from the middle has lost its ids: it stops feeding the index. */
        if (full < s->length / P) s->feed = false;
    }
    for (int64_t i = full + (cut % P != 0); i < used; i++) drop_entry(c, &s->table[i]);
    s->length = cut;
    return OCT_OK;
}

oct_status oct_seq_truncate(oct_cache *c, oct_seq seq, int64_t n, int64_t *kept)
{
    oct_sequence *s = NULL;
    oct_status status = take(c, "truncate", seq, &s);
    if (status) return status;
    status = truncate_taken(c, s, n, kept);
    oct_cache_drop(c);
    return status;
}

/* ---- prefix ---------------------------------------------------------------------------------- */

oct_status oct_seq_match(oct_cache *c, oct_seq seq, const int32_t *tokens, int64_t n, uint64_t salt,
                         int64_t *matched)
{
    oct_sequence *s = NULL;
    oct_status status = take(c, "match", seq, &s);
    if (status) return status;
    *matched = 0;
    const int64_t most = n > 0 ? (n - 1) / P : 0; /* at least one token is left to compute */
    if (s->length > 0 || salt >> 63)
        status = oct_fail(OCT_E_VALUE, s->length ? "match: the sequence is not empty"
                                                 : "match: salt must be below 2^63");
    uint64_t parent = salt;
    int64_t hits = 0;
    while (!status && c->prefix && hits < most) {
        const int32_t node = oct_prefix_find(c, parent, tokens + hits * P);
        if (node < 0) break;
        parent = c->node[node].uid;
        hits++;
    }
    if (!status && hits > s->capacity) {
        oct_entry *table = oct_alloc(OCT_TAG_TABLES, (size_t)hits, sizeof *table);
        if (!table) status = oct_fail_memory("match", "a block table");
        else {
            oct_free(s->table);
            s->table = table;
            s->capacity = (int32_t)hits;
        }
    }
    parent = salt;
    for (int64_t i = 0; !status && i < hits; i++) {
        const int32_t node = oct_prefix_find(c, parent, tokens + i * P);
        s->table[i] = (oct_entry){c->node[node].page, -1, node};
        oct_page_hold(c, c->node[node].page);
        parent = c->node[node].uid;
    }
    if (!status) {
        s->salt = salt;
        s->length = *matched = hits * P;
    }
    oct_cache_drop(c);
    return status;
}

oct_status oct_cache_drop_prefix(oct_cache *c)
{
    const oct_status status = oct_cache_take(c, "drop_prefix");
    if (status) return status;
    for (int32_t node; (node = oct_prefix_victim(c)) >= 0;) {
        const int32_t page = c->node[node].page;
        oct_prefix_remove(c, node);
        c->cached_pages--;
        oct_page_free(c, page);
    }
    oct_pool_reclaim(c);
    oct_cache_drop(c);
    return OCT_OK;
}

/* ---- figures --------------------------------------------------------------------------------- */

oct_status oct_seq_ledger(oct_cache *c, oct_seq seq, oct_ledger *out)
{
    oct_sequence *s = NULL;
    const oct_status status = take(c, "ledger", seq, &s);
    if (status) return status;
    *out = (oct_ledger){.budget = c->budget, .page_bytes = c->page_bytes, .sequences = 1};
    out->unit_bytes = c->unit_bytes;
    for (int64_t i = 0; i < entries_of(s); i++) {
        out->sealed_pages += s->table[i].page >= 0;
        if (s->table[i].page >= 0) out->pins += oct_views_of(c, s->table[i].page);
        if (s->table[i].slot >= 0) out->open_units += c->slot[s->table[i].slot].units;
    }
    out->sealed = (size_t)out->sealed_pages * c->page_bytes;
    out->open = (size_t)out->open_units * c->unit_bytes;
    out->tables = sizeof *s + (size_t)s->capacity * sizeof *s->table;
    oct_cache_drop(c);
    return OCT_OK;
}

oct_status oct_cache_needs(oct_cache *c, const oct_seq *seqs, const int64_t *counts, int n,
                           size_t *needed, size_t *available)
{
    oct_status status = oct_cache_take(c, "needs");
    if (status) return status;
    *needed = 0;
    for (int i = 0; !status && i < n; i++) {
        oct_sequence *s = NULL;
        status = oct_seq_find(c, "needs", seqs[i], &s);
        if (!status && counts[i] < 0)
            status = oct_fail(OCT_E_VALUE, "needs: count is %lld", (long long)counts[i]);
        if (!status && (counts[i] > OCT_MAX_TOKENS ||
                        !oct_add(*needed, oct_step_bytes(c, s, counts[i]), needed)))
            *needed = SIZE_MAX;
    }
    oct_pool_reclaim(c);
    const size_t used = oct_pool_used(c);
    *available = (used < c->budget ? c->budget - used : 0) + oct_pool_evictable(c);
    oct_cache_drop(c);
    return status;
}
