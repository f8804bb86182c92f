"""Threads and processes: concurrent use is an error and never a race, forked and spawned children
work, thread counts and columns change nothing, exit is clean with live objects, cycles leak
nothing. What could hang runs in a subprocess under a watchdog.
"""

import contextlib
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import small
import tiny

from octavo import _core
from octavo.errors import BusyError, UnsupportedError

pytestmark = pytest.mark.core
HERE = Path(__file__).parent
TSAN = os.environ.get("TSAN_OPTIONS", "")
TSAN_LIBRARY = os.environ.get("LD_PRELOAD", "")


def child(code, seconds=60, **env):
    """Run code in a fresh interpreter; its output. A hang, also of what it forks, fails the test
    with every stack.
    """
    head = f"""
        import faulthandler, os, signal, sys
        faulthandler.dump_traceback_later({seconds}, exit=True)
        faulthandler.register(signal.SIGALRM, chain=True)  # a fork has no such watching thread
        os.register_at_fork(after_in_child=lambda: signal.alarm({seconds} // 2))
        sys.path.insert(0, {str(HERE)!r})
        import numpy as np, small, tiny
        from octavo import _core
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(code)],
            capture_output=True,
            text=True,
            timeout=seconds + 30,
            # TSan would end a child that starts threads after fork; ours may.
            env=os.environ | {"TSAN_OPTIONS": TSAN + ":die_after_fork=0"} | env,
        )
    except subprocess.TimeoutExpired as hung:
        pytest.fail(f"{hung}\n{hung.stdout}\n{hung.stderr}")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run(runtime, ids=None):
    program, cache = small.program(runtime), small.cache(runtime)
    ids = tiny.tokens(150) % 40 if ids is None else ids
    step = _core.step(program, cache, [(cache.open(), ids, 0)], logits=True)
    return small.bits(step["logits"][0])


@pytest.fixture(scope="module")
def want():
    return run(_core.Runtime(1))


# ---- concurrent use ---------------------------------------------------------------------------


class LongCall:
    """Half a second or so of attention under way on another thread, and what it holds."""

    def __init__(self):
        self.runtime = _core.Runtime(1)
        self.program = small.program(self.runtime)
        self.cache = small.cache(self.runtime, "bf16", 1 << 27)
        self.seq = self.cache.open()
        start = time.perf_counter()
        self.n = 4096
        self.append()
        took = time.perf_counter() - start
        self.n = min(120_000, int(4096 * max(1, 0.6 / took) ** 0.5))

    def append(self):
        k, v, q = small.rows(self.n, 0)
        self.cache.truncate(self.seq, 0)
        self.cache.append(self.seq, k, v, self.n, q, 2, 0.25)

    def __enter__(self):
        self.worker = threading.Thread(target=self.append)
        self.worker.start()
        while self.worker.is_alive():  # until it holds the cache
            try:
                self.cache.ledger()
            except BusyError:
                break
        return self

    def __exit__(self, *error):
        assert error[0] or self.worker.is_alive(), "the long call was too short to test against"
        self.worker.join()
        assert self.cache.length(self.seq) == self.n
        self.cache.check()


def test_a_second_user_gets_busy_at_once():
    call = LongCall()
    runtime, program, cache, seq = call.runtime, call.program, call.cache, call.seq
    spare = cache.open()
    k, v, q = small.rows(1, 0)
    ids = tiny.tokens(1) % 40
    calls = [
        cache.open,
        cache.check,
        cache.ledger,
        cache.close,
        cache.drop_prefix,
        runtime.close,
        lambda: setattr(runtime, "threads", 2),
        lambda: cache.fork(spare),
        lambda: cache.release(spare),
        lambda: cache.truncate(spare, 0),
        lambda: cache.match(spare, ids),
        lambda: cache.needs([spare], [1]),
        lambda: cache.ledger(spare),
        lambda: cache.append(spare, k, v, 1),
        lambda: cache.attend(spare, 0, q.reshape(1, 2, 16), 2, 1.0),
        lambda: cache.page(seq, 0, 0, "k"),
        lambda: cache.edit(seq, 0, 0, "k"),
        lambda: cache.decode(seq, 0, 0, "k"),
        lambda: cache.reencode(seq, small.cache(runtime)),
        lambda: small.cache(runtime).reencode(spare, cache),
        lambda: _core.step(program, cache, [(spare, ids, 0)]),
    ]
    with call:
        for one in calls:
            start = time.perf_counter()
            with pytest.raises((BusyError, ValueError)) as caught:
                one()
            assert time.perf_counter() - start < 0.2
            if caught.type is not BusyError:  # `spare` is not known to the empty cache
                assert "closed" in str(caught.value)


def test_an_edit_cannot_begin_during_a_step():
    call = LongCall()
    cache, seq = call.cache, call.cache.open()
    k, v, _ = small.rows(64, 1)
    cache.append(seq, k, v, 64)
    with call, pytest.raises(BusyError):
        cache.edit(seq, 0, 0, "k")
    cache.append(seq, k, v, 64)


def test_adding_weights_while_a_program_runs():
    """Refused or done, but never a step that reads tables which move."""
    runtime = _core.Runtime(1)
    weights, make = small.model(runtime)
    program, cache = make(), small.cache(runtime, "int8", 1 << 22)
    ids = tiny.tokens(400) % 40
    want = _core.step(program, cache, [(cache.open(), ids, 0)], logits=True)["logits"][0]
    done, nbytes = threading.Event(), weights.nbytes

    def grow():
        while not done.is_set():
            with contextlib.suppress(BusyError):
                weights.vector(np.ones(8, np.float32))
                tiny.matrix(weights, "f32", np.ones((32, 32), np.float32))
            time.sleep(0.0002)

    worker = threading.Thread(target=grow)
    worker.start()
    stepped = 0
    while stepped < 40:
        seq = cache.open()
        with contextlib.suppress(BusyError):
            got = _core.step(program, cache, [(seq, ids, 0)], logits=True, quiet=True)
            np.testing.assert_array_equal(got["logits"][0], want)
            stepped += 1
        cache.release(seq)
    done.set()
    worker.join()
    assert weights.nbytes > nbytes


def test_two_caches_of_one_runtime_step_in_turns():
    runtime = _core.Runtime(2)
    results = [[], []]

    def work(i):
        program, cache = small.program(runtime), small.cache(runtime, "int8", 1 << 22)
        for _ in range(20):
            seq = cache.open()
            ids = tiny.tokens(200, i) % 40
            got = _core.step(program, cache, [(seq, ids, 0)], logits=True)["logits"][0]
            results[i].append(small.bits(got))
            views = [cache.page(seq, 0, j, "k").array("codes") for j in range(3)]
            del views
            cache.release(seq)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    for i in range(2):
        assert set(results[i]) == {run(_core.Runtime(1), tiny.tokens(200, i) % 40)}


def test_views_are_dropped_while_a_step_runs():
    runtime = _core.Runtime(2)
    program, cache = small.program(runtime), small.cache(runtime, "int8", 1 << 22)
    held = cache.open()
    _core.step(program, cache, [(held, tiny.tokens(512) % 40, 512)])
    views, done = [], threading.Event()

    def drop():
        while not done.is_set() or views:
            if views:
                views.pop()
            else:
                time.sleep(0.0005)

    worker = threading.Thread(target=drop)
    worker.start()
    for i in range(100):
        views.extend(cache.page(held, 0, j, "v").array("codes") for j in range(8))
        seq = cache.open()
        _core.step(program, cache, [(seq, tiny.tokens(300, i) % 40, 300)])
        cache.release(seq)
    done.set()
    worker.join()
    assert cache.ledger()["pins"] == 0
    cache.check()


def test_reductions_beside_a_step_do_not_deadlock():
    """lse and sample keep the GIL; the step's poll needs it. Once, neither ever went on."""
    child("""
        import threading
        runtime = _core.Runtime(2)
        program, cache = small.program(runtime), small.cache(runtime, "bf16", 1 << 26)
        seq = cache.open()
        k, v, q = small.rows(2048, 0)
        ids = tiny.tokens(512) % 40
        cache.append(seq, k, v, 2048)
        def work():
            for _ in range(4):
                for _ in range(8): _core.step(program, cache, [(seq, ids, 0)], logits=True)
                cache.truncate(seq, 2048)
        worker = threading.Thread(target=work)
        worker.start()
        x = np.zeros((4, 1000), np.float32)
        while worker.is_alive():
            runtime.lse(x), runtime.sample(x, np.full(4, .5)), runtime.kl(x, x)
    """)


