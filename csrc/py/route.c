/* What step(route={op: function}) does between a router and its experts: the function gets copies of
 * scores, ids and gates, may change ids and gates in place, and what it leaves is checked before any
 * of it goes back. An exception cancels the step and comes out of it. */
#include "csrc/py/route.h"

#include "csrc/py/args.h"

#include <math.h>

void
oct_py_route_free(oct_py_route *r)
{
    PyMem_Free(r->ops);
    r->ops = NULL;
}

bool
oct_py_route_read(oct_py_route *r, PyObject *route, const oct_py_program *program)
{
    PyObject *key, *value;
    Py_ssize_t at = 0;
    *r = (oct_py_route){0};
    if (!route || route == Py_None) return true;
    if (!PyDict_Check(route)) {
        PyErr_Format(PyExc_TypeError, "step: route must be a dict of op to function, got %s",
                     Py_TYPE(route)->tp_name);
        return false;
    }
    r->ops = PyMem_Calloc((size_t)program->n_ops, sizeof *r->ops);
    if (!r->ops) return PyErr_NoMemory() != NULL;
    while (PyDict_Next(route, &at, &key, &value)) {
        int op;
        if (!oct_arg_int(key, "step: route op", 0, program->n_ops - 1, &op)) return false;
        if (!PyCallable_Check(value)) {
            PyErr_Format(PyExc_TypeError, "step: route[%d] is not callable", op);
            return false;
        }
        r->ops[op] = true;
    }
    r->functions = route;
    return true;
}

/* A new array [rows][cols] with a copy of rows that lie `ld` elements of four bytes apart. */
static PyArrayObject *
copied(const void *from, int64_t rows, int cols, size_t ld, int type)
{
    npy_intp dims[2] = {(npy_intp)rows, cols};
    PyArrayObject *array = (PyArrayObject *)PyArray_SimpleNew(2, dims, type);
    char *to = array ? PyArray_DATA(array) : NULL;
    for (int64_t i = 0; array && i < rows; i++)
        memcpy(to + (size_t)i * (size_t)cols * 4, (const char *)from + (size_t)i * ld * 4,
               (size_t)cols * 4);
    return array;
}

/* Ids ascend, are distinct and exist; gates are finite, but where the router's own were not. */
static bool
sound(const oct_routing *r, const int32_t *id, const float *gate)
{
    for (int64_t i = 0; i < r->rows; i++)
        for (int j = 0; j < r->top; j++) {
            const int64_t at = i * r->top + j;
            if (id[at] < 0 || id[at] >= r->experts || (j && id[at] <= id[at - 1])) {
                PyErr_Format(PyExc_ValueError,
                             "step: route[%d]: ids[%lld, %d] is %d; ids of a row must ascend, be "
                             "distinct and lie in 0 to %d",
                             r->op, (long long)i, j, id[at], r->experts - 1);
                return false;
            }
            if (!isfinite(gate[at]) && isfinite(r->gate[at])) {
                PyErr_Format(PyExc_ValueError, "step: route[%d]: gates[%lld, %d] is not finite",
                             r->op, (long long)i, j);
                return false;
            }
        }
    return true;
}

static bool
call(const oct_py_route *route, const oct_routing *r)
{
    const npy_intp extents[2] = {(npy_intp)r->rows, r->top};
    const size_t top = (size_t)r->top, bytes = (size_t)r->rows * top * 4;
    PyArrayObject *scores = copied(r->scores, r->rows, r->experts, r->ld, NPY_FLOAT32);
    PyArrayObject *ids = copied(r->id, r->rows, r->top, top, NPY_INT32);
    PyArrayObject *gates = copied(r->gate, r->rows, r->top, top, NPY_FLOAT32);
    PyObject *key = PyLong_FromLong(r->op), *got = NULL;
    PyObject *function = key ? PyDict_GetItemWithError(route->functions, key) : NULL;
    if (scores && ids && gates && function) {
        Py_INCREF(function);
        got = PyObject_CallFunctionObjArgs(function, (PyObject *)scores, (PyObject *)ids,
                                           (PyObject *)gates, NULL);
        Py_DECREF(function);
    } else if (!PyErr_Occurred()) {
        PyErr_Format(PyExc_KeyError, "step: route[%d] was taken away", r->op);
    }
    /* The arrays may have been given another type or shape, too. */
    bool good = got && oct_arg_array((PyObject *)ids, "step: route: ids", NPY_INT32, 2, extents) &&
                oct_arg_array((PyObject *)gates, "step: route: gates", NPY_FLOAT32, 2, extents) &&
                sound(r, PyArray_DATA(ids), PyArray_DATA(gates));
    if (good) {
        memcpy(r->id, PyArray_DATA(ids), bytes);
        memcpy(r->gate, PyArray_DATA(gates), bytes);
    }
    Py_XDECREF(got);
    Py_XDECREF(key);
    Py_XDECREF(scores);
    Py_XDECREF(ids);
    Py_XDECREF(gates);
    return good;
}

static bool
ask(void *arg, const oct_routing *r)
{
    const oct_py_route *route = arg;
    oct_gil_borrow(route->gil);
    const bool good = !route->gil->raised && call(route, r);
    if (!good) route->gil->raised = true;
    oct_gil_return(route->gil);
    return good;
}

oct_route_hook
oct_py_route_hook(oct_py_route *r, oct_gil *gil)
{
    r->gil = gil;
    return (oct_route_hook){r->functions ? ask : NULL, r, r->ops};
}
