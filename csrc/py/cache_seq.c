/* Cache's methods on sequences, and what they need of the budget. Short, so they keep the GIL, but
 * for reencode. A sequence is the core's handle (slot and generation) as a plain int. */
#include "csrc/py/cache.h"

PyObject *
oct_cache_py_open(oct_py_cache *self, PyObject *ignored)
{
    (void)ignored;
    if (!oct_cache_enter(self, "Cache.open")) return NULL;
    oct_seq seq = 0;
    const oct_status status = oct_seq_open(self->handle, &seq);
    return oct_cache_leave_number(self, status, seq);
}

PyObject *
oct_cache_py_release(oct_py_cache *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"seq", "force", NULL};
    PyObject *object;
    int force = 0;
    oct_seq seq;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|p:release", names, &object, &force) ||
        !oct_arg_u64(object, "release: seq", &seq) || !oct_cache_enter(self, "Cache.release"))
        return NULL;
    return oct_cache_leave_none(self, oct_seq_close(self->handle, seq, force));
}

PyObject *
oct_cache_py_length(oct_py_cache *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"seq", NULL};
    PyObject *object;
    oct_seq seq;
    int64_t tokens = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:length", names, &object) ||
        !oct_arg_u64(object, "length: seq", &seq) || !oct_cache_enter(self, "Cache.length"))
        return NULL;
    const oct_status status = oct_seq_length(self->handle, seq, &tokens);
    return oct_cache_leave_number(self, status, (uint64_t)tokens);
}

PyObject *
oct_cache_py_fork(oct_py_cache *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"seq", NULL};
    PyObject *object;
    oct_seq seq, forked = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:fork", names, &object) ||
        !oct_arg_u64(object, "fork: seq", &seq) || !oct_cache_enter(self, "Cache.fork"))
        return NULL;
    const oct_status status = oct_seq_fork(self->handle, seq, &forked);
    return oct_cache_leave_number(self, status, forked);
}

/* Inside both caches and both runtimes: the same gate entered twice counts twice, as it should. */
PyObject *
oct_cache_py_reencode(oct_py_cache *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"seq", "into", NULL};
    const oct_state *state = oct_state_of(self);
    PyObject *object, *target;
    oct_seq seq, made = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO:reencode", names, &object, &target) ||
        !oct_arg_u64(object, "reencode: seq", &seq) ||
        !oct_arg_type(target, "reencode: into", state->cache))
        return NULL;
    oct_py_cache *into = (oct_py_cache *)target;
    if (!oct_runtime_enter(self->runtime, state, "Cache.reencode")) return NULL;
    oct_gate *gates[] = {&self->runtime->gate, &into->runtime->gate, &self->gate, &into->gate};
    int entered = 1;
    while (entered < 4 && oct_gate_enter(gates[entered], state, "Cache.reencode")) entered++;
    const bool good = entered == 4;
    oct_status status = OCT_OK;
    oct_gil gil = {0};
    if (good) {
        const oct_poll poll = {oct_gil_poll, &gil};
        OCT_SLOW(&gil, status, oct_seq_reencode(self->handle, seq, into->handle, poll, &made));
    }
    while (entered) oct_gate_leave(gates[--entered]);
    if (!good || gil.raised) return NULL;
    return status ? oct_raise(state, status) : PyLong_FromUnsignedLongLong(made);
}

PyObject *
oct_cache_py_truncate(oct_py_cache *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"seq", "n", NULL};
    PyObject *object, *number;
    oct_seq seq;
    int64_t n = 0, kept = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO:truncate", names, &object, &number) ||
        !oct_arg_u64(object, "truncate: seq", &seq) ||
        !oct_arg_i64(number, "truncate: n", 0, INT64_MAX, &n) ||
        !oct_cache_enter(self, "Cache.truncate"))
        return NULL;
    const oct_status status = oct_seq_truncate(self->handle, seq, n, &kept);
    return oct_cache_leave_number(self, status, (uint64_t)kept);
}

