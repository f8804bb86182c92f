"""What every benchmark shares: the machine's description, medians, and the results file.

A row says what was measured, on what, with which column of kernels and which commit. Absolute
figures swing with the neighbours of a virtual machine; ratios of interleaved runs do not, so peers
are compared by those.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
FLAGS = ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8")


def machine() -> dict[str, Any]:
    """Return CPU, cores granted, versions and commit."""
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    lines = [line.partition(":") for line in cpu.splitlines()]
    facts = {key.strip(): value.strip() for key, _, value in reversed(lines)}
    have = set(facts.get("flags", "").split())
    from octavo.plan.machine import last_level_cache

    return {
        "cpu": facts.get("model name", platform.processor() or platform.machine()),
        "flags": [f for f in FLAGS if f in have],
        "cores": len(os.sched_getaffinity(0)),
        "llc_bytes": last_level_cache(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "compiler": _first_line(["cc", "--version"]),
        "versions": {name: _version(name) for name in ("octavo", "numpy")},
        "commit": _commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _first_line(command: list[str]) -> str | None:
    try:
        out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return out.splitlines()[0] if out else ""


def _commit() -> str | None:
    commit = _first_line(["git", "rev-parse", "HEAD"])
    return f"{commit}-dirty" if commit and _first_line(["git", "status", "--porcelain"]) else commit


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def seconds(call: Callable[[], Any]) -> float:
    """Return how long one call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def timed(
    call: Callable[[], Any], *, repeats: int = 5, at_least_s: float = 0.2
) -> dict[str, float]:
    """Return median, lowest and highest seconds a call, after a warm-up.

    Short calls are repeated inside one sample until it lasts `at_least_s`.
    """
    once = max(seconds(call), 1e-7)
    inner = max(1, round(at_least_s / once))

    def sample() -> None:
        for _ in range(inner):
            call()

    samples = sorted(seconds(sample) / inner for _ in range(repeats))
    return {"median_s": statistics.median(samples), "min_s": samples[0], "max_s": samples[-1]}


def write(name: str, rows: list[dict[str, Any]], about: dict[str, Any]) -> Path:
    """Append rows to results/NAME.jsonl, each with the machine's description."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.jsonl"
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row | {"machine": about}) + "\n")
    print(f"{len(rows)} rows to {path}", file=sys.stderr)
    return path
