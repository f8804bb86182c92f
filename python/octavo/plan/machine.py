"""What this machine has: kernel tables, and memory that may be used.

`tables` is the one place above the engine that asks the C core what exists, so scheme names follow
from the `.def` files and no list of formats is written twice.
"""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Tables:
    """Names in the core's tables, in their order there.

    Attributes
    ----------
    pages, weights : dict of str to float
        Format to bits per stored element (pages: at width 128).
    forms, acts : dict of str to tuple of str
        Page format to its dot forms; weight format to the activation forms it takes.
    """

    pages: dict[str, float]
    weights: dict[str, float]
    forms: dict[str, tuple[str, ...]]
    acts: dict[str, tuple[str, ...]]


@cache
def tables() -> Tables:
    """Ask the core which formats and forms have kernels here."""
    from octavo import _core

    runtime = _core.Runtime(1)
    try:
        rows = runtime.kernels()
    finally:
        runtime.close()

    def bits(table: str) -> dict[str, float]:
        return {name: b for kind, name, _, _, _, b in rows if kind == table}

    def kinds(table: str, slot: str) -> dict[str, tuple[str, ...]]:
        out: dict[str, tuple[str, ...]] = {}
        for kind, name, at, form, isa, _ in rows:
            if (kind, at) == (table, slot) and isa is not None:
                out[name] = (*out.get(name, ()), form)
        return out

    return Tables(bits("page"), bits("weight"), kinds("page", "scores"), kinds("weight", "linear"))


def available_memory() -> int:
    """Return the bytes that this process may still take: free RAM within its cgroup's limit."""
    found = [_meminfo(), _cgroup("memory.max", "memory.current")]
    found.append(_cgroup("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
    known = [n for n in found if n is not None]
    return min(known) if known else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _meminfo() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    return None


def _cgroup(limit: str, usage: str) -> int | None:
    root = Path("/sys/fs/cgroup")
    try:
        most, used = (root / limit).read_text(), (root / usage).read_text()
        return None if most.strip() == "max" else max(0, int(most) - int(used))
    except (OSError, ValueError):
        return None
