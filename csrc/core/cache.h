/* cache.h: the page store, law one's home. Internal to csrc/core.
 *
 * Sealed pages: 64 tokens of one sequence, encoded once, immutable, counted, shareable. A page id is
 * valid in every layer; page p of layer l lies at layer[l].base + p * layer[l].stride.
 *
 *   layer[l].base   +--------------- region of page p --------------+
 *                   | head 0: K block | V block | head 1: K | V ... |   stride = region bytes
 *
 * A latent layer (MLA) has one head, whose K is the latent and whose V the rotated key; both are read
 * as keys, and the latent is turned into values as it is read.
 *
 * Open slots: the rows of a page that is not sealed (or is kept beside, for sinks and recent pages),
 * in the rows' own type, four units of 16 tokens that are committed one by one:
 *
 *   open_base + slot * 4 * unit_bytes + u * unit_bytes
 *                   | layer 0: head 0: K unit [dk][16] | V unit [16][dv] | head 1 ... | layer 1 ...
 *
 * Life of a sealed page: FREE -> RESERVED (by one step) -> LIVE (in a block table) <-> CACHED (only
 * in the prefix index) -> FREE. A page that loses its last table entry while views pin it is
 * RETIRED until the last view goes.
 *
 * One flag, `busy`, is taken by every operation for its length; only pins change outside it. */
#ifndef OCT_CORE_CACHE_H
#define OCT_CORE_CACHE_H

#include "csrc/core/runtime.h"

#define P OCT_PAGE_TOKENS
#define UNITS (OCT_PAGE_TOKENS / OCT_UNIT_TOKENS)
#define OCT_MAX_TOKENS ((int64_t)INT32_MAX * P / 2) /* of a sequence: page indices stay in int32 */

typedef struct {
    bool on, signs;
    int block;
} oct_transform;

/* One side (K or V) of one layer. */
typedef struct {
    oct_role role; /* how its blocks lie */
    oct_page_id format;
    oct_page_id open_format; /* f32, f16 or bf16: the kernel that reads open units */
    oct_dtype open_type;
    oct_form form;
    oct_transform transform;
    int width;
    size_t block_bytes, unit_bytes; /* of one head */
    size_t block_offset, unit_offset; /* inside a head's sealed bytes, inside a head's unit */
} oct_side;

typedef struct {
    bool latent;
    int kv_heads, q_width, v_width; /* widths of a query and of what it gathers */
    oct_side side[2]; /* OCT_SEGMENT_K, OCT_SEGMENT_V */
    size_t head_bytes, head_unit_bytes;
    char *base;
    size_t stride;      /* bytes of a sealed page of this layer */
    size_t unit_offset; /* of this layer inside a unit */
} oct_layer;

typedef enum { PAGE_FREE, PAGE_RESERVED, PAGE_LIVE, PAGE_CACHED, PAGE_RETIRED } oct_page_state;

typedef struct {
    oct_page_state state;
    uint32_t refs; /* block table entries */
    int32_t next;  /* in the free list */
    int32_t node;  /* in the prefix index, or -1 */
    uint64_t generation;
} oct_page_meta;

typedef struct {
    uint32_t refs; /* owners; an open (partial) slot has one */
    int32_t next;
    int units; /* committed */
} oct_slot_meta;

/* Node of the prefix index: a full page under its parent. Exact by construction: the key is the
 * parent's own number and the 64 ids, compared on every hit. */
typedef struct {
    uint64_t uid, parent; /* parent 0..2^63: the salt of a root */
    int32_t tokens[P];
    int32_t page, next; /* next in the bucket or in the free list; page -1: free */
    int32_t children;
    int32_t up; /* parent's index, -1 at the root */
    uint64_t stamp;
    bool held; /* scratch of the count of what could be evicted */
} oct_node;

typedef struct {
    int32_t page, slot, node; /* -1: none */
} oct_entry;

typedef struct {
    uint32_t generation; /* odd: live */
    bool feed;           /* its pages may enter the prefix index */
    bool edited;
    bool failed;         /* within a step: rows that are not finite */
    int32_t editing;     /* page index of an exclusive edit, -1; over when its OCT_PIN_EDIT falls */
    int64_t length;      /* committed tokens */
    uint64_t salt;
    oct_entry *table;
    int32_t capacity, next; /* entries; free list of sequences */
    int32_t tail[P]; /* ids of the open page's tokens */
} oct_sequence;

