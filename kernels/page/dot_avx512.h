/* dot_avx512.h: the forms q8 and q8x2 by vpdpbusd, for byte codes biased by 128 and for nibbles.
 *
 * Packed codes are the unsigned side; query or probability bytes are broadcast four at a time as
 * the signed side. A tile is up to six code rows (q8: six queries; q8x2: three, high and low parts)
 * by four vectors of 16 tokens (scores) or channels (mix): 24 accumulators, and every load of the
 * page serves the whole tile. dot.h says what is computed; integers are exact, so only the order of
 * the float steps at the end of a group matters. */
#ifndef OCT_PAGE_DOT_AVX512_H
#define OCT_PAGE_DOT_AVX512_H

#include "kernels/ahead.h"
#include "kernels/page/codes_avx512.h"
#include "kernels/page/dot.h"
#include "kernels/page/generic.h"

#define OCT_DOT_ROWS 6

/* Bits of work (ahead.h): of a step of dots, and of a row's floats in a group. */
enum { DOT_BITS = 2, FLOAT_BITS = 4 };

OCT_INLINE __m512i oct_four_bytes(const int8_t *x)
{
    int32_t four;
    memcpy(&four, x, 4);
    return _mm512_set1_epi32(four);
}

/* In assembler because gcc copies the accumulator before and after the intrinsic, and with 24 of
 * them spills: half the speed of `mix`. */
OCT_INLINE void oct_dot_step(__m512i *acc, __m512i u, __m512i b)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*acc) : "v"(u), "v"(b));
}

/* acc[r][v] += the dots of one line of codes: four (or eight) steps along the contraction. Code
 * rows lie a constant apart, or their addresses would not fit the registers. */
OCT_INLINE void oct_dot_line(__m512i acc[OCT_DOT_ROWS][4], int rows, int nv, int bits,
                             const uint8_t *line, const int8_t *x, size_t ldx)
{
    __m512i w[4];
    const __m512i low = _mm512_set1_epi8(15);
    for (int v = 0; v < nv; v++) w[v] = _mm512_load_si512(line + 64 * v);
    for (int half = 0; half < (bits == 4 ? 2 : 1); half++) {
        __m512i u[4];
        for (int v = 0; v < nv; v++)
            u[v] = bits == 8 ? w[v]
                             : _mm512_and_si512(half ? _mm512_srli_epi16(w[v], 4) : w[v], low);
        for (int r = 0; r < rows; r++) {
            const __m512i b = oct_four_bytes(x + (size_t)r * ldx + 4 * half);
            for (int v = 0; v < nv; v++) oct_dot_step(&acc[r][v], u[v], b);
        }
    }
}

/* The dots of `rows` code rows with nv vectors over n codes, lines `step` bytes apart. They leave
 * through memory: an array of registers survives only loops that the compiler unrolls in full. */
OCT_INLINE void oct_dot_run(int32_t out[OCT_DOT_ROWS][64], int rows, int nv, int bits,
                            const uint8_t *line, size_t step, const int8_t *x, size_t ldx, int n,
                            oct_asker *ask)
{
    __m512i acc[OCT_DOT_ROWS][4];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < nv; v++) acc[r][v] = _mm512_setzero_si512();
    for (const int8_t *end = x + n; x < end; x += 32 / bits, line += step) {
        oct_ask(ask, DOT_BITS);
        oct_dot_line(acc, rows, nv, bits, line, x, ldx);
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < nv; v++) _mm512_store_si512(&out[r][16 * v], acc[r][v]);
}

/* Vector v of query r's dots; the two terms of q8x2 are joined. */
OCT_INLINE __m512i oct_dot_of(const int32_t dots[OCT_DOT_ROWS][64], int terms, int r, int v)
{
    const __m512i dot = _mm512_load_si512(&dots[r * terms][16 * v]);
    if (terms == 1) return dot;
    return _mm512_add_epi32(_mm512_slli_epi32(dot, 7),
                            _mm512_load_si512(&dots[r * 2 + 1][16 * v]));
}

/* The queries of a tile: code rows (of q8x2 hi, then lo, query by query). */
typedef struct {
    _Alignas(64) int8_t code[OCT_DOT_ROWS][OCT_MAX_HEAD_DIM];
    int first; /* query */
    bool whole; /* all see the whole page */
} oct_dot_queries;

