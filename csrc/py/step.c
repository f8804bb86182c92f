/* step(): one pass of a model over a ragged batch. All of Python's part happens before and after:
 * tokens are copied, every result array is made, then oct_step runs once without the GIL. Signals
 * are looked at from its poll, and what a handler raises cancels the step. */
#include "csrc/py/args.h"
#include "csrc/py/core.h"
#include "csrc/py/gil.h"
#include "csrc/py/route.h"

#include <math.h> /* NAN */

/* What the caller asked for. */
typedef struct {
    oct_py_program *program;
    oct_py_cache *cache;
    PyObject *items, *targets, *captures; /* tuples, owned; targets may be NULL */
    int logits, argmax, topk, quiet, timed;
    oct_py_route route;
} request;

/* One step in the making. items[i].tokens and .target are private copies. */
typedef struct {
    oct_step_item *items;
    oct_capture *captures;
    int n_items, n_captures;
    int64_t rows;
    PyObject *result; /* the dict that step returns; it owns all arrays */
} draft;

static void
draft_free(draft *d)
{
    for (int i = 0; d->items && i < d->n_items; i++) {
        PyMem_Free((void *)d->items[i].tokens);
        PyMem_Free((void *)d->items[i].target);
    }
    PyMem_Free(d->items);
    PyMem_Free(d->captures);
    Py_CLEAR(d->result);
}

/* ---- Reading --------------------------------------------------------------------------------- */

static bool
read_item(PyObject *entry, Py_ssize_t index, oct_step_item *item)
{
    char where[64];
    PyObject *three = PyTuple_Check(entry) || PyList_Check(entry) ? PySequence_Tuple(entry) : NULL;
    if (!three || PyTuple_GET_SIZE(three) != 3) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_TypeError, "step: items[%zd] must be (seq, tokens, first)", index);
        Py_XDECREF(three);
        return false;
    }
    npy_intp n = 0;
    PyOS_snprintf(where, sizeof where, "step: items[%zd].seq", index);
    bool good = oct_arg_u64(PyTuple_GET_ITEM(three, 0), where, &item->seq);
    PyOS_snprintf(where, sizeof where, "step: items[%zd].tokens", index);
    if (good) item->tokens = oct_arg_ids(PyTuple_GET_ITEM(three, 1), where, -1, &n);
    good = good && item->tokens;
    if (good && n > INT32_MAX) {
        PyErr_Format(PyExc_ValueError, "%s has %zd entries", where, (Py_ssize_t)n);
        good = false;
    }
    item->n = (int)n;
    PyOS_snprintf(where, sizeof where, "step: items[%zd].first", index);
    good = good && oct_arg_int(PyTuple_GET_ITEM(three, 2), where, 0, item->n, &item->first);
    Py_DECREF(three);
    return good;
}

static bool
read_items(const request *r, draft *d)
{
    const Py_ssize_t n = PyTuple_GET_SIZE(r->items);
    d->items = n <= INT32_MAX ? PyMem_Calloc((size_t)(n ? n : 1), sizeof *d->items) : NULL;
    if (!d->items) return PyErr_NoMemory() != NULL;
    d->n_items = (int)n;
    for (int i = 0; i < d->n_items; i++) {
        if (!read_item(PyTuple_GET_ITEM(r->items, i), i, &d->items[i])) return false;
        d->rows += d->items[i].n;
    }
    if (d->rows <= r->program->max_rows) return true;
    PyErr_Format(PyExc_ValueError,
                 "step: the items have %lld rows and the program takes %d (max_rows); split them",
                 (long long)d->rows, r->program->max_rows);
    return false;
}

