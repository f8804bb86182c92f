"""Lifetimes in octavo._core: closing, pins, views, references, and what a leak would show."""

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from binding_kit import (
    HEAD_DIM,
    HEADS,
    PAGE,
    WIDTH,
    f32,
    filled,
    ids,
    make,
    make_cache,
    make_program,
    make_weights,
    rows,
)
from small import SANITIZED, TSAN

from octavo import _core
from octavo.errors import BusyError, ClosedError, OutOfPages, StaleHandleError

pytestmark = pytest.mark.core


@pytest.fixture
def kit():
    return make()


def objects(kit):
    seq = filled(kit.cache)
    page = kit.cache.page(seq, 0, 0, "k")
    return [kit.runtime, kit.weights, kit.program, kit.cache, page]


# ---- Closing --------------------------------------------------------------------------------


def test_close_is_idempotent_and_methods_then_raise(kit):
    seq = filled(kit.cache)
    page = kit.cache.page(seq, 0, 0, "k")
    runtime, weights, program, cache = kit.runtime, kit.weights, kit.program, kit.cache
    for thing in (page, program, weights, cache, runtime):
        thing.close()
        thing.close()
    assert cache.closed and page.tokens == PAGE
    x = f32(2, 3)
    k, v = rows(1)
    calls = [
        runtime.kernels,
        lambda: runtime.isa,
        lambda: runtime.cpu,
        lambda: runtime.threads,
        lambda: setattr(runtime, "threads", 1),
        lambda: runtime.kl(x, x),
        lambda: runtime.lse(x),
        lambda: runtime.argmax(x),
        lambda: runtime.topk(x, 1),
        lambda: runtime.sample(x, np.zeros(2)),
        lambda: weights.vector(x[0]),
        lambda: weights.matrix("f32", 2, 3, x, source="values", values_type="f32", row_stride=12),
        lambda: weights.info(0),
        lambda: weights.unpack(0),
        lambda: weights.rows(0, ids(0)),
        lambda: weights.linear(0, x),
        lambda: weights.nbytes,
        lambda: program.vocab,
        cache.open,
        lambda: cache.release(seq),
        lambda: cache.length(seq),
        lambda: cache.fork(seq),
        lambda: cache.reencode(seq, cache),
        lambda: cache.truncate(seq, 0),
        lambda: cache.match(seq, ids(1)),
        lambda: cache.needs([seq], [1]),
        lambda: cache.bytes_for(1),
        cache.ledger,
        lambda: cache.ledger(seq),
        cache.check,
        cache.drop_prefix,
        lambda: cache.page(seq, 0, 0, "k"),
        lambda: cache.edit(seq, 0, 0, "k"),
        lambda: cache.decode(seq, 0, 0, "k"),
        lambda: cache.append(seq, k, v, 1),
        lambda: cache.attend(seq, 0, f32(1, HEADS, HEAD_DIM), HEADS, 1.0),
        page.parts,
        lambda: page.array("values"),
        lambda: _core.step(program, cache, [(seq, ids(1), 0)]),
        lambda: _core.Weights(runtime),
        lambda: make_cache(runtime),
        lambda: make_program(weights),
    ]
    for call in calls:
        with pytest.raises(ClosedError):
            call()


def test_runtime_outlives_what_stands_on_it(kit):
    for thing in (kit.weights, kit.cache, kit.program):
        with pytest.raises(BusyError, match="close them first"):
            kit.runtime.close()
        assert kit.runtime.threads >= 1
        thing.close()
    kit.runtime.close()


def test_programs_keep_weights_alive(kit):
    kit.weights.close()
    seq = kit.cache.open()
    assert _core.step(kit.program, kit.cache, [(seq, ids(1, 2), 0)])["ok"] == [True]
    del kit.runtime, kit.weights
    gc.collect()
    assert _core.step(kit.program, kit.cache, [(seq, ids(1, 2), 0)])["ok"] == [True]


def test_released_sequences_are_closed(kit):
    seq = filled(kit.cache)
    kit.cache.release(seq)
    for call in (kit.cache.release, kit.cache.length, kit.cache.fork, kit.cache.ledger):
        with pytest.raises(ClosedError):
            call(seq)
    with pytest.raises(ClosedError):
        kit.cache.length(0)


# ---- Views ----------------------------------------------------------------------------------


def view_of(cache, seq, segment="k"):
    page = cache.page(seq, 0, 0, segment)
    return page.array(page.parts()[0]["name"])


