/* octavo._core.Cache: the type, its opening and closing, and its ledger. The methods on sequences
 * are in cache_seq.c, those on rows and pages in cache_rows.c, the docstrings in cache_doc.h. */
#include "csrc/py/cache.h"

#include "csrc/py/cache_doc.h"

/* ---- Opening --------------------------------------------------------------------------------- */

static bool
read_layer(PyObject *mapping, Py_ssize_t index, PyObject *keep, oct_layer_desc *layer)
{
    *layer = (oct_layer_desc){0};
    oct_fields f = oct_fields_open(mapping, "Cache: layers", index, keep);
    oct_field_bool(&f, "latent", &layer->latent);
    oct_field_int(&f, "kv_heads", &layer->kv_heads);
    oct_field_int(&f, "k_width", &layer->k_width);
    oct_field_int(&f, "v_width", &layer->v_width);
    oct_field_text(&f, "k_format", &layer->k_format);
    oct_field_text(&f, "v_format", &layer->v_format);
    oct_field_text(&f, "k_transform", &layer->k_transform);
    oct_field_text(&f, "v_transform", &layer->v_transform);
    oct_field_text(&f, "form", &layer->form);
    if (!oct_fields_done(&f)) return false;
    if (layer->kv_heads > 0 && layer->k_width > 0 && layer->v_width > 0 && layer->k_format &&
        (layer->v_format || layer->latent))
        return true;
    PyErr_Format(PyExc_ValueError,
                 "Cache: layers[%zd] needs kv_heads, k_width, v_width above 0, k_format, and "
                 "v_format unless it is latent",
                 index);
    return false;
}

/* All layers of the tuple `list`; the array is the caller's to free. */
static oct_layer_desc *
read_layers(PyObject *list, PyObject *keep)
{
    const Py_ssize_t n = PyTuple_GET_SIZE(list);
    oct_layer_desc *layers = n <= INT32_MAX ? PyMem_Calloc((size_t)(n ? n : 1), sizeof *layers)
                                            : NULL;
    if (!layers) PyErr_NoMemory();
    for (Py_ssize_t i = 0; layers && i < n; i++)
        if (!read_layer(PyTuple_GET_ITEM(list, i), i, keep, &layers[i])) {
            PyMem_Free(layers);
            return NULL;
        }
    return layers;
}

static oct_layer_shape
shape_of(const oct_layer_desc *d)
{
    const int k = d->k_width, v = d->v_width;
    /* The core refuses widths whose sum could overflow. */
    const int both = (int)((unsigned)k + (unsigned)v);
    return (oct_layer_shape){d->kv_heads, {k, v}, d->latent ? both : k, d->latent ? k : v,
                             d->latent};
}

static bool
open_cache(oct_py_cache *self, oct_py_runtime *runtime, const oct_cache_opts *opts)
{
    const oct_state *state = oct_state_of(self);
    self->shapes = PyMem_Calloc((size_t)opts->n_layers + 1, sizeof *self->shapes);
    if (!self->shapes) {
        PyErr_NoMemory();
        return false;
    }
    self->n_layers = opts->n_layers;
    for (int i = 0; i < opts->n_layers; i++)
        self->shapes[i] = shape_of(&opts->layers[i]);
    if (!oct_gate_enter(&runtime->gate, state, "Cache: runtime")) return false;
    const oct_status status = oct_cache_open(&self->handle, runtime->handle, opts);
    if (!status) {
        oct_runtime_retain(runtime);
        self->runtime = (oct_py_runtime *)Py_NewRef((PyObject *)runtime);
    }
    oct_gate_leave(&runtime->gate);
    if (status) oct_raise(state, status);
    return !status;
}

