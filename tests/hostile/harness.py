"""Runs one group of hostile inputs in a process of its own, under a watchdog.

A group is a generator of `Case`s in `cases_*.py`; as a program, `python harness.py GROUP`, this
file runs them all and prints one JSON line each. The parent (`run_group`) asserts what every
refusal owes: a typed error, at most 2 seconds, at most 64 MB and the file's size of memory.
"""

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


def run_group(group):
    """Run a group in a child; return its rows after asserting every bound."""
    command = [sys.executable, os.fspath(HERE / "harness.py"), group]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, (
        f"{group}: child died with {done.returncode}\n{done.stderr[-4000:]}"
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
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


def main(group):
    faulthandler.dump_traceback_later(90, exit=True)
    module = importlib.import_module(MODULES[group[0]])
    import ml_dtypes  # noqa: F401 (imports are not the refusal's cost)
    import tokenizers  # noqa: F401

    import octavo.checkpoint.gguf_checks
    import octavo.checkpoint.safetensors
    import octavo.engine.tokenizer  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        for case in getattr(module, group)(Path(folder)):
            print(json.dumps(_attempt(case)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
