/* The source of Weights.matrix: buffers, offsets and strides from Python into an oct_matrix_desc
 * whose every address is known to lie inside its buffer. octavo.h takes raw pointers, so this file
 * is the only thing between a lying checkpoint and a wild read.
 *
 * What packing touches (kernels.h, oct_source), R = largest source row, G = ceil(k / 32) groups:
 *   codes   code_offset + R*row_stride + (G-1)*group_stride + bytes of the last group
 *   scales  offset + R*scale_row_stride + (G-1)*scale_group_stride + 2 (4 if float32), mins alike
 *   zeros   R*zero_row_stride + (G-1) + 1
 * Strides are not negative, so the last address is the largest. */
#include "csrc/py/source.h"

#include "csrc/py/args.h"

enum { GROUP = 32 }; /* the finest group: a format with a coarser one touches less */

static const char *const kinds[] = {"bytes", "halves", "pairs", "values"};
enum { BYTES, HALVES, PAIRS, VALUES, KINDS };

static bool
take_view(PyObject *object, const char *where, Py_buffer *view)
{
    if (PyObject_GetBuffer(object, view, PyBUF_SIMPLE) == 0) return true;
    if (PyErr_ExceptionMatches(PyExc_MemoryError)) return false;
    PyErr_Clear(); /* whatever the exporter said, this says what to do */
    PyErr_Format(PyExc_TypeError,
                 "%s must be a contiguous object with the buffer protocol, got %s; use "
                 "numpy.ascontiguousarray(...).view(numpy.uint8)",
                 where, Py_TYPE(object)->tp_name);
    return false;
}

/* offset + rows*row_stride + groups*group_stride + tail <= size, in checked arithmetic. */
static bool
fits(const char *where, const Py_buffer *view, size_t offset, uint64_t last_row, size_t row_stride,
     uint64_t last_group, size_t group_stride, uint64_t tail)
{
    uint64_t rows, groups, end;
    if (!__builtin_mul_overflow(last_row, row_stride, &rows) &&
        !__builtin_mul_overflow(last_group, group_stride, &groups) &&
        !__builtin_add_overflow(rows, groups, &end) && !__builtin_add_overflow(end, offset, &end) &&
        !__builtin_add_overflow(end, tail, &end) && end <= (uint64_t)view->len)
        return true;
    PyErr_Format(PyExc_ValueError,
                 "%s: row %llu, group %llu would be read past the end of its buffer of %zd bytes "
                 "(offset %zu, strides %zu and %zu)",
                 where, (unsigned long long)last_row, (unsigned long long)last_group, view->len,
                 offset, row_stride, group_stride);
    return false;
}

/* The largest source row; each entry must be a row. */
static bool
read_row_map(oct_py_source *s, PyObject *row_map)
{
    s->last_row = (uint64_t)s->desc.n - 1;
    if (!row_map || row_map == Py_None) return true;
    npy_intp count;
    s->row_map = oct_arg_ids(row_map, "matrix: row_map", (npy_intp)s->desc.n, &count);
    if (!s->row_map) return false;
    int32_t last = 0;
    for (npy_intp i = 0; i < count; i++) {
        if (s->row_map[i] < 0) {
            PyErr_Format(PyExc_ValueError, "matrix: row_map[%zd] is %d, a row cannot be negative",
                         (Py_ssize_t)i, (int)s->row_map[i]);
            return false;
        }
        if (s->row_map[i] > last) last = s->row_map[i];
    }
    s->last_row = (uint64_t)last;
    s->desc.row_map = s->row_map;
    return true;
}

static int
kind_of(const char *name)
{
    for (int i = 0; i < KINDS; i++)
        if (!strcmp(name, kinds[i])) return i;
    PyErr_Format(PyExc_ValueError,
                 "matrix: source must be 'bytes', 'halves', 'pairs' or 'values', got '%s'", name);
    return -1;
}

