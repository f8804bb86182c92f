/* attend_walk.c: one block of queries over the pages of one KV head: queries as the keys want them,
 * a chunk of pages to (o, m, l), and the order in which chunks fold. The hard part is asking for
 * memory ahead: what comes next depends on who walks, and lies a page apart. */
#include <math.h>
#include <string.h>

#include "csrc/core/attend.h"

typedef oct_attend_block block;
typedef oct_attend_job job;
typedef oct_partial partial;
typedef oct_walk walk;

static oct_act act_of(oct_form form)
{
    return form == OCT_FORM_Q8 ? OCT_A8 : form == OCT_FORM_Q8X2 ? OCT_A8X2 : OCT_A32;
}

static void scaled(float *to, const float *from, int n, float scale)
{
    for (int i = 0; i < n; i++) to[i] = from[i] * scale;
}

/* Query vectors of the block: scaled, transformed, quantized as the sealed keys want them. */
void oct_walk_prepare(walk *w)
{
    const oct_attend_args *a = w->j->a;
    const oct_layer *l = w->j->l;
    const oct_side *k = &l->side[OCT_SEGMENT_K];
    const oct_op_kernels *op = &a->cache->rt->kernels.op;
    const int group = w->j->group, rest = l->q_width - k->width;
    const size_t n = (size_t)group * (size_t)k->width;
    float *to = w->q, *rotated = (float *)(uintptr_t)w->rotated.x;
    for (int r = 0; r < w->b->rows; r++, to += n) {
        const float *from = a->q + (size_t)(w->b->row + r) * a->ldq +
                            (size_t)(w->head * group) * (size_t)l->q_width;
        for (int g = 0; g < group; g++, from += l->q_width) {
            scaled(to + g * k->width, from, k->width, a->scale);
            if (rest) scaled(rotated, from + k->width, rest, a->scale), rotated += rest;
        }
        if (!k->transform.on) continue;
        const oct_hadamard_args had = {to, n, group, k->width, k->transform.block,
                                       k->transform.signs, false, to, n};
        op->hadamard(&had, 0, 1);
    }
    if (w->codes.act == OCT_A32) return;
    const oct_quantize_args quantize = {&w->codes, NULL};
    op->quantize(&quantize, 0, (size_t)w->queries);
}

size_t oct_walk_vector(const walk *w)
{
    return ((size_t)w->head * (size_t)w->j->a->rows + (size_t)w->b->row) * (size_t)w->j->group;
}

/* The walk's queries and codes: from vector `at` of a lane's own, or of all, `count` in memory. The
 * parts that meet rotated keys lie behind all the others. */
static void place_queries(walk *w, float *q, const oct_rows *codes, size_t at, size_t count)
{
    const oct_side *k = &w->j->l->side[OCT_SEGMENT_K];
    const int kp = (k->width + OCT_GROUP - 1) / OCT_GROUP * OCT_GROUP;
    const size_t first = at * (size_t)kp;
    w->q = q + at * (size_t)k->width;
    w->codes = (oct_rows){
        .act = act_of(k->form), .m = w->queries, .k = k->width, .kp = kp, .x = w->q,
        .ldx = (size_t)k->width, .hi = codes->hi + first, .lo = codes->lo + first,
        .scale = codes->scale + at, .sum = codes->sum + first / OCT_GROUP,
    };
    const int rest = w->j->l->q_width - k->width;
    w->rotated = (oct_rows){
        .act = OCT_A32, .m = w->queries, .k = rest,
        .x = q + count * (size_t)k->width + at * (size_t)rest, .ldx = (size_t)rest,
    };
}

walk oct_walk_start(const job *j, size_t unit, int lane)
{
    const oct_attend_args *a = j->a;
    oct_attend_lane *buf = &a->scratch->lane[lane];
    const size_t heads = (size_t)j->l->kv_heads;
    const block *b = &a->scratch->blocks[unit / heads];
    const oct_part_of_step *p = &a->part[b->part];
    walk w = {
        .j = j,
        .part = p,
        .b = b,
        .buf = buf,
        .kernel_lane = a->cache->rt->lanes[lane],
        .chunk = buf->chunk,
        .head = (int)(unit % heads),
        .queries = b->rows * j->group,
        .first_chunk = oct_first_chunk(a, b),
        .page_of_queries = oct_position_of(a, p, b->row) / P,
        .first_page = oct_seen_from(a->window, oct_position_of(a, p, b->row)) / P,
        .tokens = oct_visible_of(a, p, b->row + b->rows - 1),
    };
    memcpy(w.level, buf->level, sizeof w.level);
    if (j->spans)
        place_queries(&w, a->scratch->q, &a->scratch->codes, oct_walk_vector(&w),
                      (size_t)a->rows * (size_t)a->heads);
    else place_queries(&w, buf->q, &buf->codes, 0, (size_t)a->scratch->queries);
    return w;
}