OCT_INLINE void oct_dot_take(oct_dot_queries *to, const oct_scores_args *a, int terms, int queries,
                             int first)
{
    const size_t kp = (size_t)a->q->kp, d = (size_t)a->d;
    to->first = first;
    to->whole = true;
    for (int r = 0; r < queries; r++) {
        const size_t row = (size_t)(first + r) * kp;
        to->whole = to->whole && a->visible[first + r] >= OCT_PAGE_TOKENS;
        for (size_t c = 0; c < d; c += 16) {
            const __m128i hi = _mm_loadu_si128((const __m128i *)(a->q->hi + row + c));
            _mm_store_si128((__m128i *)(to->code[r * terms] + c), hi);
            if (terms == 1) continue;
            const __m128i lo = _mm_loadu_si128((const __m128i *)(a->q->lo + row + c));
            _mm_store_si128((__m128i *)(to->code[r * 2 + 1] + c), lo);
        }
    }
}

/* What of 16 scores from token t on a query sees; -inf elsewhere. */
OCT_INLINE __m512 oct_dot_seen(__m512 f, int t, int visible)
{
    return _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), oct_lanes_below(visible - t), f);
}

/* One group's dots of `queries` queries with nv vectors from token t0; the float steps of A4. */
OCT_INLINE void oct_scores_group(const oct_scores_args *a, oct_dot_page page, int bits, int terms,
                                 int queries, int nv, const oct_dot_queries *q, int t0, int g,
                                 int group, oct_asker *ask)
{
    const int per = bits == 4 ? 8 : 4;
    const bool last = (g + 1) * group == a->d;
    _Alignas(64) int32_t dots[OCT_DOT_ROWS][64];
    const size_t first = (size_t)(g * group / per) * OCT_PAGE_TOKENS + (size_t)t0;
    oct_dot_run(dots, queries * terms, nv, bits, page.codes + first * 4, 4 * OCT_PAGE_TOKENS,
                q->code[0] + g * group, OCT_MAX_HEAD_DIM, group, ask);

    __m512 scale[4], zero[4];
    for (int v = 0; v < nv; v++) {
        const int at = g * OCT_PAGE_TOKENS + t0 + 16 * v;
        scale[v] = oct_widen_bf16(page.scales + at);
        if (bits == 4) zero[v] = oct_widen_bf16(page.zeros + at);
    }
    for (int r = 0; r < queries; r++) {
        const int i = q->first + r;
        oct_ask(ask, FLOAT_BITS);
        float *s = a->s + (size_t)i * a->lds + t0;
        const int32_t sum = oct_dot_query_sum(a->q, i, g, group);
        const __m512 by = _mm512_set1_ps(a->q->scale[i]);
        for (int v = 0; v < nv; v++) {
            __m512i dot = oct_dot_of(dots, terms, r, v);
            if (bits == 8) dot = _mm512_sub_epi32(dot, _mm512_set1_epi32(128 * sum));
            __m512 f = g ? _mm512_loadu_ps(s + 16 * v) : _mm512_setzero_ps();
            f = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale[v], f);
            if (bits == 4) f = _mm512_fmadd_ps(_mm512_set1_ps((float)sum), zero[v], f);
            if (last) f = _mm512_mul_ps(f, by);
            if (last && !q->whole) f = oct_dot_seen(f, t0 + 16 * v, a->visible[i]);
            _mm512_storeu_ps(s + 16 * v, f);
        }
    }
}

/* Whole pages take four vectors at once; a page that is seen in part goes unit by unit, so that
 * units past the last visible token are not read. */
OCT_INLINE void oct_scores_tile(const oct_scores_args *a, int bits, int terms, int queries, int i0,
                                int units, oct_asker *ask)
{
    const oct_dot_page page = oct_dot_parts(a->block, a->d, bits);
    const int group = oct_page_group(a->d), groups = a->d / group;
    oct_dot_queries q;
    oct_dot_take(&q, a, terms, queries, i0);
    if (units == 4) {
        for (int g = 0; g < groups; g++)
            oct_scores_group(a, page, bits, terms, queries, 4, &q, 0, g, group, ask);
        return;
    }
    for (int u = 0; u < units; u++)
        for (int g = 0; g < groups; g++)
            oct_scores_group(a, page, bits, terms, queries, 1, &q, u * OCT_UNIT_TOKENS, g, group,
                             ask);
    for (int r = 0; r < queries; r++)
        for (int u = units; u < 4; u++)
            _mm512_storeu_ps(a->s + (size_t)(i0 + r) * a->lds + u * OCT_UNIT_TOKENS,
                             _mm512_set1_ps(-INFINITY));
}

