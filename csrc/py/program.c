/* octavo._core.Program: a model's ops, read from mappings into octavo.h's descriptors. What the ops
 * mean and whether they fit together is the core's to judge; here they only become C structs. */
#include "csrc/py/args.h"
#include "csrc/py/core.h"

#include <assert.h>

static const char *const kinds[OCT_OP_KIND_COUNT] = {
    [OCT_OP_EMBED] = "embed",           [OCT_OP_NORM] = "norm",
    [OCT_OP_NORM_LINEAR] = "norm_linear", [OCT_OP_ATTEND] = "attend",
    [OCT_OP_HEAD_LINEAR] = "head_linear", [OCT_OP_LINEAR_ADD] = "linear_add",
    [OCT_OP_GATED_MLP] = "gated_mlp",   [OCT_OP_MOE] = "moe",
    [OCT_OP_HEAD] = "head",
};
enum { CHOICES = 3 }; /* of each of these */
static const char *const scores[CHOICES] = {"sigmoid", "softmax", "top"};
static const char *const activations[CHOICES] = {"silu", "gelu_tanh", "clamped_silu"};
static_assert((int)OCT_ROUTER_SCORE_COUNT == CHOICES && (int)OCT_ACTIVATION_COUNT == CHOICES,
              "a name for each");

/* The parts of a description while it is read; `keep` owns what the pointers point into. */
typedef struct {
    oct_program_desc desc;
    int *widths;
    oct_op_desc *ops;
    oct_rope_desc *ropes;
    PyObject *keep;
} draft;

static void
draft_free(draft *d)
{
    PyMem_Free(d->widths);
    PyMem_Free(d->ops);
    PyMem_Free(d->ropes);
    Py_CLEAR(d->keep);
}

/* A snapshot of a sequence and zeroed room for its C form. */
static PyObject *
snapshot(PyObject *sequence, const char *where, size_t item_bytes, void **room)
{
    PyObject *list = PyUnicode_Check(sequence) ? NULL : PySequence_Tuple(sequence);
    if (!list) {
        if (!PyErr_Occurred() || PyErr_ExceptionMatches(PyExc_TypeError))
            PyErr_Format(PyExc_TypeError, "%s must be a sequence, got %s", where,
                         Py_TYPE(sequence)->tp_name);
        return NULL;
    }
    const Py_ssize_t n = PyTuple_GET_SIZE(list);
    if (n <= INT32_MAX) {
        *room = PyMem_Calloc((size_t)(n ? n : 1), item_bytes);
        if (*room) return list;
    }
    Py_DECREF(list);
    PyErr_NoMemory();
    return NULL;
}

static bool
read_widths(draft *d, PyObject *widths)
{
    PyObject *list = snapshot(widths, "Program: widths", sizeof *d->widths, (void **)&d->widths);
    if (!list) return false;
    bool good = true;
    d->desc.n_buffers = (int)PyTuple_GET_SIZE(list);
    for (int i = 0; good && i < d->desc.n_buffers; i++)
        good = oct_arg_int(PyTuple_GET_ITEM(list, i), "Program: widths", 1, INT32_MAX,
                           &d->widths[i]);
    Py_DECREF(list);
    return good;
}

static void
read_kind(oct_fields *f, oct_op_kind *out)
{
    const char *name = NULL;
    if (!oct_field(f, "kind", true)) return;
    f->used--; /* asked for twice: once that it is there, once for its text */
    oct_field_text(f, "kind", &name);
    if (f->failed) return;
    for (int i = 0; name && i < OCT_OP_KIND_COUNT; i++)
        if (!strcmp(name, kinds[i])) {
            *out = (oct_op_kind)i;
            return;
        }
    PyErr_Format(PyExc_ValueError, "%s[%zd].kind is not an op: '%s'", f->where, f->index,
                 name ? name : "None");
    f->failed = true;
}

/* A private copy of a checked array, owned by `keep`: code of strangers runs before the core reads
 * it, and could resize the original. */
static const void *
kept_copy(PyObject *keep, PyArrayObject *array)
{
    PyObject *copy = PyArray_NewCopy(array, NPY_CORDER);
    if (!copy) return NULL;
    const int rc = PyList_Append(keep, copy);
    Py_DECREF(copy);
    return rc < 0 ? NULL : PyArray_DATA((PyArrayObject *)copy);
}

