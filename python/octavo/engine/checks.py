"""What several doors of the engine check alike."""

from typing import Any

import numpy as np

MOST_THREADS = 256


def check_count(what: str, value: Any, most: int) -> None:
    """Raise `TypeError` or `ValueError` unless `value` is an int from 1 to `most`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{what} must be an int, not {type(value).__name__}")
    if not 1 <= value <= most:
        raise ValueError(f"{what} is {value}; legal: 1 to {most}")
