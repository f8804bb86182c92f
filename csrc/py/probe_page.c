/* probe_page.c: every slot of every page format, column by column, over buffers.
 *
 * Thin on purpose: the caller (tests/kernels/page_oracle.py) owns shapes, alignment and poison. The
 * lane is filled with NaN before each call, so that a kernel that trusts its contents shows. */
#include "csrc/py/probe.h"

static _Alignas(64) char lane[OCT_LANE_BYTES];

static void *
fresh_lane(void)
{
    return memset(lane, 0xFF, sizeof lane);
}

static int
page_id(PyObject *arg, void *out)
{
    const char *name = PyUnicode_AsUTF8(arg);
    if (!name) return 0;
    for (int i = 0; i < OCT_PAGE_COUNT; i++)
        if (!strcmp(name, oct_page_traits_of[i].name)) {
            *(oct_page_id *)out = (oct_page_id)i;
            return 1;
        }
    PyErr_Format(PyExc_ValueError, "format: unknown page format '%s'", name);
    return 0;
}

static int
role_of(PyObject *arg, void *out)
{
    const char *name = PyUnicode_AsUTF8(arg);
    if (!name) return 0;
    *(oct_role *)out = name[0] == 'v' ? OCT_ROLE_V : OCT_ROLE_K;
    return 1;
}

/* A buffer's address; None is NULL. Views stay valid while the caller holds the arrays. */
static int
address(PyObject *arg, void *out)
{
    Py_buffer view;
    *(void **)out = NULL;
    if (arg == Py_None) return 1;
    if (PyObject_GetBuffer(arg, &view, PyBUF_SIMPLE) < 0) return 0;
    *(void **)out = view.buf;
    PyBuffer_Release(&view);
    return 1;
}

static PyObject *
page_formats(PyObject *self, PyObject *none)
{
    (void)self, (void)none;
    PyObject *list = PyList_New(0);
    for (int i = 0; list && i < OCT_PAGE_COUNT; i++) {
        const oct_page_traits *t = &oct_page_traits_of[i];
        PyObject *row = Py_BuildValue("(sis)", t->name, (int)t->rows, oct_form_names[t->form]);
        if (!row || PyList_Append(list, row) < 0) Py_CLEAR(list);
        Py_XDECREF(row);
    }
    return list;
}

static PyObject *
page_columns(PyObject *self, PyObject *args)
{
    (void)self;
    oct_page_id id;
    oct_isa isa;
    if (!PyArg_ParseTuple(args, "O&O&", page_id, &id, oct_probe_isa, &isa)) return NULL;
    const oct_kernels *k = oct_probe_table(isa);
    PyObject *dict = Py_BuildValue("{s:s,s:s,s:s}", "seal", oct_isa_names[k->seal_isa[id]], "decode",
                                   oct_isa_names[k->decode_isa[id]], "turn",
                                   oct_isa_names[k->turn_isa[id]]);
    for (int f = 0; dict && f < OCT_FORM_COUNT; f++) {
        if (!k->page[id].scores[f]) continue;
        PyObject *pair = Py_BuildValue("(ss)", oct_isa_names[k->scores_isa[id][f]],
                                       oct_isa_names[k->mix_isa[id][f]]);
        if (!pair || PyDict_SetItemString(dict, oct_form_names[f], pair) < 0) Py_CLEAR(dict);
        Py_XDECREF(pair);
    }
    return dict;
}

static PyObject *
int_list(const int *values, int n)
{
    PyObject *list = PyList_New(n);
    for (int i = 0; list && i < n; i++) PyList_SET_ITEM(list, i, PyLong_FromLong(values[i]));
    return list;
}

static PyObject *
part_dict(const oct_part *p)
{
    return Py_BuildValue("{s:s,s:i,s:n,s:N,s:i,s:i,s:N,s:(ii),s:i}", "name", p->name, "dtype",
                         (int)p->dtype, "offset", (Py_ssize_t)p->offset, "shape",
                         int_list(p->shape, p->ndim), "split", p->split, "split_axis",
                         p->split_axis, "axes", int_list(p->axes, p->ndim + (p->split > 1)),
                         "logical", p->rows, p->cols, "bias", p->bias);
}

