/* dot_fold_avx512.h: what the forms q8 and q8x2 do beside the dots: the float steps after them, and
 * probabilities in codes. dot.h says what is computed; integers are exact, so only the order of
 * these steps matters.
 *
 * A tile is OCT_DOT_ROWS code rows, a constant of who includes this (q8x2: hi, then lo, query by
 * query). Its dots with four vectors of 16 tokens (scores) or channels (mix) come by memory. */
#ifndef OCT_PAGE_DOT_FOLD_AVX512_H
#define OCT_PAGE_DOT_FOLD_AVX512_H

#include "kernels/ahead.h"
#include "kernels/page/codes_avx512.h"
#include "kernels/page/dot.h"

/* Of a row's floats in a group, in units of work (ahead.h). */
enum { OCT_FLOAT_WORK = 4 };

/* Vector v of query r's dots; the two terms of q8x2 are joined. */
OCT_INLINE __m512i oct_dot_of(const int32_t dots[OCT_DOT_ROWS][64], int terms, int r, int v)
{
    const __m512i dot = _mm512_load_si512(&dots[r * terms][16 * v]);
    if (terms == 1) return dot;
    return _mm512_add_epi32(_mm512_slli_epi32(dot, 7),
                            _mm512_load_si512(&dots[r * 2 + 1][16 * v]));
}

/* What of 16 scores from token t on a query sees; -inf elsewhere. */
OCT_INLINE __m512 oct_dot_seen(__m512 f, int t, int visible)
{
    return _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), oct_lanes_below(visible - t), f);
}

/* The float steps of A4 on one group's dots of `queries` queries with nv vectors from token t0. */
OCT_INLINE void oct_scores_fold(const oct_scores_args *a, oct_dot_page page, int bits, int terms,
                                int queries, int nv, int32_t dots[OCT_DOT_ROWS][64],
                                int first, bool whole, int t0, int g, oct_asker *ask)
{
    const int group = oct_page_group(a->d);
    const bool last = (g + 1) * group == a->d;
    __m512 scale[4], zero[4];
    for (int v = 0; v < nv; v++) {
        const int at = g * OCT_PAGE_TOKENS + t0 + 16 * v;
        scale[v] = oct_widen_bf16(page.scales + at);
        if (bits == 4) zero[v] = oct_widen_bf16(page.zeros + at);
    }
    for (int r = 0; r < queries; r++) {
        const int i = first + r;
        oct_ask(ask, OCT_FLOAT_WORK);
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
            if (last && !whole) f = oct_dot_seen(f, t0 + 16 * v, a->visible[i]);
            _mm512_storeu_ps(s + 16 * v, f);
        }
    }
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
 * the zero term, or NULL; all: they see the whole page, and nobody looks at `visible`. */
OCT_INLINE void oct_probs(oct_dot_probs *out, int r0, int many, const float *p, size_t ldp,
                          const float *s, const float *zc, const int *visible, bool all, int terms,
                          oct_asker *ask)
{
    const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
    __m512 w[4][4], zacc[4];
    __m512i top[4], sum[4];
    for (int r = 0; r < 4; r++) {
        zacc[r] = _mm512_setzero_ps();
        top[r] = sum[r] = _mm512_setzero_si512();
        if (r < many) oct_ask(ask, OCT_FLOAT_WORK);
        const bool whole = all || (r < many && visible[r] >= OCT_PAGE_TOKENS); /* spares masks */
        for (int v = 0; v < 4 && r < many; v++) {
            const float *from = p + (size_t)r * ldp + 16 * v;
            const __mmask16 seen = all ? 0xFFFF : oct_lanes_below(visible[r] - 16 * v);
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
        oct_ask(ask, OCT_FLOAT_WORK);
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

/* The dots of `queries` queries with nv vectors of channels from c on, added to their outputs. */
OCT_INLINE void oct_mix_fold(const oct_mix_args *a, int bits, int terms, int queries, int nv,
                             int32_t dots[OCT_DOT_ROWS][64], int i0, int c,
                             const oct_dot_probs *prob, oct_asker *ask)
{
    const int centre = bits == 4 ? 8 : 128;
    for (int r = 0; r < queries; r++) {
        float *o = a->o + (size_t)(i0 + r) * a->ldo + c;
        oct_ask(ask, OCT_FLOAT_WORK);
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

/* The probabilities of a tile's queries in the units of group g. all: they see the whole page. */
OCT_INLINE void oct_mix_probs(const oct_mix_args *a, oct_dot_page page, int bits, int terms,
                              int queries, int i0, int g, bool all, oct_dot_probs *prob,
                              oct_asker *ask)
{
    _Alignas(64) float s[OCT_PAGE_TOKENS], zc[OCT_PAGE_TOKENS];
    for (int t = 0; t < OCT_PAGE_TOKENS; t += 16) {
        const __m512 scale = oct_widen_bf16(page.scales + g * OCT_PAGE_TOKENS + t);
        _mm512_store_ps(s + t, scale);
        if (bits == 8) continue;
        const __m512 zero = oct_widen_bf16(page.zeros + g * OCT_PAGE_TOKENS + t);
        _mm512_store_ps(zc + t, _mm512_fmadd_ps(_mm512_set1_ps(8.0f), scale, zero));
    }
    for (int r = 0; r < queries; r += 4) {
        const float *p = a->p + (size_t)(i0 + r) * a->ldp, *z = bits == 4 ? zc : NULL;
        const int *visible = a->visible + i0 + r, many = queries - r;
        if (many >= 4) oct_probs(prob, r, 4, p, a->ldp, s, z, visible, all, terms, ask);
        else oct_probs(prob, r, many, p, a->ldp, s, z, visible, all, terms, ask);
    }
}

#endif
