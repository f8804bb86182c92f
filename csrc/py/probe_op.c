/* octavo._probe, ops: every slot of the op table as op_<name>(isa, ...), writing into the caller's
 * arrays (probe_rows.h), and the conversions of num.h on raw bits. Routers are in probe_route.c. */
#include "csrc/py/probe_rows.h"
#include "kernels/num.h"
#include "kernels/op/real64.h"

static PyObject *
op_rmsnorm(PyObject *self, PyObject *args)
{
    (void)self;
    oct_isa isa;
    view x, w, y;
    int k, heads;
    float eps;
    Py_ssize_t lo = 0, hi = -1;
    if (!PyArg_ParseTuple(args, "O&O&iiO&fO&|nn", oct_probe_isa, &isa, f32, &x, &k, &heads, f32, &w,
                          &eps, f32, &y, &lo, &hi))
        return NULL;
    const oct_rmsnorm_args a = {x.data, x.ld, k, heads, w.data, eps, y.data, y.ld};
    return RUN(rmsnorm, a, x.rows);
}

static PyObject *
op_rope(PyObject *self, PyObject *args)
{
    (void)self;
    oct_isa isa;
    view x, cs;
    int heads, d, half_split;
    Py_ssize_t lo = 0, hi = -1;
    if (!PyArg_ParseTuple(args, "O&O&iipO&|nn", oct_probe_isa, &isa, f32, &x, &heads, &d,
                          &half_split, f32, &cs, &lo, &hi))
        return NULL;
    const oct_rope_args a = {x.data, x.ld, (size_t)d, heads, d, half_split, cs.data};
    return RUN(rope, a, x.rows);
}

static PyObject *
op_rope_table(PyObject *self, PyObject *args)
{
    (void)self;
    oct_isa isa;
    view pos, freq, cs;
    float mscale;
    Py_ssize_t lo = 0, hi = -1;
    if (!PyArg_ParseTuple(args, "O&O&O&fO&|nn", oct_probe_isa, &isa, i64, &pos, f64, &freq, &mscale,
                          f32, &cs, &lo, &hi))
        return NULL;
    const oct_rope_table_args a = {pos.data, freq.data, (int)freq.cols * 2, mscale, cs.data};
    return RUN(rope_table, a, pos.cols);
}

#define GATE(name)                                                                                \
    static PyObject *op_##name(PyObject *self, PyObject *args)                                    \
    {                                                                                             \
        (void)self;                                                                               \
        oct_isa isa;                                                                              \
        view g, u, y;                                                                             \
        Py_ssize_t lo = 0, hi = -1;                                                               \
        if (!PyArg_ParseTuple(args, "O&O&O&O&|nn", oct_probe_isa, &isa, f32, &g, f32, &u, f32,    \
                              &y, &lo, &hi))                                                      \
            return NULL;                                                                          \
        const oct_##name##_args a = {g.data, u.data, g.ld, u.ld, (int)g.cols, y.data, y.ld};      \
        return RUN(name, a, g.rows);                                                              \
    }
GATE(swiglu)
GATE(geglu)
GATE(clamped_swiglu)

static PyObject *
op_hadamard(PyObject *self, PyObject *args)
{
    (void)self;
    oct_isa isa;
    view x, y;
    int heads, d, block, signs, inverse;
    Py_ssize_t lo = 0, hi = -1;
    if (!PyArg_ParseTuple(args, "O&O&iiippO&|nn", oct_probe_isa, &isa, f32, &x, &heads, &d, &block,
                          &signs, &inverse, f32, &y, &lo, &hi))
        return NULL;
    const oct_hadamard_args a = {x.data, x.ld, heads, d, block, signs, inverse, y.data, y.ld};
    return RUN(hadamard, a, x.rows);
}

