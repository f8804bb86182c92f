/* octavo._core.Page: one segment of one page, as the core described it when it was asked for. The
 * facts are a copy; the bytes are reached through array(), whose views pin the page (pin.c). A page
 * under edit stays exclusive to its object, which therefore outlives its writable arrays. */
#include "csrc/py/args.h"
#include "csrc/py/core.h"

PyObject *
oct_page_new(oct_py_cache *cache, const oct_page_info *info, bool writable)
{
    PyTypeObject *type = oct_state_of(cache)->page;
    oct_py_page *self = (oct_py_page *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    self->cache = (oct_py_cache *)Py_NewRef((PyObject *)cache);
    self->info = *info;
    self->writable = writable;
    if (writable) cache->edits++;
    return (PyObject *)self;
}

static int
page_traverse(oct_py_page *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->cache);
    return 0;
}

/* Any thread may end an edit at any time, so nothing can refuse. The cache is still there, since
 * it cannot be closed under an edit. */
static void
end_edit(oct_py_page *self)
{
    if (!self->writable || self->closed) return;
    oct_page_edit_end(self->cache->handle, self->info.page);
    self->cache->edits--;
}

static void
page_dealloc(oct_py_page *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    end_edit(self); /* no array is left: each writable one holds this object */
    Py_DECREF(self->cache);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *
page_close(oct_py_page *self, PyObject *ignored)
{
    (void)ignored;
    if (self->closed) Py_RETURN_NONE;
    if (self->writable && self->views)
        return PyErr_Format(PyExc_BufferError,
                            "Page.close: %d writable arrays of the page are alive; delete them "
                            "first, nothing was changed",
                            self->views);
    end_edit(self);
    self->closed = true;
    Py_RETURN_NONE;
}

static bool
check_open(oct_py_page *self, const char *where)
{
    if (!self->closed) return true;
    PyErr_Format(oct_state_of(self)->closed, "%s: the page object is closed", where);
    return false;
}

/* ---- Parts ----------------------------------------------------------------------------------- */

static PyObject *
int_tuple(const int *values, int n)
{
    PyObject *tuple = PyTuple_New(n);
    for (int i = 0; tuple && i < n; i++) {
        PyObject *value = PyLong_FromLong(values[i]);
        if (!value) {
            Py_CLEAR(tuple);
            break;
        }
        PyTuple_SET_ITEM(tuple, i, value);
    }
    return tuple;
}

static PyObject *
part_dict(const oct_part_info *p)
{
    return Py_BuildValue("{s:s,s:s,s:n,s:N,s:i,s:i,s:N,s:i,s:i,s:i}", "name", p->name, "dtype",
                         p->dtype, "offset", (Py_ssize_t)p->offset, "shape",
                         int_tuple(p->shape, p->ndim), "split", p->split, "split_axis",
                         p->split_axis, "axes", int_tuple(p->axes, p->ndim + (p->split > 1)),
                         "rows", p->rows, "cols", p->cols, "bias", p->bias);
}

static PyObject *
page_parts(oct_py_page *self, PyObject *ignored)
{
    (void)ignored;
    if (!check_open(self, "Page.parts")) return NULL;
    PyObject *list = PyList_New(0);
    for (int i = 0; list && i < self->info.parts; i++) {
        PyObject *dict = part_dict(&self->info.part[i]);
        if (!dict || PyList_Append(list, dict) < 0) Py_CLEAR(list);
        Py_XDECREF(dict);
    }
    return list;
}

static const oct_part_info *
find_part(const oct_py_page *self, const char *name)
{
    char known[128] = "";
    for (int i = 0; i < self->info.parts; i++) {
        const oct_part_info *p = &self->info.part[i];
        if (!strcmp(p->name, name)) return p;
        const size_t used = strlen(known);
        PyOS_snprintf(known + used, sizeof known - used, "%s'%s'", i ? ", " : "", p->name);
    }
    PyErr_Format(PyExc_ValueError, "array: a %s page has no part '%s'; it has %s",
                 self->info.format, name, known);
    return NULL;
}

/* Types that NumPy lacks are given as the bits that hold them. */
static int
type_of(const char *dtype)
{
    if (!strcmp(dtype, "f32")) return NPY_FLOAT32;
    if (!strcmp(dtype, "i8")) return NPY_INT8;
    if (!strcmp(dtype, "bf16") || !strcmp(dtype, "f16")) return NPY_UINT16;
    return NPY_UINT8;
}

static size_t
element_bytes(const char *dtype)
{
    const int type = type_of(dtype);
    return type == NPY_FLOAT32 ? 4 : type == NPY_UINT16 ? 2 : 1;
}

/* [kv_heads, *shape] in memory order on the page's own bytes. `base` is stolen. */
static PyObject *
view(const oct_py_page *self, const oct_part_info *p, PyObject *base)
{
    npy_intp dims[5] = {self->info.kv_heads}, strides[5] = {(npy_intp)self->info.head_stride};
    PyArray_Descr *descr = PyArray_DescrFromType(type_of(p->dtype));
    if (!descr) goto error;
    npy_intp stride = PyDataType_ELSIZE(descr);
    for (int i = p->ndim; i > 0; i--) {
        dims[i] = p->shape[i - 1];
        strides[i] = stride;
        stride *= dims[i];
    }
    void *data = (void *)(self->info.data + p->offset);
    PyObject *array = PyArray_NewFromDescr(&PyArray_Type, descr, p->ndim + 1, dims, strides, data,
                                           self->writable ? NPY_ARRAY_WRITEABLE : 0, NULL);
    if (!array) goto error;
    /* Takes over `base` also where it fails. The base has no buffer protocol, so that NumPy refuses
     * setflags(write=True) on a read-only view. */
    if (PyArray_SetBaseObject((PyArrayObject *)array, base) < 0) Py_CLEAR(array);
    return array;
error:
    Py_DECREF(base);
    return NULL;
}

static PyObject *
page_array(oct_py_page *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"name", NULL};
    PyObject *object;
    const char *name;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:array", names, &object) ||
        !oct_arg_text(object, "array: name", false, &name) || !check_open(self, "Page.array"))
        return NULL;
    if (!self->info.sealed) {
        PyErr_SetString(PyExc_ValueError,
                        "array: the page is open and has no arrays; Cache.decode gives a copy");
        return NULL;
    }
    const oct_part_info *part = find_part(self, name);
    if (!part || !oct_gate_enter(&self->cache->gate, oct_state_of(self), "Page.array"))
        return NULL;
    PyObject *pin = oct_pin_new(self);
    oct_gate_leave(&self->cache->gate);
    return pin ? view(self, part, pin) : NULL;
}

