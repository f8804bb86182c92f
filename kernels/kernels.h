/* kernels.h: THE contract between the core and the kernels.
 *
 * Argument structs, function types and the three tables (weights, pages, ops). A kernel gets raw
 * pointers and writes raw pointers: no malloc, no threads, no I/O, no errno, nothing from outside
 * kernels/. kernels/README.md says in words what every slot promises; docs/formats.md what the
 * bytes mean. Everything here holds for all columns: where scalar and SIMD could differ, the
 * struct's comment fixes the order of operations, and tests compare the columns with `==`.
 *
 * Shape letters: m rows, n outputs, k inputs, t tokens, h heads, d width (of one head), g groups. */
#ifndef OCT_KERNELS_H
#define OCT_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define OCT_PAGE_TOKENS 64 /* P: tokens in a page; a unit of an open page is 16 of them */
#define OCT_UNIT_TOKENS 16
#define OCT_MAX_HEAD_DIM 576
#define OCT_GROUP 32 /* finest weight group; rows of codes are padded with zeros to it */
/* Every kernel call gets a private scratch of this size, 64-byte aligned, contents undefined. */
#define OCT_LANE_BYTES (512 * 1024)

typedef enum { OCT_K_OK = 0, OCT_K_NONFINITE = 1 } oct_kstatus;

/* Element types of stored arrays. */
typedef enum {
    OCT_F32,
    OCT_F16,
    OCT_BF16,
    OCT_U8,
    OCT_I8,
    OCT_I32,
    OCT_E4M3,
    OCT_E8M0,
    OCT_DTYPE_COUNT
} oct_dtype;

/* Columns of the tables. A level is a bundle of features proven by CPUID and XGETBV (cpu.c):
 * avx2 = AVX2+FMA+F16C; avx512 = avx2 + F+BW+DQ+VL+VNNI; amx = avx512 + AMX-TILE+INT8, which the
 * operating system must have permitted to this process. */
typedef enum { OCT_SCALAR, OCT_AVX2, OCT_AVX512, OCT_AMX, OCT_ISA_COUNT } oct_isa;

/* How a linear reads its input (docs/formats.md, B1). */
typedef enum { OCT_A32, OCT_A8, OCT_A8G32, OCT_A8X2, OCT_ACT_COUNT } oct_act;

/* How attention computes on a page (docs/formats.md, A4). */
typedef enum { OCT_FORM_F32, OCT_FORM_Q8, OCT_FORM_Q8X2, OCT_FORM_COUNT } oct_form;

typedef enum { OCT_ROLE_K, OCT_ROLE_V } oct_role;

/* ---------------------------------------------------------------------------------------------
 * Rows: the input of linears and the queries of attention, quantized once and read often.
 *
 *   a8     scale[m] = amax / 127      hi = clamp(rne(x * (127/amax)), -127, 127)
 *   a8g32  scale[m][kp/32], the same per group of 32
 *   a8x2   scale[m] = amax / 16256    Q = clamp(rne(x * (16256/amax)), -16256, 16256);
 *          hi = (Q + 64) >> 7, lo = Q - 128 * hi  (|hi| <= 127, -64 <= lo <= 63)
 *   amax < 2^-60: scale 0, codes 0. The division 127/amax is one float32 operation.
 * A non-finite x (tested on the bits) makes the row's scale NaN and its codes 0, and the call
 * returns OCT_K_NONFINITE. */
typedef struct {
    oct_act act;
    int m, k, kp;        /* kp: k rounded up to OCT_GROUP, or more groups, all zero (oct_rows_kp) */
    const float *x;      /* [m][ldx], the float rows; always present */
    size_t ldx;          /* >= k; elements past k are never read */
    const int8_t *hi;    /* [m][kp], 32-byte aligned, zero past k; NULL for a32 */
    const int8_t *lo;    /* [m][kp], likewise; a8x2 only, else NULL */
    const float *scale;  /* a8, a8x2: [m]; a8g32: [m][kp/32]; NULL for a32 */
    const int32_t *sum;  /* [m][kp/32]: sum of the codes (a8x2: of Q) per 32 inputs; NULL for a32 */
} oct_rows;

/* Codes of a row in memory. Rows a multiple of half an OS page apart would share few sets of the
 * first cache, which 16 of them at once overflow: two groups of zeros keep them apart. */