/* An int32 array [rows][columns] of ids that the core reads; NULL: failed, or absent. */
static const int *
read_table(oct_fields *f, const char *name, bool required, PyObject *keep, const char *what, int rows,
           int columns)
{
    char path[96];
    const npy_intp any[2] = {-1, columns};
    const int *out = NULL;
    PyObject *w = oct_field(f, name, required);
    if (f->failed || !w) return NULL;
    PyArrayObject *a = oct_arg_array(w, oct_field_path(f, name, path, sizeof path), NPY_INT32, 2, any);
    if (a && PyArray_DIM(a, 0) != rows)
        PyErr_Format(PyExc_ValueError, "%s[%zd].%s has %zd rows, must be %s = %d", f->where, f->index,
                     name, (Py_ssize_t)PyArray_DIM(a, 0), what, rows);
    else if (a)
        out = kept_copy(keep, a);
    f->failed = !out;
    return out;
}

/* The index of a name, 0 where there is none. */
static int
read_choice(oct_fields *f, const char *name, const char *const names[CHOICES])
{
    const char *text = names[0];
    oct_field_text(f, name, &text);
    if (f->failed) return 0;
    for (int i = 0; text && i < CHOICES; i++)
        if (!strcmp(text, names[i])) return i;
    PyErr_Format(PyExc_ValueError, "%s[%zd].%s is '%s', legal are %s, %s, %s", f->where, f->index, name,
                 text ? text : "None", names[0], names[1], names[2]);
    f->failed = true;
    return 0;
}

static void
read_moe(oct_fields *f, oct_moe_desc *moe)
{
    oct_field_int(f, "experts", &moe->experts);
    oct_field_int(f, "top", &moe->top);
    oct_field_int(f, "groups", &moe->groups);
    oct_field_int(f, "groups_kept", &moe->groups_kept);
    oct_field_bool(f, "outside_zero", &moe->outside_zero);
    oct_field_bool(f, "renorm", &moe->renorm);
    moe->score = (oct_router_score)read_choice(f, "score", scores);
}

static bool
read_op(PyObject *mapping, Py_ssize_t index, PyObject *keep, oct_op_desc *op)
{
    *op = (oct_op_desc){.in = -1, .in2 = -1, .in3 = -1, .out = {-1, -1, -1}, .w = {-1, -1, -1},
                        .bias = {-1, -1, -1}, .norm = -1, .out_norm = -1, .layer = -1, .rope = -1,
                        .q_norm = -1, .k_norm = -1, .sinks = -1, .moe = {.groups = 1, .groups_kept = 1}};
    oct_fields f = oct_fields_open(mapping, "Program: ops", index, keep);
    int ignored = 0;
    read_kind(&f, &op->kind);
    if (op->kind == OCT_OP_MOE) op->scale = 1.0f;
    oct_field_int(&f, "in", &op->in);
    oct_field_int(&f, "in2", &op->in2);
    oct_field_int(&f, "in3", &op->in3);
    oct_field_ids(&f, "out", op->out, &op->n_out);
    oct_field_ids(&f, "w", op->w, &ignored);
    oct_field_ids(&f, "bias", op->bias, &ignored);
    int n_out = op->n_out;
    oct_field_int(&f, "n_out", &n_out);
    oct_field_int(&f, "norm", &op->norm);
    oct_field_int(&f, "out_norm", &op->out_norm);
    oct_field_float(&f, "eps", &op->eps);
    oct_field_float(&f, "scale", &op->scale);
    oct_field_int(&f, "layer", &op->layer);
    oct_field_int(&f, "heads", &op->heads);
    oct_field_int(&f, "rope", &op->rope);
    oct_field_int(&f, "q_norm", &op->q_norm);
    oct_field_int(&f, "k_norm", &op->k_norm);
    oct_field_int(&f, "window", &op->window);
    oct_field_int(&f, "sinks", &op->sinks);
    op->activation = (oct_activation)read_choice(&f, "activation", activations);
    if (!f.failed && op->kind == OCT_OP_MOE) {
        read_moe(&f, &op->moe);
        const int n = op->moe.experts;
        op->matrices = read_table(&f, "matrices", true, keep, "experts", n, 3);
        op->biases = read_table(&f, "biases", false, keep, "experts", n, 3);
    }
    if (!f.failed && op->kind == OCT_OP_HEAD_LINEAR)
        op->matrices = read_table(&f, "matrices", true, keep, "heads", op->heads, 1);
    if (!f.failed && n_out != op->n_out) {
        PyErr_Format(PyExc_ValueError, "Program: ops[%zd].n_out is %d but out has %d entries",
                     index, n_out, op->n_out);
        f.failed = true;
    }
    return oct_fields_done(&f);
}