def test_view_is_the_page_and_read_only(kit):
    seq = filled(kit.cache)
    page = kit.cache.page(seq, 0, 0, "k")
    part = page.parts()[0]
    a = page.array(part["name"])
    assert a.shape == (HEADS, *part["shape"]) and a.dtype == np.float32
    assert np.shares_memory(a, page.array(part["name"]))
    merged = a.transpose(0, *(1 + i for i in part["axes"])).reshape(HEADS, PAGE, HEAD_DIM)
    assert np.array_equal(merged, kit.cache.decode(seq, 0, 0, "k"))
    assert page.nbytes == a.nbytes and page.sealed and page.format == "f32"


def test_read_only_means_read_only(kit):
    a = view_of(kit.cache, filled(kit.cache))
    for v in (a, a[0], a[0].reshape(-1), a.view(np.uint8), a.T, np.asarray(a), a[...]):
        assert not v.flags.writeable and not v.flags.owndata
        with pytest.raises(ValueError):
            v.setflags(write=True)
        with pytest.raises(ValueError):
            v.flags.writeable = True
        with pytest.raises(ValueError):
            v[...] = 0
        with pytest.raises(TypeError):
            memoryview(v)[(0,) * v.ndim] = 1
    assert memoryview(a).readonly
    with pytest.raises(TypeError):
        memoryview(a.base)


def test_views_pin_their_page(kit):
    cache, seq = kit.cache, filled(kit.cache)
    views = [view_of(cache, seq), view_of(cache, seq, "v")]
    inner = views[0][0, 0]
    assert cache.ledger()["pins"] == 2
    for refused in (cache.close, lambda: cache.release(seq)):
        with pytest.raises(BufferError):
            refused()
    assert cache.length(seq) == PAGE and not cache.closed
    views.clear()
    gc.collect()
    assert cache.ledger()["pins"] == 1  # the slice holds the whole view
    del inner
    gc.collect()
    assert cache.ledger()["pins"] == 0
    cache.release(seq)
    cache.close()


def test_forced_release_leaves_the_bytes_to_the_views(kit):
    cache, seq = kit.cache, filled(kit.cache)
    a = view_of(cache, seq)
    want = a.copy()
    cache.release(seq, force=True)
    for i in range(4):
        cache.append(cache.open(), *rows(PAGE, seed=9 + i), PAGE)
    assert np.array_equal(a, want)


def test_views_outlive_every_other_object():
    kit = make()
    a = view_of(kit.cache, filled(kit.cache))
    want = a.copy()
    del kit
    gc.collect()
    assert np.array_equal(a, want)


def test_many_views(kit):
    cache, seq = kit.cache, filled(kit.cache)
    views = [view_of(cache, seq) for _ in range(10_000)]
    assert cache.ledger()["pins"] == 10_000
    want = views[0].copy()
    assert all(np.array_equal(v, want) for v in views[::997])
    views.clear()
    assert cache.ledger()["pins"] == 0


def test_views_may_die_on_another_thread(kit):
    views = [view_of(kit.cache, filled(kit.cache))]
    thread = threading.Thread(target=views.clear)
    thread.start()
    thread.join()
    assert kit.cache.ledger()["pins"] == 0


def test_stale_pages(kit):
    cache = make_cache(kit.runtime, prefix=False)
    seq = filled(cache)
    page = cache.page(seq, 0, 0, "k")
    name = page.parts()[0]["name"]
    cache.release(seq)
    with pytest.raises(StaleHandleError):
        page.array(name)
    assert cache.ledger()["pins"] == 0


def test_open_pages_have_no_arrays(kit):
    seq = filled(kit.cache, PAGE + 3)
    page = kit.cache.page(seq, 0, 1, "v")
    assert not page.sealed and page.tokens == 3
    assert page.nbytes == 3 * HEADS * HEAD_DIM * 4
    with pytest.raises(ValueError, match="open"):
        page.array("values")
    assert kit.cache.decode(seq, 0, 1, "v").shape == (HEADS, 3, HEAD_DIM)


def test_unknown_parts_and_places(kit):
    seq = filled(kit.cache)
    page = kit.cache.page(seq, 0, 0, "k")
    with pytest.raises(ValueError, match="has no part 'scales'"):
        page.array("scales")
    with pytest.raises(ValueError, match="1 layers"):
        kit.cache.page(seq, 1, 0, "k")
    with pytest.raises(ValueError):
        kit.cache.page(seq, 0, 1, "k")


# ---- Edits ----------------------------------------------------------------------------------


