/* The weight table and the quantize op, callable from pytest. Arrays come in as addresses, because
 * tests place them at odd offsets between canaries; tests/kernels/weight_calls.py alone calls this
 * and keeps them alive. Shapes are not checked here: the oracle's side does. */
#include <stdlib.h>
#include <string.h>

#include "csrc/py/probe.h"

typedef unsigned long long address;
#define PTR(a) ((void *)(uintptr_t)(a))

static int
format_id(PyObject *arg, void *out)
{
    const char *name = PyUnicode_AsUTF8(arg);
    if (!name) return 0;
    for (int i = 0; i < OCT_WEIGHT_COUNT; i++)
        if (!strcmp(name, oct_weight_traits_of[i].name)) {
            *(int *)out = i;
            return 1;
        }
    PyErr_Format(PyExc_ValueError, "weight format: unknown '%s'", name);
    return 0;
}

static PyObject *
weight_formats(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    PyObject *list = PyList_New(0);
    if (!list) return NULL;
    for (int i = 0; i < OCT_WEIGHT_COUNT; i++) {
        const oct_weight_traits *t = &oct_weight_traits_of[i];
        PyObject *item = Py_BuildValue("{s:s,s:i,s:d,s:i,s:i,s:i,s:i}", "name", t->name, "group",
                                       t->group, "bits", t->bits, "has_zero", (int)t->has_zero,
                                       "has_min", (int)t->has_min, "code_bits", t->code_bits,
                                       "type", (int)t->type);
        if (!item || PyList_Append(list, item) < 0) {
            Py_XDECREF(item);
            Py_DECREF(list);
            return NULL;
        }
        Py_DECREF(item);
    }
    return list;
}

static PyObject *
weight_column(PyObject *self, PyObject *args)
{
    (void)self;
    int id, act;
    oct_isa isa;
    if (!PyArg_ParseTuple(args, "O&O&i", format_id, &id, oct_probe_isa, &isa, &act)) return NULL;
    const oct_kernels *k = oct_probe_table(isa);
    if (!k->weight[id].linear[act]) Py_RETURN_NONE;
    return PyUnicode_FromString(oct_isa_names[k->linear_isa[id][act]]);
}

static PyObject *
weight_block_bytes(PyObject *self, PyObject *args)
{
    (void)self;
    int id, k;
    if (!PyArg_ParseTuple(args, "O&i", format_id, &id, &k)) return NULL;
    return PyLong_FromSize_t(oct_probe_table(OCT_SCALAR)->weight[id].block_bytes(k));
}

static PyObject *
weight_pack(PyObject *self, PyObject *args)
{
    (void)self;
    int id, kind, values_type, scale_type;
    oct_isa isa;
    oct_source s;
    oct_pack_args a = {.src = &s};
    address data, codes, scales, mins, zeros, row_map;
    Py_ssize_t lo, hi;
    if (!PyArg_ParseTuple(args, "O&O&Kiii(iiKnnKKnnKnK)nn", format_id, &id, oct_probe_isa, &isa,
                          &data, &a.n, &a.k, &scale_type, &kind, &values_type, &codes,
                          &s.row_stride, &s.group_stride, &scales, &mins, &s.scale_row_stride,
                          &s.scale_group_stride, &zeros, &s.zero_row_stride, &row_map, &lo, &hi))
        return NULL;
    a.data = PTR(data);
    a.scale_type = (oct_dtype)scale_type;
    s.kind = (oct_src_kind)kind;
    s.values_type = (oct_dtype)values_type;
    s.codes = PTR(codes);
    s.scales = PTR(scales);
    s.mins = PTR(mins);
    s.zeros = PTR(zeros);
    s.row_map = PTR(row_map);
    return PyLong_FromLong(oct_probe_table(isa)->weight[id].pack(&a, (size_t)lo, (size_t)hi));
}

/* (data, n, k, scale_type) */
static int
matrix_of(PyObject *arg, void *out)
{
    oct_matrix *w = out;
    address data;
    int type;
    if (!PyArg_ParseTuple(arg, "Kiii", &data, &w->n, &w->k, &type)) return 0;
    w->data = PTR(data);
    w->scale_type = (oct_dtype)type;
    return 1;
}

static PyObject *
weight_unpack(PyObject *self, PyObject *args)
{
    (void)self;
    int id;
    oct_isa isa;
    oct_matrix w;
    address codes, scales, zeros, mins, values;
    Py_ssize_t lo, hi;
    if (!PyArg_ParseTuple(args, "O&O&O&KKKKKnn", format_id, &id, oct_probe_isa, &isa, matrix_of, &w,
                          &codes, &scales, &zeros, &mins, &values, &lo, &hi))
        return NULL;
    const oct_unpack_args a = {&w,         PTR(codes), PTR(scales),
                               PTR(zeros), PTR(mins),  PTR(values)};
    return PyLong_FromLong(oct_probe_table(isa)->weight[id].unpack(&a, (size_t)lo, (size_t)hi));
}

