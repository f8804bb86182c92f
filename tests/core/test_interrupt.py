"""Ctrl-C inside a long prefill: KeyboardInterrupt soon, nothing changed, the model still answers.

The promise is 200 ms; the watchdog here is ten times that, since the machine may be loaded. The
figure that was measured is printed (pytest -s).
"""

import re
import signal
import textwrap

import numpy as np
import pytest
import tiny
from kinds import KINDS, MIXTURES
from small import SANITIZED, TSAN
from test_threads import child

from octavo import _core

pytestmark = pytest.mark.core
LONG = 4096 if TSAN else 8192 if SANITIZED else 32768  # tokens that take a good part of a second

PRELUDE = """
    import os, signal, threading, time
    import kinds
    how = {}
    def digest(): return small.digest(cache, [seq])
    def interrupted(call, delay):
        "Seconds from the signal to the exception; None if the call was done before."
        sent, go, armed = [], threading.Event(), [True]
        def fire():
            go.wait(); time.sleep(delay)
            sent.append(time.perf_counter())
            os.kill(os.getpid(), signal.SIGINT)
        def handler(*_):  # a late signal must not come out of join
            if armed:
                armed.clear()
                raise KeyboardInterrupt
        signal.signal(signal.SIGINT, handler)
        timer = threading.Thread(target=fire)
        timer.start()
        try:
            go.set()
            call()
            armed.clear()
        except KeyboardInterrupt:
            return time.perf_counter() - sent[0]
        finally:
            timer.join()
        return None
"""
LONG_CONTEXT = """
    runtime = _core.Runtime(THREADS)
    program = small.program(runtime, max_rows=ROWS)
    cache = small.cache(runtime, "int8", 1 << 28)
    ids = tiny.tokens(ROWS) % 40
"""
WIDE_MODEL = """
    tiny.HIDDEN, tiny.INNER, tiny.HEADS, tiny.KV_HEADS, tiny.DIM = 512, 2048, 8, 4, 64
    runtime = _core.Runtime(THREADS)
    program = tiny.program(runtime, "q4g32m", max_rows=ROWS)
    cache = _core.Cache(runtime, tiny.layers("k8v4", kv_heads=4, dim=64), budget=1 << 28)
    ids = tiny.tokens(ROWS)
"""
MIXTURE = """
    runtime, kind = _core.Runtime(THREADS), kinds.KINDS["WHICH"]
    program = kind.program(runtime, ROWS)
    cache = kind.cache(runtime, budget=1 << 28)
    ids = tiny.tokens(ROWS) % 40
    def digest(): return kind.digest(cache, [seq])
"""
ROUTED = """
    how = kind.route(lambda op, scores, chosen, gates: gates.fill(1.0))
"""
POINTS = """
    def step(seq, ids, **more): return _core.step(program, cache, [(seq, ids, 0)], **how, **more)
    seq = cache.open()
    step(seq, ids[:100])
    once = step(cache.fork(seq), ids[:3], logits=True)["logits"][0]
    start = time.perf_counter()
    warm = cache.open()
    step(warm, ids)
    cache.release(warm)
    whole = time.perf_counter() - start
    slowest, caught = 0.0, 0
    for i in range(3 * COUNT):
        if i >= COUNT and caught >= 3:
            break
        before, start = digest(), time.perf_counter()
        took = interrupted(lambda: step(seq, ids[:-100]), whole * (i % COUNT + 0.3) / COUNT)
        # A signal after the last look is raised by Python when the step is over and committed.
        if took is None or cache.length(seq) == len(ids):
            # It came late: the first call was slower than this one (other work on the machine).
            whole = min(whole, time.perf_counter() - start)
            cache.truncate(seq, 64); cache.release(seq); seq = cache.open()
            step(seq, ids[:100])
            continue
        caught += 1
        slowest = max(slowest, took)
        assert cache.length(seq) == 100 and digest() == before
        cache.check()
        fork = cache.fork(seq)
        again = step(fork, ids[:3], logits=True)["logits"][0]
        np.testing.assert_array_equal(again, once)
        cache.release(fork)
    print(f"caught {caught} slowest {slowest * 1e3:.0f} ms")
"""