#define OCT_ROW_APART 64
static inline int oct_rows_kp(int k)
{
    const int kp = (k + OCT_GROUP - 1) / OCT_GROUP * OCT_GROUP;
    return kp % 2048 ? kp : kp + OCT_ROW_APART;
}

/* ---------------------------------------------------------------------------------------------
 * Weight formats. W is [n out][k in], y[m][n] = sum_k x[m][k] W[n][k] (+ bias).
 *
 * A packed matrix is a sequence of blocks of OCT_BLOCK_N output channels, each block holding all of
 * k, so block b starts at b * traits.block_bytes(k). n is padded to the block with codes of value
 * zero and scales 0, k to the format's group. `pack` and `unpack` work on blocks [lo, hi). */
#define OCT_BLOCK_N 32

typedef struct {
    const void *data; /* 64-byte aligned, traits.block_bytes(k) * ceil(n/32) bytes */
    int n, k;
    oct_dtype scale_type; /* OCT_F16 or OCT_BF16: type of group scales and minima; else ignored */
} oct_matrix;

/* Where codes lie in a source row. BYTES: one code a byte, row r, input c at
 * codes + r*row_stride + (c/32)*group_stride + c%32. HALVES: 16 bytes per 32 codes, byte j holds
 * code j in its low and code j+16 in its high nibble (GGUF). PAIRS: byte j holds codes 2j and 2j+1,
 * low nibble first (compressed-tensors). VALUES: float elements of `values_type`, for f32, f16 and
 * bf16 matrices. */
typedef enum { OCT_SRC_BYTES, OCT_SRC_HALVES, OCT_SRC_PAIRS, OCT_SRC_VALUES } oct_src_kind;

typedef struct {
    oct_src_kind kind;
    oct_dtype values_type;                    /* VALUES: OCT_F32, OCT_F16 or OCT_BF16 */
    const uint8_t *codes;                     /* or the values; may be unaligned */
    size_t row_stride, group_stride;          /* bytes */
    const uint8_t *scales, *mins;             /* 2-byte elements, maybe unaligned; NULL if absent;
                                               * w8: one float32 scale a row */
    size_t scale_row_stride, scale_group_stride; /* bytes; the same for mins */
    const uint8_t *zeros;                     /* one byte per group [n][k/g]; NULL if absent */
    size_t zero_row_stride;
    const int32_t *row_map;                   /* [n] source row of each output; NULL: identity */
} oct_source;

typedef struct {
    void *data; /* the packed matrix that is written */
    int n, k;
    oct_dtype scale_type;
    const oct_source *src;
} oct_pack_args;

/* Logical arrays, C order: what docs/formats.md B2 calls codes, scales, zeros and minima. */
typedef struct {
    const oct_matrix *w;
    uint8_t *codes;     /* [n][k] one code a byte (8 bits: s8); NULL if the format has none */
    void *scales;       /* [n][k/g] raw 16 bits, w8: [n] float32; NULL if the format has none */
    uint8_t *zeros;     /* [n][k/g] */
    uint16_t *mins;     /* [n][k/g] raw bits */
    void *values;       /* [n][k] of the format's own type: f32, f16, bf16 only */
} oct_unpack_args;

/* y[i][0..k) = the dequantized row ids[i] of w, each element rounded once as B2 writes it:
 * (u-8)*s; (u-z)*s; q*s; fma(u, s, m) for q4g32m. */
typedef struct {
    const oct_matrix *w;
    const int32_t *ids; /* [m], 0 <= id < n */
    int m;
    float *y;
    size_t ldy;
} oct_gather_args;

/* Tiles: the grid is ceil(m/OCT_TILE_M) x ceil(n/OCT_BLOCK_N), column blocks running fastest: tile
 * i covers rows [OCT_TILE_M * (i / nb), ...) and channels [32 * (i % nb), ...). A call computes
 * tiles [lo, hi) and writes those outputs only. Results of an output element depend on its row of x
 * and its row of W alone (law two). y may be unpadded: channels >= n are never written. */
#define OCT_TILE_M 128

typedef struct {
    const oct_matrix *w;
    const oct_rows *x;
    float *y; /* [m][ldy]; aliases nothing else here */
    size_t ldy;
    const float *bias; /* [n] or NULL: result = chain + bias */
    bool add;          /* y = y + result, one addition, in place of y = result */
} oct_linear_args;