static bool
read_targets(const request *r, draft *d)
{
    char where[64];
    if (!r->targets) return true;
    if (PyTuple_GET_SIZE(r->targets) != d->n_items) {
        PyErr_Format(PyExc_ValueError, "step: %zd targets for %d items",
                     PyTuple_GET_SIZE(r->targets), d->n_items);
        return false;
    }
    for (int i = 0; i < d->n_items; i++) {
        PyObject *entry = PyTuple_GET_ITEM(r->targets, i);
        oct_step_item *item = &d->items[i];
        npy_intp n;
        if (entry == Py_None) continue;
        PyOS_snprintf(where, sizeof where, "step: targets[%d]", i);
        item->target = oct_arg_ids(entry, where, item->n - item->first, &n);
        if (!item->target) return false;
    }
    return true;
}

/* ---- Results --------------------------------------------------------------------------------- */

/* A new array appended to `list`, its data in *data. cols < 0: one-dimensional. */
static bool
add_array(PyObject *list, int64_t rows, int64_t cols, int type, void **data)
{
    npy_intp dims[2] = {(npy_intp)rows, (npy_intp)cols};
    PyObject *array = PyArray_SimpleNew(cols < 0 ? 1 : 2, dims, type);
    if (!array) return false;
    *data = PyArray_DATA((PyArrayObject *)array);
    const int rc = PyList_Append(list, array);
    Py_DECREF(array);
    return rc == 0;
}

/* A new list under `name` of the result; borrowed. */
static PyObject *
add_list(draft *d, const char *name)
{
    PyObject *list = PyList_New(0);
    if (!list) return NULL;
    const int rc = PyDict_SetItemString(d->result, name, list);
    Py_DECREF(list);
    return rc < 0 ? NULL : list;
}

static bool
add_topk(PyObject *list, const request *r, oct_step_item *item, int wanted)
{
    PyObject *pair = PyList_New(0);
    item->topk = r->topk;
    bool good = pair && add_array(pair, wanted, r->topk, NPY_INT32, (void **)&item->topk_id) &&
                add_array(pair, wanted, r->topk, NPY_FLOAT32, (void **)&item->topk_logprob);
    PyObject *tuple = good ? PyList_AsTuple(pair) : NULL;
    good = tuple && PyList_Append(list, tuple) == 0;
    Py_XDECREF(tuple);
    Py_XDECREF(pair);
    return good;
}

static bool
add_results(const request *r, draft *d, int vocab)
{
    PyObject *logits = r->logits ? add_list(d, "logits") : NULL;
    PyObject *logprob = r->targets ? add_list(d, "logprob") : NULL;
    PyObject *argmax = r->argmax ? add_list(d, "argmax") : NULL;
    PyObject *topk = r->topk ? add_list(d, "topk") : NULL;
    if (PyErr_Occurred()) return false;
    for (int i = 0; i < d->n_items; i++) {
        oct_step_item *item = &d->items[i];
        const int wanted = item->n - item->first;
        if (logits && !add_array(logits, wanted, vocab, NPY_FLOAT32, (void **)&item->logits))
            return false;
        if (logprob && !item->target && PyList_Append(logprob, Py_None) < 0) return false;
        if (item->target && !add_array(logprob, wanted, -1, NPY_FLOAT32, (void **)&item->logprob))
            return false;
        if (argmax && !add_array(argmax, wanted, -1, NPY_INT32, (void **)&item->argmax))
            return false;
        if (topk && !add_topk(topk, r, item, wanted)) return false;
    }
    return true;
}

static bool
add_capture(const request *r, draft *d, PyObject *list, int i)
{
    PyObject *entry = PyTuple_GET_ITEM(r->captures, i);
    oct_capture *c = &d->captures[i];
    PyObject *two = PyTuple_Check(entry) || PyList_Check(entry) ? PySequence_Tuple(entry) : NULL;
    if (!two || PyTuple_GET_SIZE(two) != 2) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_TypeError, "step: captures[%d] must be (op, buffer)", i);
        Py_XDECREF(two);
        return false;
    }
    const bool good = oct_arg_int(PyTuple_GET_ITEM(two, 0), "step: captures op", 0,
                                  r->program->n_ops - 1, &c->op) &&
                      oct_arg_int(PyTuple_GET_ITEM(two, 1), "step: captures buffer", 0,
                                  r->program->n_buffers - 1, &c->buffer);
    Py_DECREF(two);
    return good &&
           add_array(list, d->rows, r->program->widths[c->buffer], NPY_FLOAT32, (void **)&c->dst);
}