static PyObject *
page_layout(PyObject *self, PyObject *args)
{
    (void)self;
    oct_page_id id;
    oct_isa isa;
    oct_role role;
    int d;
    if (!PyArg_ParseTuple(args, "O&O&iO&", page_id, &id, oct_probe_isa, &isa, &d, role_of, &role))
        return NULL;
    oct_page_layout out;
    if (oct_probe_table(isa)->page[id].layout(d, role, &out)) Py_RETURN_NONE;
    PyObject *parts = PyList_New(0);
    for (int i = 0; parts && i < out.parts; i++) {
        PyObject *part = part_dict(&out.part[i]);
        if (!part || PyList_Append(parts, part) < 0) Py_CLEAR(parts);
        Py_XDECREF(part);
    }
    if (!parts) return NULL;
    return Py_BuildValue("{s:n,s:i,s:N}", "bytes", (Py_ssize_t)out.bytes, "group", out.group,
                         "parts", parts);
}

static PyObject *
page_seal(PyObject *self, PyObject *args)
{
    (void)self;
    oct_page_id id;
    oct_isa isa;
    int token = -1, channel = -1;
    oct_seal_args a = {.bad_token = &token, .bad_channel = &channel};
    void *x;
    Py_ssize_t ldx;
    if (!PyArg_ParseTuple(args, "O&O&O&niO&O&", page_id, &id, oct_probe_isa, &isa, address, &x,
                          &ldx, &a.d, role_of, &a.role, address, &a.block))
        return NULL;
    a.x = x;
    a.ldx = (size_t)ldx;
    const int status = (int)oct_probe_table(isa)->page[id].seal(&a);
    return Py_BuildValue("(iii)", status, token, channel);
}

static PyObject *
page_decode(PyObject *self, PyObject *args)
{
    (void)self;
    oct_page_id id;
    oct_isa isa;
    oct_decode_args a = {0};
    void *block, *out;
    Py_ssize_t stride;
    if (!PyArg_ParseTuple(args, "O&O&O&niiO&O&", page_id, &id, oct_probe_isa, &isa, address, &block,
                          &stride, &a.d, &a.tokens, role_of, &a.role, address, &out))
        return NULL;
    a.block = block;
    a.unit_stride = (size_t)stride;
    a.out = out;
    return PyLong_FromLong((long)oct_probe_table(isa)->page[id].decode(&a));
}

static PyObject *
page_turn(PyObject *self, PyObject *args)
{
    (void)self;
    oct_page_id id;
    oct_isa isa;
    oct_turn_args a = {0};
    void *block;
    Py_ssize_t stride;
    if (!PyArg_ParseTuple(args, "O&O&O&niiO&", page_id, &id, oct_probe_isa, &isa, address, &block,
                          &stride, &a.d, &a.tokens, address, &a.out))
        return NULL;
    a.self = &oct_probe_table(isa)->page[id];
    a.block = block;
    a.unit_stride = (size_t)stride;
    return PyLong_FromLong((long)a.self->turn(&a));
}

static int
form_of(PyObject *arg, void *out)
{
    const char *name = PyUnicode_AsUTF8(arg);
    if (!name) return 0;
    for (int i = 0; i < OCT_FORM_COUNT; i++)
        if (!strcmp(name, oct_form_names[i])) {
            *(oct_form *)out = (oct_form)i;
            return 1;
        }
    PyErr_Format(PyExc_ValueError, "form: unknown form '%s'", name);
    return 0;
}

static PyObject *
no_form(void)
{
    PyErr_SetString(PyExc_ValueError, "form: this page format does not compute in it");
    return NULL;
}