typedef oct_kstatus (*oct_pack_fn)(const oct_pack_args *, size_t lo, size_t hi);
typedef oct_kstatus (*oct_unpack_fn)(const oct_unpack_args *, size_t lo, size_t hi);
typedef oct_kstatus (*oct_gather_fn)(const oct_gather_args *, size_t lo, size_t hi);
typedef oct_kstatus (*oct_linear_fn)(const oct_linear_args *, size_t lo, size_t hi, void *lane);

typedef struct {
    size_t (*block_bytes)(int k); /* bytes of one block of 32 channels; a multiple of 32 */
    oct_pack_fn pack;
    oct_unpack_fn unpack;
    oct_gather_fn gather;
    /* One slot per activation form; NULL where the format does not take it (f32, f16 and bf16 take
     * a32 only). */
    oct_linear_fn linear[OCT_ACT_COUNT];
} oct_weight_kernels;

/* ---------------------------------------------------------------------------------------------
 * Page formats. A block is the bytes of one (page, layer, KV head, segment): 64 tokens x d.
 *
 * Any bytes are a page, not only those that `seal` writes: editors set scales of any sign, zero,
 * subnormal, infinite or NaN, and codes of any bits (int8: -128 too). `decode`, `scores` and `mix`
 * are defined for all of them, and every column gives the scalar column's bits; only the sign and
 * payload of a NaN are free. In the forms q8 and q8x2 a weight p_t * s_t that is not finite makes
 * that query's group NaN. */

/* One stored part of a block, enough for a zero-copy view and for unpacking it: memory holds
 * shape[0..ndim) elements in C order at `offset`. If split > 1 every byte holds `split` codes, low
 * bits first, and unpacking inserts an axis of that length at position `split_axis` of shape. Then
 * `axes` permutes the (ndim, or ndim + 1) axes into logical order, and merging neighbours gives the
 * logical array [rows][cols]. A logical code is stored + bias. */
typedef struct {
    const char *name; /* "codes" "scales" "zeros" "exponents" */
    oct_dtype dtype;
    size_t offset;
    int ndim, shape[4];
    int split, split_axis;
    int axes[5];
    int rows, cols;
    int bias;
} oct_part;

typedef struct {
    size_t bytes; /* of a block, a multiple of 64 */
    int group;    /* channels that share a scale; d where there is none */
    int parts;
    oct_part part[4];
} oct_page_layout;

typedef struct oct_page_kernels oct_page_kernels;
typedef struct oct_op_kernels oct_op_kernels;

/* Encode 64 rows. x is [64][ldx] of bf16, or of f32 / f16 for the formats of that name. Writes every
 * byte of the block; a pure function of the rows, d and role. Non-finite or too large input (|x| >=
 * 2^56; f16 >= 65520; f32: only non-finite) returns OCT_K_NONFINITE with the first bad place
 * (ascending token, then channel) in *bad_token, *bad_channel, and stores NaN as that group's
 * scale (or that element) with codes 0. */
typedef struct {
    const void *x;
    size_t ldx; /* elements */
    int d;
    oct_role role;
    void *block; /* 64-byte aligned */
    int *bad_token, *bad_channel;
} oct_seal_args;

/* Decode tokens [0, tokens) to float32. Role K: out is [d][64], channel-major, so that tokens are
 * lanes; role V: out is [64][d]. Work is done in whole units of 16 tokens; later tokens are left
 * as they were. unit_stride: bytes from one 16-token unit to the next, for f32, f16 and bf16, whose
 * blocks are four such units (K: [d][16], V: [16][d]) so that an open page, whose units lie apart,
 * is read by the same kernel; other formats ignore it. */
typedef struct {
    const void *block;
    size_t unit_stride;
    int d, tokens;
    oct_role role;
    float *out;
} oct_decode_args;

/* Rewrite a block of role K in the order of role V, the same codes, scales and zeros: what a page that
 * is both keys and values (the latent of MLA) is stored as once. Whole units of 16 tokens below
 * `tokens` of f32, f16 and bf16 blocks, whose new units lie side by side; all of the others. */
typedef struct {
    const oct_page_kernels *self; /* this format's row: the default slot uses its layout */
    const void *block;
    size_t unit_stride; /* of block */
    int d, tokens;
    void *out; /* 64-byte aligned, as large as a block */
} oct_turn_args;