/* ---- Facts ----------------------------------------------------------------------------------- */

/* Of a sealed page its parts, which leave no gaps; of an open one the rows that it holds. */
static size_t
segment_bytes(const oct_page_info *i)
{
    size_t bytes = 0;
    for (int p = 0; p < i->parts; p++) {
        size_t one = element_bytes(i->part[p].dtype);
        for (int k = 0; k < i->part[p].ndim; k++) one *= (size_t)i->part[p].shape[k];
        bytes += one;
    }
    if (!i->sealed) bytes = (size_t)i->tokens * (size_t)i->width * element_bytes(i->format);
    return bytes * (size_t)i->kv_heads;
}

enum { TOKENS, WIDTH, KV_HEADS, GROUP, PAGE, GENERATION, NBYTES };

static PyObject *
page_get(oct_py_page *self, void *which)
{
    const oct_page_info *i = &self->info;
    switch ((int)(intptr_t)which) {
    case TOKENS: return PyLong_FromLong(i->tokens);
    case WIDTH: return PyLong_FromLong(i->width);
    case KV_HEADS: return PyLong_FromLong(i->kv_heads);
    case GROUP: return PyLong_FromLong(i->group);
    case PAGE: return PyLong_FromUnsignedLongLong(i->page);
    case GENERATION: return PyLong_FromUnsignedLongLong(i->generation);
    default: return PyLong_FromSize_t(segment_bytes(i));
    }
}

static PyObject *
page_get_sealed(oct_py_page *self, void *ignored)
{
    (void)ignored;
    return PyBool_FromLong(self->info.sealed);
}

static PyObject *
page_get_format(oct_py_page *self, void *ignored)
{
    (void)ignored;
    return PyUnicode_FromString(self->info.format);
}

PyDoc_STRVAR(page_doc,
"One segment of one page, described when Cache.page or Cache.edit was called.\n\n"
"Of a sealed page the arrays are read-only zero-copy views; each view pins the page until it is\n"
"collected. Cache.edit gives writable ones. An open page has no arrays.");
PyDoc_STRVAR(parts_doc,
"parts($self)\n--\n\n"
"The stored parts: name, dtype, offset, shape, split, split_axis, axes, rows, cols, bias.");
PyDoc_STRVAR(array_doc,
"array($self, name)\n--\n\n"
"View [kv_heads, *shape] of part name in memory order: uint8, int8, uint16 (bits of bf16, f16) or\n"
"float32. StaleHandleError if the page was reused meanwhile.");
PyDoc_STRVAR(close_doc,
"close($self)\n--\n\n"
"Let go of the page; views of a sealed page live on. Ends an edit: BufferError while its writable\n"
"arrays are alive. The facts stay readable.");

static PyMethodDef page_methods[] = {
    {"parts", (PyCFunction)page_parts, METH_NOARGS, parts_doc},
    OCT_METHOD("array", page_array, array_doc),
    {"close", (PyCFunction)page_close, METH_NOARGS, close_doc},
    OCT_NO_PICKLE,
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef page_getset[] = {
    {"sealed", (getter)page_get_sealed, NULL, "Whether the page is sealed.", NULL},
    {"format", (getter)page_get_format, NULL, "Page format; an open page: its rows' type.", NULL},
    {"tokens", (getter)page_get, NULL, "Tokens that it holds.", (void *)TOKENS},
    {"width", (getter)page_get, NULL, "Channels of one head.", (void *)WIDTH},
    {"kv_heads", (getter)page_get, NULL, "KV heads.", (void *)KV_HEADS},
    {"group", (getter)page_get, NULL, "Channels that share a scale.", (void *)GROUP},
    {"page", (getter)page_get, NULL, "Number of the page in its cache.", (void *)PAGE},
    {"generation", (getter)page_get, NULL, "How often it was reused.", (void *)GENERATION},
    {"nbytes", (getter)page_get, NULL, "Bytes of this segment, all heads.", (void *)NBYTES},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot page_slots[] = {
    {Py_tp_doc, (void *)page_doc},
    {Py_tp_traverse, page_traverse},
    {Py_tp_dealloc, page_dealloc},
    {Py_tp_methods, page_methods},
    {Py_tp_getset, page_getset},
    {0, NULL},
};

PyType_Spec oct_page_spec = {
    .name = "octavo._core.Page",
    .basicsize = sizeof(oct_py_page),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = page_slots,
};