OCT_INLINE int oct_dot_tiles(int queries, int terms)
{
    return (queries * terms + OCT_DOT_ROWS - 1) / OCT_DOT_ROWS;
}

OCT_INLINE oct_kstatus oct_scores_dot(const oct_scores_args *a, int bits, int terms)
{
    const int steps = oct_dot_tiles(a->nq, terms) * a->d * bits / 32;
    const int floats = a->nq * (a->d / oct_page_group(a->d));
    oct_asker ask = oct_asker_of(a->ahead, steps * DOT_BITS + floats * FLOAT_BITS);
    const int units =
        oct_page_whole_units(oct_visible_max(a->visible, a->nq)) / OCT_UNIT_TOKENS;
    for (int i = 0; i < a->nq;) {
        const int left = a->nq - i, most = OCT_DOT_ROWS / terms, take = left < most ? left : most;
        switch (take) {
        case 1: oct_scores_tile(a, bits, terms, 1, i, units, &ask); break;
        case 2: oct_scores_tile(a, bits, terms, 2, i, units, &ask); break;
        case 3: oct_scores_tile(a, bits, terms, 3, i, units, &ask); break;
        case 4: oct_scores_tile(a, bits, terms, terms == 1 ? 4 : 3, i, units, &ask); break;
        case 5: oct_scores_tile(a, bits, terms, terms == 1 ? 5 : 3, i, units, &ask); break;
        default: oct_scores_tile(a, bits, terms, terms == 1 ? 6 : 3, i, units, &ask); break;
        }
        i += take;
    }
    return OCT_K_OK;
}

/* One group's probabilities of a tile's queries: code rows (of q8x2 hi, then lo, query by query),
 * and of each query the sum of its codes, their scale, and the zero term. */
typedef struct {
    _Alignas(64) int8_t code[OCT_DOT_ROWS][OCT_PAGE_TOKENS];
    int32_t sum[OCT_DOT_ROWS];
    float scale[OCT_DOT_ROWS], zero[OCT_DOT_ROWS];
} oct_dot_probs;

/* The largest (or the sum) of the lanes of each of four vectors. */
OCT_INLINE __m128i oct_reduce4(const __m512i x[4], bool largest)
{
#define OCT_JOIN256(a, b) (largest ? _mm256_max_epu32(a, b) : _mm256_add_epi32(a, b))
    __m256i h[4];
    for (int i = 0; i < 4; i++)
        h[i] = OCT_JOIN256(_mm512_castsi512_si256(x[i]), _mm512_extracti64x4_epi64(x[i], 1));
    const __m256i ab = OCT_JOIN256(_mm256_unpacklo_epi32(h[0], h[1]),
                                   _mm256_unpackhi_epi32(h[0], h[1]));
    const __m256i cd = OCT_JOIN256(_mm256_unpacklo_epi32(h[2], h[3]),
                                   _mm256_unpackhi_epi32(h[2], h[3]));
    const __m256i all = OCT_JOIN256(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
    const __m128i lo = _mm256_castsi256_si128(all), hi = _mm256_extracti128_si256(all, 1);
    return largest ? _mm_max_epu32(lo, hi) : _mm_add_epi32(lo, hi);
#undef OCT_JOIN256
}

/* oct_reduce_tree of each of four vectors. */
OCT_INLINE __m128 oct_tree4(const __m512 x[4])
{
    __m128 q[4];
    for (int i = 0; i < 4; i++) {
        const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(x[i]),
                                       _mm512_extractf32x8_ps(x[i], 1));
        q[i] = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    }
    const __m128 ab = _mm_add_ps(_mm_movelh_ps(q[0], q[1]), _mm_movehl_ps(q[1], q[0]));
    const __m128 cd = _mm_add_ps(_mm_movelh_ps(q[2], q[3]), _mm_movehl_ps(q[3], q[2]));
    return _mm_add_ps(_mm_shuffle_ps(ab, cd, 0x88), _mm_shuffle_ps(ab, cd, 0xDD));
}

/* 64 integers of -128..127 to bytes. */
OCT_INLINE __m512i oct_bytes_of(const __m512i q[4])
{
    const __m512i words = _mm512_packs_epi16(_mm512_packs_epi32(q[0], q[1]),
                                             _mm512_packs_epi32(q[2], q[3]));
    return _mm512_permutexvar_epi32(
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), words);
}

