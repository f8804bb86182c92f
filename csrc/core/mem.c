/* mem.c: the seam itself: aligned blocks with a header line that remembers size and tag (large ones
 * on huge pages), the live counters, address space by mmap, and the fault hook of test builds. */
#include "csrc/core/mem.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h> /* sysconf */

#include "csrc/octavo.h"

#define HEADER 64
#define HUGE_PAGE ((size_t)2 << 20)
/* From here on a block is a mapping of its own: the kernel zeroes it 2 MiB at a time, it takes few
 * TLB entries, and its memory goes back when it is freed. ASan watches only what its own allocator
 * gives. */
#ifdef __SANITIZE_ADDRESS__
#define LARGE SIZE_MAX
#else
#define LARGE (2 * HUGE_PAGE)
#endif

typedef struct {
    size_t bytes;
    oct_tag tag;
} header;

static struct {
    _Atomic int64_t bytes, count;
} live[OCT_TAG_COUNT];

#ifdef OCT_FAULTS
static _Atomic int64_t fault_calls, fault_at;
static _Atomic bool fault_from;

void oct_fault(int64_t nth, bool from)
{
    atomic_store(&fault_calls, 0);
    atomic_store(&fault_from, from);
    atomic_store(&fault_at, nth);
}

int64_t oct_fault_count(void)
{
    return atomic_load(&fault_calls);
}

static bool faulted(void)
{
    const int64_t call = atomic_fetch_add(&fault_calls, 1) + 1, at = atomic_load(&fault_at);
    return at > 0 && (call == at || (call > at && atomic_load(&fault_from)));
}
static _Atomic int64_t cancel_left;

void oct_cancel_after(int64_t nth)
{
    atomic_store(&cancel_left, nth);
}

bool oct_cancel_due(void)
{
    return atomic_load(&cancel_left) > 0 && atomic_fetch_sub(&cancel_left, 1) == 1;
}
#else
static bool faulted(void)
{
    return false;
}
#endif

void oct_mem_note(oct_tag tag, int64_t bytes, int64_t count)
{
    atomic_fetch_add_explicit(&live[tag].bytes, bytes, memory_order_relaxed);
    atomic_fetch_add_explicit(&live[tag].count, count, memory_order_relaxed);
}

bool oct_mem_row_at(int tag, oct_mem_row *out)
{
    static const char *const names[OCT_TAG_COUNT] = {
        "weights", "pages", "open", "tables", "scratch", "threads", "other",
    };
    if (tag < 0 || tag >= OCT_TAG_COUNT) return false;
    *out = (oct_mem_row){names[tag], atomic_load(&live[tag].bytes), atomic_load(&live[tag].count)};
    return true;
}

static size_t whole_pages(size_t bytes)
{
    const size_t os = oct_os_page();
    return (bytes + os - 1) / os * os;
}

/* A mapping that begins on a huge page, and asks for them as far as it fills them: what a last one
 * held beyond the end would be committed, and the ledger would lie. */
static char *map_large(size_t bytes)
{
    if (bytes > SIZE_MAX / 2) return NULL;
    bytes = whole_pages(bytes);
    char *slack = mmap(NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (slack == MAP_FAILED) return NULL;
    const size_t before = (HUGE_PAGE - (uintptr_t)slack % HUGE_PAGE) % HUGE_PAGE;
    char *base = slack + before;
    if (before) munmap(slack, before);
    munmap(base + bytes, HUGE_PAGE - before);
#ifdef MADV_HUGEPAGE
    madvise(base, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
#endif
    return base;
}

void *oct_alloc(oct_tag tag, size_t count, size_t size)
{
    size_t bytes, all;
    if (!oct_mul(count, size, &bytes) || !oct_add(bytes, 2 * HEADER, &all)) return NULL;
    if (faulted()) return NULL;
    char *raw = bytes < LARGE ? aligned_alloc(HEADER, all / HEADER * HEADER) : map_large(all);
    if (!raw) return NULL;
    *(header *)raw = (header){bytes, tag};
    oct_mem_note(tag, (int64_t)bytes, 1);
    return raw + HEADER;
}

void *oct_zalloc(oct_tag tag, size_t count, size_t size)
{
    void *block = oct_alloc(tag, count, size);
    if (block) memset(block, 0, count * size);
    return block;
}

void oct_free(void *block)
{
    if (!block) return;
    header *h = (header *)((char *)block - HEADER);
    oct_mem_note(h->tag, -(int64_t)h->bytes, -1);
    if (h->bytes < LARGE) free(h);
    else munmap(h, whole_pages(h->bytes + 2 * HEADER));
}

void *oct_regrow(oct_tag tag, void *block, size_t count, size_t size)
{
    void *grown = oct_alloc(tag, count, size);
    if (!grown || !block) return grown;
    const size_t old = ((header *)((char *)block - HEADER))->bytes, now = count * size;
    memcpy(grown, block, old < now ? old : now);
    oct_free(block);
    return grown;
}

void *oct_map(size_t bytes)
{
    if (faulted()) return NULL;
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return NULL;
    /* A huge page would commit 2 MiB for the first row of a tiny cache and make the ledger lie. */
#ifdef MADV_NOHUGEPAGE
    madvise(base, bytes, MADV_NOHUGEPAGE);
#endif
    return base;
}

void oct_unmap(void *base, size_t bytes)
{
    if (base) munmap(base, bytes);
}

size_t oct_os_page(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

void oct_release(void *p, size_t bytes)
{
    const uintptr_t os = oct_os_page();
    const uintptr_t lo = ((uintptr_t)p + os - 1) / os * os, hi = ((uintptr_t)p + bytes) / os * os;
    if (hi > lo) madvise((void *)lo, hi - lo, MADV_DONTNEED);
}

bool oct_thread_start(pthread_t *out, void *(*entry)(void *), void *arg)
{
    return !faulted() && pthread_create(out, NULL, entry, arg) == 0;
}