/* Sealed or open, by the reading law: sealed iff page(s) < page(t) - recent and page(s) >= sinks. */
static bool is_sealed(const walk *w, int64_t page)
{
    const oct_cache *c = w->j->a->cache;
    return page < w->page_of_queries - c->recent && page >= c->sinks;
}

static const void *read_page(const walk *w, int64_t page, int side, oct_page_id *format,
                             oct_form *form)
{
    const oct_cache *c = w->j->a->cache;
    const oct_side *s = &w->j->l->side[side];
    const oct_entry *e = &w->part->seq->table[page];
    if (is_sealed(w, page)) {
        *format = s->format;
        *form = s->form;
        return oct_sealed_block(c, w->j->a->layer, e->page, w->head, side);
    }
    *format = s->open_format;
    *form = OCT_FORM_F32;
    return oct_open_block(c, w->j->a->layer, e->slot, w->head, side);
}

/* Bytes between 16-token units of a block: open units lie a whole cache unit apart. */
static size_t unit_stride(const walk *w, int64_t page, int side)
{
    return is_sealed(w, page) ? w->j->l->side[side].unit_bytes : w->j->a->cache->unit_bytes;
}

/* Tokens of `page` before the window of row r of the block. */
static int hidden_of(const walk *w, int64_t page, int r)
{
    const oct_attend_args *a = w->j->a;
    const int64_t position = oct_position_of(a, w->part, w->b->row + r);
    const int64_t from = oct_seen_from(a->window, position) - page * P;
    return from < 0 ? 0 : from > P ? P : (int)from;
}

/* Whether every query sees all of `page`, or would without a window that begins inside of it. */
static bool all_see(const walk *w, int64_t page)
{
    return oct_visible_of(w->j->a, w->part, w->b->row) >= (page + 1) * P &&
           hidden_of(w, page, w->b->rows - 1) < P;
}

/* Tokens of `page` that each query sees, or would without such a window. */
static void fill_visible(walk *w, int64_t page)
{
    const oct_attend_args *a = w->j->a;
    const bool all = all_see(w, page);
    if (all && w->all_visible) return;
    w->all_visible = all;
    for (int r = 0; r < w->b->rows; r++) {
        const int64_t seen = oct_visible_of(a, w->part, w->b->row + r) - page * P;
        const int visible = seen < 0 || hidden_of(w, page, r) == P ? 0 : seen > P ? P : (int)seen;
        for (int g = 0; g < w->j->group; g++) w->buf->visible[r * w->j->group + g] = visible;
    }
}

/* Takes the scores of what lies before each query's window. Rows ascend, and so do their windows. */
static void hide(const walk *w, int64_t page, float *s)
{
    for (int r = w->b->rows - 1, n; r >= 0 && (n = hidden_of(w, page, r)) > 0; r--)
        for (int g = 0; g < w->j->group; g++)
            for (int t = 0; t < n; t++) s[(r * w->j->group + g) * CHUNK + t] = -INFINITY;
}

/* The same of a latent layer: a page is one piece, read once, while its scores are computed. */
static oct_ahead latent_ahead_of(const walk *w, int64_t page)
{
    page += w->j->far[OCT_SEGMENT_K];
    if (page >= (w->tokens + P - 1) / P || !is_sealed(w, page)) return (oct_ahead){0};
    const char *next = oct_sealed_block(w->j->a->cache, w->j->a->layer,
                                        w->part->seq->table[page].page, 0, OCT_SEGMENT_K);
    return (oct_ahead){next, next + w->j->l->head_bytes};
}

/* What the walk reads after block `at` of a chunk: its K blocks, its V blocks, then those of the
 * next head or chunk. Small blocks look further, so that what is asked for has the time to come. */