static PyObject *
cache_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"runtime", "layers", "budget", "sink_pages", "recent_pages", "prefix",
                            "saturate", NULL};
    const oct_state *state = PyType_GetModuleState(type);
    PyObject *runtime, *layers, *budget = NULL, *sinks = NULL, *recent = NULL;
    int prefix = 1, saturate = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$OOOpp:Cache", names, &runtime, &layers,
                                     &budget, &sinks, &recent, &prefix, &saturate))
        return NULL;
    if (!budget) {
        PyErr_SetString(PyExc_TypeError,
                        "Cache() missing required keyword-only argument: 'budget'");
        return NULL;
    }
    oct_cache_opts opts = {.prefix = prefix, .saturate = saturate};
    if (!oct_arg_type(runtime, "Cache: runtime", state->runtime) ||
        !oct_arg_size(budget, "Cache: budget", &opts.budget_bytes) ||
        !oct_arg_int(sinks, "Cache: sink_pages", 0, INT32_MAX, &opts.sink_pages) ||
        !oct_arg_int(recent, "Cache: recent_pages", 0, INT32_MAX, &opts.recent_pages))
        return NULL;
    oct_py_cache *self = NULL;
    PyObject *list = PySequence_Tuple(layers), *keep = PyList_New(0);
    oct_layer_desc *descs = list && keep ? read_layers(list, keep) : NULL;
    if (descs) {
        opts.layers = descs;
        opts.n_layers = (int)PyTuple_GET_SIZE(list);
        self = (oct_py_cache *)type->tp_alloc(type, 0);
        if (self && !open_cache(self, (oct_py_runtime *)runtime, &opts)) Py_CLEAR(self);
    }
    PyMem_Free(descs);
    Py_XDECREF(list);
    Py_XDECREF(keep);
    return (PyObject *)self;
}

static int
cache_traverse(oct_py_cache *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->runtime);
    return 0;
}

static oct_status
release(oct_py_cache *self)
{
    if (!self->handle) return OCT_OK;
    const oct_status status = oct_cache_close(&self->handle);
    if (!status) oct_runtime_release(self->runtime);
    return status;
}

static void
cache_dealloc(oct_py_cache *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    /* Pins and pages under edit hold a reference to this object, so nothing can refuse here. */
    release(self);
    PyMem_Free(self->shapes);
    Py_XDECREF(self->runtime);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *
cache_close(oct_py_cache *self, PyObject *ignored)
{
    (void)ignored;
    const oct_state *state = oct_state_of(self);
    if (oct_gate_closed(&self->gate)) Py_RETURN_NONE;
    if (self->edits) {
        PyErr_SetString(state->busy,
                        "Cache.close: a page of the cache is under edit; close that page first");
        return NULL;
    }
    if (!oct_gate_alone(&self->gate, state, "Cache.close")) return NULL;
    const oct_status status = release(self);
    if (status) {
        oct_gate_reopen(&self->gate);
        return oct_raise(state, status);
    }
    oct_gate_shut(&self->gate);
    Py_RETURN_NONE;
}

static PyObject *
cache_get_closed(oct_py_cache *self, void *ignored)
{
    (void)ignored;
    return PyBool_FromLong(oct_gate_closed(&self->gate));
}

/* ---- Ledger ---------------------------------------------------------------------------------- */

static PyObject *
ledger_dict(const oct_ledger *l)
{
    const struct {
        const char *name;
        uint64_t value;
    } rows[] = {
        {"sealed", l->sealed},
        {"open", l->open},
        {"tables", l->tables},
        {"budget", l->budget},
        {"sealed_pages", (uint64_t)l->sealed_pages},
        {"cached_pages", (uint64_t)l->cached_pages},
        {"open_units", (uint64_t)l->open_units},
        {"sequences", (uint64_t)l->sequences},
        {"pins", (uint64_t)l->pins},
        {"page_bytes", l->page_bytes},
        {"unit_bytes", l->unit_bytes},
    };
    PyObject *dict = PyDict_New();
    for (size_t i = 0; dict && i < sizeof rows / sizeof rows[0]; i++) {
        PyObject *value = PyLong_FromUnsignedLongLong(rows[i].value);
        if (!value || PyDict_SetItemString(dict, rows[i].name, value) < 0) Py_CLEAR(dict);
        Py_XDECREF(value);
    }
    return dict;
}

static PyObject *
cache_ledger(oct_py_cache *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"seq", NULL};
    PyObject *object = Py_None;
    oct_seq seq = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:ledger", names, &object)) return NULL;
    const bool one = object != Py_None;
    if (one && !oct_arg_u64(object, "ledger: seq", &seq)) return NULL;
    if (!oct_cache_enter(self, "Cache.ledger")) return NULL;
    oct_ledger ledger = {0};
    const oct_status status = one ? oct_seq_ledger(self->handle, seq, &ledger)
                                  : oct_cache_ledger(self->handle, &ledger);
    oct_gate_leave(&self->gate);
    return status ? oct_raise(oct_state_of(self), status) : ledger_dict(&ledger);
}

