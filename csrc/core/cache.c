/* cache.c: opening and closing the page store. All size arithmetic of a cache happens here, once,
 * checked; below, offsets are products of numbers that were multiplied out here. */
#include "csrc/core/cache.h"

#include <stdlib.h>
#include <string.h>

#include "csrc/core/mem.h"

#define MAX_LAYERS 4096
#define MAX_HEADS 65536
#define MAX_WINDOW_PAGES (1 << 20)

oct_status oct_cache_take(oct_cache *c, const char *operation)
{
    bool idle = false;
    if (!atomic_compare_exchange_strong(&c->busy, &idle, true))
        return oct_fail(OCT_E_BUSY, "%s: the cache is in use by another call", operation);
    return OCT_OK;
}

void oct_cache_drop(oct_cache *c)
{
    atomic_store(&c->busy, false);
}

/* ---- validated layers ------------------------------------------------------------------------ */

static oct_status read_transform(const char *name, int width, oct_transform *out)
{
    *out = (oct_transform){0};
    if (!name || !*name) return OCT_OK;
    const size_t stem = !strncmp(name, "had0", 4) ? 4 : !strncmp(name, "had", 3) ? 3 : 0;
    int block = width & -width;
    if (stem && name[stem] == ':') {
        char *end;
        const long forced = strtol(name + stem + 1, &end, 10);
        if (*end || forced < 1 || forced > width || (forced & (forced - 1)) || width % forced)
            return oct_fail(OCT_E_VALUE, "cache: transform '%.32s': block must be a power of two that "
                            "divides %d", name, width);
        block = (int)forced;
    } else if (!stem || name[stem]) {
        return oct_fail(OCT_E_VALUE, "cache: unknown transform '%.32s', legal are had, had0, and "
                        "either with :BLOCK", name);
    }
    *out = (oct_transform){true, stem == 3, block};
    return OCT_OK;
}

static oct_status read_side(const oct_runtime *rt, int i, char which, oct_role role,
                            const char *format, int width, const char *transform, const char *form,
                            oct_side *s)
{
    const int id = oct_page_by_name(format);
    oct_page_layout layout;
    if (id < 0)
        return oct_fail(OCT_E_VALUE, "cache: layer %d: unknown page format '%.32s'", i,
                        format ? format : "");
    const oct_page_kernels *k = &rt->kernels.page[id];
    if (width < 1 || width > OCT_MAX_HEAD_DIM ||
        k->layout(width, role, &layout))
        return oct_fail(OCT_E_VALUE, "cache: layer %d: %c_width is %d; page format '%s' takes "
                        "multiples of 16 up to %d that its group divides", i, which, width, format,
                        OCT_MAX_HEAD_DIM);
    *s = (oct_side){.role = role, .format = (oct_page_id)id, .width = width,
                    .block_bytes = layout.bytes};
    s->open_type = oct_page_traits_of[id].rows;
    s->open_format = s->open_type == OCT_F32   ? OCT_PAGE_f32
                     : s->open_type == OCT_F16 ? OCT_PAGE_f16
                                               : OCT_PAGE_bf16;
    s->unit_bytes = (size_t)OCT_UNIT_TOKENS * (size_t)width * (s->open_type == OCT_F32 ? 4 : 2);
    s->form = oct_page_traits_of[id].form;
    if (form && *form) {
        const int f = oct_form_by_name(form);
        if (f < 0)
            return oct_fail(OCT_E_VALUE, "cache: layer %d: unknown attention form '%.32s', legal are "
                            "f32, q8, q8x2", i, form);
        /* bf16 and fp8 pages have the f32 form alone, whatever is asked for the others. */
        s->form = k->scores[f] ? (oct_form)f : OCT_FORM_F32;
    }
    return read_transform(transform, width, &s->transform);
}

