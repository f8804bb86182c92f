/* args.h: arguments from Python, checked by name. `where` names function and argument ("linear:
 * x") and opens every message. A NULL value means absent: the default in *out is kept.
 *
 * Integers go through __index__ and are never bools; out of range is ValueError. Arrays must have
 * the exact dtype, native, aligned and C-contiguous (TypeError) and the right extents (ValueError);
 * they are never converted behind the caller's back. */
#ifndef OCT_PY_ARGS_H
#define OCT_PY_ARGS_H

#include "csrc/py/numpy_api.h"

#include <stdbool.h>
#include <stdint.h>

bool oct_arg_i64(PyObject *value, const char *where, int64_t lo, int64_t hi, int64_t *out);
bool oct_arg_int(PyObject *value, const char *where, int lo, int hi, int *out);
bool oct_arg_u64(PyObject *value, const char *where, uint64_t *out);
bool oct_arg_size(PyObject *value, const char *where, size_t *out); /* at most PY_SSIZE_T_MAX */
/* UTF-8 without NUL, owned by `value`. None gives NULL where optional. */
bool oct_arg_text(PyObject *value, const char *where, bool optional, const char **out);
/* TypeError unless `value` is exactly of this type. */
bool oct_arg_type(PyObject *value, const char *where, PyTypeObject *type);

/* Borrowed from `value`. extents[ndim]: -1 takes any. */
PyArrayObject *oct_arg_array(PyObject *value, const char *where, int type, int ndim,
                             const npy_intp *extents);
/* The same, to be written: also writeable. */
PyArrayObject *oct_arg_out(PyObject *value, const char *where, int type, int ndim,
                           const npy_intp *extents);
bool oct_arrays_overlap(PyArrayObject *a, PyArrayObject *b);
/* A private copy (PyMem_Free) of an int32 vector: indices are checked once and must not change. */
int32_t *oct_arg_ids(PyObject *value, const char *where, npy_intp extent, npy_intp *count);

/* A product of non-negative counts; ValueError where it exceeds PY_SSIZE_T_MAX. */
bool oct_product(const char *where, int n, const int64_t *counts, npy_intp *out);

/* ---- Mappings with known keys (fields.c) ------------------------------------------------------
 * Errors stick: read all fields, then look at the result of oct_fields_done. */
typedef struct {
    PyObject *dict; /* snapshot, owned by the caller's list: texts and arrays in it stay alive */
    const char *where;
    Py_ssize_t index, used;
    bool failed;
} oct_fields;

/* `keep` is a list that gets the snapshot. */
oct_fields oct_fields_open(PyObject *mapping, const char *where, Py_ssize_t index, PyObject *keep);
/* Borrowed; NULL if absent, and then failed if it is required. */
PyObject *oct_field(oct_fields *f, const char *name, bool required);
/* Absent fields leave *out as it is. */
void oct_field_int(oct_fields *f, const char *name, int *out);
void oct_field_float(oct_fields *f, const char *name, float *out);
void oct_field_bool(oct_fields *f, const char *name, bool *out);
void oct_field_text(oct_fields *f, const char *name, const char **out); /* None: NULL */
/* One integer or a sequence of at most 3. */
void oct_field_ids(oct_fields *f, const char *name, int ids[3], int *count);
/* Formats "where[index].name" for messages. */
const char *oct_field_path(const oct_fields *f, const char *name, char *buffer, size_t size);
bool oct_fields_done(oct_fields *f); /* false with an exception; unknown keys are one */

#endif
