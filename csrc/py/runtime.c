/* octavo._core.Runtime: the kernels of one ISA level and a pool of threads, with the reductions on
 * the host's arrays (kl, lse, argmax, topk, sample). Weights, Programs and Caches stand on it. */
#include "csrc/py/args.h"
#include "csrc/py/core.h"
#include "csrc/py/gil.h"

bool
oct_runtime_enter(oct_py_runtime *runtime, const oct_state *state, const char *where)
{
    if (!oct_gil_polling()) return oct_gate_enter(&runtime->gate, state, where);
    PyErr_Format(state->busy, "%s: called by a signal handler inside a running step", where);
    return false;
}

void
oct_runtime_retain(oct_py_runtime *runtime)
{
    atomic_fetch_add(&runtime->dependents, 1);
}

void
oct_runtime_release(oct_py_runtime *runtime)
{
    atomic_fetch_sub(&runtime->dependents, 1);
}

static PyObject *
runtime_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"threads", "isa", NULL};
    PyObject *threads = NULL, *isa = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|OO:Runtime", names, &threads, &isa))
        return NULL;
    int count = 0;
    const char *level = NULL;
    if (!oct_arg_int(threads, "Runtime: threads", 0, INT32_MAX, &count) ||
        !oct_arg_text(isa, "Runtime: isa", true, &level))
        return NULL;
    oct_py_runtime *self = (oct_py_runtime *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    const oct_status status = oct_runtime_open(&self->handle, count, level);
    if (!status) return (PyObject *)self;
    oct_raise(oct_state_of(self), status);
    Py_DECREF(self);
    return NULL;
}

