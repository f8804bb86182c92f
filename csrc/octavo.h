/* octavo.h: the C API of the core. Opaque handles, option structs, one status.
 *
 * Rules that hold for every function: arguments are validated before anything changes; after a
 * failure the state is as it was; the text of the last failure on this thread is oct_error_text().
 * `open(T **out)` stores NULL on failure, `close(T **)` accepts NULL and stores NULL. Functions
 * marked [slow] take long and may be called without any host lock; a cache that is in use by one
 * call answers OCT_E_BUSY to another. Nothing here knows of Python. */
#ifndef OCTAVO_H
#define OCTAVO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    OCT_OK = 0,
    OCT_E_VALUE,       /* an argument is out of range */
    OCT_E_MEMORY,      /* allocation failed */
    OCT_E_PAGES,       /* the cache's budget cannot hold this; oct_pages_short() has the figures */
    OCT_E_BUSY,        /* handle in use by another call */
    OCT_E_CLOSED,      /* sequence handle of a closed sequence */
    OCT_E_STALE,       /* page handle whose page has been reused */
    OCT_E_PINNED,      /* views hold the page */
    OCT_E_NUMERIC,     /* non-finite rows or logits */
    OCT_E_UNSUPPORTED, /* no kernel for this combination */
    OCT_E_CANCELLED,   /* an oct_poll asked to stop */
    OCT_STATUS_COUNT
} oct_status;

const char *oct_error_text(void); /* of this thread; never NULL */
/* A slow call asks `ask` on its own thread every 30 ms or so, also while it waits for the pool of
 * threads; nonzero ends the call with OCT_E_CANCELLED and nothing changed. NULL: it goes on. */
typedef struct {
    int (*ask)(void *);
    void *arg;
} oct_poll;
/* After OCT_E_PAGES on this thread: bytes needed, free and evictable. */
void oct_pages_short(size_t *needed, size_t *available, size_t *evictable);

/* ---- Runtime: kernels of one ISA level and a pool of threads --------------------------------- */
typedef struct oct_runtime oct_runtime;

int oct_default_threads(void); /* min(affinity, floor(cgroup quota), physical cores), at least 1 */
/* threads 0: OCTAVO_THREADS, else the default. isa NULL: OCTAVO_ISA, else the best here; a level
 * above the machine's is OCT_E_UNSUPPORTED. */
oct_status oct_runtime_open(oct_runtime **out, int threads, const char *isa);
void oct_runtime_close(oct_runtime **);
/* Between slow calls, not during one. */
oct_status oct_runtime_set_threads(oct_runtime *, int threads);
int oct_runtime_threads(const oct_runtime *);
const char *oct_runtime_isa(const oct_runtime *);
const char *oct_runtime_cpu(const oct_runtime *);

/* What the pool reaches at best on this machine, per second: byte multiply-adds (two operations
 * each) of vectors and of tiles (0 where there are none), float ones, and bytes read from `bytes` of
 * memory (take more than twice the last cache). [slow] Some `seconds` for each. */
typedef struct {
    double int8_ops, tile_ops, f32_ops, read_bytes;
} oct_roofs;
oct_status oct_runtime_roofs(oct_runtime *, size_t bytes, double seconds, oct_poll, oct_roofs *out);

/* The kernel table as rows: for i = 0, 1, ... until false. */
typedef struct {
    const char *table; /* "weight" "page" "op" */
    const char *name;  /* format or op */
    const char *slot;  /* "linear" "seal" "decode" "scores" "mix" "op" */
    const char *form;  /* activation or dot form; "" where there is none */
    const char *isa;   /* the column that serves it; NULL: no kernel */
    double bits;       /* per weight or stored element (d = 128); 0 for ops */
} oct_kernel_row;
bool oct_kernel_row_at(const oct_runtime *, int i, oct_kernel_row *out);

/* ---- Memory ledger of the allocation seam ---------------------------------------------------- */
typedef struct {
    const char *tag; /* "weights" "pages" "open" "tables" "scratch" "threads" "other" */
    int64_t bytes, count;
} oct_mem_row;
bool oct_mem_row_at(int tag, oct_mem_row *out); /* live bytes and allocations, this process */