static oct_ahead ahead_of(const walk *w, int64_t first, int pages, int at)
{
    const oct_side *sides = w->j->l->side;
    int head = w->head;
    if (w->j->l->latent) return at < pages ? latent_ahead_of(w, first + at) : (oct_ahead){0};
    at += w->j->far[at < pages ? OCT_SEGMENT_K : OCT_SEGMENT_V];
    if (at >= 2 * pages) {
        at -= 2 * pages;
        const int next = !w->j->spans ? head : head + 1 < w->j->l->kv_heads ? head + 1 : 0;
        if (next <= head) first = (first / CHUNK_PAGES + 1) * CHUNK_PAGES;
        head = next;
    }
    const int side = at < pages ? OCT_SEGMENT_K : OCT_SEGMENT_V;
    const int64_t page = first + (at < pages ? at : at - pages);
    if (page >= (w->tokens + P - 1) / P || !is_sealed(w, page)) return (oct_ahead){0};
    const char *next = oct_sealed_block(w->j->a->cache, w->j->a->layer,
                                        w->part->seq->table[page].page, head, side);
    return (oct_ahead){next, next + sides[side].block_bytes};
}

/* Adds what a page's rotated keys score to what its latents did. */
static void add_rotated(walk *w, int64_t page, float *s)
{
    const oct_kernels *k = &w->j->a->cache->rt->kernels;
    oct_page_id format;
    oct_form form;
    const void *keys = read_page(w, page, OCT_SEGMENT_V, &format, &form);
    const oct_scores_args scores = {
        &k->page[format], &k->op, keys, unit_stride(w, page, OCT_SEGMENT_V), w->rotated.k,
        w->queries, form, &w->rotated, w->buf->visible, s, CHUNK, {0}, true,
    };
    k->page[format].scores[form](&scores, w->kernel_lane);
}

/* A page as values: V as it lies; a latent's block turned, in place `at` of the lane's. */
static const void *read_values(const walk *w, int64_t page, int at, oct_page_id *format,
                               oct_form *form, size_t *stride)
{
    char *turned = w->buf->turned + (size_t)at * (w->j->a->scratch->turned_bytes / CHUNK_PAGES);
    const oct_side *v = oct_values_of(w->j->l);
    const int side = w->j->l->latent ? OCT_SEGMENT_K : OCT_SEGMENT_V;
    const void *stored = read_page(w, page, side, format, form);
    *stride = unit_stride(w, page, side);
    if (!w->j->l->latent) return stored;
    const int64_t left = w->tokens - page * P;
    const oct_page_kernels *k = &w->j->a->cache->rt->kernels.page[*format];
    const oct_turn_args turn = {
        k, stored, *stride, v->width, left < P ? (int)left : P, turned,
    };
    k->turn(&turn);
    *stride = v->unit_bytes;
    return turned;
}

/* What every level starts from: no token. */
static void clear(const walk *w, const partial *out)
{
    const size_t n = (size_t)w->queries;
    memset(out->o, 0, n * (size_t)oct_values_of(w->j->l)->width * sizeof *out->o);
    memset(out->l, 0, n * sizeof *out->l);
    for (size_t i = 0; i < n; i++) out->m[i] = -INFINITY;
}

/* (o, m, l) of one chunk into `out`. Pages before all windows are as if they were not there: they
 * would add zeros to sums, whose places they do not shift. */
void oct_walk_chunk(walk *w, int chunk, const partial *out)
{
    const oct_kernels *k = &w->j->a->cache->rt->kernels;
    const int64_t start = (int64_t)chunk * CHUNK_PAGES, end = (w->tokens + P - 1) / P;
    const int64_t first = start > w->first_page ? start : w->first_page;
    const int pages = (int)((end < start + CHUNK_PAGES ? end : start + CHUNK_PAGES) - first);
    const oct_side *ks = &w->j->l->side[OCT_SEGMENT_K], *vs = oct_values_of(w->j->l);
    oct_page_id format;
    oct_form form;
    if (pages <= 0) {
        clear(w, out);
        return;
    }
    for (int i = 0; i < pages; i++) {
        const void *keys = read_page(w, first + i, OCT_SEGMENT_K, &format, &form);
        fill_visible(w, first + i);
        const oct_scores_args scores = {
            &k->page[format], &k->op, keys, unit_stride(w, first + i, OCT_SEGMENT_K), ks->width,
            w->queries, form, &w->codes, w->buf->visible, w->buf->s + i * P, CHUNK,
            ahead_of(w, first, pages, i), false,
        };
        k->page[format].scores[form](&scores, w->kernel_lane);
        if (w->j->l->latent) add_rotated(w, first + i, w->buf->s + i * P);
        if (w->j->a->window) hide(w, first + i, w->buf->s + i * P);
    }
    oct_ahead first_half = ahead_of(w, first, pages, pages), second_half = first_half;
    first_half.end -= (first_half.end - first_half.at) / 2;
    second_half.at = first_half.end;
    const oct_softmax_args softmax = {w->buf->s, CHUNK, pages * P, out->m, out->l, first_half};
    k->op.softmax(&softmax, 0, (size_t)w->queries);
    memset(out->o, 0, (size_t)w->queries * (size_t)vs->width * sizeof *out->o);
    for (int i = 0; i < pages;) {
        oct_mix_args mix[CHUNK_PAGES];
        const int begin = i;
        bool more;
        do {
            size_t stride;
            const void *values = read_values(w, first + i, i - begin, &format, &form, &stride);
            fill_visible(w, first + i);
            mix[i - begin] = (oct_mix_args){
                &k->page[format], &k->op, values, stride, vs->width, w->queries, form,
                w->buf->visible, w->buf->s + i * P, CHUNK, out->o, (size_t)vs->width,
                i ? ahead_of(w, first, pages, pages + i) : second_half,
            };
            i++;
            more = i < pages && k->page[format].mix_pages && w->all_visible &&
                   all_see(w, first + i) && is_sealed(w, first + i) == is_sealed(w, first + begin);
        } while (more);
        if (i - begin > 1) k->page[format].mix_pages(mix, i - begin, w->kernel_lane);
        else k->page[format].mix[form](mix, w->kernel_lane);
    }
}

