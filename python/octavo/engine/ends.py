"""How `with` blocks end when NumPy views still hold pages."""

import warnings
from typing import Any


def close_at_exit(thing: Any, kind: Any) -> None:
    """Close; a `BufferError` is raised unless another exception is on its way (then a warning)."""
    try:
        thing.close()
    except BufferError as error:
        if kind is None:
            raise
        warnings.warn(f"not closed: {error}", ResourceWarning, stacklevel=3)
