/* mem.h: the allocation seam. The only caller of malloc, mmap and thread creation.
 *
 * Every allocation has a tag; live bytes and counts per tag are the ledger. Blocks are 64-byte
 * aligned, carry their size in a header line, and lie on huge pages if they are large. Built with
 * OCT_FAULTS, the n-th fallible call can be made to fail; without it the hook compiles to nothing. */
#ifndef OCT_CORE_MEM_H
#define OCT_CORE_MEM_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    OCT_TAG_WEIGHTS,
    OCT_TAG_PAGES, /* committed sealed pages */
    OCT_TAG_OPEN,  /* committed units of open rows */
    OCT_TAG_TABLES,
    OCT_TAG_SCRATCH,
    OCT_TAG_THREADS,
    OCT_TAG_OTHER,
    OCT_TAG_COUNT
} oct_tag;

/* count * size bytes, contents undefined (or zero); NULL if that wraps or memory is short. */
void *oct_alloc(oct_tag, size_t count, size_t size);
void *oct_zalloc(oct_tag, size_t count, size_t size);
/* As realloc on a block of this seam: on failure NULL, and the old block is as it was. */
void *oct_regrow(oct_tag, void *block, size_t count, size_t size);
void oct_free(void *block); /* NULL is fine */

/* Address space, committed by the OS on first touch and not counted here: what is in use is told
 * by oct_mem_note. NULL on failure. */
void *oct_map(size_t bytes);
void oct_unmap(void *base, size_t bytes);
/* Give the whole OS pages inside [p, p + bytes) back; they read as zero when touched again. */
void oct_release(void *p, size_t bytes);
size_t oct_os_page(void);
void oct_mem_note(oct_tag, int64_t bytes, int64_t count);

/* True once, at the boundary that oct_cancel_after named. */
#ifdef OCT_FAULTS
bool oct_cancel_due(void);
#else
static inline bool oct_cancel_due(void)
{
    return false;
}
#endif

/* pthread_create through the seam; false on failure. */
bool oct_thread_start(pthread_t *out, void *(*entry)(void *), void *arg);

/* a*b, a+b with overflow reported: all size arithmetic goes through these. */
static inline bool oct_mul(size_t a, size_t b, size_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

static inline bool oct_add(size_t a, size_t b, size_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

#endif