static bool
read_rope(PyObject *mapping, Py_ssize_t index, PyObject *keep, oct_rope_desc *rope)
{
    char path[96];
    static const npy_intp any[1] = {-1};
    *rope = (oct_rope_desc){.mscale = 1.0f};
    oct_fields f = oct_fields_open(mapping, "Program: ropes", index, keep);
    oct_field_int(&f, "dim", &rope->dim);
    oct_field_float(&f, "mscale", &rope->mscale);
    oct_field_bool(&f, "half_split", &rope->half_split);
    PyObject *freq = oct_field(&f, "freq", true);
    if (!freq) return false;
    PyArrayObject *a = oct_arg_array(freq, oct_field_path(&f, "freq", path, sizeof path),
                                     NPY_FLOAT64, 1, any);
    if (!a) return false;
    /* The core reads dim / 2 of them. */
    if (rope->dim < 2 || rope->dim % 2 || PyArray_SIZE(a) != rope->dim / 2) {
        PyErr_Format(PyExc_ValueError,
                     "Program: ropes[%zd].dim is %d and freq has %zd entries; dim must be even and "
                     "freq have dim / 2",
                     index, rope->dim, (Py_ssize_t)PyArray_SIZE(a));
        return false;
    }
    rope->freq = kept_copy(keep, a);
    return rope->freq && oct_fields_done(&f);
}

static bool
read_lists(draft *d, PyObject *ops, PyObject *ropes)
{
    PyObject *list = snapshot(ops, "Program: ops", sizeof *d->ops, (void **)&d->ops);
    bool good = list != NULL;
    d->desc.n_ops = good ? (int)PyTuple_GET_SIZE(list) : 0;
    for (int i = 0; good && i < d->desc.n_ops; i++)
        good = read_op(PyTuple_GET_ITEM(list, i), i, d->keep, &d->ops[i]);
    Py_XDECREF(list);
    if (!good) return false;
    list = snapshot(ropes, "Program: ropes", sizeof *d->ropes, (void **)&d->ropes);
    good = list != NULL;
    d->desc.n_ropes = good ? (int)PyTuple_GET_SIZE(list) : 0;
    for (int i = 0; good && i < d->desc.n_ropes; i++)
        good = read_rope(PyTuple_GET_ITEM(list, i), i, d->keep, &d->ropes[i]);
    Py_XDECREF(list);
    return good;
}

/* Opens under the gates of weights and runtime; self is complete or unchanged. */
static bool
open_program(oct_py_program *self, oct_py_weights *weights, draft *d)
{
    const oct_state *state = oct_state_of(self);
    if (!oct_gate_enter(&weights->gate, state, "Program: weights")) return false;
    oct_status status = OCT_OK;
    bool entered = oct_gate_enter(&weights->runtime->gate, state, "Program: runtime");
    if (entered) {
        status = oct_program_open(&self->handle, weights->handle, &d->desc);
        if (!status) oct_runtime_retain(weights->runtime);
        oct_gate_leave(&weights->runtime->gate);
    }
    oct_gate_leave(&weights->gate);
    if (status) oct_raise(state, status);
    if (!entered || status) return false;
    self->weights = (oct_py_weights *)Py_NewRef((PyObject *)weights);
    self->n_buffers = d->desc.n_buffers;
    self->n_ops = d->desc.n_ops;
    self->max_rows = d->desc.max_rows;
    self->widths = d->widths;
    d->widths = NULL;
    return true;
}