static oct_status read_layer(const oct_runtime *rt, int i, const oct_layer_desc *d, oct_layer *l)
{
    if (d->kv_heads < 1 || d->kv_heads > MAX_HEADS)
        return oct_fail(OCT_E_VALUE, "cache: layer %d: kv_heads is %d, legal are 1 to %d", i,
                        d->kv_heads, MAX_HEADS);
    if (d->latent && d->kv_heads != 1)
        return oct_fail(OCT_E_VALUE, "cache: layer %d: kv_heads is %d, a latent layer has 1", i,
                        d->kv_heads);
    oct_side *k = &l->side[OCT_SEGMENT_K], *v = &l->side[OCT_SEGMENT_V];
    l->latent = d->latent;
    l->kv_heads = d->kv_heads;
    oct_status status = read_side(rt, i, 'k', OCT_ROLE_K, d->k_format, d->k_width, d->k_transform,
                                  d->form, k);
    if (!status && d->latent)
        status = read_side(rt, i, 'v', OCT_ROLE_K, oct_page_traits_of[k->open_format].name,
                           d->v_width, NULL, NULL, v);
    else if (!status)
        status = read_side(rt, i, 'v', OCT_ROLE_V, d->v_format, d->v_width, d->v_transform, d->form,
                           v);
    if (status) return status;
    l->q_width = d->latent ? k->width + v->width : k->width;
    l->v_width = d->latent ? k->width : v->width;
    v->block_offset = k->block_bytes;
    v->unit_offset = k->unit_bytes;
    l->head_bytes = k->block_bytes + v->block_bytes;
    l->head_unit_bytes = k->unit_bytes + v->unit_bytes;
    l->stride = (size_t)l->kv_heads * l->head_bytes; /* < 2^16 * 2^19 */
    return OCT_OK;
}

/* ---- address space --------------------------------------------------------------------------- */

static int32_t at_most(size_t n, int32_t limit)
{
    return n > (size_t)limit ? limit : (int32_t)n;
}

static oct_status map_extents(oct_cache *c)
{
    /* One unit more than the budget pays for, so that the limit that is felt is the budget. */
    c->page_limit = at_most(c->budget / c->page_bytes + 1, 1 << 24);
    c->slot_limit = at_most(c->budget / c->unit_bytes + 1, 1 << 20);
    if (!oct_mul((size_t)c->page_limit, c->page_bytes, &c->sealed_map) ||
        !oct_mul((size_t)c->slot_limit * UNITS, c->unit_bytes, &c->open_map) ||
        c->sealed_map > (size_t)1 << 46 || c->open_map > (size_t)1 << 46)
        return oct_fail(OCT_E_VALUE, "cache: a budget of %zu bytes is more address space than there is",
                        c->budget);
    c->sealed_base = oct_map(c->sealed_map);
    c->open_base = oct_map(c->open_map);
    c->pins = oct_map((size_t)c->page_limit * sizeof *c->pins);
    if (!c->sealed_base || !c->open_base || !c->pins)
        return oct_fail_memory("cache", "the address space of its budget");
    size_t at = 0;
    for (int l = 0; l < c->layers; l++) {
        c->layer[l].base = c->sealed_base + at;
        at += (size_t)c->page_limit * c->layer[l].stride;
    }
    return OCT_OK;
}

static void free_cache(oct_cache *c)
{
    if (!c) return;
    for (int32_t i = 0; i < c->seqs; i++) oct_free(c->seq[i].table);
    oct_mem_note(OCT_TAG_PAGES, -c->sealed_pages * (int64_t)c->page_bytes, -c->sealed_pages);
    oct_mem_note(OCT_TAG_OPEN, -c->open_units * (int64_t)c->unit_bytes, -c->open_units);
    oct_unmap(c->sealed_base, c->sealed_map);
    oct_unmap(c->open_base, c->open_map);
    oct_mem_note(OCT_TAG_TABLES, -(int64_t)((size_t)c->pages * sizeof *c->pins), 0);
    oct_unmap((void *)c->pins, (size_t)c->page_limit * sizeof *c->pins);
    oct_free(c->layer);
    oct_free(c->page);
    oct_free(c->slot);
    oct_free(c->seq);
    oct_free(c->node);
    oct_free(c->bucket);
    oct_runtime_unref(c->rt);
    oct_free(c);
}

static oct_status check_opts(const oct_cache_opts *o)
{
    if (o->n_layers < 1 || o->n_layers > MAX_LAYERS)
        return oct_fail(OCT_E_VALUE, "cache: layers is %d, legal are 1 to %d", o->n_layers,
                        MAX_LAYERS);
    if (o->sink_pages < 0 || o->sink_pages > MAX_WINDOW_PAGES || o->recent_pages < 0 ||
        o->recent_pages > MAX_WINDOW_PAGES)
        return oct_fail(OCT_E_VALUE, "cache: sink_pages is %d and recent_pages %d, legal are 0 to %d",
                        o->sink_pages, o->recent_pages, MAX_WINDOW_PAGES);
    if (o->saturate)
        return oct_fail(OCT_E_UNSUPPORTED, "cache: nonfinite=\"saturate\" has no kernel yet; "
                        "non-finite rows fail their request");
    return OCT_OK;
}