struct oct_cache {
    oct_runtime *rt;
    oct_layer *layer;
    int layers, sinks, recent;
    bool prefix;
    size_t budget, page_bytes, unit_bytes; /* of a sealed page and of 16 open rows, all layers */

    oct_page_meta *page;
    /* [page_limit], never moves: views and edits end outside `busy`. Views, and OCT_PIN_EDIT. */
    _Atomic uint32_t *pins;
    int32_t pages, page_capacity, page_limit, free_page; /* pages: ids ever used */
    oct_slot_meta *slot;
    char *open_base;
    int32_t slots, slot_capacity, slot_limit, free_slot;
    /* sealed_pages: all that are not FREE, so cached and retired ones too. */
    int64_t sealed_pages, cached_pages, retired_pages, live_slots, open_units;

    oct_sequence *seq;
    int32_t seqs, seq_capacity, free_seq;
    int64_t live_seqs;

    oct_node *node;
    int32_t *bucket;
    int32_t nodes, node_capacity, live_nodes, free_node, buckets;
    uint64_t next_uid, clock;

    char *sealed_base; /* the layers' extents, one mapping */
    size_t sealed_map, open_map;
    _Atomic int64_t pinned;
    _Atomic bool busy;
};

#define OCT_PIN_EDIT 0x80000000u /* the page is open for edit: its one owner is exclusive */

static inline uint32_t oct_views_of(const oct_cache *c, int32_t page)
{
    return atomic_load(&c->pins[page]) & ~OCT_PIN_EDIT;
}

/* The side that attention gathers from. */
static inline const oct_side *oct_values_of(const oct_layer *l)
{
    return &l->side[l->latent ? OCT_SEGMENT_K : OCT_SEGMENT_V];
}

/* ---- cache.c --------------------------------------------------------------------------------- */
oct_status oct_cache_take(oct_cache *, const char *operation);
void oct_cache_drop(oct_cache *);
oct_status oct_seq_find(oct_cache *, const char *operation, oct_seq, oct_sequence **out);
/* As oct_seq_find, and OCT_E_BUSY while a page of it is being edited. */
oct_status oct_seq_find_idle(oct_cache *, const char *operation, oct_seq, oct_sequence **out);
/* Open and close within a call that holds `busy`. */
oct_status oct_seq_make(oct_cache *, const char *operation, oct_seq *out);
void oct_seq_discard(oct_cache *, oct_sequence *);

/* ---- pool.c: pages and slots ----------------------------------------------------------------- */
/* Make sure that so many pages, slots and units can be taken: grow the tables, then evict idle indexed
 * pages. OCT_E_PAGES or OCT_E_MEMORY: nothing was evicted. The last thing to do that can fail. */
oct_status oct_pool_reserve(oct_cache *, const char *operation, size_t pages, size_t slots,
                            size_t units);
size_t oct_pool_used(const oct_cache *);
size_t oct_pool_evictable(const oct_cache *);
/* These cannot fail after the reservation. */
int32_t oct_page_take(oct_cache *);               /* RESERVED, refs 0 */
void oct_page_publish(oct_cache *, int32_t page); /* RESERVED -> LIVE, refs 1 */
void oct_page_hold(oct_cache *, int32_t page);
void oct_page_let_go(oct_cache *, int32_t page);
void oct_page_free(oct_cache *, int32_t page); /* of a RESERVED page */
void oct_pool_reclaim(oct_cache *);            /* retired pages whose views are gone */
int32_t oct_slot_take(oct_cache *);            /* refs 1, no units */
void oct_slot_grow(oct_cache *, int32_t slot, int units);
void oct_slot_shrink(oct_cache *, int32_t slot, int units);
void oct_slot_let_go(oct_cache *, int32_t slot);
void oct_slot_copy(oct_cache *, int32_t from, int32_t to);

static inline char *oct_sealed_block(const oct_cache *c, int layer, int32_t page, int head, int side)
{
    const oct_layer *l = &c->layer[layer];
    return l->base + (size_t)page * l->stride + (size_t)head * l->head_bytes +
           l->side[side].block_offset;
}

