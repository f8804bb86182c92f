/* What slow calls ask while they run: see gil.h. */
#include "csrc/py/gil.h"

static _Thread_local bool polling;

int
oct_gil_poll(void *arg)
{
    oct_gil *gil = arg;
    PyEval_RestoreThread(gil->thread);
    polling = true;
    if (!gil->raised && PyErr_CheckSignals() < 0) gil->raised = true;
    polling = false;
    gil->thread = PyEval_SaveThread();
    return gil->raised;
}

bool
oct_gil_polling(void)
{
    return polling;
}
