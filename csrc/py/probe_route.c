/* octavo._probe, ops of a mixture of experts: op_route and op_combine, as probe_op.c has the others. */
#include "csrc/py/probe_rows.h"

static PyObject *
op_route(PyObject *self, PyObject *args)
{
    (void)self;
    oct_isa isa;
    view l, bias, s, id, gate;
    int score, groups, kept, zero, renorm;
    float scale;
    Py_ssize_t lo = 0, hi = -1;
    if (!PyArg_ParseTuple(args, "O&O&O&iiippfO&O&O&|nn", oct_probe_isa, &isa, f32, &l, f32, &bias,
                          &score, &groups, &kept, &zero, &renorm, &scale, f32, &s, i32, &id, f32,
                          &gate, &lo, &hi))
        return NULL;
    const oct_route_args a = {
        l.data, l.ld, (int)l.cols, bias.data, (oct_score)score, groups, kept, zero, (int)id.cols,
        renorm, scale, s.data, s.ld, id.data, gate.data,
    };
    return RUN(route, a, l.rows);
}

static PyObject *
op_combine(PyObject *self, PyObject *args)
{
    (void)self;
    oct_isa isa;
    view x, at, gate, y;
    int first;
    Py_ssize_t lo = 0, hi = -1;
    if (!PyArg_ParseTuple(args, "O&O&O&O&iO&|nn", oct_probe_isa, &isa, f32, &x, i32, &at, f32, &gate,
                          &first, f32, &y, &lo, &hi))
        return NULL;
    const oct_combine_args a = {
        x.data, x.ld, at.data, gate.data, (int)at.cols, first, (int)x.rows, (int)x.cols, y.data, y.ld,
    };
    return RUN(combine, a, y.rows);
}

PyMethodDef oct_probe_route_methods[] = {
    {"op_route", op_route, METH_VARARGS,
     "op_route(isa, logits, bias, score, groups, kept, outside_zero, renorm, scale, s, id, gate)"},
    {"op_combine", op_combine, METH_VARARGS, "op_combine(isa, x, at, gate, first, y)"},
    {NULL, NULL, 0, NULL},
};
