"""Qwen3 with experts: attention as Qwen3; a softmax over all experts, the largest few renormalized.

Layer N has experts unless ``mlp_only_layers`` lists it or (N + 1) is no multiple of
``decoder_sparse_step``. There is no shared expert.
"""

from collections.abc import Mapping
from typing import Any

from . import dense_config
from .dense import program_of
from .fields import MAX_LAYERS, Fields
from .spec import Mixture, ModelSpec

__all__ = ["from_hf", "program_of"]


def from_hf(config: Fields, tensors: Mapping[str, Any]) -> ModelSpec:
    """Make the spec from a ``config.json``."""
    experts, top, inner = dense_config.mixture_sizes(config, "num_experts", "moe_intermediate_size")
    moe = Mixture(experts, top, inner, renorm=config.flag("norm_topk_prob"), dense=_dense(config))
    return dense_config.from_hf(config, tensors, qk_norm=True, moe=moe)


def _dense(config: Fields) -> frozenset[int]:
    layers = config.integer("num_hidden_layers", most=MAX_LAYERS)
    step = config.integer("decoder_sparse_step", most=MAX_LAYERS, default=1)
    listed = config.get("mlp_only_layers", [])
    good = isinstance(listed, list) and all(type(n) is int and 0 <= n < layers for n in listed)
    if not good:
        raise config.bad("mlp_only_layers", listed, f"a list of layers from 0 to {layers - 1}")
    return frozenset(listed) | {n for n in range(layers) if (n + 1) % step}