static bool
add_captures(const request *r, draft *d)
{
    const Py_ssize_t n = PyTuple_GET_SIZE(r->captures);
    if (!n) return true;
    PyObject *list = add_list(d, "captures");
    if (!list) return false;
    d->captures = n <= INT32_MAX ? PyMem_Calloc((size_t)n, sizeof *d->captures) : NULL;
    if (!d->captures) return PyErr_NoMemory() != NULL;
    d->n_captures = (int)n;
    for (int i = 0; i < d->n_captures; i++)
        if (!add_capture(r, d, list, i)) return false;
    return true;
}

/* An item that failed alone has no numbers: NaN and -1, never what lay in fresh memory. */
static void
blank(oct_step_item *item, int vocab)
{
    const size_t wanted = (size_t)(item->n - item->first);
    for (size_t j = 0; item->logits && j < wanted * (size_t)vocab; j++) item->logits[j] = NAN;
    for (size_t j = 0; item->logprob && j < wanted; j++) item->logprob[j] = NAN;
    for (size_t j = 0; item->argmax && j < wanted; j++) item->argmax[j] = -1;
    for (size_t j = 0; item->topk && j < wanted * (size_t)item->topk; j++) {
        item->topk_id[j] = -1;
        item->topk_logprob[j] = NAN;
    }
}

static bool
add_ok(draft *d, int vocab)
{
    PyObject *ok = add_list(d, "ok");
    for (int i = 0; ok && i < d->n_items; i++) {
        const bool good = d->items[i].status == OCT_OK;
        if (!good) blank(&d->items[i], vocab);
        if (PyList_Append(ok, good ? Py_True : Py_False) < 0) return false;
    }
    return ok != NULL;
}

/* name: (seconds, bytes, int8_ops, f32_ops) of each kind of work that there was. */
static bool
add_cost(draft *d, const oct_cost *cost)
{
    PyObject *all = PyDict_New();
    bool good = all && PyDict_SetItemString(d->result, "cost", all) == 0;
    for (int i = 0; good && i < OCT_COST_COUNT; i++) {
        const oct_cost *c = &cost[i];
        if (c->ns == 0 && c->bytes == 0.0) continue;
        PyObject *four = Py_BuildValue("(dddd)", 1e-9 * (double)c->ns, c->bytes, c->int8_ops,
                                       c->f32_ops);
        good = four && PyDict_SetItemString(all, oct_cost_name((oct_cost_kind)i), four) == 0;
        Py_XDECREF(four);
    }
    Py_XDECREF(all);
    return good;
}

/* ---- Running --------------------------------------------------------------------------------- */

static bool
run(const request *r, const oct_state *state, draft *d)
{
    oct_gil gil = {0};
    oct_py_route route = r->route;
    oct_step_args a = {.items = d->items,
                       .n_items = d->n_items,
                       .captures = d->captures,
                       .n_captures = d->n_captures,
                       .route = oct_py_route_hook(&route, &gil),
                       .quiet = r->quiet,
                       .timed = r->timed,
                       .poll = {oct_gil_poll, &gil}};
    oct_status status;
    OCT_SLOW(&gil, status, oct_step(r->program->handle, r->cache->handle, &a));
    if (gil.raised) return false; /* the exception is pending, whatever came of the step */
    if (status) oct_raise(state, status);
    return !status && add_cost(d, a.cost);
}