static int
runtime_traverse(oct_py_runtime *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static void
runtime_dealloc(oct_py_runtime *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    oct_runtime_close(&self->handle);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *
runtime_close(oct_py_runtime *self, PyObject *ignored)
{
    (void)ignored;
    const oct_state *state = oct_state_of(self);
    if (oct_gate_closed(&self->gate)) Py_RETURN_NONE;
    if (!oct_gate_alone(&self->gate, state, "Runtime.close")) return NULL;
    const int dependents = atomic_load(&self->dependents);
    if (dependents) {
        oct_gate_reopen(&self->gate);
        return PyErr_Format(state->busy,
                            "Runtime.close: %d open weights, programs or caches stand on it; close "
                            "them first",
                            dependents);
    }
    oct_runtime_close(&self->handle);
    oct_gate_shut(&self->gate);
    Py_RETURN_NONE;
}

/* ---- Properties ------------------------------------------------------------------------------ */

static PyObject *
runtime_get_threads(oct_py_runtime *self, void *ignored)
{
    (void)ignored;
    if (!oct_gate_enter(&self->gate, oct_state_of(self), "Runtime.threads")) return NULL;
    const int threads = oct_runtime_threads(self->handle);
    oct_gate_leave(&self->gate);
    return PyLong_FromLong(threads);
}

static int
runtime_set_threads(oct_py_runtime *self, PyObject *value, void *ignored)
{
    (void)ignored;
    const oct_state *state = oct_state_of(self);
    if (!value) {
        PyErr_SetString(PyExc_AttributeError, "Runtime.threads cannot be deleted");
        return -1;
    }
    int threads = 0;
    if (!oct_arg_int(value, "Runtime.threads", 0, INT32_MAX, &threads)) return -1;
    if (!oct_gate_alone(&self->gate, state, "Runtime.threads")) return -1;
    const oct_status status = oct_runtime_set_threads(self->handle, threads);
    oct_gate_reopen(&self->gate);
    if (status) oct_raise(state, status);
    return status ? -1 : 0;
}

static PyObject *
runtime_get_name(oct_py_runtime *self, void *of)
{
    const bool cpu = of != NULL;
    if (!oct_gate_enter(&self->gate, oct_state_of(self), cpu ? "Runtime.cpu" : "Runtime.isa"))
        return NULL;
    PyObject *name =
        PyUnicode_FromString(cpu ? oct_runtime_cpu(self->handle) : oct_runtime_isa(self->handle));
    oct_gate_leave(&self->gate);
    return name;
}

static PyObject *
runtime_kernels(oct_py_runtime *self, PyObject *ignored)
{
    (void)ignored;
    if (!oct_gate_enter(&self->gate, oct_state_of(self), "Runtime.kernels")) return NULL;
    PyObject *rows = PyList_New(0);
    oct_kernel_row row;
    for (int i = 0; rows && oct_kernel_row_at(self->handle, i, &row); i++) {
        PyObject *tuple = Py_BuildValue("(sssszd)", row.table, row.name, row.slot, row.form,
                                        row.isa, row.bits);
        if (!tuple || PyList_Append(rows, tuple) < 0) Py_CLEAR(rows);
        Py_XDECREF(tuple);
    }
    oct_gate_leave(&self->gate);
    return rows;
}

/* ---- Reductions ------------------------------------------------------------------------------ */

static const npy_intp any2[2] = {-1, -1};

/* Leaves the gate and gives the result, or the exception of `status`. */
static PyObject *
leave(oct_py_runtime *self, oct_status status, PyObject *result)
{
    oct_gate_leave(&self->gate);
    if (!result || !status) return result;
    Py_DECREF(result);
    return oct_raise(oct_state_of(self), status);
}

static PyObject *
runtime_kl(oct_py_runtime *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"base", "other", NULL};
    PyObject *base, *other;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO:kl", names, &base, &other)) return NULL;
    PyArrayObject *b = oct_arg_array(base, "kl: base", NPY_FLOAT32, 2, any2);
    if (!b) return NULL;
    PyArrayObject *o = oct_arg_array(other, "kl: other", NPY_FLOAT32, 2, PyArray_DIMS(b));
    if (!o || !oct_runtime_enter(self, oct_state_of(self), "Runtime.kl")) return NULL;
    npy_intp m = PyArray_DIM(b, 0);
    const npy_intp n = PyArray_DIM(b, 1);
    PyObject *kl = PyArray_SimpleNew(1, &m, NPY_FLOAT64);
    oct_status status = OCT_OK;
    if (kl) {
        const float *p = PyArray_DATA(b), *q = PyArray_DATA(o);
        double *to = PyArray_DATA((PyArrayObject *)kl);
        oct_gil gil;
        OCT_SLOW(&gil, status, oct_logits_kl(self->handle, p, q, m, n, to));
    }
    return leave(self, status, kl);
}

static PyObject *
runtime_lse(oct_py_runtime *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", NULL};
    PyObject *x;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:lse", names, &x)) return NULL;
    PyArrayObject *a = oct_arg_array(x, "lse: x", NPY_FLOAT32, 2, any2);
    if (!a || !oct_runtime_enter(self, oct_state_of(self), "Runtime.lse")) return NULL;
    npy_intp m = PyArray_DIM(a, 0);
    PyObject *lse = PyArray_SimpleNew(1, &m, NPY_FLOAT32);
    oct_status status = OCT_OK;
    if (lse) {
        const float *from = PyArray_DATA(a);
        const npy_intp n = PyArray_DIM(a, 1);
        float *to = PyArray_DATA((PyArrayObject *)lse);
        oct_gil gil;
        OCT_SLOW(&gil, status, oct_logits_lse(self->handle, from, m, n, to));
    }
    return leave(self, status, lse);
}

static PyObject *
runtime_argmax(oct_py_runtime *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", NULL};
    PyObject *x;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:argmax", names, &x)) return NULL;
    PyArrayObject *a = oct_arg_array(x, "argmax: x", NPY_FLOAT32, 2, any2);
    if (!a || !oct_runtime_enter(self, oct_state_of(self), "Runtime.argmax")) return NULL;
    npy_intp m = PyArray_DIM(a, 0);
    PyObject *index = PyArray_SimpleNew(1, &m, NPY_INT32);
    oct_status status = OCT_OK;
    if (index) {
        const float *from = PyArray_DATA(a);
        const npy_intp n = PyArray_DIM(a, 1);
        int32_t *to = PyArray_DATA((PyArrayObject *)index);
        oct_gil gil;
        OCT_SLOW(&gil, status, oct_logits_argmax(self->handle, from, m, n, to));
    }
    return leave(self, status, index);
}

static PyObject *
runtime_topk(oct_py_runtime *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", "count", NULL};
    PyObject *x, *number;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO:topk", names, &x, &number)) return NULL;
    PyArrayObject *a = oct_arg_array(x, "topk: x", NPY_FLOAT32, 2, any2);
    if (!a) return NULL;
    const npy_intp width = PyArray_DIM(a, 1);
    int count = 0;
    if (!oct_arg_int(number, "topk: count", 0, width < INT32_MAX ? (int)width : INT32_MAX, &count))
        return NULL;
    if (!oct_runtime_enter(self, oct_state_of(self), "Runtime.topk")) return NULL;
    npy_intp dims[2] = {PyArray_DIM(a, 0), count};
    PyObject *index = PyArray_SimpleNew(2, dims, NPY_INT32);
    PyObject *value = index ? PyArray_SimpleNew(2, dims, NPY_FLOAT32) : NULL;
    PyObject *pair = value ? PyTuple_Pack(2, index, value) : NULL;
    oct_status status = OCT_OK;
    if (pair) {
        const float *from = PyArray_DATA(a);
        int32_t *to = PyArray_DATA((PyArrayObject *)index);
        float *values = PyArray_DATA((PyArrayObject *)value);
        oct_gil gil;
        OCT_SLOW(&gil, status,
                 oct_logits_topk(self->handle, from, dims[0], width, count, to, values));
    }
    Py_XDECREF(index);
    Py_XDECREF(value);
    return leave(self, status, pair);
}

static PyObject *
runtime_sample(oct_py_runtime *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", "u", "temperature", "top_k", "top_p", "min_p", NULL};
    PyObject *x, *u, *top_k = NULL;
    oct_sample_opts opts = {.temperature = 1.0f, .top_p = 1.0f};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$fOff:sample", names, &x, &u,
                                     &opts.temperature, &top_k, &opts.top_p, &opts.min_p))
        return NULL;
    PyArrayObject *a = oct_arg_array(x, "sample: x", NPY_FLOAT32, 2, any2);
    PyArrayObject *r = a ? oct_arg_array(u, "sample: u", NPY_FLOAT64, 1, PyArray_DIMS(a)) : NULL;
    if (!r || !oct_arg_int(top_k, "sample: top_k", 0, INT32_MAX, &opts.top_k)) return NULL;
    if (!oct_runtime_enter(self, oct_state_of(self), "Runtime.sample")) return NULL;
    npy_intp m = PyArray_DIM(a, 0);
    PyObject *token = PyArray_SimpleNew(1, &m, NPY_INT32);
    oct_status status = OCT_OK;
    if (token) {
        const float *from = PyArray_DATA(a);
        const double *uniform = PyArray_DATA(r);
        const npy_intp n = PyArray_DIM(a, 1);
        int32_t *to = PyArray_DATA((PyArrayObject *)token);
        oct_gil gil;
        OCT_SLOW(&gil, status, oct_logits_sample(self->handle, from, m, n, &opts, uniform, to));
    }
    return leave(self, status, token);
}

