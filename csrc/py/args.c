/* Arguments from Python, checked by name: see args.h. */
#include "csrc/py/args.h"

static PyObject *
as_index(PyObject *value, const char *where)
{
    if (!PyBool_Check(value) && PyIndex_Check(value)) return PyNumber_Index(value);
    PyErr_Format(PyExc_TypeError, "%s must be an integer, got %s", where, Py_TYPE(value)->tp_name);
    return NULL;
}

bool
oct_arg_i64(PyObject *value, const char *where, int64_t lo, int64_t hi, int64_t *out)
{
    if (!value) return true;
    PyObject *number = as_index(value, where);
    if (!number) return false;
    int overflow = 0;
    const long long v = PyLong_AsLongLongAndOverflow(number, &overflow);
    bool good = !(v == -1 && !overflow && PyErr_Occurred());
    if (good && (overflow || v < lo || v > hi)) {
        PyErr_Format(PyExc_ValueError, "%s must lie in [%lld, %lld], got %S", where, (long long)lo,
                     (long long)hi, number);
        good = false;
    }
    Py_DECREF(number);
    if (good) *out = v;
    return good;
}

bool
oct_arg_int(PyObject *value, const char *where, int lo, int hi, int *out)
{
    int64_t v = *out;
    if (!oct_arg_i64(value, where, lo, hi, &v)) return false;
    *out = (int)v;
    return true;
}

bool
oct_arg_u64(PyObject *value, const char *where, uint64_t *out)
{
    if (!value) return true;
    PyObject *number = as_index(value, where);
    if (!number) return false;
    const unsigned long long v = PyLong_AsUnsignedLongLong(number);
    const bool good = !(v == (unsigned long long)-1 && PyErr_Occurred());
    if (good)
        *out = v;
    else if (PyErr_ExceptionMatches(PyExc_OverflowError))
        PyErr_Format(PyExc_ValueError, "%s must lie in [0, 2^64), got %S", where, number);
    Py_DECREF(number);
    return good;
}

bool
oct_arg_size(PyObject *value, const char *where, size_t *out)
{
    int64_t v = (int64_t)*out;
    if (!oct_arg_i64(value, where, 0, PY_SSIZE_T_MAX, &v)) return false;
    *out = (size_t)v;
    return true;
}

bool
oct_arg_text(PyObject *value, const char *where, bool optional, const char **out)
{
    if (!value) return true;
    if (optional && value == Py_None) {
        *out = NULL;
        return true;
    }
    if (!PyUnicode_Check(value)) {
        PyErr_Format(PyExc_TypeError, "%s must be a str%s, got %s", where,
                     optional ? " or None" : "", Py_TYPE(value)->tp_name);
        return false;
    }
    Py_ssize_t size;
    const char *text = PyUnicode_AsUTF8AndSize(value, &size);
    if (!text) return false;
    if ((size_t)size != strlen(text)) {
        PyErr_Format(PyExc_ValueError, "%s holds a null character", where);
        return false;
    }
    *out = text;
    return true;
}

bool
oct_arg_type(PyObject *value, const char *where, PyTypeObject *type)
{
    if (Py_IS_TYPE(value, type)) return true;
    PyErr_Format(PyExc_TypeError, "%s must be a %s, got %s", where, type->tp_name,
                 Py_TYPE(value)->tp_name);
    return false;
}

/* ---- Arrays ---------------------------------------------------------------------------------- */

static const char *
dtype_name(int type)
{
    switch (type) {
    case NPY_FLOAT32: return "float32";
    case NPY_FLOAT64: return "float64";
    case NPY_INT32: return "int32";
    default: return "uint8";
    }
}

