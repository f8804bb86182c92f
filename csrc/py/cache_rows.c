/* Cache's methods on rows and pages: append, attend, decode, page, edit. The binding knows the
 * layers' shapes, so every extent is checked here before a pointer goes down. */
#include "csrc/py/cache.h"

/* Elements of n rows of every layer: K or V of its heads; with heads, of queries or outputs. */
static bool
total(const oct_py_cache *self, const char *where, int64_t n, int heads, bool v, npy_intp *out)
{
    int64_t sum = 0;
    for (int i = 0; i < self->n_layers; i++) {
        const oct_layer_shape *s = &self->shapes[i];
        const int width = !heads ? s->width[v] : v ? s->out_width : s->q_width;
        npy_intp one;
        if (!oct_product(where, 3, (int64_t[]){n, heads ? heads : s->kv_heads, width}, &one))
            return false;
        if (__builtin_add_overflow(sum, one, &sum)) {
            PyErr_Format(PyExc_ValueError, "%s: the number of elements overflows", where);
            return false;
        }
    }
    *out = (npy_intp)sum;
    return true;
}

static const float *
flat(const oct_py_cache *self, PyObject *value, const char *where, int64_t n, int heads, bool v)
{
    npy_intp extent;
    if (!total(self, where, n, heads, v, &extent)) return NULL;
    PyArrayObject *a = oct_arg_array(value, where, NPY_FLOAT32, 1, &extent);
    return a ? PyArray_DATA(a) : NULL;
}

/* Sinks of `heads` heads, borrowed; true with NULL where there are none. */
static bool
read_sinks(PyObject *value, const char *where, int heads, const float **out)
{
    const npy_intp extent = heads;
    if (!value || value == Py_None) return true;
    PyArrayObject *a = oct_arg_array(value, where, NPY_FLOAT32, 1, &extent);
    if (a) *out = PyArray_DATA(a);
    return a != NULL;
}

/* k, v and q checked; *out is the new output array, or NULL without q. */
static bool
read_rows(const oct_py_cache *self, PyObject *const *from, oct_rows_desc *rows, PyObject **out)
{
    rows->k = flat(self, from[0], "append: k", rows->n, 0, false);
    if (!rows->k) return false;
    rows->v = flat(self, from[1], "append: v", rows->n, 0, true);
    if (!rows->v) return false;
    if (!from[2] || from[2] == Py_None) return true;
    if (rows->heads < 1) {
        PyErr_SetString(PyExc_ValueError, "append: heads must be given with q");
        return false;
    }
    npy_intp extent;
    if (!read_sinks(from[3], "append: sinks", rows->heads, &rows->sinks)) return false;
    rows->q = flat(self, from[2], "append: q", rows->n, rows->heads, false);
    if (!rows->q || !total(self, "append: q", rows->n, rows->heads, true, &extent)) return false;
    *out = PyArray_SimpleNew(1, &extent, NPY_FLOAT32);
    if (*out) rows->out = PyArray_DATA((PyArrayObject *)*out);
    return *out != NULL;
}

/* Cache and runtime together, for the slow calls. */
static bool
enter_both(oct_py_cache *self, const char *where)
{
    if (!oct_cache_enter(self, where)) return false;
    if (oct_runtime_enter(self->runtime, oct_state_of(self), where)) return true;
    oct_gate_leave(&self->gate);
    return false;
}

static PyObject *
leave_both(oct_py_cache *self, oct_status status, PyObject *value)
{
    oct_gate_leave(&self->runtime->gate);
    return oct_cache_leave(self, status, value);
}

