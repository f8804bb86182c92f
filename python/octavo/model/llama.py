"""The Llama family: SmolLM2, Llama 2 and 3, and whatever else is stored under their names.

GQA, half-split RoPE (linear and Llama 3 scaling), RMSNorm, gated SiLU MLP. GGUF files hold the
rows of q and k interleaved, and Llama 3's scaling as divisors in ``rope_freqs.weight``.
"""

from collections.abc import Mapping
from typing import Any

from . import dense_config
from .dense import program_of
from .fields import Fields
from .spec import ModelSpec

__all__ = ["from_gguf", "from_hf", "program_of"]


def from_gguf(meta: Fields, tensors: Mapping[str, Any]) -> ModelSpec:
    """Make the spec from GGUF metadata."""
    return dense_config.from_gguf(meta, tensors, interleaved=True)


def from_hf(config: Fields, tensors: Mapping[str, Any]) -> ModelSpec:
    """Make the spec from a ``config.json``."""
    return dense_config.from_hf(config, tensors)
