"""What tests/core samples, here in full: interrupts, forks, cycles, failed Python allocations."""

import gc
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))
import small
import test_interrupt
import test_threads

from octavo import _core

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not os.environ.get("OCTAVO_LONG"), reason="needs OCTAVO_LONG=1"),
]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_interrupt_at_sixty_points(threads):
    points = test_interrupt.POINTS.replace("COUNT", "60")
    script = test_interrupt.script(threads, 32768, test_interrupt.LONG_CONTEXT, points)
    out = test_threads.child(script, seconds=900)
    caught, slowest = map(int, re.search(r"caught (\d+) slowest (\d+) ms", out).groups())
    print(out)
    assert caught >= 30 and slowest < 2000


def test_a_hundred_forks():
    test_threads.child("""
        import os
        from test_threads import run
        runtime = _core.Runtime(4)
        want = run(runtime)
        for i in range(100):
            pid = os.fork()
            if pid == 0: os._exit(0 if run(runtime) == want else 3)
            assert run(runtime) == want
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    """)


def test_twenty_thousand_cycles():
    runtime = _core.Runtime(1)
    for i in range(1000):
        test_threads.cycle(runtime, i)
    gc.collect()
    seam, seen = small.live(), np.zeros((20, 2), np.int64)
    for turn in range(20):
        for i in range(1000):
            test_threads.cycle(runtime, i)
        gc.collect()
        seen[turn] = sys.getallocatedblocks(), test_threads.rss()
        assert small.live() == seam
    blocks, resident = (seen - seen[1])[1:].T
    assert small.SANITIZED or max(blocks) <= 50, blocks
    assert small.SANITIZED or max(resident) < 1 << 20, resident


# The n-th allocation of Python fails, for ever larger n, until the call no longer reaches it.
PYTHON_FAULTS = """
    import _testcapi, functools, test_faults
    small.rows = functools.cache(small.rows)  # NumPy's generators do not live through this
    operation = test_faults.OPERATIONS[NAME]
    want = operation(test_faults.State())
    failed = calm = n = 0
    while calm < 20:
        state = test_faults.State()
        got, good = None, False
        _testcapi.set_nomemory(n, n + 1)
        try:
            got = operation(state)
            good = True
        except MemoryError:
            pass
        finally:
            _testcapi.remove_mem_hooks()
        state.check()
        assert not good or got == want
        calm, failed, n = (calm + 1, failed, n + 1) if good else (0, failed + 1, n + 1)
        del state
    print("failed", failed)
"""


@pytest.mark.parametrize("name", ["step", "Cache.append", "Cache.attend", "Cache.edit", "Cache"])
def test_failed_python_allocations(name):
    """Results that were computed may be lost; the cache stays whole and nothing crashes."""
    pytest.importorskip("_testcapi", reason="this Python has no _testcapi")
    out = test_threads.child(PYTHON_FAULTS.replace("NAME", repr(name)), seconds=300)
    assert int(out.split()[-1]) > 0
