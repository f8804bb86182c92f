/* weights.h: the methods of Weights that add to it, which live in weights_add.c. */
#ifndef OCT_PY_WEIGHTS_H
#define OCT_PY_WEIGHTS_H

#include "csrc/py/core.h"

PyObject *oct_weights_matrix(oct_py_weights *self, PyObject *args, PyObject *kwargs);
PyObject *oct_weights_matrices(oct_py_weights *self, PyObject *args, PyObject *kwargs);
PyObject *oct_weights_vector(oct_py_weights *self, PyObject *args, PyObject *kwargs);

#endif