/* ---- Weights --------------------------------------------------------------------------------- */
typedef struct oct_weights oct_weights;
typedef struct {
    const char *format;        /* a name of weights.def */
    int64_t n, k;
    const char *scale_type;    /* "f16" or "bf16" of groups, "f32" of channels (w8), else NULL */
    const char *source;        /* "bytes" "halves" "pairs" "values": see kernels.h, oct_source */
    const char *values_type;   /* "f32" "f16" "bf16" with source "values" */
    const uint8_t *codes;      /* codes or values */
    size_t row_stride, group_stride;
    const uint8_t *scales, *mins;
    size_t scale_row_stride, scale_group_stride;
    const uint8_t *zeros;
    size_t zero_row_stride;
    const int32_t *row_map; /* [n] or NULL */
} oct_matrix_desc;

oct_status oct_weights_open(oct_weights **out, oct_runtime *);
void oct_weights_close(oct_weights **); /* programs keep what they use alive */
/* [slow] Packs `count` matrices in one parallel pass, or none; the sources are borrowed for the call.
 * Their ids are *first and those after it, which count from 0. */
oct_status oct_weights_add_matrices(oct_weights *, const oct_matrix_desc *, int count, int *first);
oct_status oct_weights_add_vector(oct_weights *, const float *values, int64_t n, int *id);
size_t oct_weights_bytes(const oct_weights *);
typedef struct {
    const char *format, *scale_type, *element; /* element: of the logical values or codes */
    int64_t n, k;
    int group; /* inputs that share a scale, k if all of them do; 0: there are none */
    bool has_zero, has_min;
    size_t bytes;
} oct_matrix_info;
oct_status oct_weights_info(const oct_weights *, int id, oct_matrix_info *out);
/* [slow] Logical arrays, each NULL or of the shape in kernels.h's oct_unpack_args. */
oct_status oct_weights_unpack(const oct_weights *, int id, uint8_t *codes, void *scales,
                              uint8_t *zeros, uint16_t *mins, void *values);
/* [slow] y[i] = dequantized row rows[i]. */
oct_status oct_weights_rows(const oct_weights *, int id, const int32_t *rows, int64_t m, float *y);
/* [slow] y[m][n] = x[m][k] W^T, read in activation form `act` (float formats: "a32" alone). */
oct_status oct_linear(oct_weights *, int id, const char *act, const float *x, int64_t m, float *y);

/* ---- Cache ----------------------------------------------------------------------------------- */
typedef struct oct_cache oct_cache;
/* latent: the layer keeps a latent (k) of one head, which is keys and values both, and a rotated key
 * (v) beside it: a query [latent | rotated] scores with the two together and gathers latents. The
 * rotated key is stored in the type of k's open rows: v_format and v_transform are not read. */
typedef struct {
    bool latent;
    int kv_heads, k_width, v_width;   /* of one head */
    const char *k_format, *v_format;  /* names of pages.def */
    const char *k_transform, *v_transform; /* NULL or "had", "had0"; ":B" forces the block */
    const char *form;                 /* dot form; NULL: the format's own */
} oct_layer_desc;

typedef struct {
    const oct_layer_desc *layers;
    int n_layers;
    int sink_pages, recent_pages;
    size_t budget_bytes; /* sealed pages and open rows together */
    bool prefix;         /* keep an index of full pages for sharing; off with sinks or recent */
    bool saturate;       /* non-finite rows are saturated and counted, not refused */
} oct_cache_opts;

typedef uint64_t oct_seq; /* slot and generation; 0 is no sequence */

oct_status oct_cache_open(oct_cache **out, oct_runtime *, const oct_cache_opts *);
oct_status oct_cache_close(oct_cache **); /* OCT_E_PINNED or OCT_E_BUSY: nothing happens */

oct_status oct_seq_open(oct_cache *, oct_seq *out);
/* force: pinned pages stay alive until their last view; without it they are OCT_E_PINNED. */
oct_status oct_seq_close(oct_cache *, oct_seq, bool force);
oct_status oct_seq_length(oct_cache *, oct_seq, int64_t *tokens);
/* Same history, sealed pages shared, open rows copied. */
oct_status oct_seq_fork(oct_cache *, oct_seq, oct_seq *out);
/* The same history re-encoded in another cache of the same shapes. [slow] */
oct_status oct_seq_reencode(oct_cache *, oct_seq, oct_cache *into, oct_poll, oct_seq *out);
/* Forget tokens at and past n. *kept <= n tokens are left: the rest must be fed again, because
 * their open rows are gone (or n itself where they are not). */
oct_status oct_seq_truncate(oct_cache *, oct_seq, int64_t n, int64_t *kept);
/* Attach the longest indexed prefix (whole pages, fewer than n tokens) to an empty sequence. */
oct_status oct_seq_match(oct_cache *, oct_seq, const int32_t *tokens, int64_t n, uint64_t salt,
                         int64_t *matched);
