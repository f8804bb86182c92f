/* octavo._core.Weights: packed matrices and vectors by id. Adding (weights_add.c) is exclusive,
 * reading is shared; a Program keeps what it uses alive after close(). */
#include "csrc/py/args.h"
#include "csrc/py/core.h"
#include "csrc/py/gil.h"
#include "csrc/py/weights.h"

static PyObject *
weights_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"runtime", NULL};
    const oct_state *state = PyType_GetModuleState(type);
    PyObject *object;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:Weights", names, &object)) return NULL;
    if (!oct_arg_type(object, "Weights: runtime", state->runtime)) return NULL;
    oct_py_weights *self = (oct_py_weights *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    oct_py_runtime *runtime = (oct_py_runtime *)object;
    if (!oct_gate_enter(&runtime->gate, state, "Weights: runtime")) goto error;
    const oct_status status = oct_weights_open(&self->handle, runtime->handle);
    if (!status) {
        self->runtime = (oct_py_runtime *)Py_NewRef(object);
        oct_runtime_retain(runtime);
    }
    oct_gate_leave(&runtime->gate);
    if (!status) return (PyObject *)self;
    oct_raise(state, status);
error:
    Py_DECREF(self);
    return NULL;
}

static int
weights_traverse(oct_py_weights *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->runtime);
    return 0;
}

static void
release(oct_py_weights *self)
{
    if (!self->handle) return;
    oct_weights_close(&self->handle);
    oct_runtime_release(self->runtime);
}

static void
weights_dealloc(oct_py_weights *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    release(self);
    Py_XDECREF(self->runtime);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *
weights_close(oct_py_weights *self, PyObject *ignored)
{
    (void)ignored;
    if (oct_gate_closed(&self->gate)) Py_RETURN_NONE;
    if (!oct_gate_alone(&self->gate, oct_state_of(self), "Weights.close")) return NULL;
    release(self);
    oct_gate_shut(&self->gate);
    Py_RETURN_NONE;
}

static PyObject *
weights_get_nbytes(oct_py_weights *self, void *ignored)
{
    (void)ignored;
    if (!oct_gate_enter(&self->gate, oct_state_of(self), "Weights.nbytes")) return NULL;
    const size_t bytes = oct_weights_bytes(self->handle);
    oct_gate_leave(&self->gate);
    return PyLong_FromSize_t(bytes);
}

/* ---- Reading --------------------------------------------------------------------------------- */

/* Both gates, and what the matrix is. */
static bool
enter(oct_py_weights *self, PyObject *id, const char *where, int *number, oct_matrix_info *info)
{
    const oct_state *state = oct_state_of(self);
    *number = 0;
    if (!oct_arg_int(id, where, 0, INT32_MAX, number)) return false;
    if (!oct_gate_enter(&self->gate, state, where)) return false;
    if (!oct_runtime_enter(self->runtime, state, where)) {
        oct_gate_leave(&self->gate);
        return false;
    }
    const oct_status status = oct_weights_info(self->handle, *number, info);
    if (!status) return true;
    oct_gate_leave(&self->runtime->gate);
    oct_gate_leave(&self->gate);
    oct_raise(state, status);
    return false;
}

static PyObject *
leave(oct_py_weights *self, oct_status status, PyObject *result)
{
    oct_gate_leave(&self->runtime->gate);
    oct_gate_leave(&self->gate);
    if (!result || !status) return result;
    Py_DECREF(result);
    return oct_raise(oct_state_of(self), status);
}

static PyObject *
weights_info(oct_py_weights *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"id", NULL};
    PyObject *id;
    int number;
    oct_matrix_info i;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:info", names, &id)) return NULL;
    if (!enter(self, id, "info: id", &number, &i)) return NULL;
    leave(self, OCT_OK, NULL);
    return Py_BuildValue("{s:s,s:z,s:L,s:L,s:i,s:N,s:N,s:n}", "format", i.format, "scale_type",
                         i.scale_type, "n", (long long)i.n, "k", (long long)i.k, "group", i.group,
                         "has_zero", PyBool_FromLong(i.has_zero), "has_min",
                         PyBool_FromLong(i.has_min), "nbytes", (Py_ssize_t)i.bytes);
}

/* A new [n, cols] array under `name`; NULL with an exception, or if an earlier one failed. */
static void *
add_array(PyObject *dict, const char *name, int64_t n, int64_t cols, int type)
{
    if (PyErr_Occurred()) return NULL;
    npy_intp dims[2] = {(npy_intp)n, (npy_intp)cols};
    PyObject *array = PyArray_SimpleNew(2, dims, type);
    if (!array) return NULL;
    void *data = PyArray_DATA((PyArrayObject *)array);
    const int rc = PyDict_SetItemString(dict, name, array);
    Py_DECREF(array); /* the dict holds it */
    return rc < 0 ? NULL : data;
}

typedef struct {
    uint8_t *codes, *zeros;
    uint16_t *mins;
    void *scales, *values;
} unpacked;

