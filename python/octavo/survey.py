"""Looking at the machine and at this process: kernels by column, memory by purpose."""

from typing import Any


def kernels(isa: str | None = None) -> Any:
    """Return which column serves every slot of the kernel table here.

    Parameters
    ----------
    isa : str, optional
        Cap, as ``OCTAVO_ISA``: "scalar", "avx2", "avx512".

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
