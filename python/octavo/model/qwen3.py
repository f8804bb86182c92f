"""Qwen3, dense: as Llama, with an RMSNorm on every head of q and k before RoPE.

The head width is explicit (128, whatever hidden / heads gives), and GGUF files hold the rows of q
and k as the model does.
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
    return dense_config.from_gguf(meta, tensors, qk_norm=True)


def from_hf(config: Fields, tensors: Mapping[str, Any]) -> ModelSpec:
    """Make the spec from a ``config.json``."""
    return dense_config.from_hf(config, tensors, qk_norm=True)
