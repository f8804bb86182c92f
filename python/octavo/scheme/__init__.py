"""What users type: names and presets of KV schemes, weight schemes and activation forms."""

from .kv import KVScheme, known_kv_names
from .weights import CHECKPOINT, DEFAULT_ACT, WeightScheme, is_grouped, parse_act

__all__ = [
    "CHECKPOINT",
    "DEFAULT_ACT",
    "KVScheme",
    "WeightScheme",
    "is_grouped",
    "known_kv_names",
    "parse_act",
]
