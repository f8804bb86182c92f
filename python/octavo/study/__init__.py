"""Measuring what a quantization choice costs: perplexity, divergence, and intervals for both.

Nothing in `octavo` imports this package. Protocols are those of published tables; every result
names its protocol, its base and the machine it ran on.
"""

from octavo.table import Table

from .divergence import LADDER, Divergence, Ladder, divergence, ladder
from .perplexity import PROTOCOLS, Perplexity, perplexity
from .stats import Interval, mean_interval, sealed_fraction

__all__ = [
    "LADDER",
    "PROTOCOLS",
    "Divergence",
    "Interval",
    "Ladder",
    "Perplexity",
    "Table",
    "divergence",
    "ladder",
    "mean_interval",
    "perplexity",
    "sealed_fraction",
]
