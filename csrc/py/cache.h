/* cache.h: what the files of octavo._core.Cache share: the way in and out of its gate. */
#ifndef OCT_PY_CACHE_H
#define OCT_PY_CACHE_H

#include "csrc/py/args.h"
#include "csrc/py/core.h"
#include "csrc/py/gil.h"

static inline bool
oct_cache_enter(oct_py_cache *self, const char *where)
{
    return oct_gate_enter(&self->gate, oct_state_of(self), where);
}

/* Leaves the gate; `value` (stolen, may be NULL with an exception) or the exception of `status`. */
static inline PyObject *
oct_cache_leave(oct_py_cache *self, oct_status status, PyObject *value)
{
    oct_gate_leave(&self->gate);
    if (!status || !value) return value;
    Py_DECREF(value);
    return oct_raise(oct_state_of(self), status);
}

static inline PyObject *
oct_cache_leave_none(oct_py_cache *self, oct_status status)
{
    return oct_cache_leave(self, status, Py_NewRef(Py_None));
}

static inline PyObject *
oct_cache_leave_number(oct_py_cache *self, oct_status status, uint64_t value)
{
    /* The number is made first: making it cannot disturb the status's text, which is the core's. */
    return oct_cache_leave(self, status, PyLong_FromUnsignedLongLong(value));
}

/* Methods: cache_seq.c, then cache_rows.c. */
PyObject *oct_cache_py_open(oct_py_cache *self, PyObject *ignored);
PyObject *oct_cache_py_release(oct_py_cache *self, PyObject *args, PyObject *kwargs);
PyObject *oct_cache_py_length(oct_py_cache *self, PyObject *args, PyObject *kwargs);
PyObject *oct_cache_py_fork(oct_py_cache *self, PyObject *args, PyObject *kwargs);
PyObject *oct_cache_py_reencode(oct_py_cache *self, PyObject *args, PyObject *kwargs);
PyObject *oct_cache_py_truncate(oct_py_cache *self, PyObject *args, PyObject *kwargs);
PyObject *oct_cache_py_match(oct_py_cache *self, PyObject *args, PyObject *kwargs);
PyObject *oct_cache_py_needs(oct_py_cache *self, PyObject *args, PyObject *kwargs);
PyObject *oct_cache_py_bytes_for(oct_py_cache *self, PyObject *args, PyObject *kwargs);
PyObject *oct_cache_py_append(oct_py_cache *self, PyObject *args, PyObject *kwargs);
PyObject *oct_cache_py_attend(oct_py_cache *self, PyObject *args, PyObject *kwargs);
PyObject *oct_cache_py_decode(oct_py_cache *self, PyObject *args, PyObject *kwargs);
PyObject *oct_cache_py_page(oct_py_cache *self, PyObject *args, PyObject *kwargs);
PyObject *oct_cache_py_edit(oct_py_cache *self, PyObject *args, PyObject *kwargs);

#endif