static PyObject *
program_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"weights", "widths", "ops", "ropes", "act", "max_rows", NULL};
    const oct_state *state = PyType_GetModuleState(type);
    PyObject *weights, *widths = NULL, *ops = NULL, *ropes = NULL, *act = NULL, *max_rows = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$OOOOO:Program", names, &weights, &widths,
                                     &ops, &ropes, &act, &max_rows))
        return NULL;
    if (!widths || !ops || !ropes) {
        PyErr_Format(PyExc_TypeError, "Program() missing required keyword-only argument: '%s'",
                     !widths ? "widths" : !ops ? "ops" : "ropes");
        return NULL;
    }
    draft d = {.desc = {.act = "a8x2", .max_rows = 512}};
    if (!oct_arg_type(weights, "Program: weights", state->weights) ||
        !oct_arg_text(act, "Program: act", false, &d.desc.act) ||
        !oct_arg_int(max_rows, "Program: max_rows", 1, INT32_MAX, &d.desc.max_rows))
        return NULL;
    oct_py_program *self = NULL;
    d.keep = PyList_New(0);
    if (d.keep && read_widths(&d, widths) && read_lists(&d, ops, ropes)) {
        d.desc.widths = d.widths;
        d.desc.ops = d.ops;
        d.desc.ropes = d.ropes;
        self = (oct_py_program *)type->tp_alloc(type, 0);
        if (self && !open_program(self, (oct_py_weights *)weights, &d)) Py_CLEAR(self);
    }
    draft_free(&d);
    return (PyObject *)self;
}

static int
program_traverse(oct_py_program *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->weights);
    return 0;
}

static void
release(oct_py_program *self)
{
    if (!self->handle) return;
    oct_program_close(&self->handle);
    oct_runtime_release(self->weights->runtime);
}

static void
program_dealloc(oct_py_program *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    release(self);
    PyMem_Free(self->widths);
    Py_XDECREF(self->weights);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *
program_close(oct_py_program *self, PyObject *ignored)
{
    (void)ignored;
    if (oct_gate_closed(&self->gate)) Py_RETURN_NONE;
    if (!oct_gate_alone(&self->gate, oct_state_of(self), "Program.close")) return NULL;
    release(self);
    oct_gate_shut(&self->gate);
    Py_RETURN_NONE;
}

static PyObject *
program_get_vocab(oct_py_program *self, void *ignored)
{
    (void)ignored;
    if (!oct_gate_enter(&self->gate, oct_state_of(self), "Program.vocab")) return NULL;
    const int vocab = oct_program_vocab(self->handle);
    oct_gate_leave(&self->gate);
    return PyLong_FromLong(vocab);
}

PyDoc_STRVAR(program_doc,
"Program(weights, *, widths, ops, ropes, act='a8x2', max_rows=512)\n--\n\n"
"A model as a flat list of ops over float32 row buffers.\n\n"
"ops are mappings with the fields of octavo.h's oct_op_desc (kind by name: 'embed', 'norm',\n"
"'norm_linear', 'attend', 'head_linear', 'linear_add', 'gated_mlp', 'moe', 'head'); absent fields\n"
"take -1 or 0; out, w and bias are an int or a sequence of at most 3; activation is 'silu' (where\n"
"absent), 'gelu_tanh' or 'clamped_silu'. A moe has those of oct_moe_desc too (absent: score\n"
"'sigmoid', groups 1, scale 1); matrices, and biases (vectors; -1: none), are int32 [experts, 3] of\n"
"a moe; matrices [heads, 1] of a head_linear. ropes are mappings {freq: float64 array, dim, mscale,\n"
"half_split}. An unknown field is a ValueError.");
PyDoc_STRVAR(close_doc,
"close($self)\n--\n\nFree the program. BusyError while a step runs it.");

static PyMethodDef program_methods[] = {
    {"close", (PyCFunction)program_close, METH_NOARGS, close_doc},
    OCT_NO_PICKLE,
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef program_getset[] = {
    {"vocab", (getter)program_get_vocab, NULL, "Width of the logits.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot program_slots[] = {
    {Py_tp_doc, (void *)program_doc},
    {Py_tp_new, program_new},
    {Py_tp_traverse, program_traverse},
    {Py_tp_dealloc, program_dealloc},
    {Py_tp_methods, program_methods},
    {Py_tp_getset, program_getset},
    {0, NULL},
};

PyType_Spec oct_program_spec = {
    .name = "octavo._core.Program",
    .basicsize = sizeof(oct_py_program),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = program_slots,
};
