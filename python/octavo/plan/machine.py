"""What this machine has: kernel tables, and memory that may be used.

`tables` is the one place above the engine that asks the C core what exists, so scheme names follow
from the `.def` files and no list of formats is written twice.
"""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

_UNIT_TOKENS = 16  # rows that an open page grows by
_PROBE_BYTES = 1 << 20


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


class HeadBytes(NamedTuple):
    """What one head of a layer takes: a page's 64 rows sealed, and one row while open."""

    sealed: int
    open_row: int


@cache
def head_bytes(**layer: Any) -> HeadBytes:
    """Ask the core for the bytes of one head of a layer: both its segments.

    Parameters
    ----------
    **layer
        The layer as `KVScheme.core_layers` describes it, without its number of heads.

    Raises
    ------
    ValueError
        If a format or a transform does not exist, or does not take rows of this width.
    """
    from octavo import _core

    runtime = _core.Runtime(1)
    try:
        pages = _core.Cache(runtime, [{"kv_heads": 1, **layer}], budget=_PROBE_BYTES)
        try:
            ledger = pages.ledger()
        finally:
            pages.close()
    finally:
        runtime.close()
    return HeadBytes(ledger["page_bytes"], ledger["unit_bytes"] // _UNIT_TOKENS)


def last_level_cache() -> int:
    """Return the bytes of the largest cache that the processor reports, else 32 MiB."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            text = path.read_text().strip()
            sizes.append(int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1]])
        except (OSError, ValueError, KeyError, IndexError):
            continue
    return max(sizes, default=32 << 20)


def available_memory() -> int:
    """Return the bytes that this process may still take: free RAM within its cgroup's limit."""
    known = [n for n in (_meminfo(), *_cgroups()) if n is not None]
    return min(known) if known else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _meminfo() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    return None


def _cgroups(
    mount: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> list[int]:
    """What is left in this process's control groups and those they are in, version 2 and 1.

    A container's mount may not show the path that it is told; its own limit is then at the root.
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        lines = []
    out = []
    for _, controllers, path in lines:
        if not controllers:
            base, names = mount, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            base, names = mount / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        group = base / path.lstrip("/")
        for folder in (group, *(p for p in group.parents if p == base or base in p.parents)):
            try:
                most, used = ((folder / name).read_text() for name in names)
                out.append(max(0, int(most) - int(used)))  # "max" is no number
            except (OSError, ValueError):
                continue
    return out
