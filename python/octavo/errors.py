"""Every typed exception that Octavo raises, in one module without imports.

Each one derives from the built-in exception that a caller would catch anyway, so code that knows
nothing of Octavo still handles it. The C extension and all Python layers import them from here.
"""

__all__ = [
    "BusyError",
    "CheckpointError",
    "ClosedError",
    "NumericalError",
    "OutOfPages",
    "StaleHandleError",
    "UnsupportedError",
]


class CheckpointError(ValueError):
    """A file is malformed or contradicts itself; the text names file, place, value and limit."""


class OutOfPages(MemoryError):
    """A request can never fit, or the page pool is exhausted. Nothing was changed.

    Parameters
    ----------
    message : str
        What was asked for, and a way out that works.
    needed, available, evictable : int, optional
        Bytes that the request needs, that are free, and that could be freed by eviction.
    """

    def __init__(self, message="", needed=None, available=None, evictable=None):
        super().__init__(message)
        self.needed = needed
        self.available = available
        self.evictable = evictable


class BusyError(RuntimeError):
    """The sequence or cache is in use by another call; retry when that call has returned."""


class ClosedError(ValueError):
    """The object was closed; nothing was done."""


class StaleHandleError(RuntimeError):
    """A (page, generation) handle whose page has been given back since."""


class NumericalError(ArithmeticError):
    """Rows or logits are not finite; the request that produced them failed, others go on."""


class UnsupportedError(NotImplementedError):
    """A legal combination that nothing here implements; the text names the nearest that works."""