PyObject *
oct_cache_py_match(oct_py_cache *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"seq", "tokens", "salt", NULL};
    PyObject *object, *ids, *number = NULL;
    oct_seq seq;
    uint64_t salt = 0;
    npy_intp n;
    int64_t matched = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|O:match", names, &object, &ids, &number) ||
        !oct_arg_u64(object, "match: seq", &seq) || !oct_arg_u64(number, "match: salt", &salt))
        return NULL;
    int32_t *tokens = oct_arg_ids(ids, "match: tokens", -1, &n);
    if (!tokens) return NULL;
    PyObject *result = NULL;
    if (oct_cache_enter(self, "Cache.match")) {
        const oct_status status = oct_seq_match(self->handle, seq, tokens, n, salt, &matched);
        result = oct_cache_leave_number(self, status, (uint64_t)matched);
    }
    PyMem_Free(tokens);
    return result;
}

/* ---- Budget ---------------------------------------------------------------------------------- */

/* Two parallel sequences of integers into C arrays, one block: [n] seqs, then [n] counts. */
static oct_seq *
read_needs(PyObject *seqs, PyObject *counts, int *n)
{
    PyObject *a = PySequence_Tuple(seqs), *b = a ? PySequence_Tuple(counts) : NULL;
    oct_seq *block = NULL;
    bool good = b != NULL;
    if (good && (PyTuple_GET_SIZE(a) != PyTuple_GET_SIZE(b) || PyTuple_GET_SIZE(a) > INT32_MAX)) {
        PyErr_Format(PyExc_ValueError, "needs: %zd seqs and %zd counts", PyTuple_GET_SIZE(a),
                     PyTuple_GET_SIZE(b));
        good = false;
    }
    if (good) {
        *n = (int)PyTuple_GET_SIZE(a);
        block = PyMem_Calloc((size_t)*n + 1, sizeof(oct_seq) + sizeof(int64_t));
        good = block || PyErr_NoMemory();
    }
    int64_t *numbers = block ? (int64_t *)(block + *n) : NULL;
    for (int i = 0; good && i < *n; i++)
        good = oct_arg_u64(PyTuple_GET_ITEM(a, i), "needs: seqs", &block[i]) &&
               oct_arg_i64(PyTuple_GET_ITEM(b, i), "needs: counts", 0, INT64_MAX, &numbers[i]);
    Py_XDECREF(a);
    Py_XDECREF(b);
    if (good) return block;
    PyMem_Free(block);
    return NULL;
}

PyObject *
oct_cache_py_needs(oct_py_cache *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"seqs", "counts", NULL};
    PyObject *seqs, *counts, *result = NULL;
    int n = 0;
    size_t needed = 0, available = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO:needs", names, &seqs, &counts)) return NULL;
    oct_seq *block = read_needs(seqs, counts, &n);
    if (!block) return NULL;
    if (oct_cache_enter(self, "Cache.needs")) {
        const oct_status status = oct_cache_needs(self->handle, block, (int64_t *)(block + n), n,
                                                  &needed, &available);
        result = oct_cache_leave_none(self, status);
    }
    PyMem_Free(block);
    if (!result) return NULL;
    Py_DECREF(result);
    return Py_BuildValue("(KK)", (unsigned long long)needed, (unsigned long long)available);
}

PyObject *
oct_cache_py_bytes_for(oct_py_cache *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"tokens", NULL};
    PyObject *number;
    int64_t tokens = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:bytes_for", names, &number) ||
        !oct_arg_i64(number, "bytes_for: tokens", 0, INT64_MAX, &tokens) ||
        !oct_cache_enter(self, "Cache.bytes_for"))
        return NULL;
    return oct_cache_leave_number(self, OCT_OK, oct_cache_bytes_for(self->handle, tokens));
}