/* Memory that the caller reads next: a kernel may ask for its lines while it computes, and need not.
 * at == end: nothing. */
typedef struct {
    const char *at, *end;
} oct_ahead;

/* s[i][0..64) = score of query i and each token, -inf where token >= visible[i]. Only units of
 * 16 tokens below max(visible) are read. q holds nq rows: x for OCT_FORM_F32; for Q8 (act a8) and
 * Q8X2 (act a8x2) hi, lo, scale, sum. Scaling by 1/sqrt(d) and transforms are in q already. */
typedef struct {
    const oct_page_kernels *self; /* this format's row: the default slot uses its decode */
    const oct_op_kernels *ops;    /* the column's ops: the default slot uses scores_f32 */
    const void *block;
    size_t unit_stride;
    int d, nq;
    oct_form form;
    const oct_rows *q;
    const int *visible; /* [nq], 0..64 */
    float *s;           /* [nq][lds] */
    size_t lds;
    oct_ahead ahead;
    bool add; /* s = s + score, -inf as before; OCT_FORM_F32 alone */
} oct_scores_args;

/* o[i][0..d) continues with the tokens t < visible[i] of this page, p[i][t] their probabilities.
 * f32: o = fma(w_t, x_t, o), t ascending. What lies at or past visible[i] takes no part in row i. */
typedef struct {
    const oct_page_kernels *self;
    const oct_op_kernels *ops;
    const void *block;
    size_t unit_stride;
    int d, nq;
    oct_form form;
    const int *visible; /* [nq] */
    const float *p;     /* [nq][ldp] */
    size_t ldp;
    float *o; /* [nq][ldo], in and out */
    size_t ldo;
    oct_ahead ahead;
} oct_mix_args;

typedef oct_kstatus (*oct_layout_fn)(int d, oct_role role, oct_page_layout *out);
typedef oct_kstatus (*oct_seal_fn)(const oct_seal_args *);
typedef oct_kstatus (*oct_decode_fn)(const oct_decode_args *);
typedef oct_kstatus (*oct_turn_fn)(const oct_turn_args *);
typedef oct_kstatus (*oct_scores_fn)(const oct_scores_args *, void *lane);
typedef oct_kstatus (*oct_mix_fn)(const oct_mix_args *, void *lane);
typedef oct_kstatus (*oct_mix_pages_fn)(const oct_mix_args *, int count, void *lane);

struct oct_page_kernels {
    oct_layout_fn layout; /* nonzero if the format cannot hold this d */
    oct_seal_fn seal;
    oct_decode_fn decode;
    oct_turn_fn turn; /* NULL means: by the layouts of both roles (select.c fills it in) */
    /* Per form; NULL in F32 means decode + the op's float kernel (select.c fills it in); NULL in
     * Q8 or Q8X2 means that the format has no such form. */
    oct_scores_fn scores[OCT_FORM_COUNT];
    oct_mix_fn mix[OCT_FORM_COUNT];
    /* `mix` of pages one after another, which differ in block, visible, p and ahead alone; NULL
     * means that nothing is gained by it. */
    oct_mix_pages_fn mix_pages;
};

/* ---------------------------------------------------------------------------------------------
 * Ops. All have one type; [lo, hi) are rows of the struct's first dimension unless it says else. */

/* y = (x * r) * w, r = 1 / sqrtf(ss / k + eps), ss = reduce(x*x). heads: rows of a wider matrix are
 * normed in `heads` pieces of k (Qwen3's per-head norm); 1 otherwise. */
typedef struct {
    const float *x;
    size_t ldx;
    int k, heads;
    const float *w; /* [k] */
    float eps;
    float *y; /* may be x */
    size_t ldy;
} oct_rmsnorm_args;

/* Fills the arrays of an oct_rows (cast away const) from its x; see there. */
typedef struct {
    oct_rows *rows;
    int *bad; /* [m] set to 1 for a non-finite row, else 0; may be NULL */
} oct_quantize_args;

/* Rotates pairs of each head in place; heads lie ldh apart. cs: [m][d/2] pairs (cos, sin) interleaved
 * as float[2], so [m][d]. half_split: pair i is (x[i], x[i + d/2]); else (x[2i], x[2i+1]).
 * a' = fma(a, cos, -(b * sin)), b' = fma(b, cos, a * sin). */
