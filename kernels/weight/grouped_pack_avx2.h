/* grouped_pack_avx2.h: grouped_pack.h for the layouts of checkpoints, eight channels at a time:
 * words of each become 32 bytes of a line by a transposition in registers. A template like
 * grouped.h. */
#include <immintrin.h>

#include "kernels/weight/grouped_pack.h"

enum { WIDE = 8 };

typedef struct {
    const uint8_t *codes[WIDE], *scales[WIDE], *mins[WIDE];
} sources;

static inline __m256i two_quarters(const uint8_t *low, const uint8_t *high)
{
    const __m128i first = _mm_loadu_si128((const __m128i *)low);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(first),
                                   _mm_loadu_si128((const __m128i *)high), 1);
}

/* word[i]: bytes 4i..4i+3 of 16 from each channel, in the order of the channels. */
static inline void transpose(const sources *s, size_t at, __m256i word[4])
{
    const __m256i a = two_quarters(s->codes[0] + at, s->codes[4] + at);
    const __m256i b = two_quarters(s->codes[1] + at, s->codes[5] + at);
    const __m256i c = two_quarters(s->codes[2] + at, s->codes[6] + at);
    const __m256i d = two_quarters(s->codes[3] + at, s->codes[7] + at);
    const __m256i ab = _mm256_unpacklo_epi32(a, b), ab_high = _mm256_unpackhi_epi32(a, b);
    const __m256i cd = _mm256_unpacklo_epi32(c, d), cd_high = _mm256_unpackhi_epi32(c, d);
    word[0] = _mm256_unpacklo_epi64(ab, cd);
    word[1] = _mm256_unpackhi_epi64(ab, cd);
    word[2] = _mm256_unpacklo_epi64(ab_high, cd_high);
    word[3] = _mm256_unpackhi_epi64(ab_high, cd_high);
}

static inline void put_line(uint8_t *to, int line, __m256i bytes)
{
    _mm256_storeu_si256((__m256i *)(to + line * LINE_BYTES), bytes);
}

/* Nibbles in halves: words 0 and 1 hold inputs 0..7 low and 16..23 high, 2 and 3 the others. */
static inline void pack_halves(const sources *s, size_t at, uint8_t *to)
{
    const __m256i nibbles = _mm256_set1_epi8(15);
    __m256i word[4];
    transpose(s, at, word);
    for (int i = 0; i < 2; i++) {
        const __m256i first = word[2 * i], second = word[2 * i + 1];
        const __m256i low = _mm256_slli_epi32(_mm256_and_si256(second, nibbles), 4);
        const __m256i high = _mm256_and_si256(_mm256_srli_epi32(first, 4), nibbles);
        put_line(to, i, _mm256_or_si256(_mm256_and_si256(first, nibbles), low));
        put_line(to, i + 2, _mm256_or_si256(high, _mm256_andnot_si256(nibbles, second)));
    }
}

/* Nibbles in pairs: word i holds line i, in the order that four_apart changes. */
static inline void pack_pairs(const sources *s, size_t at, uint8_t *to)
{
    const __m256i bytes = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15));
    const __m256i ends = _mm256_set1_epi16((short)0xf00f), third = _mm256_set1_epi16(0x0f00);
    const __m256i second = _mm256_set1_epi16(0x00f0);
    __m256i word[4];
    transpose(s, at, word);
    for (int i = 0; i < 4; i++) {
        const __m256i w = _mm256_shuffle_epi8(word[i], bytes);
        const __m256i up = _mm256_and_si256(_mm256_slli_epi16(w, 4), third);
        const __m256i down = _mm256_and_si256(_mm256_srli_epi16(w, 4), second);
        put_line(to, i, _mm256_or_si256(_mm256_and_si256(w, ends), _mm256_or_si256(up, down)));
    }
}

static inline void pack_eights(const sources *s, size_t at, uint8_t *to)
{
    for (int half = 0; half < 2; half++) {
        __m256i word[4];
        transpose(s, at + 16 * (size_t)half, word);
        for (int i = 0; i < 4; i++)
            put_line(to, 4 * half + i, _mm256_xor_si256(word[i], _mm256_set1_epi8(-128)));
    }
}

