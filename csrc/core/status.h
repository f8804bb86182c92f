/* status.h: how a core function says no. One status, one sentence per thread. */
#ifndef OCT_CORE_STATUS_H
#define OCT_CORE_STATUS_H

#include "csrc/octavo.h"

/* Records the sentence (operation, argument, value, what to do) and returns `status`. */
oct_status oct_fail(oct_status status, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* OCT_E_PAGES with its figures. */
oct_status oct_fail_pages(const char *operation, size_t needed, size_t available, size_t evictable);
/* OCT_E_MEMORY for `what`. */
oct_status oct_fail_memory(const char *operation, const char *what);

#endif
