/* The base object of every view of a page: holds one pin, and the cache whose memory it is. It has
 * no methods and no buffer protocol. Freed on any thread that drops the last view, also while a
 * step of another thread runs; oct_page_unpin allows that. */
#include "csrc/py/core.h"

typedef struct {
    PyObject_HEAD
    oct_py_cache *cache;
    oct_py_page *edited; /* of writable views: its edit must not end before them; else NULL */
    uint64_t page;
    bool held;
} pin;

PyObject *
oct_pin_new(oct_py_page *page)
{
    const oct_state *state = oct_state_of(page);
    pin *self = (pin *)state->pin->tp_alloc(state->pin, 0);
    if (!self) return NULL;
    self->cache = (oct_py_cache *)Py_NewRef((PyObject *)page->cache);
    self->page = page->info.page;
    const oct_status status =
        oct_page_pin(self->cache->handle, self->page, page->info.generation);
    if (status) {
        oct_raise(state, status);
        Py_DECREF(self);
        return NULL;
    }
    self->held = true;
    if (page->writable) {
        self->edited = (oct_py_page *)Py_NewRef((PyObject *)page);
        page->views++;
    }
    return (PyObject *)self;
}

static int
pin_traverse(pin *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->cache);
    Py_VISIT(self->edited);
    return 0;
}

static void
pin_dealloc(pin *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (self->held && self->cache->handle) oct_page_unpin(self->cache->handle, self->page);
    if (self->edited) self->edited->views--;
    Py_XDECREF(self->edited);
    Py_XDECREF(self->cache);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef pin_methods[] = {
    OCT_NO_PICKLE,
    {NULL, NULL, 0, NULL},
};

static PyType_Slot pin_slots[] = {
    {Py_tp_doc, (void *)"Keeps a page in place while views of it are alive."},
    {Py_tp_traverse, pin_traverse},
    {Py_tp_dealloc, pin_dealloc},
    {Py_tp_methods, pin_methods},
    {0, NULL},
};

PyType_Spec oct_pin_spec = {
    .name = "octavo._core.Pin",
    .basicsize = sizeof(pin),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = pin_slots,
};
