"""step(): what it takes, what it gives back, and that signals end it cleanly."""

import signal
import threading
import time

import numpy as np
import pytest
from binding_kit import VOCAB, WIDTH, ids, make
from small import SANITIZED, TSAN

from octavo import _core
from octavo.errors import BusyError, NumericalError

pytestmark = pytest.mark.core


@pytest.fixture
def kit():
    return make()


def test_results_have_the_stub_shapes(kit):
    a, b = kit.cache.open(), kit.cache.open()
    out = _core.step(
        kit.program,
        kit.cache,
        [(a, ids(1, 2, 3), 1), (b, ids(4), 1)],
        logits=True,
        targets=[ids(5, -1), ids()],
        argmax=True,
        topk=3,
        captures=[(0, 0), (2, 4)],
    )
    assert list(out) == ["logits", "logprob", "argmax", "topk", "captures", "cost", "ok"]
    assert out["ok"] == [True, True]
    assert [x.shape for x in out["logits"]] == [(2, VOCAB), (0, VOCAB)]
    assert [x.shape for x in out["logprob"]] == [(2,), (0,)]
    assert [x.shape for x in out["argmax"]] == [(2,), (0,)]
    assert [(i.shape, p.shape) for i, p in out["topk"]] == [((2, 3), (2, 3)), ((0, 3), (0, 3))]
    assert [x.shape for x in out["captures"]] == [(4, WIDTH), (4, WIDTH)]
    for name, dtype in [("logits", "f4"), ("logprob", "f4"), ("argmax", "i4"), ("captures", "f4")]:
        assert all(x.dtype == dtype and x.flags.c_contiguous for x in out[name])
    assert (kit.cache.length(a), kit.cache.length(b)) == (3, 1)


def test_only_what_was_asked_for(kit):
    seq = kit.cache.open()
    out = _core.step(kit.program, kit.cache, [(seq, ids(1), 1)])
    assert set(out) == {"cost", "ok"} and out["ok"] == [True]
    assert all(len(four) == 4 and four[0] == 0 for four in out["cost"].values()), "not timed"
    out = _core.step(kit.program, kit.cache, ((seq, ids(1), 0),), targets=[None], quiet=True)
    assert set(out) == {"cost", "ok", "logprob"} and out["logprob"] == [None]
    assert _core.step(kit.program, kit.cache, [[seq, ids(1), 0]], captures=())["ok"] == [True]


def test_an_item_that_is_not_finite_fails_alone(kit):
    good, bad = kit.cache.open(), kit.cache.open()
    out = _core.step(
        kit.program,
        kit.cache,
        [(bad, ids(VOCAB - 1), 0), (good, ids(1), 0)],
        logits=True,
        targets=[ids(1), ids(1)],
        argmax=True,
        topk=2,
    )
    assert out["ok"] == [False, True]
    assert np.isnan(out["logits"][0]).all() and np.isnan(out["logprob"][0]).all()
    assert out["argmax"][0] == -1 and (out["topk"][0][0] == -1).all()
    assert np.isnan(out["topk"][0][1]).all()
    assert np.isfinite(out["logits"][1]).all()
    assert (kit.cache.length(bad), kit.cache.length(good)) == (0, 1)
    assert issubclass(NumericalError, ArithmeticError)


def test_bad_items_change_nothing(kit):
    cache, seq = kit.cache, kit.cache.open()
    bad = [
        ([3], TypeError, r"items\[0\] must be \(seq, tokens, first\)"),
        ([(seq, ids(1))], TypeError, r"items\[0\]"),
        ([(seq, ids(1), 0, 0)], TypeError, r"items\[0\]"),
        ([(seq, ids(1), 0), "abc"], TypeError, r"items\[1\]"),
        ([(seq, ids(1), 2)], ValueError, r"items\[0\].first must lie in \[0, 1\]"),
        ([(seq, ids(*[1] * 257), 0)], ValueError, "257 rows"),
        ([(seq, ids(-1), 0)], ValueError, None),
        ([(seq, ids(VOCAB), 0)], ValueError, None),
        ([(seq + 1, ids(1), 0)], ValueError, None),
        ([], ValueError, None),
        (3, TypeError, None),
    ]
    for items, error, words in bad:
        with pytest.raises(error, match=words):
            _core.step(kit.program, cache, items, logits=True)
    item = [(seq, ids(1), 0)]
    for kwargs, error in [
        ({"targets": []}, ValueError),
        ({"targets": [ids(1), ids(1)]}, ValueError),
        ({"targets": 3}, TypeError),
        ({"topk": VOCAB + 1}, ValueError),
        ({"captures": [(0,)]}, TypeError),
        ({"captures": [(0, 5)]}, ValueError),
        ({"captures": [(5, 0)]}, ValueError),
        ({"captures": [(True, 0)]}, TypeError),
        ({"captures": 1}, TypeError),
    ]:
        with pytest.raises(error):
            _core.step(kit.program, cache, item, **kwargs)
    assert cache.length(seq) == 0
    cache.check()


def test_tokens_are_copied_before_the_step(kit):
    seq, tokens = kit.cache.open(), ids(1, 2, 3)
    _core.step(kit.program, kit.cache, [(seq, tokens, 0)])
    tokens[:] = 10**6
    tokens.resize(0, refcheck=False)
    assert kit.cache.length(seq) == 3


