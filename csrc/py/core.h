/* core.h: what the files of octavo._core share: the module's state, the objects and their gates.
 *
 * Ownership runs one way, Pin -> Page -> Cache -> Runtime and Program -> Weights -> Runtime, is
 * fixed when an object is made and ends when it is freed. So these types are traversed by the
 * garbage collector but, like tuples, have no tp_clear: a cycle through them must pass through an
 * object that can be cleared, and a handle below is never freed while one above still needs it. */
#ifndef OCT_PY_CORE_H
#define OCT_PY_CORE_H

#include "csrc/py/numpy_api.h"

#include <stdatomic.h>

#include "csrc/octavo.h"

typedef struct {
    PyTypeObject *runtime, *weights, *program, *cache, *page, *pin;
    PyObject *out_of_pages, *busy, *closed, *stale, *numerical, *unsupported;
} oct_state;

/* The types cannot be subclassed, so an object's type always leads to the module. */
static inline oct_state *
oct_state_of(void *object)
{
    return PyType_GetModuleState(Py_TYPE((PyObject *)object));
}

/* ---- Gates: who is inside an object ------------------------------------------------------------
 * >= 0: calls inside. Closing, and what may not run beside anything else, needs the gate alone. */
typedef struct {
    atomic_int users;
} oct_gate;

enum { OCT_GATE_ALONE = -1, OCT_GATE_CLOSED = -2 };

/* False with ClosedError or BusyError set. `where` names the method, as in "Cache.length". */
bool oct_gate_enter(oct_gate *gate, const oct_state *state, const char *where);
void oct_gate_leave(oct_gate *gate);
bool oct_gate_alone(oct_gate *gate, const oct_state *state, const char *where);
void oct_gate_reopen(oct_gate *gate); /* after alone */
void oct_gate_shut(oct_gate *gate);   /* after alone: closed for good */
static inline bool
oct_gate_closed(oct_gate *gate)
{
    return atomic_load(&gate->users) == OCT_GATE_CLOSED;
}

/* ---- Objects -------------------------------------------------------------------------------- */
typedef struct {
    PyObject_HEAD
    oct_gate gate;
    oct_runtime *handle;
    atomic_int dependents; /* open Weights, Programs, Caches: close refuses while any is */
} oct_py_runtime;

typedef struct {
    PyObject_HEAD
    oct_gate gate;
    oct_weights *handle;
    oct_py_runtime *runtime;
} oct_py_weights;

typedef struct {
    PyObject_HEAD
    oct_gate gate;
    oct_program *handle;
    oct_py_weights *weights;
    int *widths; /* of the row buffers: what captures are sized by */
    int n_buffers, n_ops, max_rows;
} oct_py_program;

typedef struct {
    int kv_heads;
    int width[2];      /* of K and of V, of one head */
    int q_width, out_width; /* of a query and of what it gathers */
    bool latent;
} oct_layer_shape;

typedef struct {
    PyObject_HEAD
    oct_gate gate;
    oct_cache *handle;
    oct_py_runtime *runtime;
    oct_layer_shape *shapes; /* [n_layers] */
    int n_layers;
    int edits; /* pages under edit: the cache is not closed meanwhile */
} oct_py_cache;

typedef struct {
    PyObject_HEAD
    oct_py_cache *cache;
    oct_page_info info; /* its names are the core's static tables */
    int views; /* live arrays of an edited page: its close refuses while there are any */
    bool writable, closed;
} oct_py_page;

/* The runtime's gate, for whatever may use its pool. BusyError also in a signal handler that runs
 * inside a step of this thread: the pool is that step's, waiting for it would never end. */
bool oct_runtime_enter(oct_py_runtime *runtime, const oct_state *state, const char *where);
/* Shared by the objects that stand on a runtime. Counted while inside the runtime's gate. */
void oct_runtime_retain(oct_py_runtime *runtime);
void oct_runtime_release(oct_py_runtime *runtime);

PyObject *oct_page_new(oct_py_cache *cache, const oct_page_info *info, bool writable);
/* A new Pin on the page, or NULL with an exception set. The caller is inside the cache's gate. */
PyObject *oct_pin_new(oct_py_page *page);

PyObject *oct_py_step(PyObject *module, PyObject *args, PyObject *kwargs);
extern const char oct_py_step_doc[];

extern PyType_Spec oct_runtime_spec, oct_weights_spec, oct_program_spec, oct_cache_spec;
extern PyType_Spec oct_page_spec, oct_pin_spec;

/* ---- errors.c -------------------------------------------------------------------------------- */
bool oct_errors_import(oct_state *state);
/* The one switch from status to exception. Returns NULL, so that methods can return it. */
PyObject *oct_raise(const oct_state *state, oct_status status);
PyObject *oct_refuse_pickle(PyObject *self, PyObject *ignored);
#define OCT_NO_PICKLE {"__reduce__", oct_refuse_pickle, METH_NOARGS, NULL}

/* A method that takes keywords, with a table that does not cast function types by hand. */
#define OCT_METHOD(name, function, doc) \
    {name, (PyCFunction)(void (*)(void))(function), METH_VARARGS | METH_KEYWORDS, doc}

#endif
