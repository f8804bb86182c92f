/* Weights.matrix, matrices and vector: arguments into descriptors whose buffers are held for the
 * call, then one call of the core. Bounds of a source are source.c's business. */
#include "csrc/py/args.h"
#include "csrc/py/gil.h"
#include "csrc/py/source.h"
#include "csrc/py/weights.h"

/* Alone in the weights, beside others in the runtime. */
static bool
enter_alone(oct_py_weights *self, const char *where)
{
    const oct_state *state = oct_state_of(self);
    if (!oct_gate_alone(&self->gate, state, where)) return false;
    if (oct_runtime_enter(self->runtime, state, where)) return true;
    oct_gate_reopen(&self->gate);
    return false;
}

/* True if the call went well; else with its exception. */
static bool
leave_alone(oct_py_weights *self, oct_status status)
{
    oct_gate_leave(&self->runtime->gate);
    oct_gate_reopen(&self->gate);
    if (status) oct_raise(oct_state_of(self), status);
    return !status;
}

PyObject *
oct_weights_vector(oct_py_weights *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"values", NULL};
    static const npy_intp any[1] = {-1};
    PyObject *values;
    int id = -1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:vector", names, &values)) return NULL;
    PyArrayObject *a = oct_arg_array(values, "vector: values", NPY_FLOAT32, 1, any);
    if (!a || !enter_alone(self, "Weights.vector")) return NULL;
    const oct_status status =
        oct_weights_add_vector(self->handle, PyArray_DATA(a), PyArray_SIZE(a), &id);
    return leave_alone(self, status) ? PyLong_FromLong(id) : NULL;
}

/* The id of the first of `count` matrices, or -1 with an exception. */
static int
add(oct_py_weights *self, const char *where, const oct_matrix_desc *desc, int count)
{
    oct_status status;
    oct_gil gil;
    int first = -1;
    if (!enter_alone(self, where)) return -1;
    OCT_SLOW(&gil, status, oct_weights_add_matrices(self->handle, desc, count, &first));
    return leave_alone(self, status) ? first : -1;
}

/* What PyArg leaves as objects: names of the arguments and where they go. */
static bool
parse_sizes(PyObject *const *from, oct_matrix_desc *d, oct_source_objects *o)
{
    if (!from[2]) {
        PyErr_SetString(PyExc_TypeError,
                        "matrix() missing required keyword-only argument: 'row_stride'");
        return false;
    }
    return oct_arg_i64(from[0], "matrix: n", 1, INT32_MAX, &d->n) &&
           oct_arg_i64(from[1], "matrix: k", 1, INT32_MAX, &d->k) &&
           oct_arg_size(from[2], "matrix: row_stride", &d->row_stride) &&
           oct_arg_size(from[3], "matrix: group_stride", &d->group_stride) &&
           oct_arg_size(from[4], "matrix: scale_offset", &o->scale_offset) &&
           oct_arg_size(from[5], "matrix: min_offset", &o->min_offset) &&
           oct_arg_size(from[6], "matrix: code_offset", &o->code_offset) &&
           oct_arg_size(from[7], "matrix: scale_row_stride", &d->scale_row_stride) &&
           oct_arg_size(from[8], "matrix: scale_group_stride", &d->scale_group_stride) &&
           oct_arg_size(from[9], "matrix: zero_row_stride", &d->zero_row_stride);
}

/* Fills `s`, zeroed by the caller, and takes its buffers; false with an exception. The texts are
 * owned by the arguments. Close it in both cases. */
