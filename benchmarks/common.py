"""What every benchmark shares: the machine's description, interleaved rounds beside their roofs,
and the results file.

A row says what was measured, on what, with which column of kernels and which commit. Absolute
figures swing with the neighbours of a virtual machine, so every round measures its roofs first and
is held against those; two things are compared only within the same rounds.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
FLAGS = ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8")
ROOFS = "roofs"  # name of the case that measures them
Roofs = dict[str, float]


def options(about: str, *, rounds: int = 5, threads: int = 2) -> argparse.ArgumentParser:
    """Return a parser with what all scripts take."""
    parser = argparse.ArgumentParser(description=about.partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="measured, after one warm-up")
    parser.add_argument("--threads", type=int, nargs="+", default=[threads])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the .jsonl files")
    return parser


# ---- the machine -----------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Return CPU, cores granted, versions and commit."""
    import numpy as np

    import octavo
    from octavo.plan.machine import last_level_cache

    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    lines = [line.partition(":") for line in cpu.splitlines()]
    facts = {key.strip(): value.strip() for key, _, value in reversed(lines)}
    have = set(facts.get("flags", "").split())
    return {
        "cpu": facts.get("model name", platform.processor() or platform.machine()),
        "vendor": facts.get("vendor_id"),
        "flags": [f for f in FLAGS if f in have],
        "cores": len(os.sched_getaffinity(0)),
        "llc_bytes": last_level_cache(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "compiler": first_line(["cc", "--version"]),
        "versions": {"octavo": octavo.__version__, "numpy": np.__version__},
        "commit": _commit(),
        "load": os.getloadavg()[0],
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def first_line(command: list[str]) -> str | None:
    """Return the first line that a command prints, or None if it fails."""
    try:
        out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return out.splitlines()[0] if out else ""


def _commit() -> str | None:
    commit = first_line(["git", "rev-parse", "HEAD"])
    changes = ["git", "status", "--porcelain", "--untracked-files=no", "--", ":!benchmarks/results"]
    return f"{commit}-dirty" if commit and first_line(changes) else commit


def version(name: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def use(threads: int, isa: str | None = None) -> Any:
    """Make the runtime that `octavo.Linear` and `octavo.Cache` share this one, and return it."""
    from octavo import _core
    from octavo.engine import arrays

    arrays._runtime = _core.Runtime(threads, isa)
    return arrays._runtime


def roofs(threads: int, isa: str | None = None, seconds: float = 0.05) -> Roofs:
    """Measure the roofs of this moment: GB/s of reading, Gop/s of byte and of float products."""
    import octavo

    m = octavo.machine(threads, isa, seconds=seconds, refresh=True)
    out = {"stream_gbs": m.read_bytes, "int8_gops": m.int8_ops, "f32_gops": m.f32_ops}
    out["tile_gops"] = m.tile_ops
    return {name: rate / 1e9 for name, rate in out.items()}


# ---- time ------------------------------------------------------------------------------------


def seconds(call: Callable[[], Any]) -> float:
    """Return how long one call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def timer(call: Callable[[], Any], at_least_s: float = 0.1) -> Callable[[], float]:
    """Return a function that gives the seconds of a call, over as many as last `at_least_s`."""
    state = {"calls": 0}

    def sample() -> float:
        if not state["calls"]:
            once = min(seconds(call), seconds(call))
            state["calls"] = max(1, round(at_least_s / max(once, 1e-7)))
        begin = time.perf_counter()
        for _ in range(state["calls"]):
            call()
        return (time.perf_counter() - begin) / state["calls"]

    return sample


def interleaved(cases: Mapping[Any, Callable[[], Any]], rounds: int) -> dict[Any, list[Any]]:
    """Run every case once a round, in turn, and return what each gave, one per round.

    A round before them warms up and is not kept. Roofs are cases too, so that each round has them.
    """
    samples: dict[Any, list[Any]] = {name: [] for name in cases}
    for _ in range(rounds + 1):
        for name, call in cases.items():
            samples[name].append(call())
    return {name: found[1:] for name, found in samples.items()}


# ---- rows ------------------------------------------------------------------------------------


def spread(samples: list[float]) -> dict[str, Any]:
    """Return median, lowest and highest, and the samples, to four digits."""
    kept = [float(f"{s:.4g}") for s in samples]
    out = {"median": statistics.median(kept), "min": min(kept), "max": max(kept)}
    return {**out, "samples": kept}


def percent(rates: list[float], measured: list[Roofs], roof: str) -> float:
    """Return the median over rounds of a rate in percent of that round's roof."""
    pairs = zip(rates, measured, strict=True)
    return round(statistics.median(100 * rate / at[roof] for rate, at in pairs), 2)


def roof_row(measured: list[Roofs]) -> dict[str, float]:
    """Return the medians of roofs over rounds."""
    return {k: round(statistics.median(at[k] for at in measured), 1) for k in measured[0]}


def write(name: str, rows: list[dict[str, Any]], about: dict[str, Any], folder: Path) -> Path:
    """Append rows to FOLDER/NAME.jsonl, each with the machine's description and the run's name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({"bench": name, **row, "machine": about}) + "\n")
    print(f"{len(rows)} rows to {path}", file=sys.stderr)
    return path