/* The logical arrays that this matrix has (stub of Weights.unpack). */
static bool
add_arrays(PyObject *dict, const oct_matrix_info *i, unpacked *to)
{
    if (!i->group) {
        const int type = !strcmp(i->element, "f32")   ? NPY_FLOAT32
                         : !strcmp(i->element, "f16") ? NPY_FLOAT16
                                                      : NPY_UINT16;
        to->values = add_array(dict, "values", i->n, i->k, type);
        return !PyErr_Occurred();
    }
    const int64_t groups = (i->k + i->group - 1) / i->group;
    const int scale = !strcmp(i->scale_type, "f32")   ? NPY_FLOAT32
                      : !strcmp(i->scale_type, "f16") ? NPY_FLOAT16
                                                      : NPY_UINT16;
    to->codes = add_array(dict, "codes", i->n, i->k,
                          !strcmp(i->element, "i8") ? NPY_INT8 : NPY_UINT8);
    to->scales = add_array(dict, "scales", i->n, groups, scale);
    if (i->has_zero) to->zeros = add_array(dict, "zeros", i->n, groups, NPY_UINT8);
    if (i->has_min) to->mins = add_array(dict, "mins", i->n, groups, scale);
    return !PyErr_Occurred();
}

static PyObject *
weights_unpack(oct_py_weights *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"id", NULL};
    PyObject *id;
    int number;
    oct_matrix_info info;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:unpack", names, &id)) return NULL;
    if (!enter(self, id, "unpack: id", &number, &info)) return NULL;
    PyObject *dict = PyDict_New();
    unpacked to = {0};
    oct_status status = OCT_OK;
    if (dict && add_arrays(dict, &info, &to)) {
        oct_gil gil;
        OCT_SLOW(&gil, status, oct_weights_unpack(self->handle, number, to.codes, to.scales,
                                                  to.zeros, to.mins, to.values));
    }
    else
        Py_CLEAR(dict);
    return leave(self, status, dict);
}

static PyObject *
weights_rows(oct_py_weights *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"id", "ids", NULL};
    PyObject *id, *ids;
    int number;
    npy_intp m;
    oct_matrix_info info;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO:rows", names, &id, &ids)) return NULL;
    int32_t *rows = oct_arg_ids(ids, "rows: ids", -1, &m);
    if (!rows) return NULL;
    PyObject *result = NULL;
    if (enter(self, id, "rows: id", &number, &info)) {
        npy_intp dims[2] = {m, (npy_intp)info.k};
        oct_status status = OCT_OK;
        result = PyArray_SimpleNew(2, dims, NPY_FLOAT32);
        if (result) {
            float *y = PyArray_DATA((PyArrayObject *)result);
            oct_gil gil;
            OCT_SLOW(&gil, status, oct_weights_rows(self->handle, number, rows, m, y));
        }
        result = leave(self, status, result);
    }
    PyMem_Free(rows);
    return result;
}

/* `out` checked, or a new array; a new reference. */
static PyObject *
linear_out(PyObject *out, PyArrayObject *x, int64_t n)
{
    npy_intp dims[2] = {PyArray_DIM(x, 0), (npy_intp)n};
    if (!out || out == Py_None) return PyArray_SimpleNew(2, dims, NPY_FLOAT32);
    PyArrayObject *y = oct_arg_out(out, "linear: out", NPY_FLOAT32, 2, dims);
    if (y && oct_arrays_overlap(x, y)) {
        PyErr_SetString(PyExc_ValueError, "linear: out overlaps x");
        return NULL;
    }
    return y ? Py_NewRef(out) : NULL;
}

static PyObject *
weights_linear(oct_py_weights *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"id", "x", "act", "out", NULL};
    PyObject *id, *x, *act = NULL, *out = NULL;
    const char *form = "a8x2";
    int number;
    oct_matrix_info info;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|OO:linear", names, &id, &x, &act, &out) ||
        !oct_arg_text(act, "linear: act", false, &form) ||
        !enter(self, id, "linear: id", &number, &info))
        return NULL;
    const npy_intp extents[2] = {-1, (npy_intp)info.k};
    PyArrayObject *a = oct_arg_array(x, "linear: x", NPY_FLOAT32, 2, extents);
    PyObject *y = a ? linear_out(out, a, info.n) : NULL;
    oct_status status = OCT_OK;
    if (y) {
        const float *from = PyArray_DATA(a);
        float *to = PyArray_DATA((PyArrayObject *)y);
        const int64_t m = PyArray_DIM(a, 0);
        oct_gil gil;
        OCT_SLOW(&gil, status, oct_linear(self->handle, number, form, from, m, to));
    }
    return leave(self, status, y);
}

#include "csrc/py/weights_doc.h"

static PyMethodDef weights_methods[] = {
    OCT_METHOD("matrix", oct_weights_matrix, matrix_doc),
    OCT_METHOD("matrices", oct_weights_matrices, matrices_doc),
    OCT_METHOD("vector", oct_weights_vector, vector_doc),
    OCT_METHOD("info", weights_info, info_doc),
    OCT_METHOD("unpack", weights_unpack, unpack_doc),
    OCT_METHOD("rows", weights_rows, rows_doc),
    OCT_METHOD("linear", weights_linear, linear_doc),
    {"close", (PyCFunction)weights_close, METH_NOARGS, close_doc},
    OCT_NO_PICKLE,
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef weights_getset[] = {
    {"nbytes", (getter)weights_get_nbytes, NULL, "Bytes of the packed matrices and vectors.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot weights_slots[] = {
    {Py_tp_doc, (void *)weights_doc},
    {Py_tp_new, weights_new},
    {Py_tp_traverse, weights_traverse},
    {Py_tp_dealloc, weights_dealloc},
    {Py_tp_methods, weights_methods},
    {Py_tp_getset, weights_getset},
    {0, NULL},
};

PyType_Spec oct_weights_spec = {
    .name = "octavo._core.Weights",
    .basicsize = sizeof(oct_py_weights),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = weights_slots,
};
