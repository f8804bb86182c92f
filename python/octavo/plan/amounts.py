"""Amounts that users type: bytes of memory, and bytes per second."""

import re
from typing import Any

_UNITS = {"": 1, "b": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_BINARY = {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?")
_MOST = 1 << 46
_MOST_RATE = 1e18


def parse_bytes(memory: Any, what: str = "memory") -> int:
    """Return bytes of an int, or of a text such as ``"500 MB"`` or ``"2 GiB"``.

    Parameters
    ----------
    memory : int or str
    what : str
        What error texts call it.

    Raises
    ------
    TypeError, ValueError
        For anything that is not an amount of memory between 1 byte and 64 TiB.
    """
    if isinstance(memory, str):
        value = _amount(memory)
        if value is None:
            raise ValueError(f"{what} is {memory!r:.40}; legal: bytes, or a size like '500 MB'")
        value = int(value)
    elif isinstance(memory, bool) or not isinstance(memory, int):
        raise TypeError(f"{what} must be an int or a str, not {type(memory).__name__}")
    else:
        value = memory
    if not 1 <= value <= _MOST:
        raise ValueError(f"{what} is {memory!r:.40}; legal: 1 byte to 64 TiB")
    return value


def parse_rate(rate: Any, what: str = "bandwidth") -> float:
    """Return bytes per second of a number, or of a text such as ``"400 GB/s"``.

    Raises
    ------
    TypeError, ValueError
        For anything that is not a rate above 0 and at most 1e18 bytes per second.
    """
    if isinstance(rate, str):
        value = _amount(rate.strip().lower().removesuffix("/s"))
        if value is None:
            raise ValueError(
                f"{what} is {rate!r:.40}; legal: bytes per second, or a rate like '400 GB/s'"
            )
    elif isinstance(rate, bool) or not isinstance(rate, int | float):
        raise TypeError(f"{what} must be a number or a str, not {type(rate).__name__}")
    else:
        value = rate
    if not 0 < value <= _MOST_RATE:  # nor NaN
        raise ValueError(f"{what} is {rate!r:.40}; legal: above 0, at most 1e18 bytes per second")
    return float(value)


def _amount(text: str) -> float | None:
    match = _SIZE.fullmatch(text.strip().lower())
    if not match or len(text) > 40:
        return None
    return float(match[1]) * (_UNITS | _BINARY)[match[2] or ""]
