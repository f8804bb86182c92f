/* What slow calls ask while they run: see gil.h. */
#include "csrc/py/gil.h"

static _Thread_local bool polling;

void
oct_gil_borrow(oct_gil *gil)
{
    PyEval_RestoreThread(gil->thread);
    polling = true;
}

void
oct_gil_return(oct_gil *gil)
{
    polling = false;
    gil->thread = PyEval_SaveThread();
}

int
oct_gil_poll(void *arg)
{
    oct_gil *gil = arg;
    oct_gil_borrow(gil);
    if (!gil->raised && PyErr_CheckSignals() < 0) gil->raised = true;
    oct_gil_return(gil);
    return gil->raised;
}

bool
oct_gil_polling(void)
{
    return polling;
}