/* Bytes of one element of source "values"; 0 with an exception if unknown. */
static uint64_t
value_bytes(const char *type)
{
    if (type && !strcmp(type, "f32")) return 4;
    if (type && (!strcmp(type, "f16") || !strcmp(type, "bf16"))) return 2;
    PyErr_Format(PyExc_ValueError,
                 "matrix: values_type must be 'f32', 'f16' or 'bf16' with source 'values', got %s",
                 type ? type : "None");
    return 0;
}

static bool
check_codes(oct_py_source *s, size_t offset)
{
    const char *where = "matrix: codes";
    const Py_buffer *view = &s->views[OCT_SOURCE_CODES];
    const uint64_t k = (uint64_t)s->desc.k, groups = (k + GROUP - 1) / GROUP;
    const uint64_t left = k - (groups - 1) * GROUP;
    const int kind = kind_of(s->desc.source);
    if (kind < 0) return false;
    if (kind == VALUES) {
        const uint64_t bytes = value_bytes(s->desc.values_type);
        return bytes && fits(where, view, offset, s->last_row, s->desc.row_stride, 0, 0, k * bytes);
    }
    if (groups > 1 && s->desc.group_stride == 0) {
        PyErr_Format(PyExc_ValueError,
                     "matrix: group_stride must be given with source '%s' (bytes from one group of "
                     "32 codes to the next: 32 for plain bytes, 16 for packed nibbles)",
                     s->desc.source);
        return false;
    }
    /* A nibble source spreads a group over 16 bytes, of which a short last group needs some. */
    const uint64_t last_bytes = kind == BYTES ? left : kind == PAIRS ? (left + 1) / 2 : 16;
    const uint64_t full_bytes = kind == BYTES ? GROUP : 16;
    if (groups > 1 && !fits(where, view, offset, s->last_row, s->desc.row_stride, groups - 2,
                            s->desc.group_stride, full_bytes))
        return false;
    return fits(where, view, offset, s->last_row, s->desc.row_stride, groups - 1,
                s->desc.group_stride, last_bytes);
}

/* One optional buffer of side data: checks, then stores the pointer. */
static bool
add_side(oct_py_source *s, PyObject *object, int which, const char *where, size_t offset,
         size_t row_stride, size_t group_stride, uint64_t bytes, const uint8_t **to)
{
    if (!object || object == Py_None) return true;
    Py_buffer *view = &s->views[which];
    if (!take_view(object, where, view)) return false;
    const uint64_t groups = ((uint64_t)s->desc.k + GROUP - 1) / GROUP;
    if (!fits(where, view, offset, s->last_row, row_stride, groups - 1, group_stride, bytes))
        return false;
    *to = (const uint8_t *)view->buf + offset;
    return true;
}

bool
oct_source_open(oct_py_source *s, const oct_source_objects *o)
{
    oct_matrix_desc *d = &s->desc;
    if (!read_row_map(s, o->row_map)) return false;
    if (!take_view(o->codes, "matrix: codes", &s->views[OCT_SOURCE_CODES])) return false;
    if (!check_codes(s, o->code_offset)) return false;
    d->codes = (const uint8_t *)s->views[OCT_SOURCE_CODES].buf + o->code_offset;
    const uint64_t scale_bytes = d->scale_type && !strcmp(d->scale_type, "f32") ? 4 : 2;
    return add_side(s, o->scales, OCT_SOURCE_SCALES, "matrix: scales", o->scale_offset,
                    d->scale_row_stride, d->scale_group_stride, scale_bytes, &d->scales) &&
           add_side(s, o->mins, OCT_SOURCE_MINS, "matrix: mins", o->min_offset,
                    d->scale_row_stride, d->scale_group_stride, 2, &d->mins) &&
           add_side(s, o->zeros, OCT_SOURCE_ZEROS, "matrix: zeros", 0, d->zero_row_stride, 1, 1,
                    &d->zeros);
}

void
oct_source_close(oct_py_source *s)
{
    for (int i = 0; i < OCT_SOURCE_VIEWS; i++) PyBuffer_Release(&s->views[i]);
    PyMem_Free(s->row_map);
    s->row_map = NULL;
}
