"""gpt-oss: attention with sinks, in a window in every other layer; experts with biases.

Attention is Llama's with biases and YaRN; a learned logit per head takes its share of the softmax.
A router's logits have a bias and the few largest go through a softmax; experts clamp their SwiGLU.
"""

from collections.abc import Mapping
from typing import Any

from octavo.errors import UnsupportedError

from . import dense_config
from .dense import HF_NAMES, program_of
from .fields import Fields
from .spec import Mixture, ModelSpec
from .windows import windows_of

__all__ = ["from_hf", "program_of"]

_LAYER = "model.layers.{}."
NAMES = HF_NAMES | {
    "layers.{}.attn.sinks": f"{_LAYER}self_attn.sinks",
    "layers.{}.moe.router": f"{_LAYER}mlp.router",
    "layers.{}.moe.router.logit_bias": f"{_LAYER}mlp.router.bias",
}
# What the published configs say; code takes it where one does not.
DEFAULTS = {"attention_bias": True, "head_dim": 64, "sliding_window": 128}
_WHOLE = f"{_LAYER}mlp.experts.gate_up_proj"


def from_hf(config: Fields, tensors: Mapping[str, Any]) -> ModelSpec:
    """Make the spec from a ``config.json``."""
    config = Fields(DEFAULTS | dict(config.values), config.source)
    config.refuse("swiglu_limit", (7.0,), "another bound of the experts' SwiGLU")
    config.refuse("swiglu_alpha", (1.702,), "another slope of the experts' SwiGLU")
    if _WHOLE.format(0) in tensors:
        raise UnsupportedError(
            f"{config.source}: {_WHOLE.format(0)!r} holds all experts of a layer, which is not "
            "built; supported: the MXFP4 checkpoint"
        )
    sizes = dense_config.mixture_sizes(config, "num_local_experts", "intermediate_size")
    return dense_config.from_hf(
        config, tensors,
        moe=Mixture(*sizes, score="top", logit_bias=True, expert_bias=True),
        names=NAMES,
        theta=150000.0,
        windows=windows_of(config, period=2),
        sinks=True,
        activation="clamped_silu",
    )  # fmt: skip
