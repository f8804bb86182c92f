"""How `with` blocks end when NumPy views still hold pages."""

import warnings
from typing import Any

from octavo.errors import BusyError


def close_at_exit(thing: Any, kind: Any) -> None:
    """Close; what refuses that is raised unless another exception is on its way (then a warning).

    `BufferError` while views hold pages, `BusyError` while a page of it is under edit.
    """
    try:
        thing.close()
    except (BufferError, BusyError) as error:
        if kind is None:
            raise
        warnings.warn(f"not closed: {error}", ResourceWarning, stacklevel=3)
