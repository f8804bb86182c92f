/* status.c: the last failure's sentence and figures, one set per thread. */
#include "csrc/core/status.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char text[768];
static _Thread_local size_t short_needed, short_available, short_evictable;

const char *oct_error_text(void)
{
    return text;
}

void oct_pages_short(size_t *needed, size_t *available, size_t *evictable)
{
    *needed = short_needed;
    *available = short_available;
    *evictable = short_evictable;
}

oct_status oct_fail(oct_status status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return status;
}

oct_status oct_fail_pages(const char *operation, size_t needed, size_t available, size_t evictable)
{
    short_needed = needed;
    short_available = available;
    short_evictable = evictable;
    return oct_fail(OCT_E_PAGES,
                    "%s: needs %zu bytes of pages and open rows, %zu are free and %zu more could be "
                    "evicted; release sequences, use a smaller KV scheme or open the cache with "
                    "more memory. Nothing was changed.",
                    operation, needed, available, evictable);
}

oct_status oct_fail_memory(const char *operation, const char *what)
{
    return oct_fail(OCT_E_MEMORY, "%s: no memory for %s. Nothing was changed.", operation, what);
}