# ---- threads and columns ------------------------------------------------------------------------


def test_threads_between_steps_change_no_bit(want):
    runtime = _core.Runtime(1)
    program, cache = small.program(runtime), small.cache(runtime)
    ids = tiny.tokens(150) % 40
    seq, out = cache.open(), []
    for i, (a, b) in enumerate([(0, 10), (10, 11), (11, 90), (90, 149), (149, 150)]):
        runtime.threads = (1, 4, 2, 3, 8)[i]
        assert runtime.threads == (1, 4, 2, 3, 8)[i]
        out.append(_core.step(program, cache, [(seq, ids[a:b], 0)], logits=True)["logits"][0])
    assert small.bits(np.concatenate(out)) == want


@pytest.mark.parametrize("bad", [-1, 257, 1 << 40])
def test_bad_thread_counts(bad):
    with pytest.raises((ValueError, OverflowError)):
        _core.Runtime(bad)
    runtime = _core.Runtime(2)
    with pytest.raises((ValueError, OverflowError)):
        runtime.threads = bad
    assert runtime.threads == 2


# Every runtime that opens reads the environment, so these need no interpreter of their own; that a
# new one reads it, too, is seen in the first.


def test_octavo_isa_caps_the_columns(want, monkeypatch):
    known = ["scalar", "avx2", "avx512", "amx"]
    for isa in known:
        monkeypatch.delenv("OCTAVO_ISA", raising=False)
        try:
            _core.Runtime(1, isa)
        except UnsupportedError:
            continue
        monkeypatch.setenv("OCTAVO_ISA", isa)
        runtime = _core.Runtime(1)
        assert runtime.isa == isa and run(runtime) == want
        served = {row[4] for row in runtime.kernels() if row[4]}
        assert served <= set(known[: known.index(isa) + 1])
    code = "print(_core.Runtime(1).isa, _core.Runtime().threads)"
    assert child(code, OCTAVO_ISA="scalar", OCTAVO_THREADS="3").split() == ["scalar", "3"]


