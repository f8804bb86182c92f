/* octavo._probe: every table column callable from pytest. Test-only, and the one file family of
 * csrc/py (probe*.c) that includes kernels.h. The functions live beside it, one file per table:
 * probe_weight.c, probe_page.c, probe_op.c; each exports its method list. */
#define OCT_NUMPY_OWNER
#include "csrc/py/probe.h"

static PyObject *
probe_runs_here(PyObject *self, PyObject *arg)
{
    (void)self;
    oct_isa isa;
    if (!oct_probe_isa(arg, &isa)) return NULL;
    return PyBool_FromLong(isa <= oct_cpu_isa());
}

int
oct_probe_isa(PyObject *arg, void *out)
{
    const char *name = PyUnicode_AsUTF8(arg);
    if (!name) return 0;
    for (int i = 0; i < OCT_ISA_COUNT; i++)
        if (!strcmp(name, oct_isa_names[i])) {
            *(oct_isa *)out = (oct_isa)i;
            return 1;
        }
    PyErr_Format(PyExc_ValueError, "isa: unknown column '%s'", name);
    return 0;
}

const oct_kernels *
oct_probe_table(oct_isa isa)
{
    /* A cap is honoured here even above what the machine runs: asking whether a column exists is
     * legal, calling it is guarded by runs_here. Filled under the GIL. */
    static oct_kernels tables[OCT_ISA_COUNT];
    static int ready;
    if (!ready) {
        for (int i = 0; i < OCT_ISA_COUNT; i++) oct_kernels_select(&tables[i], (oct_isa)i);
        ready = 1;
    }
    return &tables[isa];
}

void
oct_probe_import_numpy(void)
{
    if (PyArray_ImportNumPyAPI() < 0) return; /* leaves the exception set */
}

static PyMethodDef probe_methods[] = {
    {"runs_here", probe_runs_here, METH_O, "runs_here(isa) -> bool"},
    {NULL, NULL, 0, NULL},
};

static int
probe_exec(PyObject *module)
{
    oct_probe_import_numpy();
    if (PyErr_Occurred()) return -1;
    if (PyModule_AddFunctions(module, probe_methods) < 0) return -1;
    if (PyModule_AddFunctions(module, oct_probe_weight_methods) < 0) return -1;
    if (PyModule_AddFunctions(module, oct_probe_page_methods) < 0) return -1;
    if (PyModule_AddFunctions(module, oct_probe_op_methods) < 0) return -1;
    return PyModule_AddFunctions(module, oct_probe_route_methods);
}

static PyModuleDef_Slot probe_slots[] = {
    {Py_mod_exec, probe_exec},
    {0, NULL},
};

static struct PyModuleDef probe_module = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "octavo._probe",
    .m_slots = probe_slots,
};

PyMODINIT_FUNC
PyInit__probe(void)
{
    return PyModuleDef_Init(&probe_module);
}