static PyObject *
prepare_and_run(const request *r, const oct_state *state)
{
    draft d = {0};
    PyObject *result = NULL;
    const int vocab = oct_program_vocab(r->program->handle);
    if (r->topk > vocab)
        PyErr_Format(PyExc_ValueError, "step: topk is %d, the vocabulary has %d", r->topk, vocab);
    else if ((d.result = PyDict_New()) && read_items(r, &d) && read_targets(r, &d) &&
             add_results(r, &d, vocab) && add_captures(r, &d) && run(r, state, &d) &&
             add_ok(&d, vocab))
        result = Py_NewRef(d.result);
    draft_free(&d);
    return result;
}

/* What the step uses cannot be closed, nor the weights grow, while it runs. Closed weights live on
 * in the program and grow no more. */
static PyObject *
with_gates(const request *r, const oct_state *state)
{
    oct_py_weights *weights = r->program->weights;
    if (!oct_runtime_enter(weights->runtime, state, "step")) return NULL;
    oct_gate *gates[] = {&weights->runtime->gate, &r->cache->runtime->gate, &r->program->gate,
                         &r->cache->gate, &weights->gate};
    const int count = oct_gate_closed(&weights->gate) ? 4 : 5;
    int entered = 1;
    while (entered < count && oct_gate_enter(gates[entered], state, "step")) entered++;
    PyObject *result = entered == count ? prepare_and_run(r, state) : NULL;
    while (entered) oct_gate_leave(gates[--entered]);
    return result;
}

PyObject *
oct_py_step(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"program", "cache", "items", "logits", "targets", "argmax", "topk",
                            "captures", "quiet", "timed", "route", NULL};
    const oct_state *state = PyModule_GetState(module);
    PyObject *program, *cache, *items, *targets = Py_None, *topk = NULL, *captures = NULL, *route = NULL;
    request r = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|$pOpOOppO:step", names, &program, &cache,
                                     &items, &r.logits, &targets, &r.argmax, &topk, &captures,
                                     &r.quiet, &r.timed, &route) ||
        !oct_arg_type(program, "step: program", state->program) ||
        !oct_arg_type(cache, "step: cache", state->cache) ||
        !oct_arg_int(topk, "step: topk", 0, INT32_MAX, &r.topk))
        return NULL;
    r.program = (oct_py_program *)program;
    r.cache = (oct_py_cache *)cache;
    r.items = PySequence_Tuple(items);
    r.captures = captures ? PySequence_Tuple(captures) : PyTuple_New(0);
    r.targets = targets != Py_None ? PySequence_Tuple(targets) : NULL;
    PyObject *result = NULL;
    if (r.items && r.captures && (targets == Py_None || r.targets) &&
        oct_py_route_read(&r.route, route, r.program))
        result = with_gates(&r, state);
    oct_py_route_free(&r.route);
    Py_XDECREF(r.items);
    Py_XDECREF(r.captures);
    Py_XDECREF(r.targets);
    return result;
}

const char oct_py_step_doc[] =
"step(program, cache, items, *, logits=False, targets=None, argmax=False, topk=0, captures=(),\n"
"     quiet=False, timed=False, route=None)\n--\n\n"
"Run one step over items (seq, tokens, first).\n\n"
"tokens are int32; rows [first, len(tokens)) are wanted. Returns a dict: 'ok', a list of bool per\n"
"item (False: non-finite, that sequence is unchanged, its numbers are nan and -1), and, as asked,\n"
"lists with one array per item: 'logits' float32 [n-first, vocab], 'logprob' float32 [n-first]\n"
"(targets given; -1 gives nan; None gives None), 'argmax' int32 [n-first], 'topk' (int32 ids,\n"
"float32 log-probabilities) [n-first, topk]; 'captures', float32 [rows, width] per (op, buffer);\n"
"'cost', per kind of work (seconds if timed, bytes read, int8 and float32 operations).\n"
"route maps ops of kind moe to functions that get copies (scores float32 [rows, experts], ids int32\n"
"[rows, top], gates float32 [rows, top]) before the experts run, and may change ids (ascending,\n"
"distinct) and gates (finite) in place; what one raises comes out, with nothing changed.\n"
"Ctrl-C cancels within 200 ms and leaves every sequence as it was.";
