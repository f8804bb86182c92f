/* numpy_api.h: the only includer of Python.h and of NumPy's headers, in the order and with the
 * settings they need. One file per module defines OCT_NUMPY_OWNER and calls import_array. */
#ifndef OCT_NUMPY_API_H
#define OCT_NUMPY_API_H

#ifndef PY_SSIZE_T_CLEAN
#define PY_SSIZE_T_CLEAN
#endif
#include <Python.h>

#ifndef OCT_NUMPY_OWNER
#define NO_IMPORT_ARRAY
#endif
#define PY_ARRAY_UNIQUE_SYMBOL oct_numpy_table
#include <numpy/arrayobject.h>

#endif
