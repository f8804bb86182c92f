"""How much memory a cache may take: what users type, and a default that fits the machine."""

import math
import re
from typing import Any

from octavo.model import ModelSpec
from octavo.plan.machine import available_memory, tables
from octavo.scheme import KVScheme

_UNITS = {"": 1, "b": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_BINARY = {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?")
_DEFAULT_CONTEXTS = 4
_MOST = 1 << 46
_LEAST = 1 << 20


def parse_bytes(memory: Any) -> int:
    """Return bytes of an int, or of a text such as ``"500 MB"`` or ``"2 GiB"``.

    Raises
    ------
    TypeError, ValueError
        For anything that is not an amount of memory between 1 byte and 64 TiB.
    """
    if isinstance(memory, str):
        match = _SIZE.fullmatch(memory.strip().lower())
        if not match or len(memory) > 40:
            raise ValueError(f"memory is {memory!r:.40}; legal: bytes, or a size like '500 MB'")
        value = int(float(match[1]) * (_UNITS | _BINARY)[match[2] or ""])
    elif isinstance(memory, bool) or not isinstance(memory, int):
        raise TypeError(f"memory must be an int or a str, not {type(memory).__name__}")
    else:
        value = memory
    if not 1 <= value <= _MOST:
        raise ValueError(f"memory is {memory!r:.40}; legal: 1 byte to 64 TiB")
    return value


def default_budget(spec: ModelSpec, context: int, scheme: KVScheme) -> int:
    """Return what four full contexts take as they are before sealing, bounded by half of free RAM.

    The bound on open rows is generous for quantized schemes, whose sealed pages are smaller.
    """
    bits = tables().pages
    widest = max(16.0, *(bits[f] for s in (scheme, *scheme.layers.values()) for f in (s.k, s.v)))
    rows = sum(s.kv_heads * (s.k_width + s.v_width) for s in spec.cache_layers)
    wanted = _DEFAULT_CONTEXTS * context * rows * math.ceil(widest / 8)
    return max(_LEAST, min(wanted, available_memory() // 2))