typedef struct {
    float *x; /* [m][ldx] */
    size_t ldx, ldh;
    int heads, d;
    bool half_split;
    const float *cs;
} oct_rope_args;

/* cs rows from positions: angle = position * freq in float64, reduced by us, cos and sin rounded
 * once to float32 and multiplied by mscale (one float32 multiplication; exact when 1). */
typedef struct {
    const int64_t *pos; /* [m] */
    const double *freq; /* [d/2] */
    int d;
    float mscale;
    float *cs; /* [m][d] */
} oct_rope_table_args;

/* y = (g / (1 + exp(-g))) * u */
typedef struct {
    const float *g, *u;
    size_t ldg, ldu;
    int k;
    float *y; /* may be g or u */
    size_t ldy;
} oct_swiglu_args;

/* y = (g / (1 + exp(-z))) * u, z = g * fma(c2, g * g, c1): gelu by its tanh form, c1 and c2 in
 * op/geglu/geglu.h. In exact arithmetic z is off by |z| * 2^-23, which exp shows where z is far
 * below 0: the relative error of y is at most (8 + 3 |z|) * 2^-24. */
typedef oct_swiglu_args oct_geglu_args;

/* y = (g' / (1 + exp(-1.702 * g'))) * (u' + 1), g' = min(g, 7), u' = u clamped to [-7, 7]. */
typedef oct_swiglu_args oct_clamped_swiglu_args;

/* The transform of docs/formats.md A2 on each of `heads` pieces of d: forward y = c*WHT(sign*x),
 * inverse y = sign*(c*WHT(x)). block: power of two dividing d. */
typedef struct {
    const float *x;
    size_t ldx;
    int heads, d, block;
    bool signs, inverse;
    float *y; /* may be x */
    size_t ldy;
} oct_hadamard_args;

/* Rows to a stored type, RNE; y [m][ldy] elements of `type` (OCT_F32, F16, BF16). bad[i] = first
 * column whose rounded value is non-finite or too large for a page (see oct_seal_args), -1 if none;
 * any such element: OCT_K_NONFINITE, all the same written. */
typedef struct {
    const float *x;
    size_t ldx;
    int k;
    oct_dtype type;
    void *y;
    size_t ldy;
    int *bad; /* [m] */
} oct_cast_args;

/* The float kernels behind OCT_FORM_F32. s[i][t] = chain t ascending c of fma(q[c], x[c][t], s),
 * from +0, then * scale[t] where scale is given. kt is [d][64] (an oct_decode_args K image). */
typedef struct {
    const float *q; /* [nq][ldq] */
    size_t ldq;
    int nq, d;
    const float *kt;    /* [d][64] */
    const float *scale; /* [64] or NULL */
    const int *visible; /* [nq] */
    float *s;
    size_t lds;
    bool add; /* s = s + score */
} oct_scores_f32_args; /* [lo, hi): queries */

/* o[i][c] = fma(w_t, v[t][c], o[i][c]), t ascending below visible[i], w_t = p[i][t] (* scale[t]).
 * Nothing of v past max(visible) and of p past visible[i] is read. */
typedef struct {
    const float *p; /* [nq][ldp] */
    size_t ldp;
    int nq, d;
    const float *v;     /* [64][d] */
    const float *scale; /* [64] or NULL */
    const int *visible; /* [nq] */
    float *o;
    size_t ldo;
} oct_mix_f32_args;

/* One chunk's softmax in place: m = max s; p = exp(s - m); l = reduce(p). n a multiple of 16; -inf
 * gives p = 0; an all -inf row gives p = 0, m = -inf, l = 0. NaN anywhere makes m and l NaN. m is
 * never -0. */
typedef struct {
    float *s; /* [m][lds] in and out */
    size_t lds;
    int n;
    float *max, *sum; /* [m] */
    oct_ahead ahead;
} oct_softmax_args;

/* (o,m,l) <- merge of (o,m,l) and (o2,m2,l2): M = max; a = exp(m-M), b = exp(m2-M) (0 for -inf);
 * l = fma(l2, b, l*a); o = fma(o2, b, o*a). Both -inf: unchanged. */
typedef struct {
    float *o, *m, *l; /* [rows][ldo], [rows], [rows] */
    size_t ldo;
    const float *o2, *m2, *l2;
    size_t ldo2;
    int d;
} oct_merge_args;

