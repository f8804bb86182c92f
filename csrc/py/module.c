/* octavo._core: the extension. Multi-phase init, heap types, one state per module, nothing static
 * that holds an object. Sub-interpreters are refused: the core's pool and ledger are the process's.
 * The files beside this one hold one type each; python/octavo/_core.pyi is their contract. */
#define OCT_NUMPY_OWNER
#include "csrc/py/args.h"
#include "csrc/py/core.h"

#define OCT_VERSION "0.1.0"

static PyObject *
default_threads(PyObject *module, PyObject *ignored)
{
    (void)module, (void)ignored;
    return PyLong_FromLong(oct_default_threads());
}

static PyObject *
memory(PyObject *module, PyObject *ignored)
{
    (void)module, (void)ignored;
    PyObject *rows = PyDict_New();
    oct_mem_row row;
    for (int i = 0; rows && oct_mem_row_at(i, &row); i++) {
        PyObject *pair = Py_BuildValue("(LL)", (long long)row.bytes, (long long)row.count);
        if (!pair || PyDict_SetItemString(rows, row.tag, pair) < 0) Py_CLEAR(rows);
        Py_XDECREF(pair);
    }
    return rows;
}

static PyObject *
uniform(PyObject *module, PyObject *args, PyObject *kwargs)
{
    (void)module;
    static char *names[] = {"seed", "sequence", "position", NULL};
    PyObject *seed, *sequence, *position;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO:uniform", names, &seed, &sequence,
                                     &position))
        return NULL;
    uint64_t a, b, c;
    if (!oct_arg_u64(seed, "uniform: seed", &a) ||
        !oct_arg_u64(sequence, "uniform: sequence", &b) ||
        !oct_arg_u64(position, "uniform: position", &c))
        return NULL;
    return PyFloat_FromDouble(oct_uniform(a, b, c));
}

#ifdef OCT_FAULTS
static PyObject *
fault(PyObject *module, PyObject *args, PyObject *kwargs)
{
    (void)module;
    static char *names[] = {"nth", "mode", NULL};
    PyObject *number;
    const char *mode = "once";
    int64_t nth = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|s:fault", names, &number, &mode) ||
        !oct_arg_i64(number, "fault: nth", 0, INT64_MAX, &nth))
        return NULL;
    if (strcmp(mode, "once") && strcmp(mode, "from"))
        return PyErr_Format(PyExc_ValueError, "fault: mode is '%s', legal are once, from", mode);
    oct_fault(nth, !strcmp(mode, "from"));
    Py_RETURN_NONE;
}

static PyObject *
fault_count(PyObject *module, PyObject *ignored)
{
    (void)module, (void)ignored;
    return PyLong_FromLongLong(oct_fault_count());
}

static PyObject *
cancel_after(PyObject *module, PyObject *number)
{
    (void)module;
    int64_t nth = 0;
    if (!oct_arg_i64(number, "cancel_after: nth", 0, INT64_MAX, &nth)) return NULL;
    oct_cancel_after(nth);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(fault_doc,
"fault(nth, mode='once')\n--\n\n"
"Fail the nth fallible allocation from now, 'once' or 'from' then on; 0 disarms.");
PyDoc_STRVAR(fault_count_doc,
"fault_count()\n--\n\nFallible allocations since the last fault().");
PyDoc_STRVAR(cancel_after_doc,
"cancel_after(nth)\n--\n\nCancel a step at its nth tile boundary from now; 0 disarms.");
#endif

PyDoc_STRVAR(default_threads_doc,
"default_threads()\n--\n\n"
"min(affinity, cgroup quota, physical cores), at least 1.");
PyDoc_STRVAR(memory_doc,
"memory()\n--\n\n"
"Live (bytes, allocations) of this process by tag of the allocation seam.");
PyDoc_STRVAR(uniform_doc,
"uniform(seed, sequence, position)\n--\n\n"
"The uniform in [0, 1) of three unsigned 64-bit counters, the same everywhere.");

static PyMethodDef methods[] = {
    {"default_threads", default_threads, METH_NOARGS, default_threads_doc},
    {"memory", memory, METH_NOARGS, memory_doc},
    OCT_METHOD("uniform", uniform, uniform_doc),
    OCT_METHOD("step", oct_py_step, oct_py_step_doc),
#ifdef OCT_FAULTS
    OCT_METHOD("fault", fault, fault_doc),
    {"fault_count", fault_count, METH_NOARGS, fault_count_doc},
    {"cancel_after", cancel_after, METH_O, cancel_after_doc},
#endif
    {NULL, NULL, 0, NULL},
};

static int
add_types(PyObject *module, oct_state *state)
{
    const struct {
        PyType_Spec *spec;
        PyTypeObject **to;
        bool public;
    } types[] = {
        {&oct_runtime_spec, &state->runtime, true}, {&oct_weights_spec, &state->weights, true},
        {&oct_program_spec, &state->program, true}, {&oct_cache_spec, &state->cache, true},
        {&oct_page_spec, &state->page, true},       {&oct_pin_spec, &state->pin, false},
    };
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        *types[i].to = (PyTypeObject *)PyType_FromModuleAndSpec(module, types[i].spec, NULL);
        if (!*types[i].to) return -1;
        if (types[i].public && PyModule_AddType(module, *types[i].to) < 0) return -1;
    }
    return 0;
}

static int
module_exec(PyObject *module)
{
    if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
        PyErr_SetString(PyExc_ImportError, "octavo._core runs in the main interpreter only");
        return -1;
    }
    if (PyArray_ImportNumPyAPI() < 0) return -1;
    oct_state *state = PyModule_GetState(module);
    if (!oct_errors_import(state) || add_types(module, state) < 0) return -1;
    return PyModule_AddStringConstant(module, "__version__", OCT_VERSION);
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    oct_state *state = PyModule_GetState(module);
    Py_VISIT(state->runtime);
    Py_VISIT(state->weights);
    Py_VISIT(state->program);
    Py_VISIT(state->cache);
    Py_VISIT(state->page);
    Py_VISIT(state->pin);
    Py_VISIT(state->out_of_pages);
    Py_VISIT(state->busy);
    Py_VISIT(state->closed);
    Py_VISIT(state->stale);
    Py_VISIT(state->numerical);
    Py_VISIT(state->unsupported);
    return 0;
}

static int
module_clear(PyObject *module)
{
    oct_state *state = PyModule_GetState(module);
    Py_CLEAR(state->runtime);
    Py_CLEAR(state->weights);
    Py_CLEAR(state->program);
    Py_CLEAR(state->cache);
    Py_CLEAR(state->page);
    Py_CLEAR(state->pin);
    Py_CLEAR(state->out_of_pages);
    Py_CLEAR(state->busy);
    Py_CLEAR(state->closed);
    Py_CLEAR(state->stale);
    Py_CLEAR(state->numerical);
    Py_CLEAR(state->unsupported);
    return 0;
}

static void
module_free(void *module)
{
    module_clear(module);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, module_exec},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "octavo._core",
    .m_doc = "The C core of Octavo. Use the octavo package; this module is its foundation.",
    .m_size = sizeof(oct_state),
    .m_methods = methods,
    .m_slots = slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC
PyInit__core(void)
{
    return PyModuleDef_Init(&definition);
}