static PyObject *
wrong_array(PyObject *value, const char *where, int type, int ndim, const char *fault)
{
    PyObject *shape = PyObject_GetAttrString(value, "shape");
    if (!shape) return NULL;
    PyErr_Format(PyExc_TypeError,
                 "%s must be a %d-dimensional C-contiguous %s array, got %S of shape %S (%s); use "
                 "numpy.ascontiguousarray(..., dtype=numpy.%s) and reshape",
                 where, ndim, dtype_name(type), (PyObject *)PyArray_DESCR((PyArrayObject *)value),
                 shape, fault, dtype_name(type));
    Py_DECREF(shape);
    return NULL;
}

static bool
check_extents(PyArrayObject *array, const char *where, int ndim, const npy_intp *extents)
{
    for (int i = 0; i < ndim; i++)
        if (extents[i] >= 0 && PyArray_DIM(array, i) != extents[i]) {
            PyErr_Format(PyExc_ValueError, "%s must have extent %zd in dimension %d, got %zd",
                         where, (Py_ssize_t)extents[i], i, (Py_ssize_t)PyArray_DIM(array, i));
            return false;
        }
    return true;
}

PyArrayObject *
oct_arg_array(PyObject *value, const char *where, int type, int ndim, const npy_intp *extents)
{
    if (!PyArray_Check(value)) {
        PyErr_Format(PyExc_TypeError,
                     "%s must be a %d-dimensional C-contiguous %s array, got %s; use "
                     "numpy.ascontiguousarray(..., dtype=numpy.%s)",
                     where, ndim, dtype_name(type), Py_TYPE(value)->tp_name, dtype_name(type));
        return NULL;
    }
    PyArrayObject *array = (PyArrayObject *)value;
    const char *fault = NULL;
    if (!PyArray_EquivTypenums(PyArray_TYPE(array), type))
        fault = "another dtype";
    else if (PyArray_ISBYTESWAPPED(array))
        fault = "not in native byte order";
    else if (PyArray_NDIM(array) != ndim)
        fault = "another number of dimensions";
    else if (!PyArray_IS_C_CONTIGUOUS(array))
        fault = "not C-contiguous";
    else if (!PyArray_ISALIGNED(array))
        fault = "not aligned";
    if (fault) return (PyArrayObject *)wrong_array(value, where, type, ndim, fault);
    return check_extents(array, where, ndim, extents) ? array : NULL;
}

PyArrayObject *
oct_arg_out(PyObject *value, const char *where, int type, int ndim, const npy_intp *extents)
{
    PyArrayObject *array = oct_arg_array(value, where, type, ndim, extents);
    if (!array || PyArray_ISWRITEABLE(array)) return array;
    PyErr_Format(PyExc_ValueError, "%s is read-only", where);
    return NULL;
}

bool
oct_arrays_overlap(PyArrayObject *a, PyArrayObject *b)
{
    const uintptr_t at = (uintptr_t)PyArray_DATA(a), bt = (uintptr_t)PyArray_DATA(b);
    return at < bt + (size_t)PyArray_NBYTES(b) && bt < at + (size_t)PyArray_NBYTES(a);
}

int32_t *
oct_arg_ids(PyObject *value, const char *where, npy_intp extent, npy_intp *count)
{
    PyArrayObject *array = oct_arg_array(value, where, NPY_INT32, 1, &extent);
    if (!array) return NULL;
    const npy_intp n = PyArray_SIZE(array);
    int32_t *copy = PyMem_Malloc((size_t)(n ? n : 1) * sizeof *copy);
    if (!copy) return (int32_t *)PyErr_NoMemory();
    if (n) memcpy(copy, PyArray_DATA(array), (size_t)n * sizeof *copy);
    *count = n;
    return copy;
}

bool
oct_product(const char *where, int n, const int64_t *counts, npy_intp *out)
{
    int64_t product = 1;
    for (int i = 0; i < n; i++)
        if (__builtin_mul_overflow(product, counts[i], &product) || product > PY_SSIZE_T_MAX) {
            PyErr_Format(PyExc_ValueError, "%s: the number of elements overflows", where);
            return false;
        }
    *out = (npy_intp)product;
    return true;
}