/* Bytes that steps of `counts[i]` more tokens on these sequences need beyond what they hold, and
 * what the budget has left (evictable included). For admission; promises nothing. */
oct_status oct_cache_needs(oct_cache *, const oct_seq *, const int64_t *counts, int n,
                           size_t *needed, size_t *available);
/* The least that a sequence of so many tokens takes, fed token by token: what can never fit. */
size_t oct_cache_bytes_for(const oct_cache *, int64_t tokens);

typedef struct {
    size_t sealed, open, tables, budget; /* scratch is the programs' and the runtime's */
    int64_t sealed_pages, cached_pages, open_units, sequences, pins;
    size_t page_bytes, unit_bytes; /* one sealed page, 16 open rows, over all layers */
} oct_ledger;
oct_status oct_cache_ledger(oct_cache *, oct_ledger *out);
/* One sequence's own: its sealed pages (shared ones too), open rows, tokens held sealed. */
oct_status oct_seq_ledger(oct_cache *, oct_seq, oct_ledger *out);
oct_status oct_cache_check(oct_cache *); /* every invariant; the text says which failed */
oct_status oct_cache_drop_prefix(oct_cache *); /* evict every idle indexed page */

/* One stored part of one head's block: see kernels.h, oct_part. */
typedef struct {
    const char *name, *dtype; /* dtype: "u8" "i8" "bf16" "f16" "f32" "e4m3" "e8m0" */
    size_t offset;            /* from the block's start */
    int ndim, shape[4], split, split_axis, axes[5], rows, cols, bias;
} oct_part_info;

typedef struct {
    const char *format; /* of the segment; an open page: its rows' type */
    bool sealed;
    int tokens, width, kv_heads, group, parts;
    const uint8_t *data; /* sealed: block of head 0; valid while the page is pinned */
    size_t head_stride;
    oct_part_info part[4];
    uint64_t page, generation;
} oct_page_info;

typedef enum { OCT_SEGMENT_K, OCT_SEGMENT_V } oct_segment; /* of a latent layer: latent, rotated key */

oct_status oct_page_at(oct_cache *, oct_seq, int layer, int64_t index, oct_segment,
                       oct_page_info *out);
/* Decoded copy float32 [kv_heads][tokens][width]; model_basis undoes the transform. */
oct_status oct_page_decode(oct_cache *, oct_seq, int layer, int64_t index, oct_segment,
                           bool model_basis, float *out);
oct_status oct_page_pin(oct_cache *, uint64_t page, uint64_t generation);
void oct_page_unpin(oct_cache *, uint64_t page); /* any thread, also while a step runs */
/* As oct_page_at, of a page that is the sequence's own and writable through `data`: copied if it was
 * shared. Marks the sequence as edited (never indexed). Until oct_page_edit_end, which any thread
 * may call, also while a step runs, calls on the sequence answer OCT_E_BUSY. */
oct_status oct_page_edit(oct_cache *, oct_seq, int layer, int64_t index, oct_segment,
                         oct_page_info *out);
void oct_page_edit_end(oct_cache *, uint64_t page);

/* n tokens' rows, float32, in the model's basis. q is multiplied by scale. window 0: none; else a
 * query sees itself and the window - 1 tokens before it. sinks: see ATTEND. */
typedef struct {
    const float *k, *v, *q;
    int64_t n;
    int heads, window; /* of q */
    float scale;
    const float *sinks; /* [heads] or NULL */
    float *out;
    oct_poll poll;
} oct_rows_desc;
/* [slow] Append k [layers][n][kv_heads][k_width] and v alike to every layer; layers of different
 * shapes follow each other without padding. With q [layers][n][heads][k_width], also attend
 * causally: out [layers][n][heads][v_width]. In a latent layer q is k_width + v_width wide, out
 * k_width. */
oct_status oct_cache_append(oct_cache *, oct_seq, const oct_rows_desc *);
/* [slow] n queries q [n][heads][k_width] that stand just after the last token of the sequence attend
 * in one layer: out [n][heads][v_width], widths as above. k and v are not read. */
oct_status oct_cache_attend(oct_cache *, oct_seq, int layer, const oct_rows_desc *);