def script(threads, rows, *parts):
    code = "".join(textwrap.dedent(part) for part in (PRELUDE, *parts))
    return code.replace("THREADS", str(threads)).replace("ROWS", str(rows))


def caught_inside(rows, threads, points, *setup):
    """Signals at `points` of a long prefill: how many found it, and the slowest answer in ms."""
    parts = (*setup, POINTS.replace("COUNT", str(points)))
    out = child(script(threads, rows, *parts), seconds=120)
    print(f"\n{threads} threads: {out.strip()}")
    return map(int, re.search(r"caught (\d+) slowest (\d+) ms", out).groups())


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("model", ["long context", "wide model"])
def test_interrupt_inside_a_long_prefill(model, threads):
    setup, rows = (LONG_CONTEXT, 32768) if model == "long context" else (WIDE_MODEL, 4096)
    if SANITIZED:  # a quarter of the work in every part of the code, and under TSan an eighth
        rows //= 8 if TSAN else 4
        setup = setup.replace("512, 2048", "256, 1024")
    caught, slowest = caught_inside(rows, threads, 5, setup)
    assert caught >= 3
    assert slowest < 2000 or SANITIZED


@pytest.mark.parametrize(
    ("kind", "threads", "how"),
    [("latent", 2, ""), ("latent", 1, "routed"), ("windows", 2, "routed")],
)
def test_interrupt_inside_a_long_prefill_of_mixtures(kind, threads, how):
    rows = 2048 if SANITIZED else 8192
    setup = (MIXTURE.replace("WHICH", kind), ROUTED if how else "")
    caught, slowest = caught_inside(rows, threads, 4, *setup)
    assert caught >= 3
    assert slowest < 2000 or SANITIZED


def fail():
    raise LookupError("mine")


@pytest.mark.parametrize(
    ("stop", "error"),
    [(fail, LookupError), (lambda: signal.raise_signal(signal.SIGINT), KeyboardInterrupt)],
    ids=["error", "Ctrl-C"],
)
@pytest.mark.parametrize("router", [0, 1])
@pytest.mark.parametrize("kind", MIXTURES)
def test_what_a_routing_function_raises_changes_nothing(kind, router, stop, error):
    """At the first router and at the last, with a sequence of some pages and an empty one."""
    kind, runtime, ids = KINDS[kind], _core.Runtime(2), tiny.tokens(300) % 40
    program, cache = kind.program(runtime), kind.cache(runtime)
    seqs = [cache.open() for _ in range(3)]
    _core.step(program, cache, [(seqs[0], ids[:100], 100)])

    def step(function):
        items = [(seqs[0], ids[100:], 0), (seqs[1], ids[:3], 0)]
        return _core.step(program, cache, items, logits=True, **kind.route(function))["logits"]

    def good(op, scores, chosen, gates):
        gates /= 2

    def bad(op, scores, chosen, gates):
        good(op, scores, chosen, gates)
        seen.append(op)
        if op == kind.routers[router]:
            stop()

    before, seen = kind.digest(cache, seqs), []
    with pytest.raises(error):
        step(bad)
    assert seen == list(kind.routers[: router + 1])
    assert kind.digest(cache, seqs) == before
    cache.check()
    got = step(good)
    program, cache = kind.program(runtime), kind.cache(runtime)
    seqs = [cache.open() for _ in range(3)]
    _core.step(program, cache, [(seqs[0], ids[:100], 100)])
    for a, b in zip(got, step(good), strict=True):
        np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