/* Up to four queries from row r0 of the tile on: p [many][ldp]. s: scales; zc: what multiplies p in
 * the zero term, or NULL. */
OCT_INLINE void oct_probs(oct_dot_probs *out, int r0, int many, const float *p, size_t ldp,
                          const float *s, const float *zc, const int *visible, int terms,
                          oct_asker *ask)
{
    const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
    __m512 w[4][4], zacc[4];
    __m512i top[4], sum[4];
    for (int r = 0; r < 4; r++) {
        zacc[r] = _mm512_setzero_ps();
        top[r] = sum[r] = _mm512_setzero_si512();
        if (r < many) oct_ask(ask, FLOAT_BITS);
        const bool whole = r < many && visible[r] >= OCT_PAGE_TOKENS; /* spares most the masks */
        for (int v = 0; v < 4 && r < many; v++) {
            const float *from = p + (size_t)r * ldp + 16 * v;
            const __mmask16 seen = oct_lanes_below(visible[r] - 16 * v);
            const __m512 x = whole ? _mm512_loadu_ps(from) : _mm512_maskz_loadu_ps(seen, from);
            const __m512 by = _mm512_load_ps(s + 16 * v);
            w[r][v] = whole ? _mm512_mul_ps(x, by) : _mm512_maskz_mul_ps(seen, x, by);
            const __m512i u = _mm512_and_si512(_mm512_castps_si512(w[r][v]), magnitude);
            top[r] = _mm512_max_epu32(top[r], u);
            if (!zc) continue;
            const __m512 z = _mm512_load_ps(zc + 16 * v);
            zacc[r] = whole ? _mm512_fmadd_ps(x, z, zacc[r])
                            : _mm512_mask3_fmadd_ps(x, z, zacc[r], seen);
        }
    }
    const __m128i bits = oct_reduce4(top, true);
    const __m128 most = _mm_castsi128_ps(bits);
    const __m128 steps = _mm_set1_ps(terms == 2 ? 16256.0f : 127.0f);
    const __mmask8 wild = _mm_cmpge_epu32_mask(bits, _mm_set1_epi32(0x7F800000));
    const __mmask8 some = (__mmask8)(~wild & _mm_cmp_ps_mask(most, _mm_set1_ps(OCT_DOT_TINY),
                                                             _CMP_GE_OQ));
    _Alignas(16) float ratio[4], scale[4], zero[4];
    _Alignas(16) int32_t total[4];
    _mm_store_ps(ratio, _mm_maskz_div_ps(some, steps, most));
    _mm_store_ps(scale, _mm_mask_mov_ps(_mm_maskz_div_ps(some, most, steps), wild,
                                        _mm_set1_ps(NAN)));
    for (int r = 0; r < many; r++) {
        const __mmask16 keep = some >> r & 1 ? 0xFFFF : 0;
        const __m512 by = _mm512_set1_ps(ratio[r]);
        int8_t *code = out->code[(r0 + r) * terms];
        oct_ask(ask, FLOAT_BITS);
        __m512i q[4], lo[4];
        for (int v = 0; v < 4; v++) {
            q[v] = _mm512_maskz_cvtps_epi32(keep, _mm512_mul_ps(w[r][v], by));
            sum[r] = _mm512_add_epi32(sum[r], q[v]);
            lo[v] = _mm512_and_si512(q[v], _mm512_set1_epi32(127));
            if (terms == 2) q[v] = _mm512_srai_epi32(q[v], 7);
        }
        _mm512_store_si512(code, oct_bytes_of(q));
        if (terms == 2) _mm512_store_si512(code + OCT_PAGE_TOKENS, oct_bytes_of(lo));
    }
    _mm_store_si128((__m128i *)total, oct_reduce4(sum, false));
    if (zc) _mm_store_ps(zero, oct_tree4(zacc));
    for (int r = 0; r < many; r++) {
        out->scale[r0 + r] = scale[r];
        out->sum[r0 + r] = total[r];
        out->zero[r0 + r] = zc ? zero[r] : 0.0f;
    }
}

