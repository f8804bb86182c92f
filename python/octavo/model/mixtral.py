"""Mixtral: attention as Llama; the two largest of a softmax over eight experts, renormalized."""

from collections.abc import Mapping
from typing import Any

from . import dense_config
from .dense import HF_NAMES, program_of
from .fields import Fields
from .spec import Mixture, ModelSpec

__all__ = ["from_hf", "program_of"]

_MOE = "model.layers.{}.block_sparse_moe"
NAMES = HF_NAMES | {
    "layers.{}.moe.router": f"{_MOE}.gate",
    "layers.{}.moe.{}.gate": f"{_MOE}.experts.{{}}.w1",
    "layers.{}.moe.{}.up": f"{_MOE}.experts.{{}}.w3",
    "layers.{}.moe.{}.down": f"{_MOE}.experts.{{}}.w2",
}


def from_hf(config: Fields, tensors: Mapping[str, Any]) -> ModelSpec:
    """Make the spec from a ``config.json``."""
    config.refuse("sliding_window", (), "sliding-window attention")
    sizes = dense_config.mixture_sizes(config, "num_local_experts", "intermediate_size")
    return dense_config.from_hf(config, tensors, moe=Mixture(*sizes), names=NAMES, theta=1e6)