/* ---- Program: a flat list of semantic ops over float32 row buffers ---------------------------- */
typedef enum {
    OCT_OP_EMBED,       /* out[0] = rows of matrix w[0] * scale */
    OCT_OP_NORM,        /* out[0] = rmsnorm(in, norm, eps) */
    OCT_OP_NORM_LINEAR, /* out[i] = w[i] rmsnorm(in) + bias[i], i < n_out; norm -1: no norm */
    OCT_OP_ATTEND,      /* out[0] = attention of layer over q = in, k = in2, v = in3. in3 -1: a latent
                         * layer, in2 = [latent | rotated key], in = heads of the same; k_norm is of
                         * the latent, rope of the rest. window: a query sees itself and the window - 1
                         * tokens before it, 0: all. sinks: one more logit per head in the softmax, of
                         * a token without a value */
    OCT_OP_HEAD_LINEAR, /* head h of out[0] = [matrices[h] x | y], head h of in = [x | y] */
    OCT_OP_LINEAR_ADD,  /* out[0] += y, y = w[0] in + bias[0]; with out_norm rmsnorm(y, out_norm, eps) */
    OCT_OP_GATED_MLP,   /* the same, y = w[2] act(w[0] n, w[1] n), n = rmsnorm(in) */
    OCT_OP_MOE,         /* out[0] += a mixture of experts of rmsnorm(in): see oct_moe_desc */
    OCT_OP_HEAD,        /* logits = w[0] in, of the rows that the step wants; the last op */
    OCT_OP_KIND_COUNT
} oct_op_kind;

typedef enum {
    OCT_ROUTER_SIGMOID,
    OCT_ROUTER_SOFTMAX,
    OCT_ROUTER_TOP,
    OCT_ROUTER_SCORE_COUNT
} oct_router_score;

/* act(g, u) of gated ops. */
typedef enum {
    OCT_ACTIVATION_SILU,         /* silu(g) * u */
    OCT_ACTIVATION_GELU_TANH,    /* gelu(g) * u, gelu by its tanh form */
    OCT_ACTIVATION_CLAMPED_SILU, /* gpt-oss's: g sigmoid(1.702 g) * (u + 1), g <= 7 and |u| <= 7 */
    OCT_ACTIVATION_COUNT
} oct_activation;

/* MOE. Router logits = w[0] n + bias[0], always in float32; choice and gates g as oct_route_args
 * says, bias[1] selecting only, `scale` of the op the factor of the gates. With F_e(n) = down
 * act(gate n, up n) of expert e, each of the three with its bias, y = fma(g_e, F_e(n), y) over the
 * chosen, ascending, from 0; then out[0] += y. out[1], experts + 2 * top wide, becomes the router's
 * record: scores, then the ids chosen (as floats), then their gates. */
typedef struct {
    int experts, top;
    int groups, groups_kept; /* 1, 1: none */
    bool outside_zero, renorm;
    oct_router_score score;
} oct_moe_desc;

typedef struct {
    oct_op_kind kind;
    int in, in2, in3;        /* buffers; -1: none */
    int out[3], n_out;
    int w[3], bias[3];       /* matrices and vectors; -1: none */
    const int *matrices;     /* MOE: [experts][3] gate, up, down; HEAD_LINEAR: [heads] */
    const int *biases;       /* MOE: [experts][3] vectors, -1: none; NULL: no expert has one */
    int norm, out_norm;      /* vectors; -1: none */
    float eps, scale;
    oct_activation activation; /* GATED_MLP, MOE */
    int layer, heads, rope;  /* ATTEND; rope: index into ropes, -1: none */
    int q_norm, k_norm;      /* ATTEND: per-head norm vectors; -1: none */
    int window, sinks;       /* ATTEND: tokens, 0: no limit; vector [heads], -1: none */
    oct_moe_desc moe;
} oct_op_desc;

typedef struct {
    int dim;            /* rotated width of a head, even */
    const double *freq; /* [dim/2] */
    float mscale;
    bool half_split;
} oct_rope_desc;

typedef struct {
    const int *widths; /* of each buffer */
    int n_buffers;
    const oct_op_desc *ops;
    int n_ops;
    const oct_rope_desc *ropes;
    int n_ropes;
    const char *act; /* activation form of grouped formats; float formats read a32 */
    int max_rows;    /* most rows of one step */
} oct_program_desc;

typedef struct oct_program oct_program;
oct_status oct_program_open(oct_program **out, oct_weights *, const oct_program_desc *);
void oct_program_close(oct_program **);
int oct_program_vocab(const oct_program *);

/* ---- Step ------------------------------------------------------------------------------------ */
typedef struct {
    oct_seq seq;
    const int32_t *tokens; /* [n] */
    int n;
    int first;             /* rows [first, n) are wanted: first = n - 1 the last, n none */
    float *logits;         /* [n-first][vocab] or NULL */
    const int32_t *target; /* [n-first] with logprob; -1: skip */
    float *logprob;        /* [n-first] log-probability of target, or NULL */
    int32_t *argmax;       /* [n-first] or NULL */
    int topk;
    int32_t *topk_id;      /* [n-first][topk] */
    float *topk_logprob;   /* [n-first][topk] */
    oct_status status;     /* out: OCT_OK or OCT_E_NUMERIC for this sequence alone */
} oct_step_item;