PyObject *
oct_cache_py_append(oct_py_cache *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"seq", "k", "v", "n", "q", "heads", "scale", "window", "sinks", NULL};
    PyObject *object, *number, *heads = NULL, *window = NULL, *from[4] = {NULL}, *out = NULL;
    oct_rows_desc rows = {.scale = 1.0f};
    oct_seq seq;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO|OOfOO:append", names, &object, &from[0],
                                     &from[1], &number, &from[2], &heads, &rows.scale, &window,
                                     &from[3]) ||
        !oct_arg_u64(object, "append: seq", &seq) ||
        !oct_arg_i64(number, "append: n", 1, INT32_MAX, &rows.n) ||
        !oct_arg_int(heads, "append: heads", 0, INT32_MAX, &rows.heads) ||
        !oct_arg_int(window, "append: window", 0, INT32_MAX, &rows.window) ||
        !enter_both(self, "Cache.append"))
        return NULL;
    oct_status status = OCT_OK;
    PyObject *result = NULL;
    if (read_rows(self, from, &rows, &out)) {
        oct_gil gil = {0};
        rows.poll = (oct_poll){oct_gil_poll, &gil};
        OCT_SLOW(&gil, status, oct_cache_append(self->handle, seq, &rows));
        if (!gil.raised) {
            result = out ? out : Py_NewRef(Py_None);
            out = NULL;
        }
    }
    Py_XDECREF(out);
    return leave_both(self, result ? status : OCT_OK, result);
}

static const oct_layer_shape *
shape_of(const oct_py_cache *self, PyObject *value, const char *where, int *layer)
{
    if (!oct_arg_int(value, where, 0, INT32_MAX, layer)) return NULL;
    if (*layer < self->n_layers) return &self->shapes[*layer];
    PyErr_Format(PyExc_ValueError, "%s is %d, the cache has %d layers", where, *layer,
                 self->n_layers);
    return NULL;
}

PyObject *
oct_cache_py_attend(oct_py_cache *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"seq", "layer", "q", "heads", "scale", "window", "sinks", NULL};
    PyObject *object, *number, *q, *count, *window = NULL, *sinks = NULL;
    oct_rows_desc rows = {0};
    oct_seq seq;
    int layer = 0, heads = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOf|OO:attend", names, &object, &number, &q,
                                     &count, &rows.scale, &window, &sinks) ||
        !oct_arg_u64(object, "attend: seq", &seq) ||
        !oct_arg_int(count, "attend: heads", 1, INT32_MAX, &heads) ||
        !oct_arg_int(window, "attend: window", 0, INT32_MAX, &rows.window) ||
        !read_sinks(sinks, "attend: sinks", heads, &rows.sinks))
        return NULL;
    const oct_layer_shape *shape = shape_of(self, number, "attend: layer", &layer);
    if (!shape) return NULL;
    const npy_intp extents[3] = {-1, heads, shape->q_width};
    PyArrayObject *a = oct_arg_array(q, "attend: q", NPY_FLOAT32, 3, extents);
    if (!a || !enter_both(self, "Cache.attend")) return NULL;
    npy_intp dims[3] = {PyArray_DIM(a, 0), heads, shape->out_width};
    PyObject *out = PyArray_SimpleNew(3, dims, NPY_FLOAT32);
    oct_status status = OCT_OK;
    if (out) {
        oct_gil gil = {0};
        rows.q = PyArray_DATA(a);
        rows.n = dims[0];
        rows.heads = heads;
        rows.out = PyArray_DATA((PyArrayObject *)out);
        rows.poll = (oct_poll){oct_gil_poll, &gil};
        OCT_SLOW(&gil, status, oct_cache_attend(self->handle, seq, layer, &rows));
        if (gil.raised) Py_CLEAR(out);
    }
    return leave_both(self, out ? status : OCT_OK, out);
}

/* ---- Pages ----------------------------------------------------------------------------------- */

typedef struct {
    oct_seq seq;
    int layer;
    int64_t index;
    oct_segment segment;
} place;

