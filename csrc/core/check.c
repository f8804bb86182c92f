/* check.c: every invariant of the page store, recounted from the block tables. For tests. */
#include <stdlib.h>
#include <string.h>

#include "csrc/core/cache.h"
#include "csrc/core/mem.h"

typedef struct {
    uint32_t *page_refs, *slot_refs;
    int64_t units;
} counts;

#define REQUIRE(condition, ...) \
    if (!(condition)) return oct_fail(OCT_E_VALUE, "check: " __VA_ARGS__)

static oct_status count_sequence(const oct_cache *c, const oct_sequence *s, counts *n)
{
    const int64_t full = s->length / P, used = (s->length + P - 1) / P;
    REQUIRE(used <= s->capacity, "a block table is shorter than its sequence");
    for (int64_t i = 0; i < s->capacity; i++) {
        const oct_entry *e = &s->table[i];
        const bool sealed = i >= c->sinks && i < oct_sealed_end(c, s->length) && i < full;
        REQUIRE(i < used || (e->page < 0 && e->slot < 0), "entry %lld past the end is in use",
                (long long)i);
        if (i >= used) continue;
        REQUIRE(sealed == (e->page >= 0), "page %lld of %lld is %ssealed", (long long)i,
                (long long)used, sealed ? "not " : "");
        REQUIRE(sealed || e->slot >= 0, "page %lld has neither rows nor codes", (long long)i);
        REQUIRE(e->page < c->pages && e->slot < c->slots, "entry %lld is out of its table",
                (long long)i);
        if (e->page >= 0) {
            n->page_refs[e->page]++;
            REQUIRE(c->page[e->page].state == PAGE_LIVE, "page %d is in a table but not live", e->page);
            REQUIRE(e->node == c->page[e->page].node || e->node < 0,
                    "entry %lld and page %d disagree on the index", (long long)i, e->page);
        }
        if (e->slot >= 0) {
            const int64_t rows = s->length - i * P < P ? s->length - i * P : P;
            n->slot_refs[e->slot]++;
            REQUIRE(c->slot[e->slot].units == (rows + OCT_UNIT_TOKENS - 1) / OCT_UNIT_TOKENS,
                    "slot %d holds %d units for %lld rows", e->slot, c->slot[e->slot].units,
                    (long long)rows);
            REQUIRE(i < full || c->slot[e->slot].refs == 1, "open slot %d is shared", e->slot);
        }
    }
    return OCT_OK;
}

static oct_status check_pages(const oct_cache *c, const counts *n)
{
    int64_t used = 0, cached = 0, retired = 0, pins = 0, free_list = 0;
    for (int32_t i = 0; i < c->pages; i++) {
        const oct_page_meta *p = &c->page[i];
        const uint32_t pinned = oct_views_of(c, i);
        const bool edited = pinned != atomic_load(&c->pins[i]);
        used += p->state != PAGE_FREE;
        cached += p->state == PAGE_CACHED;
        retired += p->state == PAGE_RETIRED;
        pins += pinned;
        REQUIRE(p->state != PAGE_RESERVED, "page %d is reserved outside a step", i);
        REQUIRE(p->state == PAGE_FREE || p->refs == n->page_refs[i], "page %d has %u refs, tables hold %u",
                i, p->refs, n->page_refs[i]);
        REQUIRE((p->state == PAGE_LIVE) == (n->page_refs[i] > 0), "page %d: state %d with %u refs", i,
                (int)p->state, n->page_refs[i]);
        REQUIRE(p->state != PAGE_CACHED || p->node >= 0, "cached page %d is not indexed", i);
        REQUIRE(p->state != PAGE_FREE || (!pinned && !edited), "free page %d is pinned", i);
        REQUIRE(!edited || p->node < 0, "page %d is being edited and indexed", i);
        REQUIRE(!edited || p->refs < 2, "page %d is being edited and shared", i);
        REQUIRE(p->state == PAGE_FREE || p->node < 0 || c->node[p->node].page == i,
                "page %d and its node disagree", i);
    }
    for (int32_t i = c->free_page; i >= 0; i = c->page[i].next, free_list++)
        REQUIRE(free_list <= c->pages && c->page[i].state == PAGE_FREE, "the list of free pages is cyclic "
                "or holds page %d, which is in use", i);
    REQUIRE(free_list == c->pages - used, "%lld pages are free, the list has %lld",
            (long long)(c->pages - used), (long long)free_list);
    REQUIRE(used == c->sealed_pages && cached == c->cached_pages && retired == c->retired_pages,
            "page counts: %lld/%lld used, %lld/%lld cached, %lld/%lld retired", (long long)used,
            (long long)c->sealed_pages, (long long)cached, (long long)c->cached_pages,
            (long long)retired, (long long)c->retired_pages);
    REQUIRE(pins == atomic_load(&c->pinned), "pins add up to %lld, counted are %lld", (long long)pins,
            (long long)atomic_load(&c->pinned));
    return OCT_OK;
}

