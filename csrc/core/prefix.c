/* prefix.c: which full pages exist already for which token ids.
 *
 * A trie kept in a hash table. The key of a node is its parent's unique number and its own 64 ids,
 * compared in full on every hit, and a parent's number is never given twice; so a node stands for
 * exactly one token history (under one salt), whatever the hash does. The cache belongs to one
 * model and one scheme, which are therefore not part of the key. */
#include <string.h>

#include "csrc/core/cache.h"
#include "csrc/core/mem.h"

static uint64_t mix64(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

static int32_t *bucket_of(const oct_cache *c, uint64_t parent, const int32_t *tokens)
{
    uint64_t h = mix64(parent + 0x9E3779B97F4A7C15u);
    for (int i = 0; i < P; i += 2)
        h = mix64(h ^ ((uint64_t)(uint32_t)tokens[i] << 32 | (uint32_t)tokens[i + 1]));
    return &c->bucket[h & (uint64_t)(c->buckets - 1)];
}

static void rehash(oct_cache *c)
{
    for (int32_t b = 0; b < c->buckets; b++) c->bucket[b] = -1;
    for (int32_t i = 0; i < c->nodes; i++) {
        if (c->node[i].page < 0) continue;
        int32_t *b = bucket_of(c, c->node[i].parent, c->node[i].tokens);
        c->node[i].next = *b;
        *b = i;
    }
}

oct_status oct_prefix_reserve(oct_cache *c, const char *operation, size_t nodes)
{
    const size_t spare = (size_t)(c->nodes - c->live_nodes);
    const size_t need = (size_t)c->nodes + (nodes > spare ? nodes - spare : 0);
    if (need <= (size_t)c->node_capacity) return OCT_OK;
    size_t to = c->node_capacity ? (size_t)c->node_capacity : 64;
    while (to < need) to *= 2;
    int32_t *bucket = oct_alloc(OCT_TAG_TABLES, 2 * to, sizeof *bucket);
    oct_node *node = bucket ? oct_regrow(OCT_TAG_TABLES, c->node, to, sizeof *node) : NULL;
    if (!node) {
        oct_free(bucket);
        return oct_fail_memory(operation, "the prefix index");
    }
    oct_free(c->bucket);
    c->node = node;
    c->node_capacity = (int32_t)to;
    c->bucket = bucket;
    c->buckets = (int32_t)(2 * to);
    rehash(c);
    return OCT_OK;
}

int32_t oct_prefix_find(oct_cache *c, uint64_t parent, const int32_t *tokens)
{
    if (!c->buckets) return -1;
    for (int32_t i = *bucket_of(c, parent, tokens); i >= 0; i = c->node[i].next)
        if (c->node[i].parent == parent && !memcmp(c->node[i].tokens, tokens, sizeof c->node->tokens)) {
            c->node[i].stamp = ++c->clock;
            return i;
        }
    return -1;
}

int32_t oct_prefix_insert(oct_cache *c, uint64_t parent, int32_t up, const int32_t *tokens,
                          int32_t page)
{
    int32_t i = c->free_node;
    if (i >= 0) c->free_node = c->node[i].next;
    else i = c->nodes++;
    c->live_nodes++;
    oct_node *n = &c->node[i];
    int32_t *b = bucket_of(c, parent, tokens);
    *n = (oct_node){.uid = c->next_uid++, .parent = parent, .page = page, .next = *b, .up = up};
    n->stamp = ++c->clock;
    memcpy(n->tokens, tokens, sizeof n->tokens);
    *b = i;
    if (up >= 0) c->node[up].children++;
    c->page[page].node = i;
    return i;
}

void oct_prefix_remove(oct_cache *c, int32_t i)
{
    oct_node *n = &c->node[i];
    int32_t *link = bucket_of(c, n->parent, n->tokens);
    while (*link != i) link = &c->node[*link].next;
    *link = n->next;
    if (n->up >= 0) c->node[n->up].children--;
    c->page[n->page].node = -1;
    n->page = -1;
    c->live_nodes--;
    n->next = c->free_node;
    c->free_node = i;
}

int32_t oct_prefix_victim(const oct_cache *c)
{
    int32_t best = -1;
    for (int32_t i = 0; i < c->nodes; i++) {
        const oct_node *n = &c->node[i];
        if (n->page < 0 || n->children > 0 || c->page[n->page].state != PAGE_CACHED) continue;
        if (atomic_load(&c->pins[n->page]) > 0) continue;
        if (best < 0 || n->stamp < c->node[best].stamp) best = i;
    }
    return best;
}
