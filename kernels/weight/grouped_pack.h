/* grouped_pack.h: from a checkpoint's layout to the grouped formats' bytes, in plain C for every
 * column. A template like grouped.h, which draws what is written here.
 *
 * A model is packed once per process at the speed of memory: codes move as words of four channels'
 * bytes or of one channel's four inputs, without a look at the single code. */
#include "kernels/inline.h"
#include "kernels/weight/grouped.h"

enum {
    MAX_RUN = 16, /* groups of all channels in turn, so that half-written lines stay in L1 */
    LINES = CODE_BITS == 4 ? 4 : 8
};

/* Groups of a run: all runs of a block but the last are as long, and that is hardly shorter. */
static inline int run_length(int groups)
{
    const int runs = (groups + MAX_RUN - 1) / MAX_RUN;
    return (groups + runs - 1) / runs;
}

/* Offset of a code in its group, and (4 bits) how far its nibble is shifted. */
static inline int code_at(int c, int j)
{
    const int line = j / (CODE_BITS == 4 ? 8 : 4);
    return c / HALF_N * HALF_BYTES + line * LINE_BYTES + c % HALF_N * 4 + j % 4;
}

static inline int shift_of(int j)
{
    return CODE_BITS == 4 ? j % 8 / 4 * 4 : 0;
}

/* Source code j of a group, as it is stored. A 4-bit code occupies four bits whatever the byte it
 * came in holds above them. */
static inline int source_code(oct_src_kind kind, const uint8_t *from, int j)
{
    if (kind == OCT_SRC_HALVES) return from[j % 16] >> (j / 16 * 4) & 15;
    if (kind == OCT_SRC_PAIRS) return from[j / 2] >> (j % 2 * 4) & 15;
    assert(kind == OCT_SRC_BYTES && "a grouped format packs codes, not values");
    return CODE_BITS == 4 ? from[j] & 15 : from[j] ^ 0x80;
}

/* Codes code by code: `count` of them, the rest of value zero. Means what pack_words does. */
static void pack_codes(oct_src_kind kind, const uint8_t *from, int count, int zero, uint8_t *group,
                       int c)
{
    for (int j = 0; j < OCT_GROUP; j++) {
        const int code = j < count ? source_code(kind, from, j) : zero;
        uint8_t *to = group + code_at(c, j);
        *to = (uint8_t)(shift_of(j) ? *to | code << 4 : code);
    }
}