static PyObject *
weight_gather(PyObject *self, PyObject *args)
{
    (void)self;
    int id;
    oct_isa isa;
    oct_matrix w;
    oct_gather_args a = {.w = &w};
    address ids, y;
    Py_ssize_t lo, hi;
    if (!PyArg_ParseTuple(args, "O&O&O&KiKnnn", format_id, &id, oct_probe_isa, &isa, matrix_of, &w,
                          &ids, &a.m, &y, &a.ldy, &lo, &hi))
        return NULL;
    a.ids = PTR(ids);
    a.y = PTR(y);
    return PyLong_FromLong(oct_probe_table(isa)->weight[id].gather(&a, (size_t)lo, (size_t)hi));
}

/* (act, m, k, kp, x, ldx, hi, lo, scale, sum) */
static int
rows_of(PyObject *arg, void *out)
{
    oct_rows *r = out;
    address x, hi, lo, scale, sum;
    int act;
    if (!PyArg_ParseTuple(arg, "iiiiKnKKKK", &act, &r->m, &r->k, &r->kp, &x, &r->ldx, &hi, &lo,
                          &scale, &sum))
        return 0;
    r->act = (oct_act)act;
    r->x = PTR(x);
    r->hi = PTR(hi);
    r->lo = PTR(lo);
    r->scale = PTR(scale);
    r->sum = PTR(sum);
    return 1;
}

/* The lane's scratch starts as NaN in every float and -1 in every integer. */
static PyObject *
weight_linear(PyObject *self, PyObject *args)
{
    (void)self;
    int id, add, status = 0;
    oct_isa isa;
    oct_matrix w;
    oct_rows x;
    oct_linear_args a = {.w = &w, .x = &x};
    address y, bias;
    Py_ssize_t lo, hi, repeat = 1;
    if (!PyArg_ParseTuple(args, "O&O&O&O&KnKpnn|n", format_id, &id, oct_probe_isa, &isa, matrix_of,
                          &w, rows_of, &x, &y, &a.ldy, &bias, &add, &lo, &hi, &repeat))
        return NULL;
    a.y = PTR(y);
    a.bias = PTR(bias);
    a.add = add;
    oct_linear_fn linear = oct_probe_table(isa)->weight[id].linear[x.act];
    if (!linear) {
        PyErr_SetString(PyExc_ValueError, "act: this format has no such form");
        return NULL;
    }
    void *lane = aligned_alloc(64, OCT_LANE_BYTES);
    if (!lane) return PyErr_NoMemory();
    memset(lane, 0xFF, OCT_LANE_BYTES);
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < repeat; i++)
        status |= (int)linear(&a, (size_t)lo, (size_t)hi, lane);
    Py_END_ALLOW_THREADS
    free(lane);
    return PyLong_FromLong(status);
}

static PyObject *
quantize(PyObject *self, PyObject *args)
{
    (void)self;
    oct_isa isa;
    oct_rows x;
    address bad;
    Py_ssize_t lo, hi;
    if (!PyArg_ParseTuple(args, "O&O&Knn", oct_probe_isa, &isa, rows_of, &x, &bad, &lo, &hi))
        return NULL;
    const oct_quantize_args a = {&x, PTR(bad)};
    return PyLong_FromLong(oct_probe_table(isa)->op.quantize(&a, (size_t)lo, (size_t)hi));
}

PyMethodDef oct_probe_weight_methods[] = {
    {"weight_formats", weight_formats, METH_NOARGS, "weight_formats() -> list of traits"},
    {"weight_column", weight_column, METH_VARARGS,
     "weight_column(format, isa, act) -> the column that serves the slot under this cap, or None"},
    {"weight_block_bytes", weight_block_bytes, METH_VARARGS,
     "weight_block_bytes(format, k) -> int"},
    {"weight_pack", weight_pack, METH_VARARGS,
     "weight_pack(format, isa, data, n, k, scale_type, source, lo, hi) -> status"},
    {"weight_unpack", weight_unpack, METH_VARARGS,
     "weight_unpack(format, isa, matrix, codes, scales, zeros, mins, values, lo, hi) -> status"},
    {"weight_gather", weight_gather, METH_VARARGS,
     "weight_gather(format, isa, matrix, ids, m, y, ldy, lo, hi) -> status"},
    {"weight_linear", weight_linear, METH_VARARGS,
     "weight_linear(format, isa, matrix, rows, y, ldy, bias, add, lo, hi, repeat=1) -> status"},
    {"quantize", quantize, METH_VARARGS, "quantize(isa, rows, bad, lo, hi) -> status"},
    {NULL, NULL, 0, NULL},
};