static PyObject *
op_cast(PyObject *self, PyObject *args)
{
    (void)self;
    oct_isa isa;
    view x, y, bad;
    PyObject *out;
    const char *type;
    Py_ssize_t lo = 0, hi = -1;
    if (!PyArg_ParseTuple(args, "O&O&sOO&|nn", oct_probe_isa, &isa, f32, &x, &type, &out, i32,
                          &bad, &lo, &hi))
        return NULL;
    const oct_dtype to = !strcmp(type, "f32") ? OCT_F32 : !strcmp(type, "f16") ? OCT_F16 : OCT_BF16;
    if (!(to == OCT_F32 ? f32 : u16)(out, &y)) return NULL;
    const oct_cast_args a = {x.data, x.ld, (int)x.cols, to, y.data, y.ld, bad.data};
    return RUN(cast, a, x.rows);
}

static PyObject *
op_scores_f32(PyObject *self, PyObject *args)
{
    (void)self;
    oct_isa isa;
    view q, kt, scale, visible, s;
    Py_ssize_t lo = 0, hi = -1;
    int add = 0;
    if (!PyArg_ParseTuple(args, "O&O&O&O&O&O&|nnp", oct_probe_isa, &isa, f32, &q, f32, &kt, f32,
                          &scale, i32, &visible, f32, &s, &lo, &hi, &add))
        return NULL;
    const oct_scores_f32_args a = {
        q.data, q.ld, (int)q.rows, (int)q.cols, kt.data, scale.data, visible.data, s.data, s.ld, add,
    };
    return RUN(scores_f32, a, q.rows);
}

static PyObject *
op_mix_f32(PyObject *self, PyObject *args)
{
    (void)self;
    oct_isa isa;
    view p, v, scale, visible, o;
    Py_ssize_t lo = 0, hi = -1;
    if (!PyArg_ParseTuple(args, "O&O&O&O&O&O&|nn", oct_probe_isa, &isa, f32, &p, f32, &v, f32,
                          &scale, i32, &visible, f32, &o, &lo, &hi))
        return NULL;
    const oct_mix_f32_args a = {
        p.data, p.ld, (int)p.rows, (int)v.cols, v.data, scale.data, visible.data, o.data, o.ld,
    };
    return RUN(mix_f32, a, p.rows);
}

static PyObject *
op_softmax(PyObject *self, PyObject *args)
{
    (void)self;
    oct_isa isa;
    view s, max, sum;
    Py_ssize_t lo = 0, hi = -1;
    if (!PyArg_ParseTuple(args, "O&O&O&O&|nn", oct_probe_isa, &isa, f32, &s, f32, &max, f32, &sum,
                          &lo, &hi))
        return NULL;
    const oct_softmax_args a = {s.data, s.ld, (int)s.cols, max.data, sum.data, {0}};
    return RUN(softmax, a, s.rows);
}

static PyObject *
op_merge(PyObject *self, PyObject *args)
{
    (void)self;
    oct_isa isa;
    view o, m, l, o2, m2, l2;
    Py_ssize_t lo = 0, hi = -1;
    if (!PyArg_ParseTuple(args, "O&O&O&O&O&O&O&|nn", oct_probe_isa, &isa, f32, &o, f32, &m, f32, &l,
                          f32, &o2, f32, &m2, f32, &l2, &lo, &hi))
        return NULL;
    const oct_merge_args a = {
        o.data, m.data, l.data, o.ld, o2.data, m2.data, l2.data, o2.ld, (int)o.cols,
    };
    return RUN(merge, a, o.rows);
}

static PyObject *
op_argmax(PyObject *self, PyObject *args)
{
    (void)self;
    oct_isa isa;
    view x, index;
    Py_ssize_t lo = 0, hi = -1;
    if (!PyArg_ParseTuple(args, "O&O&O&|nn", oct_probe_isa, &isa, f32, &x, i32, &index, &lo, &hi))
        return NULL;
    const oct_argmax_args a = {x.data, x.ld, (int)x.cols, index.data};
    return RUN(argmax, a, x.rows);
}