static PyObject *
runtime_roofs(oct_py_runtime *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"nbytes", "seconds", NULL};
    PyObject *number;
    double seconds = 0.2;
    int64_t nbytes = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|d:roofs", names, &number, &seconds) ||
        !oct_arg_i64(number, "roofs: nbytes", 0, INT64_MAX, &nbytes) ||
        !oct_runtime_enter(self, oct_state_of(self), "Runtime.roofs"))
        return NULL;
    oct_roofs roofs;
    oct_status status;
    oct_gil gil = {0};
    const oct_poll poll = {oct_gil_poll, &gil};
    OCT_SLOW(&gil, status, oct_runtime_roofs(self->handle, (size_t)nbytes, seconds, poll, &roofs));
    PyObject *dict = gil.raised ? NULL
                                : Py_BuildValue("{s:d,s:d,s:d,s:d}", "int8_ops", roofs.int8_ops,
                                                "tile_ops", roofs.tile_ops, "f32_ops",
                                                roofs.f32_ops, "read_bytes", roofs.read_bytes);
    return leave(self, status, dict);
}

/* ---- The type -------------------------------------------------------------------------------- */

PyDoc_STRVAR(runtime_doc,
"Runtime(threads=0, isa=None)\n--\n\n"
"Kernels of one ISA level and a pool of threads.\n\n"
"threads 0 takes OCTAVO_THREADS, else what this machine grants; isa None takes OCTAVO_ISA, else\n"
"the best level of this machine.\n"
"UnsupportedError for a level above the machine's. No result depends on either.");
PyDoc_STRVAR(kernels_doc, "kernels($self)\n--\n\nRows (table, name, slot, form, isa, bits).");
PyDoc_STRVAR(kl_doc,
"kl($self, base, other)\n--\n\n"
"KL(softmax(base) || softmax(other)) of each row, float64 [m], from float32 logits [m, n].");
PyDoc_STRVAR(lse_doc, "lse($self, x)\n--\n\nlog(sum(exp(x))) of each row, float32 [m].");
PyDoc_STRVAR(argmax_doc,
"argmax($self, x)\n--\n\n"
"Index of each row's largest logit, int32 [m]; ties to the lowest, -1 if all are NaN.");
PyDoc_STRVAR(topk_doc,
"topk($self, x, count)\n--\n\n"
"The count largest of each row, descending: (int32 [m, count], float32 [m, count]).");
PyDoc_STRVAR(sample_doc,
"sample($self, x, u, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)\n--\n\n"
"One token per row of logits by inverse CDF at the uniforms u (float64 [m]); int32 [m].");
PyDoc_STRVAR(roofs_doc,
"roofs($self, nbytes, seconds=0.2)\n--\n\n"
"What the pool reaches at best, per second: a dict of int8_ops, tile_ops (0 without AMX),\n"
"f32_ops (a multiply-add is two) and read_bytes, reading nbytes of memory. Takes some seconds for\n"
"each.");
PyDoc_STRVAR(close_doc,
"close($self)\n--\n\n"
"Join the threads. BusyError, and nothing happens, while Weights, Programs or Caches are open.");

