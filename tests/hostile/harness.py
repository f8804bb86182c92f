"""Runs groups of hostile inputs in another process, under a watchdog.

A group is a generator of `Case`s in `cases_*.py`; as a program, this file reads the names of groups
and prints one JSON line for every case of each. The parent (`run_group`) asserts what every refusal
owes: a typed error, at most 2 seconds, at most 64 MB and the file's size of memory. One child
serves one group after the other until it dies of one; the next then has a child of its own.
"""

import atexit
import contextlib
import faulthandler
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
SECONDS, MEMORY = 2.0, 64 << 20
NEIGHBOURS = 5  # of the wall time: other tests, and other machines on the same cores
MODULES = {"S": "cases_safetensors", "G": "cases_gguf", "J": "cases_json", "Q": "cases_quantized"}
TYPED = {"CheckpointError", "UnsupportedError"}


class Case(NamedTuple):
    """One input: `run` must raise a typed error, or succeed where `legal`."""

    name: str
    run: Callable
    size: int = 0
    legal: bool = False
    also: tuple = ()


class Child:
    """This file as a program that waits for names of groups."""

    def __init__(self):
        self.errors = tempfile.TemporaryFile("w+")
        # What is freed goes back at once: no case hides in memory that an earlier one left.
        env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
        self.process = subprocess.Popen(
            [sys.executable, os.fspath(HERE / "harness.py")], text=True, env=env,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
        )  # fmt: skip
        atexit.register(self.close)

    def close(self):
        """End it; what it said on stderr."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.errors.seek(0)
        return self.errors.read()

    def run(self, group):
        """The rows of a group, or None if the child died of it."""
        with contextlib.suppress(BrokenPipeError):  # the end of what it says is seen below
            self.process.stdin.write(group + "\n")
            self.process.stdin.flush()
        rows = []
        for line in self.process.stdout:
            row = json.loads(line)
            if row is None:
                return rows
            rows.append(row)
        return None


_children: list[Child] = []


def run_group(group):
    """Run a group in the child; return its rows after asserting every bound."""
    if not _children:
        _children.append(Child())
    rows = _children[0].run(group)
    if rows is None:
        child = _children.pop()
        atexit.unregister(child.close)
        errors = child.close()
        code = child.process.returncode
        raise AssertionError(f"{group}: child died with {code}\n{errors[-4000:]}")
    assert rows, f"{group} has no cases"
    for row in rows:
        assert row["outcome"] in row["wanted"], row
        assert row["seconds"] <= SECONDS, row
        assert row["waited"] <= SECONDS * NEIGHBOURS, row
        assert row["grown"] <= MEMORY + row["size"], row
    return rows


def open_and_touch(path, **options):
    """Open a checkpoint and read every byte through it, as a model loader would."""
    from octavo.checkpoint import Tensor, open_checkpoint
    from octavo.errors import UnsupportedError

    with open_checkpoint(path, **options) as checkpoint:
        assert repr(checkpoint) and checkpoint.identity
        for tensor in checkpoint.tensors.values():
            if isinstance(tensor, Tensor):
                assert tensor.raw().nbytes == tensor.nbytes
            try:
                tensor.dequantize()
            except UnsupportedError:
                continue


def write(folder, name, data):
    """Write bytes to `folder/name`; return the path and its size."""
    path = Path(folder) / name
    path.write_bytes(data)
    return path, len(data)


def _peak(reset=False):
    """Peak resident bytes; on Linux since the last reset."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _attempt(case):
    gc.collect()
    before, start, begin = _peak(reset=True), time.process_time(), time.perf_counter()
    try:
        case.run()
        outcome, text = "accepted", ""
    except BaseException as error:
        outcome, text = type(error).__name__, str(error)
    seconds, waited = time.process_time() - start, time.perf_counter() - begin
    wanted = ["accepted"] if case.legal else sorted(TYPED | set(case.also))
    row = {"name": case.name, "outcome": outcome, "text": text[:300], "wanted": wanted}
    row |= {"seconds": seconds, "waited": waited}
    return row | {"grown": _peak() - before, "size": case.size}


def main():
    import ml_dtypes  # noqa: F401 (imports are not the refusal's cost)
    import tokenizers  # noqa: F401

    import octavo.checkpoint.gguf_checks
    import octavo.checkpoint.safetensors
    import octavo.engine.tokenizer  # noqa: F401

    gc.freeze()  # modules are no case's: `_attempt` need not walk them again
    for line in sys.stdin:
        group = line.strip()
        faulthandler.dump_traceback_later(90, exit=True)
        module = importlib.import_module(MODULES[group[0]])
        with tempfile.TemporaryDirectory() as folder:
            for case in getattr(module, group)(Path(folder)):
                print(json.dumps(_attempt(case)), flush=True)
        faulthandler.cancel_dump_traceback_later()
        print("null", flush=True)


if __name__ == "__main__":
    main()
