"""Gemma3, the text part: local layers with a window, every sixth global, norms on both sides.

Norms multiply by 1 + w, of heads and of what a branch adds too; embeddings are scaled; MLPs gate by
gelu in its tanh form. Local layers rotate by a base of their own. Large sizes nest their numbers in
``text_config``, of which files hold only what differs from the code's defaults.
"""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from . import dense_config
from .dense import HF_NAMES, names_in, program_of
from .fields import MAX_LAYERS, Fields
from .rope import THETA, rope_from_config
from .spec import ModelSpec
from .windows import windows_of

__all__ = ["from_hf", "program_of"]

_LAYER = "model.layers.{}."
NAMES = HF_NAMES | {
    "layers.{}.attn.out_norm": f"{_LAYER}post_attention_layernorm",
    "layers.{}.mlp.norm": f"{_LAYER}pre_feedforward_layernorm",
    "layers.{}.mlp.out_norm": f"{_LAYER}post_feedforward_layernorm",
}
# Of Gemma3TextConfig: published configs leave out what equals them.
DEFAULTS = {
    "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 131072,
    "tie_word_embeddings": True, "query_pre_attn_scalar": 256, "sliding_window": 4096,
    "rope_theta": 1e6, "rope_local_base_freq": 1e4,
}  # fmt: skip
_VISION = (r"(vision_tower|multi_modal_projector)\..*", "vision: only the text part is built")


def from_hf(config: Fields, tensors: Mapping[str, Any]) -> ModelSpec:
    """Make the spec from a ``config.json``, or from the ``text_config`` inside it."""
    config = config.text_part()
    config = Fields(DEFAULTS | dict(config.values), config.source)
    _refuse(config)
    prefix, names = names_in(tensors, NAMES)
    hidden, head_dim = config.integer("hidden_size"), config.integer("head_dim")
    scalar = config.number("query_pre_attn_scalar", 0.0, 1e6)
    return dense_config.from_hf(
        _rotated(config, "full_attention", "rope_theta"), tensors,
        qk_norm=True,
        hidden_act="gelu_pytorch_tanh",
        names=names,
        skips=(_VISION,) if prefix else (),
        scale=scalar**-0.5,
        windows=windows_of(config, _period(config)),
        local_rope=rope_from_config(
            _rotated(config, "sliding_attention", "rope_local_base_freq"), head_dim
        ),
        activation="gelu_tanh",
        norm_offset=1.0,
        out_norms=True,
        # The model's code rounds this factor to the type of its weights.
        embed_scale=float(np.float32(hidden**0.5).astype(ml_dtypes.bfloat16)),
    )  # fmt: skip


def _refuse(config: Fields) -> None:
    for key in ("final_logit_softcapping", "attn_logit_softcapping"):
        config.refuse(key, (), "a soft cap of logits")
    config.refuse("hidden_activation", ("gelu_pytorch_tanh",), "another activation")
    config.refuse("use_bidirectional_attention", (False,), "attention to later tokens")


def _period(config: Fields) -> int:
    default = config.integer("_sliding_window_pattern", most=MAX_LAYERS, default=6)
    return config.integer("sliding_window_pattern", most=MAX_LAYERS, default=default)


def _rotated(config: Fields, kind: str, theta: str) -> Fields:
    """Return the config as one kind of layer rotates; newer ones have an object for each kind."""
    values = dict(config.values) | {"rope_theta": config.number(theta, *THETA)}
    kinds = config.get("rope_parameters")
    if isinstance(kinds, dict) and kind in kinds:
        values["rope_parameters"] = kinds[kind]
    elif kind == "sliding_attention":
        values |= {"rope_parameters": None, "rope_scaling": None}  # that of global layers
    return Fields(values, config.source)