static PyObject *
cache_check(oct_py_cache *self, PyObject *ignored)
{
    (void)ignored;
    if (!oct_cache_enter(self, "Cache.check")) return NULL;
    const oct_status status = oct_cache_check(self->handle);
    oct_gate_leave(&self->gate);
    if (status == OCT_E_BUSY || status == OCT_E_MEMORY)
        return oct_raise(oct_state_of(self), status);
    if (!status) Py_RETURN_NONE;
    PyErr_SetString(PyExc_AssertionError, oct_error_text());
    return NULL;
}

static PyObject *
cache_drop_prefix(oct_py_cache *self, PyObject *ignored)
{
    (void)ignored;
    if (!oct_cache_enter(self, "Cache.drop_prefix")) return NULL;
    return oct_cache_leave_none(self, oct_cache_drop_prefix(self->handle));
}

/* ---- The type -------------------------------------------------------------------------------- */

static PyMethodDef cache_methods[] = {
    {"open", (PyCFunction)oct_cache_py_open, METH_NOARGS, open_doc},
    OCT_METHOD("release", oct_cache_py_release, release_doc),
    OCT_METHOD("length", oct_cache_py_length, length_doc),
    OCT_METHOD("fork", oct_cache_py_fork, fork_doc),
    OCT_METHOD("reencode", oct_cache_py_reencode, reencode_doc),
    OCT_METHOD("truncate", oct_cache_py_truncate, truncate_doc),
    OCT_METHOD("match", oct_cache_py_match, match_doc),
    OCT_METHOD("needs", oct_cache_py_needs, needs_doc),
    OCT_METHOD("bytes_for", oct_cache_py_bytes_for, bytes_for_doc),
    OCT_METHOD("ledger", cache_ledger, ledger_doc),
    {"check", (PyCFunction)cache_check, METH_NOARGS, check_doc},
    {"drop_prefix", (PyCFunction)cache_drop_prefix, METH_NOARGS, drop_prefix_doc},
    OCT_METHOD("append", oct_cache_py_append, append_doc),
    OCT_METHOD("attend", oct_cache_py_attend, attend_doc),
    OCT_METHOD("decode", oct_cache_py_decode, decode_doc),
    OCT_METHOD("page", oct_cache_py_page, page_doc),
    OCT_METHOD("edit", oct_cache_py_edit, edit_doc),
    {"close", (PyCFunction)cache_close, METH_NOARGS, close_doc},
    OCT_NO_PICKLE,
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef cache_getset[] = {
    {"closed", (getter)cache_get_closed, NULL, "True after close().", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot cache_slots[] = {
    {Py_tp_doc, (void *)cache_doc},
    {Py_tp_new, cache_new},
    {Py_tp_traverse, cache_traverse},
    {Py_tp_dealloc, cache_dealloc},
    {Py_tp_methods, cache_methods},
    {Py_tp_getset, cache_getset},
    {0, NULL},
};

PyType_Spec oct_cache_spec = {
    .name = "octavo._core.Cache",
    .basicsize = sizeof(oct_py_cache),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = cache_slots,
};
