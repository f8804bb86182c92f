/* select.c: which column serves which slot.
 *
 * Every slot starts as scalar; each ISA level up to the cap overlays the slots that it has. Tables
 * are values, never globals, so a test holds the scalar and the AVX-512 one side by side. The
 * `.def` files are read four times: traits, symbols, overlays, and the default page slots. */
#include <string.h>

#include "kernels/kernels.h"
#include "kernels/page/generic.h"

#if defined(__x86_64__) && !defined(OCT_PORTABLE)
#define X86_YES(x) x
#else
#define X86_YES(x)
#undef OCT_HAVE_AMX
#endif
#if defined(OCT_HAVE_AMX)
#define AMX_YES(x) x
#else
#define AMX_YES(x)
#endif
#define X86_NO(x)
#define AMX_NO(x)

const char *const oct_isa_names[OCT_ISA_COUNT] = {"scalar", "avx2", "avx512", "amx"};
const char *const oct_act_names[OCT_ACT_COUNT] = {"a32", "a8", "a8g32", "a8x2"};
const char *const oct_form_names[OCT_FORM_COUNT] = {"f32", "q8", "q8x2"};

const oct_weight_traits oct_weight_traits_of[OCT_WEIGHT_COUNT] = {
#define OCT_WEIGHT(name, group, bits, zero, min, code, type, ...) \
    {#name, group, bits, zero, min, code, type},
#include "kernels/weights.def"
#undef OCT_WEIGHT
};

const oct_page_traits oct_page_traits_of[OCT_PAGE_COUNT] = {
#define OCT_PAGE(name, rows, form, ...) {#name, rows, form},
#include "kernels/pages.def"
#undef OCT_PAGE
};

const char *const oct_op_names[] = {
#define OCT_OP(name, ...) #name,
#include "kernels/ops.def"
#undef OCT_OP
};
const int oct_op_count = (int)(sizeof oct_op_names / sizeof oct_op_names[0]);

#define OCT_WEIGHT(name, ...) \
    extern const oct_weight_kernels oct_##name##_scalar, oct_##name##_avx2, oct_##name##_avx512, \
        oct_##name##_amx;
#include "kernels/weights.def"
#undef OCT_WEIGHT
#define OCT_PAGE(name, ...)                                                    \
    extern const oct_page_kernels oct_page_##name##_scalar, oct_page_##name##_avx2, \
        oct_page_##name##_avx512, oct_page_##name##_amx;
#include "kernels/pages.def"
#undef OCT_PAGE
#define OCT_OP(name, ...)                                                                   \
    oct_kstatus oct_op_##name##_scalar(const oct_##name##_args *, size_t lo, size_t hi);    \
    oct_kstatus oct_op_##name##_avx2(const oct_##name##_args *, size_t lo, size_t hi);      \
    oct_kstatus oct_op_##name##_avx512(const oct_##name##_args *, size_t lo, size_t hi);    \
    oct_kstatus oct_op_##name##_amx(const oct_##name##_args *, size_t lo, size_t hi);
#include "kernels/ops.def"
#undef OCT_OP

#define TAKE(field, isa_field)        \
    if (from->field) {                \
        to->field = from->field;      \
        isa_field = (unsigned char)isa; \
    }

static void overlay_weight(oct_kernels *k, int id, const oct_weight_kernels *from, oct_isa isa)
{
    oct_weight_kernels *to = &k->weight[id];
    unsigned char ignored;
    TAKE(block_bytes, ignored)
    TAKE(pack, ignored)
    TAKE(unpack, ignored)
    TAKE(gather, ignored)
    (void)ignored;
    for (int a = 0; a < OCT_ACT_COUNT; a++) TAKE(linear[a], k->linear_isa[id][a])
}

static void overlay_page(oct_kernels *k, int id, const oct_page_kernels *from, oct_isa isa)
{
    oct_page_kernels *to = &k->page[id];
    unsigned char ignored;
    TAKE(layout, ignored)
    (void)ignored;
    TAKE(seal, k->seal_isa[id])
    TAKE(decode, k->decode_isa[id])
    TAKE(turn, k->turn_isa[id])
    for (int f = 0; f < OCT_FORM_COUNT; f++) {
        TAKE(scores[f], k->scores_isa[id][f])
        TAKE(mix[f], k->mix_isa[id][f])
    }
    TAKE(mix_pages, ignored)
}

/* The slots that no column of the format fills: `turn` by its layouts; the F32 ones decode, then the
 * float op. Decoding is most of their time, so they are reported as its column. */
static void default_page_slots(oct_kernels *k)
{
    for (int id = 0; id < OCT_PAGE_COUNT; id++) {
        if (!k->page[id].turn) k->page[id].turn = oct_page_generic_turn;
        if (!k->page[id].scores[OCT_FORM_F32]) {
            k->page[id].scores[OCT_FORM_F32] = oct_page_generic_scores;
            k->scores_isa[id][OCT_FORM_F32] = k->decode_isa[id];
        }
        if (!k->page[id].mix[OCT_FORM_F32]) {
            k->page[id].mix[OCT_FORM_F32] = oct_page_generic_mix;
            k->mix_isa[id][OCT_FORM_F32] = k->decode_isa[id];
        }
    }
}

void oct_kernels_select(oct_kernels *out, oct_isa cap)
{
    int op = 0;
    memset(out, 0, sizeof *out);
    out->isa = cap;
#define WEIGHT(name, column, ISA) \
    if (cap >= ISA) overlay_weight(out, OCT_WEIGHT_##name, &oct_##name##_##column, ISA);
#define OCT_WEIGHT(name, group, bits, zero, min, code, type, on_scalar, on_avx2, on_avx512, \
                   on_amx, on_cuda)                                                         \
    WEIGHT(name, scalar, OCT_SCALAR)                                                        \
    X86_##on_avx2(WEIGHT(name, avx2, OCT_AVX2))                                             \
    X86_##on_avx512(WEIGHT(name, avx512, OCT_AVX512))                                       \
    AMX_##on_amx(WEIGHT(name, amx, OCT_AMX))
#include "kernels/weights.def"
#undef OCT_WEIGHT
#undef WEIGHT
#define PAGE(name, column, ISA) \
    if (cap >= ISA) overlay_page(out, OCT_PAGE_##name, &oct_page_##name##_##column, ISA);
#define OCT_PAGE(name, rows, form, on_scalar, on_avx2, on_avx512, on_amx, on_cuda) \
    PAGE(name, scalar, OCT_SCALAR)                                                 \
    X86_##on_avx2(PAGE(name, avx2, OCT_AVX2))                                      \
    X86_##on_avx512(PAGE(name, avx512, OCT_AVX512))                                \
    AMX_##on_amx(PAGE(name, amx, OCT_AMX))
#include "kernels/pages.def"
#undef OCT_PAGE
#undef PAGE
    default_page_slots(out);
#define OP(name, column, ISA)                    \
    if (cap >= ISA) {                            \
        out->op.name = oct_op_##name##_##column; \
        out->op_isa[op] = ISA;                   \
    }
#define OCT_OP(name, on_scalar, on_avx2, on_avx512, on_amx, on_cuda) \
    OP(name, scalar, OCT_SCALAR)                                     \
    X86_##on_avx2(OP(name, avx2, OCT_AVX2))                          \
    X86_##on_avx512(OP(name, avx512, OCT_AVX512))                    \
    AMX_##on_amx(OP(name, amx, OCT_AMX))                             \
    op++;
#include "kernels/ops.def"
#undef OCT_OP
#undef OP
}