/* First unit of an open page's head; the others follow at c->unit_bytes. */
static inline char *oct_open_block(const oct_cache *c, int layer, int32_t slot, int head, int side)
{
    const oct_layer *l = &c->layer[layer];
    return c->open_base + (size_t)slot * UNITS * c->unit_bytes + l->unit_offset +
           (size_t)head * l->head_unit_bytes + l->side[side].unit_offset;
}

/* ---- prefix.c -------------------------------------------------------------------------------- */
oct_status oct_prefix_reserve(oct_cache *, const char *operation, size_t nodes);
int32_t oct_prefix_find(oct_cache *, uint64_t parent, const int32_t *tokens);
int32_t oct_prefix_insert(oct_cache *, uint64_t parent, int32_t up, const int32_t *tokens,
                          int32_t page);
void oct_prefix_remove(oct_cache *, int32_t node);
/* The idle page to evict next (least recently used, leaves first), -1 if none. */
int32_t oct_prefix_victim(const oct_cache *);

/* ---- rows.c: writing, sealing, reserving and committing ---------------------------------------- */
/* One sequence's part of a step: rows [row, row + n) of the batch. */
typedef struct {
    oct_sequence *seq;
    const int32_t *tokens; /* [n]; NULL: rows without ids, never indexed */
    int32_t n;
    int64_t row, start; /* first row in the batch, committed length at the start */
    _Atomic bool bad;   /* non-finite rows */
    bool feed;
} oct_part_of_step;

oct_status oct_step_reserve(oct_cache *, const char *operation, oct_part_of_step *, int count);
void oct_step_rollback(oct_cache *, oct_part_of_step *, int count);
void oct_step_commit(oct_cache *, oct_part_of_step *, int count);
/* Bytes that a step of n more tokens takes beyond what the sequence holds. */
size_t oct_step_bytes(const oct_cache *, const oct_sequence *, int64_t n);
/* First page that a sequence of `length` tokens does not hold sealed: sealed are [sinks, here). */
static inline int64_t oct_sealed_end(const oct_cache *c, int64_t length)
{
    const int64_t end = length / P - c->recent;
    return end < c->sinks ? c->sinks : end;
}

/* Rows [lo, hi) of the batch into the open slots of one layer, transformed on the way; x is
 * [rows][ldx], kv_heads * width used, and is overwritten. Sets part->bad. */
void oct_rows_store(oct_cache *, oct_part_of_step *, int count, int layer, int side, float *x,
                    size_t ldx, int64_t lo, int64_t hi, void *lane);
/* Encode one head, K and V, of an entry that has both its slot and its reserved page. */
void oct_seal_head(oct_cache *, int layer, const oct_entry *, int head, void *lane);
/* Encode the pages that this step fills, of one layer. */
void oct_rows_seal(oct_cache *, oct_part_of_step *, int count, int layer);

/* pages.c: floats of the widest layer's row of all heads. */
size_t oct_widest_rows(const oct_cache *, int side);

/* ---- attend.c -------------------------------------------------------------------------------- */
typedef struct oct_attend_scratch oct_attend_scratch;
/* Makes *scratch large enough for rows x heads queries of any layer over so many tokens; grows, or
 * fails and leaves it as it was. */
oct_status oct_attend_fit(oct_attend_scratch **scratch, const oct_cache *, const char *operation,
                          int64_t rows, int heads, int64_t tokens);
void oct_attend_free(oct_attend_scratch *);
/* Attention of one layer for all parts of a step: q [rows][ldq] after norm and RoPE; it is scaled,
 * transformed and quantized here. out [rows][ldo]. */
typedef struct {
    oct_cache *cache;
    const oct_part_of_step *part;
    int parts, layer, heads;
    float scale;
    int window;         /* a query sees itself and the window - 1 tokens before it; 0: all */
    const float *sinks; /* [heads] one more logit in the softmax, dropped after it; NULL: none */
    bool after; /* the queries stand after the last token and do not see themselves */
    const float *q;
    size_t ldq;
    float *out;
    size_t ldo;
    int64_t rows;
    oct_attend_scratch *scratch;
} oct_attend_args;
void oct_attend_run(const oct_attend_args *);

#endif