/* from: seq, layer, index, segment. */
static bool
read_place(const oct_py_cache *self, PyObject *const *from, place *at)
{
    static const char *const names[2][2] = {{"k", "v"}, {"latent", "rope"}};
    const char *segment = NULL;
    const oct_layer_shape *shape = NULL;
    *at = (place){0};
    if (!oct_arg_u64(from[0], "page: seq", &at->seq) ||
        !(shape = shape_of(self, from[1], "page: layer", &at->layer)) ||
        !oct_arg_i64(from[2], "page: index", 0, INT64_MAX, &at->index) ||
        !oct_arg_text(from[3], "page: segment", false, &segment))
        return false;
    const char *const *legal = names[shape->latent];
    at->segment = !strcmp(segment, legal[1]) ? OCT_SEGMENT_V : OCT_SEGMENT_K;
    if (!strcmp(segment, legal[at->segment])) return true;
    PyErr_Format(PyExc_ValueError, "page: segment must be '%s' or '%s', got '%s'", legal[0], legal[1],
                 segment);
    return false;
}

static oct_status
page_at(oct_py_cache *self, const place *at, oct_page_info *info)
{
    return oct_page_at(self->handle, at->seq, at->layer, at->index, at->segment, info);
}

static bool
same_shape(const oct_page_info *a, const oct_page_info *b)
{
    return a->kv_heads == b->kv_heads && a->tokens == b->tokens && a->width == b->width;
}

PyObject *
oct_cache_py_decode(oct_py_cache *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"seq", "layer", "index", "segment", "model_basis", NULL};
    PyObject *from[4], *out = NULL;
    int model_basis = 0;
    place at;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO|p:decode", names, &from[0], &from[1],
                                     &from[2], &from[3], &model_basis) ||
        !read_place(self, from, &at) || !oct_cache_enter(self, "Cache.decode"))
        return NULL;
    oct_page_info info, now;
    oct_status status = page_at(self, &at, &info);
    while (!status) {
        npy_intp dims[3] = {info.kv_heads, info.tokens, info.width};
        out = PyArray_SimpleNew(3, dims, NPY_FLOAT32);
        if (!out) break;
        /* Making an array can run other Python code, which may have grown this page: look again. */
        status = page_at(self, &at, &now);
        if (!status && same_shape(&info, &now)) {
            status = oct_page_decode(self->handle, at.seq, at.layer, at.index, at.segment,
                                     model_basis, PyArray_DATA((PyArrayObject *)out));
            break;
        }
        info = now;
        if (!status) Py_CLEAR(out);
    }
    oct_gate_leave(&self->gate);
    if (!status) return out;
    Py_XDECREF(out);
    return oct_raise(oct_state_of(self), status);
}

PyObject *
oct_cache_py_page(oct_py_cache *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"seq", "layer", "index", "segment", NULL};
    PyObject *from[4];
    place at;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO:page", names, &from[0], &from[1],
                                     &from[2], &from[3]) ||
        !read_place(self, from, &at) || !oct_cache_enter(self, "Cache.page"))
        return NULL;
    oct_page_info info;
    const oct_status status = page_at(self, &at, &info);
    oct_gate_leave(&self->gate);
    return status ? oct_raise(oct_state_of(self), status)
                  : oct_page_new(self, &info, false);
}

/* The edit ends with the Page; if there is to be none, it ends here. */
PyObject *
oct_cache_py_edit(oct_py_cache *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"seq", "layer", "index", "segment", NULL};
    PyObject *from[4], *page = NULL;
    place at;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO:edit", names, &from[0], &from[1],
                                     &from[2], &from[3]) ||
        !read_place(self, from, &at) || !oct_cache_enter(self, "Cache.edit"))
        return NULL;
    oct_page_info info;
    const oct_status status =
        oct_page_edit(self->handle, at.seq, at.layer, at.index, at.segment, &info);
    if (status)
        oct_raise(oct_state_of(self), status);
    else
        page = oct_page_new(self, &info, true);
    if (!status && !page) oct_page_edit_end(self->handle, info.page);
    oct_gate_leave(&self->gate);
    return page;
}