oct_status oct_cache_open(oct_cache **out, oct_runtime *rt, const oct_cache_opts *o)
{
    *out = NULL;
    oct_status status = check_opts(o);
    if (status) return status;
    oct_cache *c = oct_zalloc(OCT_TAG_TABLES, 1, sizeof *c);
    if (!c) return oct_fail_memory("cache", "itself");
    c->rt = oct_runtime_ref(rt);
    c->layers = o->n_layers;
    c->sinks = o->sink_pages;
    c->recent = o->recent_pages;
    c->budget = o->budget_bytes;
    c->prefix = o->prefix && !c->sinks && !c->recent;
    c->free_page = c->free_slot = c->free_seq = c->free_node = -1;
    c->next_uid = (uint64_t)1 << 63;
    c->layer = oct_zalloc(OCT_TAG_TABLES, (size_t)c->layers, sizeof *c->layer);
    if (!c->layer) {
        status = oct_fail_memory("cache", "its layers");
        goto error;
    }
    for (int l = 0; l < c->layers; l++) {
        if ((status = read_layer(rt, l, &o->layers[l], &c->layer[l]))) goto error;
        c->page_bytes += c->layer[l].stride;
        c->layer[l].unit_offset = c->unit_bytes;
        c->unit_bytes += (size_t)c->layer[l].kv_heads * c->layer[l].head_unit_bytes;
    }
    if ((status = map_extents(c))) goto error;
    *out = c;
    return OCT_OK;
error:
    free_cache(c);
    return status;
}

oct_status oct_cache_close(oct_cache **cache)
{
    oct_cache *c = *cache;
    if (!c) return OCT_OK;
    const oct_status status = oct_cache_take(c, "close");
    if (status) return status;
    const int64_t pinned = atomic_load(&c->pinned);
    if (pinned > 0) {
        oct_cache_drop(c);
        return oct_fail(OCT_E_PINNED, "close: %lld views of this cache's pages exist; delete them "
                        "first. Nothing was changed.", (long long)pinned);
    }
    free_cache(c);
    *cache = NULL;
    return OCT_OK;
}

/* ---- ledger ---------------------------------------------------------------------------------- */

static size_t tables_bytes(const oct_cache *c)
{
    size_t bytes = sizeof *c + (size_t)c->layers * sizeof *c->layer;
    bytes += (size_t)c->page_capacity * sizeof *c->page + (size_t)c->slot_capacity * sizeof *c->slot;
    bytes += (size_t)c->seq_capacity * sizeof *c->seq + (size_t)c->pages * sizeof *c->pins;
    bytes += (size_t)c->node_capacity * sizeof *c->node + (size_t)c->buckets * sizeof *c->bucket;
    for (int32_t i = 0; i < c->seqs; i++)
        bytes += (size_t)c->seq[i].capacity * sizeof *c->seq[i].table;
    return bytes;
}

oct_status oct_cache_ledger(oct_cache *c, oct_ledger *out)
{
    const oct_status status = oct_cache_take(c, "ledger");
    if (status) return status;
    oct_pool_reclaim(c); /* pages whose last view went since */
    *out = (oct_ledger){
        .sealed = (size_t)c->sealed_pages * c->page_bytes,
        .open = (size_t)c->open_units * c->unit_bytes,
        .tables = tables_bytes(c),
        .budget = c->budget,
        .sealed_pages = c->sealed_pages,
        .cached_pages = c->cached_pages,
        .open_units = c->open_units,
        .sequences = c->live_seqs,
        .pins = atomic_load(&c->pinned),
        .page_bytes = c->page_bytes,
        .unit_bytes = c->unit_bytes,
    };
    oct_cache_drop(c);
    return OCT_OK;
}

/* Fed one token at a time, which takes the least: the pages it ends with sealed, the bf16 pages that
 * the scheme keeps, and one open page beside. */
size_t oct_cache_bytes_for(const oct_cache *c, int64_t tokens)
{
    const int64_t full = tokens < 0 ? 0 : tokens / P;
    const int64_t sealed = full > c->sinks ? oct_sealed_end(c, tokens) - c->sinks : 0;
    size_t pages, open, all;
    if (!oct_mul((size_t)sealed, c->page_bytes, &pages) ||
        !oct_mul((size_t)(full - sealed + 1) * UNITS, c->unit_bytes, &open) ||
        !oct_add(pages, open, &all))
        return SIZE_MAX;
    return all;
}