def test_interrupt_while_another_thread_has_the_pool():
    """The step that waits for its turn is cancelled, the one that runs is not."""
    code = """
        other = small.cache(runtime, "int8", 1 << 28)
        second = small.program(runtime, max_rows=ROWS)
        long, seq, good = other.open(), cache.open(), []
        def work(): good.append(_core.step(second, other, [(long, ids, len(ids))])["ok"])
        worker = threading.Thread(target=work); worker.start(); time.sleep(0.05)
        took = interrupted(lambda: _core.step(program, cache, [(seq, ids[:1], 0)]), 0.05)
        alive = worker.is_alive()
        worker.join()
        assert good == [[True]] and other.length(long) == len(ids)
        if cache.length(seq) == 0:  # else it had its turn before the signal came
            assert took < 0.3 or (alive and took < 2)  # it did not wait for the other's end
        cache.check(); other.check()
        print("caught", took is not None)
    """
    rows = LONG
    child(script(1, rows, LONG_CONTEXT, code), seconds=120)


def test_what_a_handler_raises_comes_out():
    code = """
        class Stop(Exception): pass
        def handler(*_): raise Stop("enough")
        signal.signal(signal.SIGALRM, handler)
        seq = cache.open()
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            _core.step(program, cache, [(seq, ids, 0)], logits=True)
        except Stop as error:
            assert str(error) == "enough" and cache.length(seq) == 0
        else:
            raise SystemExit("the step ended first")
        # A handler that raises nothing does not disturb.
        hits = []
        signal.signal(signal.SIGALRM, lambda *_: hits.append(cache_busy()))
        def cache_busy():
            try: cache.length(seq)
            except RuntimeError as error: return type(error).__name__
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.05)
        _core.step(program, cache, [(seq, ids, len(ids))])
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert hits.count("BusyError") > 1 and set(hits[:-1]) == {"BusyError"}, hits
        assert cache.length(seq) == len(ids)
    """
    rows = LONG
    child(script(2, rows, LONG_CONTEXT, code), seconds=120)


@pytest.mark.parametrize("call", ["append", "attend", "reencode"])
def test_interrupt_inside_the_cache_s_own_calls(call):
    """append with queries, attend and reencode end alike, and change nothing."""
    code = """
        target, seq = small.cache(runtime, "k8v4", 1 << 28), cache.open()
        for at in range(0, ROWS, 4096):
            k, v, q = small.rows(4096, at)
            cache.append(seq, k, v, 4096)
        before, held = small.digest(cache, [seq]), target.ledger()
        k, v, q = small.rows(ROWS // 8, 1)
        queries = np.tile(q[: 2 * 16], (4096, 1)).reshape(-1, 2, 16)
        calls = {
            "append": lambda: cache.append(seq, k, v, ROWS // 8, q, 2, 0.25),
            "attend": lambda: cache.attend(seq, 0, queries, 2, 0.25),
            "reencode": lambda: target.release(cache.reencode(seq, target)),
        }
        start = time.perf_counter()
        if CALL == "append":
            twin = cache.fork(seq)
            cache.append(twin, k, v, ROWS // 8, q, 2, 0.25)
            cache.release(twin)
        else:
            calls[CALL]()
        whole, caught, slowest = time.perf_counter() - start, 0, 0.0
        for i in range(6):
            took = interrupted(calls[CALL], whole * (i + 0.3) / 8)
            if took is None or cache.length(seq) != ROWS:  # done before it was looked at
                cache.truncate(seq, ROWS)
                if cache.length(seq) != ROWS: raise SystemExit("too short a call")
                continue
            caught, slowest = caught + 1, max(slowest, took)
            assert small.digest(cache, [seq]) == before
            cache.check(); target.check()
        print(f"caught {caught} slowest {slowest * 1e3:.0f} ms of {whole * 1e3:.0f} ms")
    """
    rows = LONG if SANITIZED else 65536
    out = child(script(2, rows, LONG_CONTEXT, code.replace("CALL", repr(call))), seconds=120)
    caught, slowest = map(int, re.search(r"caught (\d+) slowest (\d+) ms", out).groups())
    print(f"\n{call}: {out.strip()}")
    assert caught >= 2
    assert slowest < 2000 or SANITIZED