static PyMethodDef runtime_methods[] = {
    {"kernels", (PyCFunction)runtime_kernels, METH_NOARGS, kernels_doc},
    OCT_METHOD("kl", runtime_kl, kl_doc),
    OCT_METHOD("lse", runtime_lse, lse_doc),
    OCT_METHOD("argmax", runtime_argmax, argmax_doc),
    OCT_METHOD("topk", runtime_topk, topk_doc),
    OCT_METHOD("sample", runtime_sample, sample_doc),
    OCT_METHOD("roofs", runtime_roofs, roofs_doc),
    {"close", (PyCFunction)runtime_close, METH_NOARGS, close_doc},
    OCT_NO_PICKLE,
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef runtime_getset[] = {
    {"threads", (getter)runtime_get_threads, (setter)runtime_set_threads,
     "Lanes of the pool; settable while no call runs.", NULL},
    {"isa", (getter)runtime_get_name, NULL, "ISA level of the kernels.", NULL},
    {"cpu", (getter)runtime_get_name, NULL, "Name of the processor.", "cpu"},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot runtime_slots[] = {
    {Py_tp_doc, (void *)runtime_doc},
    {Py_tp_new, runtime_new},
    {Py_tp_traverse, runtime_traverse},
    {Py_tp_dealloc, runtime_dealloc},
    {Py_tp_methods, runtime_methods},
    {Py_tp_getset, runtime_getset},
    {0, NULL},
};

PyType_Spec oct_runtime_spec = {
    .name = "octavo._core.Runtime",
    .basicsize = sizeof(oct_py_runtime),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = runtime_slots,
};