typedef struct {
    int op, buffer; /* copy this buffer just after this op */
    float *dst;     /* [rows of the step][width of buffer], in item order */
} oct_capture;

/* Kinds of work in a step. */
typedef enum {
    OCT_COST_EMBED,
    OCT_COST_NORM,   /* norms, and quantizing rows for the products */
    OCT_COST_LINEAR, /* the layers' products */
    OCT_COST_GATE,   /* SwiGLU, and quantizing its rows */
    OCT_COST_ROUTE,  /* the routers' products and choices */
    OCT_COST_EXPERT, /* the products of those chosen, and what they share out and gather */
    OCT_COST_STORE,  /* per-head norms, RoPE, rows into open pages */
    OCT_COST_SEAL,
    OCT_COST_ATTEND,
    OCT_COST_HEAD, /* the product that gives logits */
    OCT_COST_PICK, /* what was asked of the logits */
    OCT_COST_COUNT
} oct_cost_kind;

/* What a kind of work has to read of weights and pages, each stored byte once, and its useful
 * operations, 2 per multiply-add, by the kind of arithmetic: of shapes, and of the experts that rows
 * chose, so it is the same on every machine. Rows between ops are not counted. `ns` is measured,
 * where that was asked. */
typedef struct {
    int64_t ns;
    double bytes, int8_ops, f32_ops;
} oct_cost;
const char *oct_cost_name(oct_cost_kind);

/* What a router chose, before its experts run. */
typedef struct {
    int op, experts, top;
    int64_t rows;
    const float *scores; /* [rows][ld] */
    size_t ld;
    int32_t *id; /* [rows][top] ascending, distinct, 0 to experts - 1; so it must stay */
    float *gate; /* [rows][top] */
} oct_routing;

/* Asked on the thread that called, with the pool held; it may change ids and gates. false cancels the
 * step. */
typedef struct {
    bool (*ask)(void *arg, const oct_routing *);
    void *arg;
    const bool *ops; /* [ops of the program] those that are asked about */
} oct_route_hook;

typedef struct {
    oct_step_item *items;
    int n_items;
    const oct_capture *captures;
    int n_captures;
    oct_route_hook route; /* ask NULL: none */
    bool quiet;    /* capture, edited models: do not feed the prefix index */
    bool timed;    /* fill in ns */
    oct_poll poll;
    oct_cost cost[OCT_COST_COUNT]; /* out */
} oct_step_args;

/* [slow] One pass of the whole model over a ragged batch: any mix of prefill chunks and single rows,
 * each sequence at most once. All or nothing, but for items whose own numbers are not finite:
 * those keep their old state and say so in `status`. */
oct_status oct_step(oct_program *, oct_cache *, oct_step_args *);

/* ---- Reductions on the host's arrays (the columns' own kernels) -------------------------------- */
oct_status oct_logits_kl(oct_runtime *, const float *base, const float *other, int64_t m,
                         int64_t n, double *kl); /* [slow] */
oct_status oct_logits_lse(oct_runtime *, const float *x, int64_t m, int64_t n, float *lse);
oct_status oct_logits_argmax(oct_runtime *, const float *x, int64_t m, int64_t n, int32_t *index);
oct_status oct_logits_topk(oct_runtime *, const float *x, int64_t m, int64_t n, int count,
                           int32_t *index, float *value);
typedef struct {
    float temperature, top_p, min_p;
    int top_k;
} oct_sample_opts;
oct_status oct_logits_sample(oct_runtime *, const float *x, int64_t m, int64_t n,
                             const oct_sample_opts *, const double *u, int32_t *token);
/* The uniform in [0, 1) of (seed, sequence, position): counter-based, the same everywhere. */
double oct_uniform(uint64_t seed, uint64_t sequence, uint64_t position);

#ifdef OCT_FAULTS
/* Fail the nth fallible call from now (1 = the next), once or from then on; 0 disarms. */
void oct_fault(int64_t nth, bool from);
int64_t oct_fault_count(void); /* fallible calls since the last oct_fault */
/* Cancel a step at the nth boundary (the end of a tile or of a loop over tiles) that its calling
 * thread meets from now; 0 disarms. */
void oct_cancel_after(int64_t nth);
#endif

#endif
