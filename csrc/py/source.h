/* source.h: the buffers behind Weights.matrix, held and bounds-checked for one call. */
#ifndef OCT_PY_SOURCE_H
#define OCT_PY_SOURCE_H

#include "csrc/py/numpy_api.h"

#include "csrc/octavo.h"

enum {
    OCT_SOURCE_CODES,
    OCT_SOURCE_SCALES,
    OCT_SOURCE_MINS,
    OCT_SOURCE_ZEROS,
    OCT_SOURCE_VIEWS
};

typedef struct {
    PyObject *codes, *scales, *mins, *zeros, *row_map; /* borrowed; NULL or None: absent */
    size_t code_offset, scale_offset, min_offset;
} oct_source_objects;

/* Zeroed by the caller, who fills desc's format, n, k (both at least 1), names and strides. */
typedef struct {
    oct_matrix_desc desc;
    Py_buffer views[OCT_SOURCE_VIEWS];
    int32_t *row_map; /* a private copy */
    uint64_t last_row;
} oct_py_source;

/* Takes the buffers and fills desc's pointers; false with an exception. Close in both cases. */
bool oct_source_open(oct_py_source *s, const oct_source_objects *objects);
void oct_source_close(oct_py_source *s);

#endif