static inline void pack_sides(const uint8_t *const from[WIDE], size_t at, uint8_t *to)
{
    for (int c = 0; c < WIDE; c++) memcpy(to + 2 * c, from[c] + at, 2);
}

/* Groups [lo, hi) of eight channels, the first of them c. */
static void pack_wide(const oct_pack_args *a, const sources *from, uint8_t *block, int c, int lo,
                      int hi)
{
    const size_t stride = a->src->group_stride, side_stride = a->src->scale_group_stride;
    const sources s = *from; /* and not again for each group: the bytes written might be these */
    const bool pairs = a->src->kind == OCT_SRC_PAIRS;
    for (int g = lo; g < hi; g++) {
        uint8_t *group = block + (size_t)g * GROUP_BYTES;
        pack_sides(s.scales, (size_t)g * side_stride, group + SCALES_AT + 2 * c);
        if (HAS_MIN) pack_sides(s.mins, (size_t)g * side_stride, group + EXTRA_AT + 2 * c);
        uint8_t *to = group + code_at(c, 0);
        if (CODE_BITS == 8) pack_eights(&s, (size_t)g * stride, to);
        else if (pairs) pack_pairs(&s, (size_t)g * stride, to);
        else pack_halves(&s, (size_t)g * stride, to);
    }
}

static sources sources_of(const oct_source *s, size_t first)
{
    sources out = {0};
    for (int c = 0; c < WIDE; c++) {
        const size_t i = first + (size_t)c, row = s->row_map ? (size_t)s->row_map[i] : i;
        out.codes[c] = s->codes + row * s->row_stride;
        out.scales[c] = s->scales + row * s->scale_row_stride;
        if (HAS_MIN) out.mins[c] = s->mins + row * s->scale_row_stride;
    }
    return out;
}

enum { WIDES = OCT_BLOCK_N / WIDE };

static void sources_of_block(const oct_source *s, size_t b, sources out[WIDES])
{
    for (int w = 0; w < WIDES; w++) out[w] = sources_of(s, b * OCT_BLOCK_N + (size_t)(w * WIDE));
}

/* One whole block from `from`, asking meanwhile for what comes after: of these rows, then of the
 * next block's. */
static void pack_whole_block(const oct_pack_args *a, size_t b, const sources from[WIDES],
                             const sources after[WIDES])
{
    const int groups = group_count(a->k), run = run_length(groups);
    uint8_t *block = (uint8_t *)a->data + b * (size_t)groups * GROUP_BYTES;
    for (int g = 0; g < groups; g += run) {
        const int end = groups - g < run ? groups : g + run;
        const sources *later = end < groups ? from : after;
        const int lo = end < groups ? end : 0, hi = groups - lo < run ? groups : lo + run;
        for (int w = 0; w < WIDES; w++) {
            for (int c = 0; c < WIDE; c++) prefetch(a->src, later[w].codes[c], lo, hi);
            pack_wide(a, &from[w], block, w * WIDE, g, end);
        }
    }
}

static oct_kstatus pack_avx2(const oct_pack_args *a, size_t lo, size_t hi)
{
    const oct_src_kind kind = a->src->kind;
    const bool wide = CODE_BITS == 8 ? kind == OCT_SRC_BYTES
                                     : kind == OCT_SRC_HALVES || kind == OCT_SRC_PAIRS;
    if (HAS_ZERO || !wide || a->k % OCT_GROUP) return pack(a, lo, hi);
    const size_t whole = (size_t)a->n / OCT_BLOCK_N, end = hi < whole ? hi : whole;
    sources from[2][WIDES];
    if (lo < end) sources_of_block(a->src, lo, from[lo & 1]);
    for (size_t b = lo; b < end; b++) {
        const bool more = b + 1 < end;
        if (more) sources_of_block(a->src, b + 1, from[(b + 1) & 1]);
        pack_whole_block(a, b, from[b & 1], from[(b + more) & 1]);
    }
    lo = lo < end ? end : lo;
    return lo < hi ? pack(a, lo, hi) : OCT_K_OK;
}