static inline uint32_t word_at(const uint8_t *p)
{
    uint32_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

/* Codes 0 1 2 .. 7 of a word, as 0 4 1 5 2 6 3 7: the two bytes in the middle change places, and
 * then in each half the two nibbles in the middle. */
static inline uint32_t four_apart(uint32_t word)
{
    static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the first code is the lowest nibble");
    word = (word & 0xff0000ff) | (word << 8 & 0x00ff0000) | (word >> 8 & 0x0000ff00);
    return (word & 0xf00ff00f) | (word << 4 & 0x0f000f00) | (word >> 4 & 0x00f000f0);
}

/* The four bytes of line i. */
OCT_INLINE uint32_t line_word(oct_src_kind kind, const uint8_t *from, int i)
{
    const uint32_t nibbles = 0x0f0f0f0f;
    if (CODE_BITS == 8) return word_at(from + 4 * i) ^ 0x80808080;
    if (kind == OCT_SRC_PAIRS) return four_apart(word_at(from + 4 * i));
    if (kind == OCT_SRC_BYTES)
        return (word_at(from + 8 * i) & nibbles) | (word_at(from + 8 * i + 4) & nibbles) << 4;
    const uint32_t first = word_at(from + i % 2 * 8), second = word_at(from + i % 2 * 8 + 4);
    if (i < LINES / 2) return (first & nibbles) | (second & nibbles) << 4;
    return (first >> 4 & nibbles) | (second & nibbles << 4);
}

OCT_INLINE void pack_words(oct_src_kind kind, const uint8_t *from, uint8_t *group, int c)
{
    uint8_t *to = group + code_at(c, 0);
    for (int i = 0; i < LINES; i++) {
        const uint32_t word = line_word(kind, from, i);
        memcpy(to + i * LINE_BYTES, &word, sizeof word);
    }
}

/* Groups [lo, hi) of channel c from its source row. */
OCT_INLINE void pack_run(const oct_pack_args *a, oct_src_kind kind, uint8_t *block, int c,
                         size_t row, int lo, int hi)
{
    const oct_source *s = a->src;
    const uint8_t *codes = s->codes + row * s->row_stride;
    const uint8_t *scales = s->scales + row * s->scale_row_stride;
    const uint8_t *mins = HAS_MIN ? s->mins + row * s->scale_row_stride : NULL;
    const uint8_t *zeros = HAS_ZERO ? s->zeros + row * s->zero_row_stride : NULL;
    const size_t group_stride = s->group_stride, side_stride = s->scale_group_stride;
    const int k = a->k; /* and not again for each group: the bytes written might be these */
    for (int g = lo; g < hi; g++) {
        uint8_t *group = block + (size_t)g * GROUP_BYTES;
        const uint8_t *from = codes + (size_t)g * group_stride;
        const size_t at = (size_t)g * side_stride;
        const int left = k - g * OCT_GROUP;
        memcpy(group + SCALES_AT + 2 * c, scales + at, 2);
        if (HAS_MIN) memcpy(group + EXTRA_AT + 2 * c, mins + at, 2);
        if (HAS_ZERO) group[EXTRA_AT + c] = zeros[g];
        if (left >= OCT_GROUP)
            pack_words(kind, from, group, c);
        else
            pack_codes(kind, from, left, HAS_ZERO ? zeros[g] : ZERO_CODE, group, c);
    }
}

/* A channel past n: codes of value zero, and scales of zero. */
static void pack_nothing(uint8_t *block, int c, int lo, int hi)
{
    for (int g = lo; g < hi; g++) {
        uint8_t *group = block + (size_t)g * GROUP_BYTES;
        memset(group + SCALES_AT + 2 * c, 0, 2);
        if (HAS_MIN) memset(group + EXTRA_AT + 2 * c, 0, 2);
        if (HAS_ZERO) group[EXTRA_AT + c] = 0;
        pack_codes(OCT_SRC_BYTES, NULL, 0, ZERO_CODE, group, c);
    }
}

static void pack_channel(const oct_pack_args *a, uint8_t *block, int c, size_t row, int lo, int hi)
{
    switch (a->src->kind) { /* a constant in each, so that the words' loop has no question left */
    case OCT_SRC_BYTES: pack_run(a, OCT_SRC_BYTES, block, c, row, lo, hi); return;
    case OCT_SRC_HALVES: pack_run(a, OCT_SRC_HALVES, block, c, row, lo, hi); return;
    case OCT_SRC_PAIRS: pack_run(a, OCT_SRC_PAIRS, block, c, row, lo, hi); return;
    case OCT_SRC_VALUES: break;
    }
    assert(!"a grouped format packs codes, not values");
}

/* Asks for the codes that a later run of this row reads: 32 short streams are too many for the
 * hardware to guess. Scales and minima of a checkpoint's blocks lie between them. */
static inline void prefetch(const oct_source *s, const uint8_t *row, int lo, int hi)
{
    const size_t end = (size_t)hi * s->group_stride;
    for (size_t at = (size_t)lo * s->group_stride; at < end; at += LINE_BYTES)
        __builtin_prefetch(row + at);
}

static oct_kstatus pack(const oct_pack_args *a, size_t lo, size_t hi)
{
    const oct_source *s = a->src;
    const int groups = group_count(a->k), run = run_length(groups);
    assert(a->n > 0 && a->k > 0 && s->codes && s->scales);
    assert(!HAS_ZERO || s->zeros);
    assert(!HAS_MIN || s->mins);
    assert(CODE_BITS == 4 || s->kind == OCT_SRC_BYTES);
    for (size_t b = lo; b < hi; b++) {
        uint8_t *block = (uint8_t *)a->data + b * (size_t)groups * GROUP_BYTES;
        for (int g = 0; g < groups; g += run) {
            const int end = groups - g < run ? groups : g + run;
            const int next = groups - end < run ? groups : end + run;
            for (int c = 0; c < OCT_BLOCK_N; c++) {
                const size_t i = b * OCT_BLOCK_N + (size_t)c;
                if (i >= (size_t)a->n) {
                    pack_nothing(block, c, g, end);
                    continue;
                }
                const size_t row = s->row_map ? (size_t)s->row_map[i] : i;
                prefetch(s, s->codes + row * s->row_stride, end, next);
                pack_channel(a, block, c, row, g, end);
            }
        }
    }
    return OCT_K_OK;
}
