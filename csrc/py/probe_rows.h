/* probe_rows.h: arrays as the probe's op functions take them.
 *
 * Arrays are rows (1-D: one row) whose elements are contiguous; rows may be strided and data may be
 * misaligned to a cache line, so tests can put canaries and NaN around them. The last two arguments
 * of each function are the range of rows, all by default. It returns the kernel's status. */
#ifndef OCT_PY_PROBE_ROWS_H
#define OCT_PY_PROBE_ROWS_H

#include "csrc/py/probe.h"

typedef struct {
    void *data; /* NULL for None */
    npy_intp rows, cols;
    size_t ld; /* elements */
} view;

static inline int
view_of(PyObject *object, view *v, int type)
{
    *v = (view){NULL, 0, 0, 0};
    if (object == Py_None) return 1;
    if (!PyArray_Check(object) || PyArray_TYPE((PyArrayObject *)object) != type ||
        PyArray_NDIM((PyArrayObject *)object) < 1 || PyArray_NDIM((PyArrayObject *)object) > 2) {
        PyErr_Format(PyExc_TypeError, "expected rows of NumPy type %d, got %R", type, object);
        return 0;
    }
    PyArrayObject *array = (PyArrayObject *)object;
    const int ndim = PyArray_NDIM(array);
    const npy_intp size = PyArray_ITEMSIZE(array);
    if (PyArray_DIM(array, ndim - 1) > 1 && PyArray_STRIDE(array, ndim - 1) != size) {
        PyErr_SetString(PyExc_ValueError, "the elements of a row must be contiguous");
        return 0;
    }
    v->data = PyArray_DATA(array);
    v->rows = ndim == 2 ? PyArray_DIM(array, 0) : 1;
    v->cols = PyArray_DIM(array, ndim - 1);
    v->ld = (size_t)(ndim == 2 ? PyArray_STRIDE(array, 0) / size : v->cols);
    return 1;
}

static inline int
f32(PyObject *o, void *v)
{
    return view_of(o, v, NPY_FLOAT32);
}

static inline int
f64(PyObject *o, void *v)
{
    return view_of(o, v, NPY_FLOAT64);
}

static inline int
i32(PyObject *o, void *v)
{
    return view_of(o, v, NPY_INT32);
}

static inline int
i64(PyObject *o, void *v)
{
    return view_of(o, v, NPY_INT64);
}

static inline int
u16(PyObject *o, void *v)
{
    return view_of(o, v, NPY_UINT16);
}

static inline int
u8(PyObject *o, void *v)
{
    return view_of(o, v, NPY_UINT8);
}

/* Runs the slot on rows [lo, hi) and boxes its status; hi < 0 means all. */
#define RUN(slot, args, rows)                                                                \
    PyLong_FromLong(oct_probe_table(isa)->op.slot(&(args), (size_t)lo,                       \
                                                  (size_t)(hi < 0 ? (rows) : hi)))

#endif