/* Index of the largest logit, ties to the lowest; NaN loses. -1 if all are NaN. */
typedef struct {
    const float *x; /* [m][ldx] */
    size_t ldx;
    int n;
    int32_t *index; /* [m] */
} oct_argmax_args;

/* lse[i] = max + log(reduce(exp(x - max))), the log in float64, rounded once. NaN or +inf in a row
 * gives NaN and OCT_K_NONFINITE; a row of -inf gives -inf. */
typedef struct {
    const float *x;
    size_t ldx;
    int n;
    float *lse; /* [m] */
} oct_lse_args;

/* The `count` <= n largest of each row, descending, ties to the lower index; NaN is below -inf. */
typedef struct {
    const float *x;
    size_t ldx;
    int n, count;
    int32_t *index; /* [m][count] */
    float *value;   /* [m][count] */
} oct_topk_args;

/* Where a row goes among n experts, and with what weight. In this order, each a float32 operation:
 * 1. s = score of the logits l. SIGMOID: 1 / (1 + exp(-l)); SOFTMAX: exp(l - max) / reduce(exp(l -
 *    max)); TOP: l itself.
 * 2. c = s + bias, which selects only.
 * 3. groups > 1: a group of n / groups neighbours counts as the sum of its two largest c; the
 *    groups_kept largest stay, equals by index. The others cannot be chosen; with outside_zero, as
 *    Hugging Face's code has it, they stay with c = 0.
 * 4. The `top` largest c, equals by index, in ascending order of index.
 * 5. gate = s; renorm: gate / (sum + 1e-20), summed in that order; TOP: gate = exp(s - their max),
 *    then always renormed. Times scale.
 * Infinite logits are legal where nothing above makes a NaN of them. A row with a NaN among its c or
 * its groups' sums, or with a gate that is not finite, gets ids 0, 1, .. and NaN gates, and the call
 * returns OCT_K_NONFINITE. */
#define OCT_MAX_EXPERTS 1024
typedef enum { OCT_SCORE_SIGMOID, OCT_SCORE_SOFTMAX, OCT_SCORE_TOP, OCT_SCORE_COUNT } oct_score;
typedef struct {
    const float *logits; /* [m][ld] */
    size_t ld;
    int n;
    const float *bias; /* [n] or NULL */
    oct_score score;
    int groups, groups_kept; /* n a multiple of groups; 1, 1: no groups */
    bool outside_zero;
    int top; /* at most the experts of the groups kept */
    bool renorm;
    float scale;
    float *score_of; /* s, [m][lds]; may be logits */
    size_t lds;
    int32_t *id; /* [m][top] */
    float *gate; /* [m][top] */
} oct_route_args;

/* y[i] = fma(gate[i][j], x[at[i][j] - first], y[i]), j ascending, of those j whose place at[i][j] lies
 * in [first, first + rows): a row's experts come in pieces, each continuing the chain. */
typedef struct {
    const float *x; /* [rows][ldx] */
    size_t ldx;
    const int32_t *at; /* [m][top] */
    const float *gate; /* [m][top] */
    int top, first, rows, k;
    float *y; /* [m][ldy], in and out */
    size_t ldy;
} oct_combine_args;

/* KL(base || other) per row over softmax of both, in float64: sum p (log p - log q). Equal rows
 * give exactly 0; p = 0 adds nothing; q = 0 alone gives +inf. NaN, +inf or no finite logit in either row
 * gives NaN and OCT_K_NONFINITE. op/kl/kl_scalar.c has the order of operations. */
typedef struct {
    const float *base, *other; /* [m][ld] */
    size_t ld;
    int n;
    double *kl; /* [m] */
} oct_kl_args;

/* One token per row: temperature, then top_k, top_p, min_p in this order, then inverse CDF in
 * descending order of probability (ties to the lower id) with the uniform u[i] in [0, 1).
 * temperature 0 = argmax. top_k 0 = off, top_p 1 = off, min_p 0 = off. op/sample/sample.h has the
 * exact definition: probabilities are integers, so no sum depends on an order. */
