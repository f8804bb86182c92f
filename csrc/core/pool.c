/* pool.c: sealed pages and open slots, by small ids. What is taken here was paid for before: 
 * budget and tables by oct_pool_reserve, so that taking, publishing and letting go cannot fail. */
#include <string.h>

#include "csrc/core/cache.h"
#include "csrc/core/mem.h"

#ifdef OCT_FAULTS
enum { POISON = true }; /* NaN in what is given back or not yet written: a stale read shows */
#else
enum { POISON = false };
#endif

/* ---- tables ---------------------------------------------------------------------------------- */

static size_t grown(size_t have, size_t need)
{
    size_t to = have ? have : 16;
    while (to < need) to *= 2;
    return to;
}

static oct_status grow_pages(oct_cache *c, const char *operation, size_t need)
{
    if (need <= (size_t)c->page_capacity) return OCT_OK;
    const size_t to = grown((size_t)c->page_capacity, need);
    oct_page_meta *page = oct_regrow(OCT_TAG_TABLES, c->page, to, sizeof *page);
    if (!page) return oct_fail_memory(operation, "the page table");
    c->page = page;
    c->page_capacity = (int32_t)to;
    return OCT_OK;
}

static oct_status grow_slots(oct_cache *c, const char *operation, size_t need)
{
    if (need <= (size_t)c->slot_capacity) return OCT_OK;
    const size_t to = grown((size_t)c->slot_capacity, need);
    oct_slot_meta *slot = oct_regrow(OCT_TAG_TABLES, c->slot, to, sizeof *slot);
    if (!slot) return oct_fail_memory(operation, "the table of open rows");
    c->slot = slot;
    c->slot_capacity = (int32_t)to;
    return OCT_OK;
}

/* ---- budget ---------------------------------------------------------------------------------- */

size_t oct_pool_used(const oct_cache *c)
{
    return (size_t)c->sealed_pages * c->page_bytes + (size_t)c->open_units * c->unit_bytes;
}

static bool evictable(const oct_cache *c, const oct_node *n)
{
    return n->page >= 0 && c->page[n->page].state == PAGE_CACHED &&
           atomic_load(&c->pins[n->page]) == 0;
}

size_t oct_pool_evictable(const oct_cache *c)
{
    /* Leaves go first, so a page above one that must stay is not free to go either. */
    size_t count = 0;
    for (int32_t i = 0; i < c->nodes; i++) c->node[i].held = false;
    for (int32_t i = 0; i < c->nodes; i++)
        if (c->node[i].page >= 0 && !evictable(c, &c->node[i]))
            for (int32_t up = i; up >= 0 && !c->node[up].held; up = c->node[up].up)
                c->node[up].held = true;
    for (int32_t i = 0; i < c->nodes; i++) count += c->node[i].page >= 0 && !c->node[i].held;
    return count * c->page_bytes;
}

static void evict(oct_cache *c, int32_t node)
{
    const int32_t page = c->node[node].page;
    oct_prefix_remove(c, node);
    c->cached_pages--;
    oct_page_free(c, page);
}

/* What is missing, in bytes and in ids, is asked of the index before anything changes. */
static oct_status check_room(const oct_cache *c, const char *operation, size_t pages, size_t slots,
                             size_t bytes, size_t evictable_bytes)
{
    const size_t used = oct_pool_used(c), left = used < c->budget ? c->budget - used : 0;
    const size_t ids = (size_t)c->sealed_pages + pages, idle = evictable_bytes / c->page_bytes;
    if ((bytes > left && bytes - left > evictable_bytes) ||
        (ids > (size_t)c->page_limit && ids - (size_t)c->page_limit > idle) ||
        (size_t)c->live_slots + slots > (size_t)c->slot_limit)
        return oct_fail_pages(operation, bytes, left, evictable_bytes);
    return OCT_OK;
}

static bool short_of(const oct_cache *c, size_t pages, size_t bytes)
{
    return oct_pool_used(c) + bytes > c->budget ||
           (size_t)c->sealed_pages + pages > (size_t)c->page_limit;
}

oct_status oct_pool_reserve(oct_cache *c, const char *operation, size_t pages, size_t slots,
                            size_t units)
{
    const size_t bytes = pages * c->page_bytes + units * c->unit_bytes;
    oct_pool_reclaim(c);
    const size_t idle = short_of(c, pages, bytes) ? oct_pool_evictable(c) : 0;
    oct_status status = check_room(c, operation, pages, slots, bytes, idle);
    const size_t free_pages = (size_t)(c->pages - c->sealed_pages);
    const size_t free_slots = (size_t)(c->slots - c->live_slots);
    /* Ids past the limit will have been given back by then. */
    size_t new_pages = (size_t)c->pages + (pages > free_pages ? pages - free_pages : 0);
    if (new_pages > (size_t)c->page_limit) new_pages = (size_t)c->page_limit;
    if (!status) status = grow_pages(c, operation, new_pages);
    if (!status)
        status = grow_slots(c, operation,
                            (size_t)c->slots + (slots > free_slots ? slots - free_slots : 0));
    while (!status && short_of(c, pages, bytes)) evict(c, oct_prefix_victim(c));
    return status;
}

/* ---- sealed pages ---------------------------------------------------------------------------- */