# ---- Signals --------------------------------------------------------------------------------


class Stop(Exception):
    pass


TOKENS = np.ones(16 if TSAN else 64, np.int32)  # of a step that is long whatever the build


def long_model(parts=False):
    """Wide enough that a step takes a good part of a second with scalar kernels."""
    layers = 1 if SANITIZED else 4  # a sanitizer makes each some fifty times slower
    width, runtime = 1024, _core.Runtime(threads=1, isa="scalar")
    weights = _core.Weights(runtime)
    rng = np.random.default_rng(0)
    for n in (VOCAB, width):  # as embedding and head, and as the layers
        w = (rng.standard_normal((n, width)) / 64).astype(np.float32)
        weights.matrix("f32", n, width, w, source="values", values_type="f32", row_stride=width * 4)
    program = _core.Program(
        weights,
        widths=[width, width],
        ops=[
            {"kind": "embed", "w": 0, "out": 0, "scale": 1.0},
            *[{"kind": "linear_add", "in": 0, "w": 1, "out": 1}] * layers,
            {"kind": "head", "in": 0, "w": 0},
        ],
        ropes=[],
        act="a32",
    )
    layer = {"kv_heads": 1, "k_width": 16, "v_width": 16, "k_format": "f32", "v_format": "f32"}
    cache = _core.Cache(runtime, [layer], budget=1 << 24)
    return (program, cache, runtime, weights) if parts else (program, cache)


@pytest.mark.parametrize("kind", ["interrupt", "own"])
def test_signals_cancel_the_step(kind):
    program, cache = long_model()
    seq, raised = cache.open(), []

    def handler(signum, frame):
        raised.append(time.monotonic())
        with pytest.raises(RuntimeError):
            cache.close()  # busy: the handler runs inside the step
        raise Stop if kind == "own" else KeyboardInterrupt

    old = signal.signal(signal.SIGINT, handler)
    timer = threading.Timer(0.05, signal.raise_signal, [signal.SIGINT])
    tokens = np.ones(512, np.int32)
    try:
        timer.start()
        with pytest.raises(Stop if kind == "own" else KeyboardInterrupt):
            _core.step(program, cache, [(seq, tokens, 511)])
        late = time.monotonic() - raised[0]
    finally:
        timer.join()
        signal.signal(signal.SIGINT, old)
    assert len(raised) == 1 and late < 0.2
    assert cache.length(seq) == 0
    cache.check()
    assert _core.step(program, cache, [(seq, ids(1), 0)])["ok"] == [True]


def test_a_handler_cannot_wait_for_the_step_it_interrupts():
    program, cache = long_model()
    other, seen = make(), []
    seq = cache.open()
    x, u = np.zeros((1, 4), np.float32), np.zeros(1)

    def handler(signum, frame):
        runtime = other.runtime
        for call in (
            lambda: _core.step(program, cache, [(seq, ids(1), 0)]),
            lambda: runtime.lse(x),
            lambda: runtime.sample(x, u),
            lambda: other.weights.linear(1, np.zeros((1, WIDTH), np.float32), "a32"),
        ):
            try:
                call()
            except BusyError:
                seen.append(call)

    old = signal.signal(signal.SIGINT, handler)
    timer = threading.Timer(0.05, signal.raise_signal, [signal.SIGINT])
    try:
        timer.start()
        assert _core.step(program, cache, [(seq, TOKENS, len(TOKENS) - 1)])["ok"] == [True]
    finally:
        timer.join()
        signal.signal(signal.SIGINT, old)
    assert len(seen) == 4
    assert other.runtime.lse(x).shape == (1,)


def test_reductions_wait_for_a_step_without_the_gil():
    """The pool belongs to the step, whose poll wants the GIL: a waiter must not hold it."""
    program, cache, runtime, weights = long_model(parts=True)
    seq, outcome = cache.open(), []

    def work():
        outcome.append(_core.step(program, cache, [(seq, TOKENS, len(TOKENS) - 1)]))

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.1)
    x, u = np.zeros((1, 4), np.float32), np.zeros(1)
    with pytest.raises(BusyError):  # weights must not move under the step
        weights.vector(x[0])
    assert thread.is_alive(), "the step was too short for this test"
    runtime.lse(x), runtime.sample(x, u), runtime.kl(x, x), runtime.argmax(x), runtime.topk(x, 1)
    thread.join()
    assert outcome[0]["ok"] == [True]
    weights.vector(x[0])


def test_a_handler_that_returns_does_not_disturb():
    program, cache = long_model()
    seq, calls = cache.open(), []
    old = signal.signal(signal.SIGINT, lambda *_: calls.append(1))
    timer = threading.Timer(0.05, signal.raise_signal, [signal.SIGINT])
    try:
        timer.start()
        assert _core.step(program, cache, [(seq, TOKENS, len(TOKENS) - 1)])["ok"] == [True]
    finally:
        timer.join()
        signal.signal(signal.SIGINT, old)
    assert calls == [1]


def test_other_threads_run_during_a_step():
    program, cache = long_model()
    seq, seen, stop = cache.open(), [], threading.Event()

    def count():
        while not stop.is_set():
            seen.append(1)
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    before = len(seen)
    _core.step(program, cache, [(seq, TOKENS, len(TOKENS) - 1)])
    during = len(seen) - before
    stop.set()
    thread.join()
    assert during > 10