/* ---- folding --------------------------------------------------------------------------------- */

/* The last level starts from the sinks, each a token without a value. */
static void start_from_sinks(walk *w)
{
    const float *sinks = w->j->a->sinks + w->head * w->j->group;
    partial *to = &w->level[LEVELS - 1];
    clear(w, to);
    for (int i = 0; i < w->queries; i++) {
        to->m[i] = sinks[i % w->j->group] + 0.0f; /* a zero is positive, as softmax's are */
        to->l[i] = 1.0f;
    }
    w->held[LEVELS - 1] = true;
}

void oct_walk_fold(walk *w, int level, partial *from)
{
    const size_t d = (size_t)w->j->l->v_width;
    partial *to = &w->level[level];
    if (level == LEVELS - 1 && !w->held[level] && w->j->a->sinks) start_from_sinks(w);
    if (w->held[level]) {
        const oct_merge_args args = {to->o, to->m, to->l, d, from->o, from->m, from->l, d, (int)d};
        w->j->a->cache->rt->kernels.op.merge(&args, 0, (size_t)w->queries);
        return;
    }
    const partial mine = *to;
    *to = *from;
    *from = mine;
    w->held[level] = true;
}

/* Level i is full: add it to the one above and start it anew. */
static void close_level(walk *w, int level)
{
    if (!w->held[level]) return;
    oct_walk_fold(w, level + 1, &w->level[level]);
    w->held[level] = false;
}

void oct_walk_fold_upto(walk *w, int end, int level, partial *p)
{
    oct_walk_fold(w, level, p);
    if (end % SUPER == 0) close_level(w, 0);
    if (end % RUN == 0) close_level(w, 1);
}

/* One row's heads of the group, divided by their sums and back in the model's basis. */
static void put_row(const walk *w, int row, const partial *total)
{
    const oct_attend_args *a = w->j->a;
    const oct_side *v = oct_values_of(w->j->l);
    const int group = w->j->group, d = v->width;
    const size_t n = (size_t)group * (size_t)d;
    float *out = a->out + (size_t)(w->b->row + row) * a->ldo + (size_t)w->head * n;
    for (int g = 0; g < group; g++) {
        const int i = row * group + g;
        const float *o = total ? total->o + (size_t)i * (size_t)d : NULL;
        if (!total || total->l[i] == 0.0f)
            memset(out + g * d, 0, (size_t)d * sizeof *out);
        else
            for (int ch = 0; ch < d; ch++) out[g * d + ch] = o[ch] / total->l[i];
    }
    if (!v->transform.on) return;
    const oct_hadamard_args had = {out, n, group, d, v->transform.block, v->transform.signs, true,
                                   out, n};
    a->cache->rt->kernels.op.hadamard(&had, 0, 1);
}

void oct_walk_end(walk *w)
{
    close_level(w, 0);
    close_level(w, 1);
    for (int r = 0; r < w->b->rows; r++) put_row(w, r, w->held[2] ? &w->level[2] : NULL);
}

int oct_walk_chunks(const walk *w)
{
    return (int)((w->tokens + CHUNK - 1) / CHUNK);
}