def test_edit_is_exclusive_until_closed(kit):
    cache, seq = kit.cache, filled(kit.cache)
    page = cache.edit(seq, 0, 0, "k")
    name = page.parts()[0]["name"]
    a = page.array(name)
    assert a.flags.writeable
    with pytest.raises(BusyError):
        cache.append(seq, *rows(1), 1)
    with pytest.raises(BusyError):
        cache.close()
    with pytest.raises(BufferError, match="writable arrays"):
        page.close()
    a[...] = 2.5
    del a
    gc.collect()
    page.close()
    page.close()
    with pytest.raises(ClosedError):
        page.array(name)
    cache.append(seq, *rows(1), 1)
    assert (view_of(cache, seq) == 2.5).all()


def test_edit_ends_with_its_object_and_its_arrays(kit):
    cache, seq = kit.cache, filled(kit.cache)
    page = cache.edit(seq, 0, 0, "k")
    a = page.array(page.parts()[0]["name"])
    del page
    gc.collect()
    with pytest.raises(BusyError):
        cache.append(seq, *rows(1), 1)
    del a
    gc.collect()
    cache.append(seq, *rows(1), 1)


def test_edit_refuses_what_others_look_at(kit):
    cache, seq = kit.cache, filled(kit.cache)
    a = view_of(cache, seq)
    want = a.copy()
    try:
        page = cache.edit(seq, 0, 0, "k")  # a private copy would do as well
    except BufferError:
        pass
    else:
        page.array(page.parts()[0]["name"])[...] = 1
        page.close()
    assert np.array_equal(a, want)
    open_page = cache.open()
    cache.append(open_page, *rows(3), 3)
    with pytest.raises(ValueError):
        cache.edit(open_page, 0, 0, "k")
    cache.append(open_page, *rows(1), 1)


# ---- Threads --------------------------------------------------------------------------------


def test_close_during_a_long_call_is_busy():
    runtime = _core.Runtime(threads=1, isa="scalar")
    weights = make_weights(runtime, 768)
    cache = _core.Cache(
        runtime,
        [{"kv_heads": 2, "k_width": 384, "v_width": 384, "k_format": "f32", "v_format": "f32"}],
        budget=1 << 26,
    )
    program = _core.Program(
        weights,
        widths=[768] * 5,
        ops=[
            {"kind": "embed", "w": 0, "out": 0, "scale": 1.0},
            *[{"kind": "linear_add", "in": 0, "w": 1, "out": 1}] * (1 if SANITIZED else 8),
            {"kind": "head", "in": 0, "w": 3},
        ],
        ropes=[],
        act="a32",
    )
    seq, outcome = cache.open(), []
    items = [(seq, np.ones(32 if TSAN else 128, np.int32), 31)]

    def work():
        try:
            outcome.append(_core.step(program, cache, items))
        except BaseException as e:
            outcome.append(e)

    thread = threading.Thread(target=work)
    thread.start()
    inside = False
    while thread.is_alive() and not inside:  # setting the same number harms nothing
        try:
            runtime.threads = 1
        except BusyError:
            inside = True
    time.sleep(0.05)  # it has let go of the GIL, and now takes the cache
    for call in (
        cache.close,
        program.close,
        runtime.close,
        lambda: _core.step(program, cache, [(seq, ids(1), 0)]),
    ):
        with pytest.raises(BusyError):
            call()
    assert inside and thread.is_alive(), "the step was too short for this test"
    thread.join()
    assert outcome[0]["ok"] == [True]
    cache.close()


# ---- Copies, references, leaks --------------------------------------------------------------


def test_pickle_and_copy_are_refused(kit):
    things = objects(kit)
    things.append(view_of(kit.cache, filled(kit.cache)).base)
    for thing in things:
        for refuse in (pickle.dumps, copy.deepcopy, copy.copy):
            with pytest.raises(TypeError, match=type(thing).__name__):
                refuse(thing)
    with pytest.raises(TypeError):
        type(things[-1])()


def test_objects_are_tracked_by_the_collector(kit):
    for thing in objects(kit):
        assert gc.is_tracked(thing)
        assert type(thing) in gc.get_referents(thing)


def test_out_of_pages_carries_its_figures(kit):
    cache = make_cache(kit.runtime, budget=1)
    seq = cache.open()
    with pytest.raises(OutOfPages) as info:
        cache.append(seq, *rows(1), 1)
    for name in ("needed", "available", "evictable"):
        assert isinstance(getattr(info.value, name), int)
    assert info.value.needed > info.value.available
    assert isinstance(info.value, MemoryError)
    assert cache.length(seq) == 0