/* kind is the index in oct_roof_kind; work and check hold a number for each row of data. */
static PyObject *
op_roof(PyObject *self, PyObject *args)
{
    (void)self;
    oct_isa isa;
    int kind;
    unsigned steps;
    view data, work, check;
    Py_ssize_t lo = 0, hi = -1;
    if (!PyArg_ParseTuple(args, "O&iIO&O&O&|nn", oct_probe_isa, &isa, &kind, &steps, u8, &data, i64,
                          &work, i32, &check, &lo, &hi))
        return NULL;
    const oct_roof_args a = {
        (oct_roof_kind)kind, steps, data.data, data.ld, work.data, check.data,
    };
    return RUN(roof, a, data.rows);
}

static PyObject *
op_lse(PyObject *self, PyObject *args)
{
    (void)self;
    oct_isa isa;
    view x, lse;
    Py_ssize_t lo = 0, hi = -1;
    if (!PyArg_ParseTuple(args, "O&O&O&|nn", oct_probe_isa, &isa, f32, &x, f32, &lse, &lo, &hi))
        return NULL;
    const oct_lse_args a = {x.data, x.ld, (int)x.cols, lse.data};
    return RUN(lse, a, x.rows);
}

static PyObject *
op_topk(PyObject *self, PyObject *args)
{
    (void)self;
    oct_isa isa;
    view x, index, value;
    Py_ssize_t lo = 0, hi = -1;
    if (!PyArg_ParseTuple(args, "O&O&O&O&|nn", oct_probe_isa, &isa, f32, &x, i32, &index, f32,
                          &value, &lo, &hi))
        return NULL;
    const oct_topk_args a = {
        x.data, x.ld, (int)x.cols, (int)index.cols, index.data, value.data,
    };
    return RUN(topk, a, x.rows);
}

static PyObject *
op_kl(PyObject *self, PyObject *args)
{
    (void)self;
    oct_isa isa;
    view base, other, kl;
    Py_ssize_t lo = 0, hi = -1;
    if (!PyArg_ParseTuple(args, "O&O&O&O&|nn", oct_probe_isa, &isa, f32, &base, f32, &other, f64,
                          &kl, &lo, &hi))
        return NULL;
    const oct_kl_args a = {base.data, other.data, base.ld, (int)base.cols, kl.data};
    return RUN(kl, a, base.rows);
}

static PyObject *
op_sample(PyObject *self, PyObject *args)
{
    (void)self;
    oct_isa isa;
    view x, u, token, work;
    float temperature, top_p, min_p;
    int top_k;
    Py_ssize_t lo = 0, hi = -1;
    if (!PyArg_ParseTuple(args, "O&O&fiffO&O&O&|nn", oct_probe_isa, &isa, f32, &x, &temperature,
                          &top_k, &top_p, &min_p, f64, &u, i32, &token, u8, &work, &lo, &hi))
        return NULL;
    const oct_sample_args a = {
        x.data, x.ld, (int)x.cols, temperature, top_p, min_p, top_k, u.data, token.data, work.data,
    };
    return RUN(sample, a, x.rows);
}

static uint32_t
convert(const char *name, uint32_t u)
{
    if (!strcmp(name, "bf16_to_f32")) return oct_bits(oct_bf16_to_f32((uint16_t)u));
    if (!strcmp(name, "f32_to_bf16")) return oct_f32_to_bf16(oct_float(u));
    if (!strcmp(name, "bf16_up")) return oct_bf16_up(oct_float(u));
    if (!strcmp(name, "f16_to_f32")) return oct_bits(oct_f16_to_f32((uint16_t)u));
    if (!strcmp(name, "f32_to_f16")) return oct_f32_to_f16(oct_float(u));
    if (!strcmp(name, "e4m3_to_f32")) return oct_bits(oct_e4m3_to_f32((uint8_t)u));
    if (!strcmp(name, "f32_to_e4m3")) return oct_f32_to_e4m3(oct_float(u));
    return oct_bits(oct_exp(oct_float(u)));
}

