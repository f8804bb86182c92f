/* gil.h: the only place that releases the GIL. Whatever is [slow] in octavo.h or may wait for the
 * runtime's pool is called through OCT_SLOW: the pool's owner may be a step whose poll wants the
 * GIL. Between release and return only C structs are touched. */
#ifndef OCT_PY_GIL_H
#define OCT_PY_GIL_H

#include "csrc/py/numpy_api.h"

#include <stdbool.h>

typedef struct {
    PyThreadState *thread;
    bool raised; /* a signal handler or a hook raised while the call ran; it is pending */
} oct_gil;

static inline void
oct_gil_release(oct_gil *gil)
{
    gil->raised = false;
    gil->thread = PyEval_SaveThread();
}

static inline void
oct_gil_take(oct_gil *gil)
{
    PyEval_RestoreThread(gil->thread);
}

/* The oct_poll of a slow call: runs Python's signal handlers, on the thread that made the call.
 * Nonzero, with the exception left pending on the thread, if one raised. */
int oct_gil_poll(void *gil);
/* Around Python code on that thread while the call runs. */
void oct_gil_borrow(oct_gil *);
void oct_gil_return(oct_gil *);
/* Whether this thread is inside either: a handler must not wait for the step it interrupts. */
bool oct_gil_polling(void);

#define OCT_SLOW(gil, status, call) \
    do { \
        oct_gil_release(gil); \
        (status) = (call); \
        oct_gil_take(gil); \
    } while (0)

#endif