@pytest.mark.parametrize("bad", ["sse9", "AVX2", "avx512 ", "x" * 5000])
def test_octavo_isa_refuses_what_it_does_not_know(bad, monkeypatch):
    monkeypatch.setenv("OCTAVO_ISA", bad)
    with pytest.raises(ValueError, match=r"OCTAVO_ISA.*scalar, avx2, avx512, amx"):
        _core.Runtime(1)


def test_octavo_threads_is_the_default_and_no_more(monkeypatch):
    monkeypatch.setenv("OCTAVO_THREADS", "3")
    first, told = _core.Runtime(), _core.Runtime(2)
    assert (first.threads, told.threads) == (3, 2)
    first.threads = 0
    assert first.threads == 3


@pytest.mark.parametrize("bad", ["0", "-1", "10000", "two", "2 ", "1.5", "9" * 40])
def test_octavo_threads_refuses_what_no_runtime_takes(bad, monkeypatch):
    monkeypatch.setenv("OCTAVO_THREADS", bad)
    with pytest.raises(ValueError, match=r"OCTAVO_THREADS.*1 to 256"):
        _core.Runtime()
    assert _core.Runtime(1).threads == 1


# ---- processes ----------------------------------------------------------------------------------


@pytest.mark.skipif("tsan" in TSAN_LIBRARY, reason="TSan loses threads that a child starts")
def test_a_forked_child_can_step():
    """With workers asleep, spinning, and while another thread of the parent is inside a step."""
    child("""
        import os, threading
        from test_threads import run
        runtime = _core.Runtime(3)
        want = run(runtime)
        other = _core.Runtime(2)
        done = threading.Event()
        def work():
            while not done.is_set(): run(other)
        worker = threading.Thread(target=work); worker.start()
        for i in range(10):
            pid = os.fork()
            if pid == 0:
                good = run(runtime) == want
                runtime.threads = 2
                good = good and run(runtime) == want and run(_core.Runtime(2)) == want
                os._exit(0 if good else 3)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert run(runtime) == want
        done.set(); worker.join()
    """)


