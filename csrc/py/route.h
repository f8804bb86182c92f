/* route.h: functions of Python's that look at what routers choose, and change it. */
#ifndef OCT_PY_ROUTE_H
#define OCT_PY_ROUTE_H

#include "csrc/py/core.h"
#include "csrc/py/gil.h"

typedef struct {
    PyObject *functions; /* dict of op to callable, borrowed; NULL: none */
    bool *ops;           /* [ops of the program] */
    oct_gil *gil;
} oct_py_route;

/* Reads step's argument `route`, which may be NULL or None. */
bool oct_py_route_read(oct_py_route *, PyObject *route, const oct_py_program *);
void oct_py_route_free(oct_py_route *);
/* As a step wants it; the argument of its `ask` is the oct_py_route. */
oct_route_hook oct_py_route_hook(oct_py_route *, oct_gil *);

#endif
