/* runtime.c: choosing the ISA level, the pool and the lanes' scratch, and the kernel table as rows
 * for whoever asks which column serves what. */
#include "csrc/core/runtime.h"

#include <stdlib.h>
#include <string.h>

#include "csrc/core/mem.h"

static int index_of(const char *name, const char *const *names, int count)
{
    for (int i = 0; name && i < count; i++)
        if (!strcmp(names[i], name)) return i;
    return -1;
}

int oct_weight_by_name(const char *name)
{
    for (int i = 0; name && i < OCT_WEIGHT_COUNT; i++)
        if (!strcmp(oct_weight_traits_of[i].name, name)) return i;
    return -1;
}

int oct_page_by_name(const char *name)
{
    for (int i = 0; name && i < OCT_PAGE_COUNT; i++)
        if (!strcmp(oct_page_traits_of[i].name, name)) return i;
    return -1;
}

int oct_act_by_name(const char *name)
{
    return index_of(name, oct_act_names, OCT_ACT_COUNT);
}

int oct_form_by_name(const char *name)
{
    return index_of(name, oct_form_names, OCT_FORM_COUNT);
}

static const char *const dtype_names[OCT_DTYPE_COUNT] = {
    "f32", "f16", "bf16", "u8", "i8", "i32", "e4m3", "e8m0",
};

const char *oct_dtype_name(oct_dtype type)
{
    return dtype_names[type];
}

oct_status oct_dtype_by_name(const char *operation, const char *name, oct_dtype *out)
{
    const int i = index_of(name, dtype_names, OCT_DTYPE_COUNT);
    if (i < 0)
        return oct_fail(OCT_E_VALUE, "%s: unknown element type '%s'", operation, name ? name : "");
    *out = (oct_dtype)i;
    return OCT_OK;
}

static oct_status choose_isa(const char *name, oct_isa *out)
{
    const char *origin = "isa";
    const oct_isa best = oct_cpu_isa();
    *out = best;
    if (!name) {
        origin = "OCTAVO_ISA";
        name = getenv(origin);
        if (!name || !*name) return OCT_OK;
    }
    const int i = index_of(name, oct_isa_names, OCT_ISA_COUNT);
    if (i < 0)
        return oct_fail(OCT_E_VALUE, "runtime: %s is '%.32s', legal are scalar, avx2, avx512, amx",
                        origin, name);
    if (i > (int)best)
        return oct_fail(OCT_E_UNSUPPORTED, "runtime: %s is '%s' but this machine runs %s at most",
                        origin, name, oct_isa_names[best]);
    *out = (oct_isa)i;
    return OCT_OK;
}

static void free_lanes(void **lanes, int n)
{
    for (int i = 0; lanes && i < n; i++) oct_free(lanes[i]);
    oct_free(lanes);
}

static void **alloc_lanes(int n)
{
    void **lanes = oct_zalloc(OCT_TAG_SCRATCH, (size_t)n, sizeof *lanes);
    for (int i = 0; lanes && i < n; i++)
        if (!(lanes[i] = oct_alloc(OCT_TAG_SCRATCH, 1, OCT_LANE_BYTES))) {
            free_lanes(lanes, i);
            return NULL;
        }
    return lanes;
}

/* OCTAVO_THREADS, where it is set, else what this machine grants. */
static oct_status default_threads(int *threads)
{
    const char *text = getenv("OCTAVO_THREADS");
    *threads = oct_default_threads();
    if (!text || !*text) return OCT_OK;
    char *end = NULL;
    const long n = strtol(text, &end, 10);
    if (*end || n < 1 || n > OCT_MAX_THREADS)
        return oct_fail(OCT_E_VALUE, "runtime: OCTAVO_THREADS is '%.32s', legal are 1 to %d", text,
                        OCT_MAX_THREADS);
    *threads = (int)n;
    return OCT_OK;
}

static oct_status check_threads(int *threads)
{
    if (*threads < 0 || *threads > OCT_MAX_THREADS)
        return oct_fail(OCT_E_VALUE, "runtime: threads is %d, legal are 1 to %d, or 0 for the default",
                        *threads, OCT_MAX_THREADS);
    return *threads ? OCT_OK : default_threads(threads);
}

oct_status oct_runtime_open(oct_runtime **out, int threads, const char *isa)
{
    oct_isa cap;
    *out = NULL;
    oct_status status = choose_isa(isa, &cap);
    if (!status) status = check_threads(&threads);
    if (status) return status;
    oct_runtime *rt = oct_zalloc(OCT_TAG_OTHER, 1, sizeof *rt);
    if (!rt) return oct_fail_memory("runtime", "itself");
    atomic_store(&rt->refs, 1);
    oct_kernels_select(&rt->kernels, cap);
    status = oct_pool_open(&rt->pool, threads);
    if (status) goto error;
    rt->threads = oct_pool_threads(rt->pool);
    rt->lanes = alloc_lanes(rt->threads);
    if (!rt->lanes) {
        status = oct_fail_memory("runtime", "the lanes' scratch");
        goto error;
    }
    *out = rt;
    return OCT_OK;
error:
    oct_runtime_unref(rt);
    return status;
}