static PyObject *
page_scores(PyObject *self, PyObject *args)
{
    (void)self;
    oct_page_id id;
    oct_isa isa;
    oct_scores_args a = {0};
    oct_rows q = {0};
    void *block, *visible, *x, *hi, *lo, *scale, *sum, *s;
    Py_ssize_t stride, ldx, lds;
    int add = 0;
    if (!PyArg_ParseTuple(args, "O&O&O&O&niiO&O&nO&O&O&O&O&n|p", page_id, &id, oct_probe_isa, &isa,
                          form_of, &a.form, address, &block, &stride, &a.d, &a.nq, address,
                          &visible, address, &x, &ldx, address, &hi, address, &lo, address, &scale,
                          address, &sum, address, &s, &lds, &add))
        return NULL;
    const oct_kernels *k = oct_probe_table(isa);
    const oct_act acts[] = {OCT_A32, OCT_A8, OCT_A8X2};
    if (!k->page[id].scores[a.form]) return no_form();
    q = (oct_rows){
        .act = acts[a.form], .m = a.nq, .k = a.d,
        .kp = (a.d + OCT_GROUP - 1) / OCT_GROUP * OCT_GROUP, .x = x,
        .ldx = (size_t)ldx, .hi = hi, .lo = lo, .scale = scale, .sum = sum,
    };
    a.self = &k->page[id], a.ops = &k->op, a.block = block, a.unit_stride = (size_t)stride;
    a.q = &q, a.visible = visible, a.s = s, a.lds = (size_t)lds, a.add = add;
    return PyLong_FromLong((long)k->page[id].scores[a.form](&a, fresh_lane()));
}

static PyObject *
page_mix(PyObject *self, PyObject *args)
{
    (void)self;
    oct_page_id id;
    oct_isa isa;
    enum { MOST = 8 };
    oct_mix_args a = {0}, each[MOST];
    void *block, *visible, *p, *o;
    Py_ssize_t stride, ldp, ldo;
    int count = 1;
    if (!PyArg_ParseTuple(args, "O&O&O&O&niiO&O&nO&n|i", page_id, &id, oct_probe_isa, &isa, form_of,
                          &a.form, address, &block, &stride, &a.d, &a.nq, address, &visible,
                          address, &p, &ldp, address, &o, &ldo, &count))
        return NULL;
    const oct_kernels *k = oct_probe_table(isa);
    if (!k->page[id].mix[a.form]) return no_form();
    a.self = &k->page[id], a.ops = &k->op, a.block = block, a.unit_stride = (size_t)stride;
    a.visible = visible, a.p = p, a.ldp = (size_t)ldp, a.o = o, a.ldo = (size_t)ldo;
    if (count == 1) return PyLong_FromLong((long)k->page[id].mix[a.form](&a, fresh_lane()));
    if (!k->page[id].mix_pages || count > MOST) return no_form();
    for (int i = 0; i < count; i++) { /* blocks and probabilities lie side by side */
        each[i] = a;
        each[i].block = (char *)block + 4 * i * stride;
        each[i].p += OCT_PAGE_TOKENS * i;
        each[i].ahead = (oct_ahead){o, (char *)o + 4 * ldo};
    }
    return PyLong_FromLong((long)k->page[id].mix_pages(each, count, fresh_lane()));
}

PyMethodDef oct_probe_page_methods[] = {
    {"page_formats", page_formats, METH_NOARGS, "[(name, dtype of open rows, default form)]"},
    {"page_columns", page_columns, METH_VARARGS, "(format, isa) -> slots and who serves them"},
    {"page_layout", page_layout, METH_VARARGS, "(format, isa, d, role) -> dict or None"},
    {"page_seal", page_seal, METH_VARARGS,
     "(format, isa, x, ldx, d, role, block) -> (status, token, channel)"},
    {"page_decode", page_decode, METH_VARARGS,
     "(format, isa, block, unit_stride, d, tokens, role, out) -> status"},
    {"page_turn", page_turn, METH_VARARGS,
     "(format, isa, block, unit_stride, d, tokens, out) -> status"},
    {"page_scores", page_scores, METH_VARARGS,
     "(format, isa, form, block, unit_stride, d, nq, visible, x, ldx, hi, lo, scale, sum, s, lds)"},
    {"page_mix", page_mix, METH_VARARGS,
     "(format, isa, form, block, unit_stride, d, nq, visible, p, ldp, o, ldo, pages=1)"},
    {NULL, NULL, 0, NULL},
};
