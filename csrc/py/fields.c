/* Mappings with known keys, as Program and Cache take them: see args.h. The mapping is copied into
 * a dict first, so that no foreign __getitem__ runs while C structs are half filled. */
#include "csrc/py/args.h"

enum { PATH_BYTES = 96 };

oct_fields
oct_fields_open(PyObject *mapping, const char *where, Py_ssize_t index, PyObject *keep)
{
    oct_fields f = {.where = where, .index = index, .failed = true};
    if (!PyMapping_Check(mapping) || PyUnicode_Check(mapping) || PyList_Check(mapping) ||
        PyTuple_Check(mapping)) {
        PyErr_Format(PyExc_TypeError, "%s[%zd] must be a mapping, got %s", where, index,
                     Py_TYPE(mapping)->tp_name);
        return f;
    }
    PyObject *dict = PyDict_New();
    if (!dict) return f;
    if (PyDict_Update(dict, mapping) == 0 && PyList_Append(keep, dict) == 0) {
        f.dict = dict; /* borrowed from keep */
        f.failed = false;
    }
    Py_DECREF(dict);
    return f;
}

const char *
oct_field_path(const oct_fields *f, const char *name, char *buffer, size_t size)
{
    PyOS_snprintf(buffer, size, "%s[%zd].%s", f->where, f->index, name);
    return buffer;
}

PyObject *
oct_field(oct_fields *f, const char *name, bool required)
{
    if (f->failed) return NULL;
    PyObject *key = PyUnicode_FromString(name);
    PyObject *value = key ? PyDict_GetItemWithError(f->dict, key) : NULL;
    Py_XDECREF(key);
    if (value)
        f->used++;
    else if (PyErr_Occurred())
        f->failed = true;
    else if (required) {
        PyErr_Format(PyExc_ValueError, "%s[%zd] has no field '%s'", f->where, f->index, name);
        f->failed = true;
    }
    return value;
}

void
oct_field_int(oct_fields *f, const char *name, int *out)
{
    char path[PATH_BYTES];
    PyObject *value = oct_field(f, name, false);
    if (!value) return;
    oct_field_path(f, name, path, sizeof path);
    if (!oct_arg_int(value, path, INT32_MIN, INT32_MAX, out)) f->failed = true;
}

void
oct_field_float(oct_fields *f, const char *name, float *out)
{
    PyObject *value = oct_field(f, name, false);
    if (!value) return;
    const double v = PyBool_Check(value) ? -1.0 : PyFloat_AsDouble(value);
    if (PyBool_Check(value) || (v == -1.0 && PyErr_Occurred())) {
        f->failed = true;
        if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_TypeError)) return;
        PyErr_Clear();
        PyErr_Format(PyExc_TypeError, "%s[%zd].%s must be a float, got %s", f->where, f->index,
                     name, Py_TYPE(value)->tp_name);
        return;
    }
    *out = (float)v;
}

void
oct_field_bool(oct_fields *f, const char *name, bool *out)
{
    PyObject *value = oct_field(f, name, false);
    if (!value) return;
    if (!PyBool_Check(value)) {
        PyErr_Format(PyExc_TypeError, "%s[%zd].%s must be a bool, got %s", f->where, f->index,
                     name, Py_TYPE(value)->tp_name);
        f->failed = true;
        return;
    }
    *out = value == Py_True;
}

void
oct_field_text(oct_fields *f, const char *name, const char **out)
{
    char path[PATH_BYTES];
    PyObject *value = oct_field(f, name, false);
    if (!value) return;
    oct_field_path(f, name, path, sizeof path);
    if (!oct_arg_text(value, path, true, out)) f->failed = true;
}

void
oct_field_ids(oct_fields *f, const char *name, int ids[3], int *count)
{
    char path[PATH_BYTES];
    PyObject *value = oct_field(f, name, false);
    if (!value) return;
    oct_field_path(f, name, path, sizeof path);
    *count = 1;
    if (!PySequence_Check(value)) {
        f->failed = !oct_arg_int(value, path, INT32_MIN, INT32_MAX, &ids[0]);
        return;
    }
    PyObject *list = PySequence_Tuple(value);
    f->failed = !list;
    if (!list) return;
    if (PyTuple_GET_SIZE(list) > 3) {
        PyErr_Format(PyExc_ValueError, "%s has %zd entries and takes at most 3", path,
                     PyTuple_GET_SIZE(list));
        f->failed = true;
    }
    for (Py_ssize_t i = 0; !f->failed && i < PyTuple_GET_SIZE(list); i++)
        f->failed = !oct_arg_int(PyTuple_GET_ITEM(list, i), path, INT32_MIN, INT32_MAX, &ids[i]);
    *count = (int)PyTuple_GET_SIZE(list);
    Py_DECREF(list);
}

bool
oct_fields_done(oct_fields *f)
{
    if (!f->failed && f->used != PyDict_GET_SIZE(f->dict)) {
        PyObject *keys = PyDict_Keys(f->dict);
        if (keys)
            PyErr_Format(PyExc_ValueError, "%s[%zd] has unknown fields among %S", f->where,
                         f->index, keys);
        Py_XDECREF(keys);
        f->failed = true;
    }
    return !f->failed;
}