int32_t oct_page_take(oct_cache *c)
{
    int32_t id = c->free_page;
    if (id >= 0) {
        c->free_page = c->page[id].next;
    } else {
        id = c->pages++;
        oct_mem_note(OCT_TAG_TABLES, sizeof *c->pins, 0);
        c->page[id] = (oct_page_meta){.generation = 1};
    }
    c->page[id].state = PAGE_RESERVED;
    c->page[id].refs = 0;
    c->page[id].node = -1;
    c->sealed_pages++;
    oct_mem_note(OCT_TAG_PAGES, (int64_t)c->page_bytes, 1);
    return id;
}

void oct_page_publish(oct_cache *c, int32_t id)
{
    c->page[id].state = PAGE_LIVE;
    c->page[id].refs = 1;
}

void oct_page_hold(oct_cache *c, int32_t id)
{
    if (c->page[id].state == PAGE_CACHED) c->cached_pages--;
    c->page[id].state = PAGE_LIVE;
    c->page[id].refs++;
}

/* Give a page's memory of one layer back to the OS. Regions are no multiple of OS pages; what they
 * share with neighbours goes with the last of them. */
static void release_region(const oct_cache *c, int layer, int32_t id)
{
    const oct_layer *l = &c->layer[layer];
    const uintptr_t os = oct_os_page(), at = (uintptr_t)l->base + (uintptr_t)id * l->stride;
    const uintptr_t floor = at / os * os, ceiling = (at + l->stride + os - 1) / os * os;
    uintptr_t lo = at, hi = at + l->stride;
    for (int32_t i = id; lo > floor && i > 0 && c->page[i - 1].state == PAGE_FREE; i--)
        lo -= l->stride;
    for (int32_t i = id + 1; hi < ceiling && i < c->page_limit &&
                             (i >= c->pages || c->page[i].state == PAGE_FREE); i++)
        hi += l->stride;
    lo = lo < floor ? floor : lo;
    hi = hi > ceiling ? ceiling : hi;
    oct_release((void *)lo, hi - lo);
}

void oct_page_free(oct_cache *c, int32_t id)
{
    c->page[id].state = PAGE_FREE;
    c->page[id].generation++;
    c->page[id].next = c->free_page;
    c->free_page = id;
    c->sealed_pages--;
    oct_mem_note(OCT_TAG_PAGES, -(int64_t)c->page_bytes, -1);
    for (int l = 0; l < c->layers; l++) {
        if (POISON) memset(c->layer[l].base + (size_t)id * c->layer[l].stride, 0xFF, c->layer[l].stride);
        else release_region(c, l, id);
    }
}

void oct_page_let_go(oct_cache *c, int32_t id)
{
    if (--c->page[id].refs > 0) return;
    if (c->page[id].node >= 0) {
        c->page[id].state = PAGE_CACHED;
        c->cached_pages++;
    } else if (atomic_load(&c->pins[id]) > 0) {
        c->page[id].state = PAGE_RETIRED;
        c->retired_pages++;
    } else {
        oct_page_free(c, id);
    }
}

void oct_pool_reclaim(oct_cache *c)
{
    for (int32_t id = 0; c->retired_pages > 0 && id < c->pages; id++)
        if (c->page[id].state == PAGE_RETIRED && atomic_load(&c->pins[id]) == 0) {
            c->retired_pages--;
            oct_page_free(c, id);
        }
}

/* ---- open slots ------------------------------------------------------------------------------ */

static char *slot_base(const oct_cache *c, int32_t id)
{
    return c->open_base + (size_t)id * UNITS * c->unit_bytes;
}

int32_t oct_slot_take(oct_cache *c)
{
    int32_t id = c->free_slot;
    if (id >= 0) c->free_slot = c->slot[id].next;
    else id = c->slots++;
    c->live_slots++;
    c->slot[id] = (oct_slot_meta){.refs = 1, .next = -1, .units = 0};
    return id;
}

void oct_slot_grow(oct_cache *c, int32_t id, int units)
{
    oct_slot_meta *s = &c->slot[id];
    if (units <= s->units) return;
    if (POISON)
        memset(slot_base(c, id) + (size_t)s->units * c->unit_bytes, 0xFF,
               (size_t)(units - s->units) * c->unit_bytes);
    c->open_units += units - s->units;
    oct_mem_note(OCT_TAG_OPEN, (int64_t)c->unit_bytes * (units - s->units), units - s->units);
    s->units = units;
}

void oct_slot_shrink(oct_cache *c, int32_t id, int units)
{
    oct_slot_meta *s = &c->slot[id];
    if (units >= s->units) return;
    oct_release(slot_base(c, id) + (size_t)units * c->unit_bytes,
                (size_t)(s->units - units) * c->unit_bytes);
    c->open_units -= s->units - units;
    oct_mem_note(OCT_TAG_OPEN, (int64_t)c->unit_bytes * (units - s->units), units - s->units);
    s->units = units;
}

void oct_slot_let_go(oct_cache *c, int32_t id)
{
    if (--c->slot[id].refs > 0) return;
    oct_slot_shrink(c, id, 0);
    c->live_slots--;
    c->slot[id].next = c->free_slot;
    c->free_slot = id;
}

void oct_slot_copy(oct_cache *c, int32_t from, int32_t to)
{
    oct_slot_grow(c, to, c->slot[from].units);
    memcpy(slot_base(c, to), slot_base(c, from), (size_t)c->slot[from].units * c->unit_bytes);
}