typedef struct {
    const float *x; /* [m][ldx] */
    size_t ldx;
    int n;
    float temperature, top_p, min_p;
    int top_k;
    const double *u; /* [m] */
    int32_t *token;  /* [m]; -1 if every logit is NaN or -inf */
    void *work;      /* n * 16 bytes, 4-byte aligned, private to the call (rows go one by one) */
} oct_sample_args;

/* What the machine can do at best, for others to be measured against. Each row is one task:
 * INT8   every accumulator takes `steps` times u8 x s8, four products a step and lane, 2 * 3
 * F32    every accumulator takes `steps` times a = fma(a, 0.5, 1), from 0
 * READ   every byte of data + row*bytes once; bytes is a multiple of 1024, data 64-byte aligned
 * TILE   as INT8 with products of whole tiles; no work, and check 0, in columns that have none
 * `work` is how many multiply-adds or bytes that was, which is the column's own business; `check`
 * is not: one accumulator's bits, or the row's 32-bit words under XOR. */
typedef enum {
    OCT_ROOF_INT8,
    OCT_ROOF_F32,
    OCT_ROOF_READ,
    OCT_ROOF_TILE,
    OCT_ROOF_COUNT
} oct_roof_kind;
typedef struct {
    oct_roof_kind kind;
    uint32_t steps;
    const void *data;
    size_t bytes;
    uint64_t *work;  /* [m] */
    uint32_t *check; /* [m] */
} oct_roof_args;

#define OCT_OP(name, ...) \
    typedef oct_kstatus (*oct_##name##_fn)(const oct_##name##_args *, size_t lo, size_t hi);
#include "kernels/ops.def"
#undef OCT_OP

struct oct_op_kernels {
#define OCT_OP(name, ...) oct_##name##_fn name;
#include "kernels/ops.def"
#undef OCT_OP
};

/* ---------------------------------------------------------------------------------------------
 * The tables. The enums derive from the .def files, so adding a line adds the id. */
typedef enum {
#define OCT_WEIGHT(name, ...) OCT_WEIGHT_##name,
#include "kernels/weights.def"
#undef OCT_WEIGHT
    OCT_WEIGHT_COUNT
} oct_weight_id;

typedef enum {
#define OCT_PAGE(name, ...) OCT_PAGE_##name,
#include "kernels/pages.def"
#undef OCT_PAGE
    OCT_PAGE_COUNT
} oct_page_id;

typedef struct {
    const char *name;
    int group; /* inputs that share a scale; 0: all of them (w8), or there are no codes */
    double bits; /* per weight, as stored */
    bool has_zero, has_min;
    int code_bits; /* 4, 8; 0: elements are `type` */
    oct_dtype type;
} oct_weight_traits;

typedef struct {
    const char *name;
    oct_dtype rows; /* type of the open rows that `seal` takes */
    oct_form form;  /* default dot form */
} oct_page_traits;

extern const oct_weight_traits oct_weight_traits_of[OCT_WEIGHT_COUNT];
extern const oct_page_traits oct_page_traits_of[OCT_PAGE_COUNT];
extern const char *const oct_isa_names[OCT_ISA_COUNT];
extern const char *const oct_act_names[OCT_ACT_COUNT];
extern const char *const oct_form_names[OCT_FORM_COUNT];
extern const char *const oct_op_names[];
extern const int oct_op_count;

/* One machine's choice, a plain value: several may be held at once. `*_isa` say which column really
 * serves a slot (what `octavo.kernels()` prints). */
typedef struct {
    oct_isa isa;
    oct_weight_kernels weight[OCT_WEIGHT_COUNT];
    oct_page_kernels page[OCT_PAGE_COUNT];
    oct_op_kernels op;
    unsigned char linear_isa[OCT_WEIGHT_COUNT][OCT_ACT_COUNT];
    unsigned char scores_isa[OCT_PAGE_COUNT][OCT_FORM_COUNT], mix_isa[OCT_PAGE_COUNT][OCT_FORM_COUNT];
    unsigned char seal_isa[OCT_PAGE_COUNT], decode_isa[OCT_PAGE_COUNT], turn_isa[OCT_PAGE_COUNT];
    unsigned char op_isa[64];
} oct_kernels;

/* Fill `out` with the best columns at or below `cap`. */
void oct_kernels_select(oct_kernels *out, oct_isa cap);
/* The best level that this CPU and OS run. */
oct_isa oct_cpu_isa(void);
const char *oct_cpu_name(void);

#endif