static oct_status check_slots(const oct_cache *c, const counts *n)
{
    int64_t live = 0, units = 0, free_list = 0;
    for (int32_t i = 0; i < c->slots; i++) live += n->slot_refs[i] > 0;
    for (int32_t i = c->free_slot; i >= 0; i = c->slot[i].next, free_list++)
        REQUIRE(free_list <= c->slots && n->slot_refs[i] == 0 && c->slot[i].units == 0,
                "the list of free slots is cyclic or holds slot %d, which is in use", i);
    for (int32_t i = 0; i < c->slots; i++) {
        if (n->slot_refs[i] == 0) continue;
        units += c->slot[i].units;
        REQUIRE(c->slot[i].refs == n->slot_refs[i], "slot %d has %u refs, tables hold %u", i,
                c->slot[i].refs, n->slot_refs[i]);
    }
    REQUIRE(live == c->live_slots && free_list == c->slots - live && units == c->open_units,
            "slot counts: %lld/%lld live, %lld free, %lld/%lld units", (long long)live,
            (long long)c->live_slots, (long long)free_list, (long long)units,
            (long long)c->open_units);
    return OCT_OK;
}

static oct_status check_nodes(const oct_cache *c)
{
    int64_t live = 0;
    for (int32_t i = 0; i < c->nodes; i++) {
        const oct_node *n = &c->node[i];
        int32_t children = 0;
        if (n->page < 0) continue;
        live++;
        for (int32_t j = 0; j < c->nodes; j++) children += c->node[j].page >= 0 && c->node[j].up == i;
        REQUIRE(children == n->children, "node %d has %d children, counted %d", i, n->children, children);
        REQUIRE(c->page[n->page].node == i && (c->page[n->page].state == PAGE_LIVE ||
                                               c->page[n->page].state == PAGE_CACHED),
                "node %d stands for page %d, which is not held", i, n->page);
        REQUIRE(n->up < 0 || (c->node[n->up].page >= 0 && c->node[n->up].uid == n->parent),
                "node %d hangs under a node that is gone", i);
    }
    REQUIRE(live == c->live_nodes, "%lld nodes, counted %d", (long long)live, c->live_nodes);
    return OCT_OK;
}

static oct_status check_all(const oct_cache *c, counts *n)
{
    int64_t live = 0;
    for (int32_t i = 0; i < c->seqs; i++) {
        if (!(c->seq[i].generation & 1)) continue;
        live++;
        const oct_status status = count_sequence(c, &c->seq[i], n);
        if (status) return status;
    }
    REQUIRE(live == c->live_seqs, "%lld live sequences, counted %lld", (long long)live,
            (long long)c->live_seqs);
    oct_status status = check_pages(c, n);
    if (!status) status = check_slots(c, n);
    if (!status) status = check_nodes(c);
    REQUIRE(status || oct_pool_used(c) <= c->budget, "%zu bytes are in use of a budget of %zu",
            oct_pool_used(c), c->budget);
    return status;
}

oct_status oct_cache_check(oct_cache *c)
{
    oct_status status = oct_cache_take(c, "check");
    if (status) return status;
    counts n = {
        oct_zalloc(OCT_TAG_OTHER, (size_t)c->pages + 1, sizeof *n.page_refs),
        oct_zalloc(OCT_TAG_OTHER, (size_t)c->slots + 1, sizeof *n.slot_refs),
        0,
    };
    status = n.page_refs && n.slot_refs ? check_all(c, &n) : oct_fail_memory("check", "its counts");
    oct_free(n.page_refs);
    oct_free(n.slot_refs);
    oct_cache_drop(c);
    return status;
}
