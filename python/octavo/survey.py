"""Looking at the machine and at this process: kernels by column, roofs, memory by purpose."""

import threading
from dataclasses import dataclass
from typing import Any

from .plan.machine import available_memory, last_level_cache

_roofs: "dict[tuple[int, str], Machine]" = {}
_roofs_lock = threading.Lock()


@dataclass(frozen=True)
class Machine:
    """What this machine reaches at best, for figures to be compared with.

    Attributes
    ----------
    cpu, isa : str
        Processor, and the column of kernels that was measured.
    threads : int
    last_level_cache : int
        Bytes that the processor reports, of a whole socket on many virtual machines.
    int8_ops, tile_ops, f32_ops : float
        Operations per second in registers, a multiply-add counting as two: bytes (u8 x s8 into
        32 bits) in vectors, bytes in tiles (AMX; 0 where the column has none), and float32.
    read_bytes : float
        Bytes per second read from memory.
    """

    cpu: str
    isa: str
    threads: int
    last_level_cache: int
    int8_ops: float
    tile_ops: float
    f32_ops: float
    read_bytes: float

    def __str__(self) -> str:
        tiles = f"in tiles {self.tile_ops / 1e9:,.0f}, " if self.tile_ops else ""
        return (
            f"{self.cpu}, {self.isa}, {self.threads} threads: "
            f"int8 {self.int8_ops / 1e9:,.0f} Gop/s, {tiles}f32 {self.f32_ops / 1e9:,.0f} Gop/s, "
            f"read {self.read_bytes / 1e9:.1f} GB/s"
        )


def machine(
    threads: int | None = None, isa: str | None = None, *, seconds: float = 0.2,
    refresh: bool = False,
) -> Machine:  # fmt: skip
    """Measure the roofs of this machine on a pool of threads of its own.

    Measured once per process, thread count and column, since it takes a second; neighbours on a
    virtual machine move the figures within minutes, so measure again (`refresh`) beside what is to
    be compared.

    Parameters
    ----------
    threads : int, optional
        Default: as an LLM takes them.
    isa : str, optional
        Cap, as ``OCTAVO_ISA``.
    seconds : float
        For each of the roofs.
    refresh : bool
        Measure again.

    Raises
    ------
    ValueError, UnsupportedError
        For thread counts and columns that `LLM` refuses too.
    """
    from octavo import _core
    from octavo.engine.checks import MOST_THREADS, check_count

    if threads is not None:
        check_count("machine: threads", threads, MOST_THREADS)
    runtime = _core.Runtime(threads or 0, isa)
    try:
        key = runtime.threads, runtime.isa
        with _roofs_lock:
            if refresh or key not in _roofs:
                cache = last_level_cache()
                nbytes = _stream_bytes(cache, runtime.threads)
                _roofs[key] = Machine(
                    runtime.cpu, runtime.isa, runtime.threads, cache,
                    **runtime.roofs(nbytes, seconds),
                )  # fmt: skip
            return _roofs[key]
    finally:
        runtime.close()


def _stream_bytes(cache: int, threads: int) -> int:
    """Return how much to read: each thread's part is four times a last-level cache.

    Threads may sit on cores that share none, each keeping a part of what it reads.
    """
    wanted = min(max(4 * cache * threads, 64 << 20), 1 << 30)
    return max(1 << 20, min(wanted, available_memory() // 4))


def profile(llm: Any, *, context: int = 0, prefill: int = 512, decode: int = 64) -> dict[str, Any]:
    """Time every kind of work in a prefill and in a decode.

    Each runs twice on arbitrary ids, and the second time counts.

    Parameters
    ----------
    llm : LLM
    context : int
        Tokens before both.
    prefill, decode : int
        Tokens fed at once, and one by one.

    Returns
    -------
    dict of str to Profile
        "prefill" and "decode", each with a table as its text.

    Raises
    ------
    ValueError
        If the context of the model has no room for them.
    """
    ids = [i % llm.spec.vocab for i in range(context + max(prefill, decode))]
    work = {"prefill": [ids[context : context + prefill]],
            "decode": [[i] for i in ids[context : context + decode]]}  # fmt: skip
    out = {}
    with llm.sequence(prefix=False) as history:
        history.append(ids[:context])
        for phase, chunks in work.items():
            for _ in range(2):
                with history.fork() as sequence, llm.profile() as found:
                    for chunk in chunks:
                        sequence.append(chunk)
            found.title = f"{phase} after {context} tokens, {found.title}"
            out[phase] = found
    return out


def kernels(isa: str | None = None) -> Any:
    """Return which column serves every slot of the kernel table here.

    Parameters
    ----------
    isa : str, optional
        Cap, as ``OCTAVO_ISA``: "scalar", "avx2", "avx512", "amx".

    Returns
    -------
    list of Kernel
        With a table as its repr.
    """
    from octavo import _core
    from octavo.engine.repr import kernel_table

    runtime = _core.Runtime(1, isa)
    try:
        return kernel_table(runtime)
    finally:
        runtime.close()


def memory() -> dict[str, tuple[int, int]]:
    """Return live (bytes, allocations) of this process by purpose: weights, pages, open, ..."""
    from octavo import _core

    return _core.memory()