static bool
parse(PyObject *args, PyObject *kwargs, oct_py_source *s)
{
    static char *names[] = {
        "format", "n", "k", "codes", "source", "values_type", "row_stride", "group_stride",
        "scales", "mins", "scale_type", "scale_offset", "min_offset", "code_offset",
        "scale_row_stride", "scale_group_stride", "zeros", "zero_row_stride", "row_map", NULL};
    PyObject *format, *source = NULL, *values_type = NULL, *scale_type = NULL;
    PyObject *size[10] = {NULL};
    oct_source_objects o = {0};
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "OOOO|$OOOOOOOOOOOOOOO:matrix", names, &format, &size[0], &size[1],
            &o.codes, &source, &values_type, &size[2], &size[3], &o.scales, &o.mins, &scale_type,
            &size[4], &size[5], &size[6], &size[7], &size[8], &o.zeros, &size[9], &o.row_map))
        return false;
    s->desc.source = "bytes";
    return oct_arg_text(format, "matrix: format", false, &s->desc.format) &&
           oct_arg_text(source, "matrix: source", false, &s->desc.source) &&
           oct_arg_text(values_type, "matrix: values_type", true, &s->desc.values_type) &&
           oct_arg_text(scale_type, "matrix: scale_type", true, &s->desc.scale_type) &&
           parse_sizes(size, &s->desc, &o) && oct_source_open(s, &o);
}

PyObject *
oct_weights_matrix(oct_py_weights *self, PyObject *args, PyObject *kwargs)
{
    oct_py_source s = {0};
    const int id = parse(args, kwargs, &s) ? add(self, "Weights.matrix", &s.desc, 1) : -1;
    oct_source_close(&s);
    return id < 0 ? NULL : PyLong_FromLong(id);
}

/* A copy of each dict, so that texts and buffers stay when another thread changes the caller's. */
static PyObject *
snapshots(PyObject *sources)
{
    PyObject *kept = PySequence_List(sources);
    for (Py_ssize_t i = 0; kept && i < PyList_GET_SIZE(kept); i++) {
        PyObject *given = PyList_GET_ITEM(kept, i);
        if (!PyDict_Check(given))
            PyErr_Format(PyExc_TypeError, "matrices: sources[%zd] must be a dict, got %s", i,
                         Py_TYPE(given)->tp_name);
        PyObject *copy = PyDict_Check(given) ? PyDict_Copy(given) : NULL;
        if (!copy || PyList_SetItem(kept, i, copy) < 0) Py_CLEAR(kept);
    }
    return kept;
}

static int
add_all(oct_py_weights *self, PyObject *kept, oct_py_source *s, oct_matrix_desc *desc)
{
    PyObject *none = PyTuple_New(0);
    const Py_ssize_t count = PyList_GET_SIZE(kept);
    bool good = none;
    for (Py_ssize_t i = 0; good && i < count; i++) {
        good = parse(none, PyList_GET_ITEM(kept, i), &s[i]);
        desc[i] = s[i].desc;
    }
    Py_XDECREF(none);
    return good ? add(self, "Weights.matrices", desc, (int)count) : -1;
}

PyObject *
oct_weights_matrices(oct_py_weights *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"sources", NULL};
    PyObject *sources, *ids = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:matrices", names, &sources)) return NULL;
    PyObject *kept = snapshots(sources);
    if (!kept) return NULL;
    const Py_ssize_t count = PyList_GET_SIZE(kept), most = UINT16_MAX;
    oct_py_source *s = PyMem_Calloc((size_t)count + 1, sizeof *s);
    oct_matrix_desc *desc = PyMem_Calloc((size_t)count + 1, sizeof *desc);
    int first = -1;
    if (count < 1 || count > most)
        PyErr_Format(PyExc_ValueError, "matrices: %zd sources, legal are 1 to %zd", count, most);
    else if (!s || !desc)
        PyErr_NoMemory();
    else
        first = add_all(self, kept, s, desc);
    for (Py_ssize_t i = 0; s && i < count; i++) oct_source_close(&s[i]);
    PyMem_Free(s);
    PyMem_Free(desc);
    Py_DECREF(kept);
    if (first >= 0) ids = PyList_New(count);
    for (Py_ssize_t i = 0; ids && i < count; i++) {
        PyObject *id = PyLong_FromSsize_t(first + i);
        if (!id || PyList_SetItem(ids, i, id) < 0) Py_CLEAR(ids);
    }
    return ids;
}