/* nv vectors of channels from c on, all tokens of the first `units` units. */
OCT_INLINE void oct_mix_channels(const oct_mix_args *a, oct_dot_page page, int bits, int terms,
                                 int queries, int nv, int i0, int c, int units,
                                 const oct_dot_probs *prob, oct_asker *ask)
{
    _Alignas(64) int32_t dots[OCT_DOT_ROWS][64];
    oct_dot_run(dots, queries * terms, nv, bits, page.codes + (size_t)c * 4, (size_t)a->d * 4,
                prob->code[0], OCT_PAGE_TOKENS, units * OCT_UNIT_TOKENS, ask);
    const int centre = bits == 4 ? 8 : 128;
    for (int r = 0; r < queries; r++) {
        float *o = a->o + (size_t)(i0 + r) * a->ldo + c;
        oct_ask(ask, FLOAT_BITS);
        for (int v = 0; v < nv; v++) {
            __m512i dot = oct_dot_of(dots, terms, r, v);
            dot = _mm512_sub_epi32(dot, _mm512_set1_epi32(centre * prob->sum[r]));
            __m512 f = _mm512_loadu_ps(o + 16 * v);
            f = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_set1_ps(prob->scale[r]), f);
            if (bits == 4) f = _mm512_add_ps(f, _mm512_set1_ps(prob->zero[r]));
            _mm512_storeu_ps(o + 16 * v, f);
        }
    }
}

OCT_INLINE void oct_mix_tile(const oct_mix_args *a, int bits, int terms, int queries, int i0,
                             int units, oct_asker *ask)
{
    const oct_dot_page page = oct_dot_parts(a->block, a->d, bits);
    const int group = oct_page_group(a->d);
    _Alignas(64) float s[OCT_PAGE_TOKENS], zc[OCT_PAGE_TOKENS];
    oct_dot_probs prob;
    for (int g = 0; g < a->d / group; g++) {
        for (int t = 0; t < OCT_PAGE_TOKENS; t += 16) {
            const __m512 scale = oct_widen_bf16(page.scales + g * OCT_PAGE_TOKENS + t);
            _mm512_store_ps(s + t, scale);
            if (bits == 8) continue;
            const __m512 zero = oct_widen_bf16(page.zeros + g * OCT_PAGE_TOKENS + t);
            _mm512_store_ps(zc + t, _mm512_fmadd_ps(_mm512_set1_ps(8.0f), scale, zero));
        }
        for (int r = 0; r < queries; r += 4)
            oct_probs(&prob, r, queries - r < 4 ? queries - r : 4,
                      a->p + (size_t)(i0 + r) * a->ldp, a->ldp, s, bits == 4 ? zc : NULL,
                      a->visible + i0 + r, terms, ask);
        int c = g * group;
        for (; c + 64 <= (g + 1) * group; c += 64)
            oct_mix_channels(a, page, bits, terms, queries, 4, i0, c, units, &prob, ask);
        for (; c < (g + 1) * group; c += 16)
            oct_mix_channels(a, page, bits, terms, queries, 1, i0, c, units, &prob, ask);
    }
}

OCT_INLINE oct_kstatus oct_mix_dot(const oct_mix_args *a, int bits, int terms)
{
    const int runs = (a->d + 63) / 64, groups = a->d / oct_page_group(a->d);
    const int steps = oct_dot_tiles(a->nq, terms) * runs * OCT_PAGE_TOKENS * bits / 32;
    const int floats = a->nq * (runs + 2 * groups); /* the sums, and probabilities in two passes */
    oct_asker ask = oct_asker_of(a->ahead, steps * DOT_BITS + floats * FLOAT_BITS);
    const int units =
        oct_page_whole_units(oct_visible_max(a->visible, a->nq)) / OCT_UNIT_TOKENS;
    for (int i = 0; i < a->nq;) {
        const int left = a->nq - i, most = OCT_DOT_ROWS / terms, take = left < most ? left : most;
        switch (take) {
        case 1: oct_mix_tile(a, bits, terms, 1, i, units, &ask); break;
        case 2: oct_mix_tile(a, bits, terms, 2, i, units, &ask); break;
        case 3: oct_mix_tile(a, bits, terms, 3, i, units, &ask); break;
        case 4: oct_mix_tile(a, bits, terms, terms == 1 ? 4 : 3, i, units, &ask); break;
        case 5: oct_mix_tile(a, bits, terms, terms == 1 ? 5 : 3, i, units, &ask); break;
        default: oct_mix_tile(a, bits, terms, terms == 1 ? 6 : 3, i, units, &ask); break;
        }
        i += take;
    }
    return OCT_K_OK;
}

#endif