static PyObject *
num(PyObject *self, PyObject *args)
{
    (void)self;
    const char *name;
    PyArrayObject *in, *out;
    if (!PyArg_ParseTuple(args, "sO!", &name, &PyArray_Type, &in)) return NULL;
    if (PyArray_TYPE(in) != NPY_UINT32 || !PyArray_IS_C_CONTIGUOUS(in)) {
        PyErr_SetString(PyExc_TypeError, "expected a contiguous array of uint32");
        return NULL;
    }
    out = (PyArrayObject *)PyArray_NewLikeArray(in, NPY_CORDER, NULL, 0);
    if (!out) return NULL;
    const uint32_t *from = PyArray_DATA(in);
    uint32_t *to = PyArray_DATA(out);
    for (npy_intp i = 0; i < PyArray_SIZE(in); i++) to[i] = convert(name, from[i]);
    return (PyObject *)out;
}

static PyObject *
real64(PyObject *self, PyObject *args)
{
    (void)self;
    const char *name;
    double x;
    if (!PyArg_ParseTuple(args, "sd", &name, &x)) return NULL;
    return PyFloat_FromDouble(!strcmp(name, "exp") ? oct_exp64(x) : oct_log64(x));
}

PyMethodDef oct_probe_op_methods[] = {
    {"op_rmsnorm", op_rmsnorm, METH_VARARGS, "op_rmsnorm(isa, x, k, heads, w, eps, y)"},
    {"op_rope", op_rope, METH_VARARGS, "op_rope(isa, x, heads, d, half_split, cs)"},
    {"op_rope_table", op_rope_table, METH_VARARGS, "op_rope_table(isa, pos, freq, mscale, cs)"},
    {"op_swiglu", op_swiglu, METH_VARARGS, "op_swiglu(isa, g, u, y)"},
    {"op_geglu", op_geglu, METH_VARARGS, "op_geglu(isa, g, u, y)"},
    {"op_clamped_swiglu", op_clamped_swiglu, METH_VARARGS, "op_clamped_swiglu(isa, g, u, y)"},
    {"op_hadamard", op_hadamard, METH_VARARGS,
     "op_hadamard(isa, x, heads, d, block, signs, inverse, y)"},
    {"op_cast", op_cast, METH_VARARGS, "op_cast(isa, x, 'f32' | 'f16' | 'bf16', y, bad)"},
    {"op_scores_f32", op_scores_f32, METH_VARARGS,
     "op_scores_f32(isa, q, kt, scale or None, visible, s)"},
    {"op_mix_f32", op_mix_f32, METH_VARARGS, "op_mix_f32(isa, p, v, scale or None, visible, o)"},
    {"op_softmax", op_softmax, METH_VARARGS, "op_softmax(isa, s, max, sum)"},
    {"op_merge", op_merge, METH_VARARGS, "op_merge(isa, o, m, l, o2, m2, l2)"},
    {"op_argmax", op_argmax, METH_VARARGS, "op_argmax(isa, x, index)"},
    {"op_roof", op_roof, METH_VARARGS, "op_roof(isa, kind, steps, data, work, check)"},
    {"op_lse", op_lse, METH_VARARGS, "op_lse(isa, x, lse)"},
    {"op_topk", op_topk, METH_VARARGS, "op_topk(isa, x, index, value)"},
    {"op_kl", op_kl, METH_VARARGS, "op_kl(isa, base, other, kl)"},
    {"op_sample", op_sample, METH_VARARGS,
     "op_sample(isa, x, temperature, top_k, top_p, min_p, u, token, work)"},
    {"num", num, METH_VARARGS, "num(name, bits) -> bits, by the functions of num.h"},
    {"real64", real64, METH_VARARGS, "real64('exp' | 'log', x)"},
    {NULL, NULL, 0, NULL},
};