oct_runtime *oct_runtime_ref(oct_runtime *rt)
{
    atomic_fetch_add(&rt->refs, 1);
    return rt;
}

void oct_runtime_unref(oct_runtime *rt)
{
    if (!rt || atomic_fetch_sub(&rt->refs, 1) > 1) return;
    oct_pool_close(&rt->pool);
    free_lanes(rt->lanes, rt->threads);
    oct_free(rt);
}

void oct_runtime_close(oct_runtime **rt)
{
    oct_runtime_unref(*rt);
    *rt = NULL;
}

oct_status oct_runtime_set_threads(oct_runtime *rt, int threads)
{
    const oct_status status = check_threads(&threads);
    if (status) return status;
    void **lanes = alloc_lanes(threads);
    if (!lanes) return oct_fail_memory("runtime", "the lanes' scratch");
    oct_pool_enter(rt->pool, (oct_poll){0}); /* waits for a step that is running */
    oct_pool_resize(rt->pool, threads);
    free_lanes(rt->lanes, rt->threads);
    rt->lanes = lanes;
    rt->threads = threads;
    oct_pool_leave(rt->pool);
    return OCT_OK;
}

int oct_runtime_threads(const oct_runtime *rt)
{
    return rt->threads;
}

const char *oct_runtime_isa(const oct_runtime *rt)
{
    return oct_isa_names[rt->kernels.isa];
}

const char *oct_runtime_cpu(const oct_runtime *rt)
{
    (void)rt;
    return oct_cpu_name();
}

static const char *column(bool present, int isa)
{
    return present ? oct_isa_names[isa] : NULL;
}

static double page_bits(const oct_kernels *k, int id)
{
    oct_page_layout layout;
    if (k->page[id].layout(128, OCT_ROLE_K, &layout)) return 0;
    return 8.0 * (double)layout.bytes / (128 * OCT_PAGE_TOKENS);
}

enum {
    ONCE = 3, /* seal, decode, turn; then scores and mix by form */
    PER_PAGE = ONCE + 2 * OCT_FORM_COUNT
};

static void page_row(const oct_kernels *k, int id, int slot, oct_kernel_row *row)
{
    const oct_page_kernels *p = &k->page[id];
    const int form = slot < ONCE ? 0 : (slot - ONCE) % OCT_FORM_COUNT;
    row->name = oct_page_traits_of[id].name;
    row->bits = page_bits(k, id);
    if (slot == 0) {
        row->slot = "seal";
        row->isa = column(true, k->seal_isa[id]);
    } else if (slot == 1) {
        row->slot = "decode";
        row->isa = column(true, k->decode_isa[id]);
    } else if (slot == 2) {
        row->slot = "turn";
        row->isa = column(true, k->turn_isa[id]);
    } else if (slot < ONCE + OCT_FORM_COUNT) {
        row->slot = "scores";
        row->form = oct_form_names[form];
        row->isa = column(p->scores[form] != NULL, k->scores_isa[id][form]);
    } else {
        row->slot = "mix";
        row->form = oct_form_names[form];
        row->isa = column(p->mix[form] != NULL, k->mix_isa[id][form]);
    }
}

bool oct_kernel_row_at(const oct_runtime *rt, int i, oct_kernel_row *row)
{
    const int linears = OCT_WEIGHT_COUNT * OCT_ACT_COUNT, pages = OCT_PAGE_COUNT * PER_PAGE;
    const oct_kernels *k = &rt->kernels;
    *row = (oct_kernel_row){.form = ""};
    if (i < 0 || i >= linears + pages + oct_op_count) return false;
    if (i < linears) {
        const int id = i / OCT_ACT_COUNT, act = i % OCT_ACT_COUNT;
        row->table = "weight";
        row->name = oct_weight_traits_of[id].name;
        row->slot = "linear";
        row->form = oct_act_names[act];
        row->isa = column(k->weight[id].linear[act] != NULL, k->linear_isa[id][act]);
        row->bits = oct_weight_traits_of[id].bits;
    } else if (i < linears + pages) {
        row->table = "page";
        page_row(k, (i - linears) / PER_PAGE, (i - linears) % PER_PAGE, row);
    } else {
        row->table = "op";
        row->slot = "op";
        row->name = oct_op_names[i - linears - pages];
        row->isa = column(true, k->op_isa[i - linears - pages]);
    }
    return true;
}
