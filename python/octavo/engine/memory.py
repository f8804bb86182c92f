"""How much memory a cache may take where nobody says: a default that fits the machine."""

import math

from octavo.model import ModelSpec
from octavo.plan.machine import available_memory, tables
from octavo.scheme import KVScheme

_DEFAULT_CONTEXTS = 4
_LEAST = 1 << 20


def default_budget(spec: ModelSpec, context: int, scheme: KVScheme) -> int:
    """Return what four full contexts take as they are before sealing, bounded by half of free RAM.

    The bound on open rows is generous for quantized schemes, whose sealed pages are smaller.
    """
    bits = tables().pages
    widest = max(16.0, *(bits[f] for s in (scheme, *scheme.layers.values()) for f in (s.k, s.v)))
    rows = sum(s.kv_heads * (s.k_width + s.v_width) for s in spec.cache_layers)
    wanted = _DEFAULT_CONTEXTS * context * rows * math.ceil(widest / 8)
    return max(_LEAST, min(wanted, available_memory() // 2))
