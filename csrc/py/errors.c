/* Statuses of the core become Python exceptions here, in one switch, and nowhere else. The classes
 * live in octavo.errors and are imported once per module. */
#include "csrc/py/core.h"

bool
oct_errors_import(oct_state *state)
{
    const struct {
        const char *name;
        PyObject **to;
    } classes[] = {
        {"OutOfPages", &state->out_of_pages}, {"BusyError", &state->busy},
        {"ClosedError", &state->closed},      {"StaleHandleError", &state->stale},
        {"NumericalError", &state->numerical}, {"UnsupportedError", &state->unsupported},
    };
    PyObject *module = PyImport_ImportModule("octavo.errors");
    if (!module) return false;
    bool good = true;
    for (size_t i = 0; good && i < sizeof classes / sizeof classes[0]; i++) {
        *classes[i].to = PyObject_GetAttrString(module, classes[i].name);
        good = *classes[i].to != NULL;
        if (good && !PyExceptionClass_Check(*classes[i].to)) {
            PyErr_Format(PyExc_TypeError, "octavo.errors.%s is not an exception class",
                         classes[i].name);
            good = false;
        }
    }
    Py_DECREF(module);
    return good;
}

static bool
set_size(PyObject *exception, const char *name, size_t value)
{
    PyObject *number = PyLong_FromSize_t(value);
    if (!number) return false;
    const int rc = PyObject_SetAttrString(exception, name, number);
    Py_DECREF(number);
    return rc == 0;
}

/* OutOfPages carries the figures that a caller needs to size its next request. */
static void
raise_pages(const oct_state *state, PyObject *text)
{
    size_t needed = 0, available = 0, evictable = 0;
    oct_pages_short(&needed, &available, &evictable);
    PyObject *exception = PyObject_CallOneArg(state->out_of_pages, text);
    if (!exception) return;
    if (set_size(exception, "needed", needed) && set_size(exception, "available", available) &&
        set_size(exception, "evictable", evictable))
        PyErr_SetObject(state->out_of_pages, exception);
    Py_DECREF(exception);
}

static PyObject *
class_of(const oct_state *state, oct_status status)
{
    switch (status) {
    case OCT_E_VALUE: return PyExc_ValueError;
    case OCT_E_MEMORY: return PyExc_MemoryError;
    case OCT_E_PAGES: return state->out_of_pages;
    case OCT_E_BUSY: return state->busy;
    case OCT_E_CLOSED: return state->closed;
    case OCT_E_STALE: return state->stale;
    case OCT_E_PINNED: return PyExc_BufferError;
    case OCT_E_NUMERIC: return state->numerical;
    case OCT_E_UNSUPPORTED: return state->unsupported;
    case OCT_E_CANCELLED: return PyExc_KeyboardInterrupt;
    case OCT_OK:
    case OCT_STATUS_COUNT: break;
    }
    return PyExc_SystemError; /* the core said that it failed and not how */
}

PyObject *
oct_raise(const oct_state *state, oct_status status)
{
    /* What a signal handler raised is the reason of the cancellation. */
    if (status == OCT_E_CANCELLED && PyErr_Occurred()) return NULL;
    const char *message = oct_error_text();
    /* The text may quote a caller's string and be cut inside one of its characters. */
    PyObject *text = PyUnicode_DecodeUTF8(message, (Py_ssize_t)strlen(message), "replace");
    if (!text) return NULL;
    if (status == OCT_E_PAGES)
        raise_pages(state, text);
    else
        PyErr_SetObject(class_of(state, status), text);
    Py_DECREF(text);
    return NULL;
}

PyObject *
oct_refuse_pickle(PyObject *self, PyObject *ignored)
{
    (void)ignored;
    PyErr_Format(PyExc_TypeError, "cannot pickle or copy '%s' object: it holds native memory",
                 Py_TYPE(self)->tp_name);
    return NULL;
}

bool
oct_gate_enter(oct_gate *gate, const oct_state *state, const char *where)
{
    int users = atomic_load(&gate->users);
    while (users >= 0)
        if (atomic_compare_exchange_weak(&gate->users, &users, users + 1)) return true;
    if (users == OCT_GATE_CLOSED)
        PyErr_Format(state->closed, "%s: the object is closed", where);
    else
        PyErr_Format(state->busy, "%s: the object is in use by a call of another thread", where);
    return false;
}

void
oct_gate_leave(oct_gate *gate)
{
    atomic_fetch_sub(&gate->users, 1);
}

bool
oct_gate_alone(oct_gate *gate, const oct_state *state, const char *where)
{
    int users = 0;
    if (atomic_compare_exchange_strong(&gate->users, &users, OCT_GATE_ALONE)) return true;
    if (users == OCT_GATE_CLOSED)
        PyErr_Format(state->closed, "%s: the object is closed", where);
    else
        PyErr_Format(state->busy, "%s: the object is in use by another call; nothing was changed",
                     where);
    return false;
}

void
oct_gate_reopen(oct_gate *gate)
{
    atomic_store(&gate->users, 0);
}

void
oct_gate_shut(oct_gate *gate)
{
    atomic_store(&gate->users, OCT_GATE_CLOSED);
}