def test_a_child_closes_what_it_inherited():
    child("""
        import os
        from test_threads import run
        runtime = _core.Runtime(2)
        program, cache = small.program(runtime), small.cache(runtime)
        seq = cache.open()
        ids = tiny.tokens(150) % 40
        _core.step(program, cache, [(seq, ids[:100], 100)])
        pid = os.fork()
        if pid == 0:
            _core.step(program, cache, [(seq, ids[100:], 0)])
            cache.check(); cache.close(); program.close()
            del program, cache
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert cache.length(seq) == 100
    """)


def test_a_spawned_child_can_step(tmp_path):
    (tmp_path / "spawned.py").write_text(
        textwrap.dedent(f"""
        import multiprocessing, sys
        sys.path.insert(0, {str(HERE)!r})
        from octavo import _core
        from test_threads import run
        def work(_): return run(_core.Runtime(2))
        if __name__ == "__main__":
            runtime = _core.Runtime(2)
            with multiprocessing.get_context("spawn").Pool(2) as pool:
                assert set(pool.map(work, range(2))) == {{run(runtime)}}
    """)
    )
    subprocess.run([sys.executable, str(tmp_path / "spawned.py")], check=True, timeout=120)


@pytest.mark.parametrize(
    "ending", ["", "raise SystemExit(0)", "import gc; gc.disable()", "_core.keep = locals()"]
)
def test_exit_with_live_objects_is_clean(ending):
    child(f"""
        import threading
        runtime = _core.Runtime(3)
        program, cache = small.program(runtime), small.cache(runtime)
        seq = cache.open()
        _core.step(program, cache, [(seq, tiny.tokens(200) % 40, 0)], logits=True)
        views = [cache.page(seq, 0, i, "k").array("codes") for i in range(3)]
        edit = cache.edit(seq, 0, 1, "v"); codes = edit.array("codes")
        cycle = [runtime, views]; cycle.append(cycle)
        {ending}
    """)


def test_exit_while_a_daemon_thread_steps():
    child("""
        import threading, time
        from test_threads import run
        runtime = _core.Runtime(2)
        def work():
            while True: run(runtime)
        threading.Thread(target=work, daemon=True).start()
        time.sleep(0.1)
    """)


def test_import_twice_and_two_engines(want):
    child("""
        import importlib
        from test_threads import run
        a, b = _core.Runtime(2), _core.Runtime(1, "scalar")
        assert run(a) == run(b)
        del sys.modules["octavo._core"]
        again = importlib.import_module("octavo._core")
        assert again.Runtime(1).threads == 1
    """)


# ---- leaks --------------------------------------------------------------------------------------


def rss():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cycle(runtime, i):
    program, cache = small.program(runtime, max_rows=80), small.cache(runtime, "int4-had")
    seq = cache.open()
    _core.step(program, cache, [(seq, tiny.tokens(80, i) % 40, 79)], logits=True)
    view = cache.page(seq, 0, 0, "k").array("codes")
    twin = cache.fork(seq)
    cache.truncate(twin, 70)
    try:
        cache.close()
    except BufferError:
        pass
    del view
    if i % 2:
        cache.close()


def test_a_thousand_open_close_cycles_leak_nothing():
    runtime, each = _core.Runtime(1), 40 if small.SANITIZED else 200  # the seam's count is exact
    for i in range(100):
        cycle(runtime, i)
    gc.collect()
    seam, seen = small.live(), np.zeros((5, 2), np.int64)  # no Python objects of our own
    for turn in range(5):
        for i in range(each):
            cycle(runtime, i)
        gc.collect()
        seen[turn] = sys.getallocatedblocks(), rss()
        assert small.live() == seam
    blocks, resident = (seen - seen[1])[1:].T
    assert small.SANITIZED or max(blocks) <= 20, (
        blocks
    )  # the count reads 0 under PYTHONMALLOC=malloc
    assert small.SANITIZED or max(resident) < 1 << 20, resident


def test_a_hundred_runtimes_leave_no_thread():
    def threads():
        return len(os.listdir("/proc/self/task"))

    gc.collect()
    before, seam, fds = threads(), small.live(), len(os.listdir("/proc/self/fd"))
    for i in range(100):
        runtime = _core.Runtime(4)
        if i % 3:
            run(runtime)
        if i % 2:
            runtime.threads = 2
        del runtime
    gc.collect()
    assert threads() == before and small.live() == seam
    assert len(os.listdir("/proc/self/fd")) == fds