def one_round(kit):
    """Every kind of call once, those that fail too."""
    r, w, cache = kit.runtime, kit.weights, kit.cache
    x, u = f32(2, 5), np.zeros(2)
    r.kl(x, x), r.lse(x), r.argmax(x), r.topk(x, 2), r.sample(x, u), r.kernels(), _core.memory()
    w.info(1), w.unpack(1), w.rows(1, ids(0, 3)), w.linear(1, f32(2, WIDTH), "a32")
    seq = filled(cache, PAGE + 3)
    k, v = rows(1)
    cache.append(seq, k, v, 1, f32(HEADS * HEAD_DIM), HEADS, 0.25)
    cache.attend(seq, 0, f32(1, HEADS, HEAD_DIM), HEADS, 1.0)
    other = cache.fork(seq)
    cache.needs([seq, other], [1, 2]), cache.ledger(), cache.ledger(seq), cache.check()
    cache.decode(seq, 0, 1, "v"), cache.page(seq, 0, 1, "k").parts()
    view_of(cache, seq)
    _core.step(
        kit.program,
        cache,
        [(seq, ids(1, 2), 0), (other, ids(3), 0)],
        logits=True,
        targets=[ids(1, -1), None],
        argmax=True,
        topk=2,
        captures=[(0, 0)],
    )
    for bad in (
        lambda: r.lse(x.astype(np.float64)),
        lambda: r.topk(x, -1),
        lambda: w.linear(1, f32(2, 3)),
        lambda: w.matrix("f32", 2, 2, b"1", row_stride=2**62),
        lambda: w.matrix("f32", 2, 2, x, row_stride=1, row_map=ids(0)),
        lambda: filled(make_cache(r, budget=1)),
        lambda: _core.Cache(r, [{"kv_heads": 1, "x": 2}], budget=1),
        lambda: _core.Program(w, widths=[1], ops=[{"kind": "head", "y": 1}], ropes=[]),
        lambda: _core.Program(w, widths=[1], ops=[], ropes=[]),
        lambda: cache.page(seq, 0, 9, "k"),
        lambda: cache.page(seq, 0, 0, "k").array("none"),
        lambda: cache.append(seq, k, v, 2),
        lambda: cache.needs([seq], [-1]),
        lambda: _core.step(kit.program, cache, [(seq, ids(1), 0)], targets=[u]),
        lambda: _core.step(kit.program, cache, [(seq, ids(1), 2)]),
        lambda: _core.step(kit.program, cache, [(seq, ids(10**6), 0)], logits=True, topk=3),
        lambda: _core.step(kit.program, cache, [(seq, ids(1), 0)], captures=[(0, 99)]),
        lambda: _core.step(kit.program, cache, [(1 << 60, ids(1), 0)], logits=True),
        lambda: pickle.dumps(cache),
    ):
        try:  # pytest.raises would keep the traceback
            bad()
        except (ValueError, TypeError, MemoryError):
            continue
        raise AssertionError
    cache.release(seq), cache.release(other)
    page = make_cache(r).page
    del page
    make_program(w).close()


@pytest.mark.skipif("PYTHONMALLOC" in os.environ, reason="allocated blocks are counted by pymalloc")
def test_no_references_leak(kit):
    counts = []
    for batch in range(20):  # the interpreter's own caches settle over the first 500 rounds
        for _ in range(40):
            one_round(kit)
        gc.collect()
        if batch >= 14:
            counts.append(sys.getallocatedblocks())
    assert counts[-1] - counts[0] < 100, counts  # one block a round would be 200
    assert kit.cache.ledger()["pins"] == 0 and kit.cache.ledger()["sequences"] == 0


EXIT_WITH_VIEWS = """
import sys, gc
sys.path.insert(0, {here!r})
from binding_kit import *
from octavo import _core
kit = make()
page = kit.cache.page(filled(kit.cache), 0, 0, "k")
views = [page.array(page.parts()[0]["name"]) for _ in range(3)]
_core.keep = (kit, views)
edited = kit.cache.edit(filled(kit.cache, 64), 0, 0, "v")
array = edited.array(edited.parts()[0]["name"])
gc.freeze()
print("end")
"""


def test_exit_with_live_objects_is_clean():
    code = EXIT_WITH_VIEWS.format(here=str(Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


SUB_INTERPRETER = """
try:
    import _xxsubinterpreters as sub
except ImportError:
    import _interpreters as sub
import octavo._core
code = '''
import sys
sys.path[:] = {path!r}
try:
    import octavo._core
    print("imported", flush=True)
except ImportError:
    print("refused", flush=True)
'''
sub.run_string(sub.create(), code)
"""


def test_sub_interpreters_are_refused():
    code = SUB_INTERPRETER.format(path=sys.path)
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.stdout == "refused\n", done.stderr
