"""DeepSeek-V3, Kimi K2 and the text part of Kimi K2.5: latent attention, many small experts.

Numbers come from fields, never from a model's name: the same family changes them between releases
(kimi.md section 1). The layers' programs are `latent` and `dense`.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from . import dense_config
from . import latent as mla
from .dense import HF_NAMES, names_in, program_of, tensor_uses, vocabulary
from .fields import MAX_LAYERS, Fields
from .rope import rope_from_config, softmax_factor
from .spec import Latent, Mixture, ModelSpec

__all__ = ["from_hf", "program_of"]

_SHARED = "model.layers.{}.mlp.shared_experts."
NAMES = HF_NAMES | mla.HF_NAMES | {
    f"layers.{{}}.shared.{p}": f"{_SHARED}{p}_proj" for p in ("gate", "up", "down")
}  # fmt: skip
_MOST_HEAD = 1 << 14


def from_hf(config: Fields, tensors: Mapping[str, Any]) -> ModelSpec:
    """Make the spec from a ``config.json``, or from the ``text_config`` inside it."""
    config = config.text_part()
    prefix, names = names_in(tensors, NAMES)
    _refuse(config)
    heads, latent = config.integer("num_attention_heads"), _latent(config)
    layers = config.integer("num_hidden_layers", most=MAX_LAYERS)
    rope = replace(rope_from_config(config, latent.rope), half_split=False)
    spec = ModelSpec(
        family="deepseek",
        name=config.text("_name_or_path"),
        layers=layers,
        hidden=config.integer("hidden_size"),
        heads=heads,
        kv_heads=1,
        head_dim=latent.nope + latent.rope,
        ffn=config.integer("intermediate_size"),
        vocab=vocabulary(tensors, names, config.source),
        context=config.integer("max_position_embeddings", most=1 << 40),
        eps=config.number("rms_norm_eps", 0.0, 1.0),
        rope=rope,
        tied=config.flag("tie_word_embeddings"),
        scale=(latent.nope + latent.rope) ** -0.5 * softmax_factor(config),
        moe=_mixture(config, layers),
        latent=latent,
        skips=_skips(config, prefix, layers),
    )
    return replace(spec, uses=tensor_uses(spec, names))


def _refuse(config: Fields) -> None:
    config.refuse("hidden_act", ("silu",), "another activation")
    config.refuse("attention_bias", (False,), "a bias in attention")
    config.refuse("scoring_func", ("sigmoid",), "another score of the router")
    config.refuse("topk_method", ("noaux_tc",), "another choice of experts")
    config.refuse("rope_interleave", (True,), "rotating halves of a head")


def _latent(config: Fields) -> Latent:
    rope = config.integer("qk_rope_head_dim", most=_MOST_HEAD)
    if rope % 2:
        raise config.bad("qk_rope_head_dim", rope, "an even number: pairs are rotated")
    return Latent(
        q_rank=config.integer("q_lora_rank", default=0),
        rank=config.integer("kv_lora_rank", most=_MOST_HEAD),
        nope=config.integer("qk_nope_head_dim", most=_MOST_HEAD),
        rope=rope,
        v=config.integer("v_head_dim", most=_MOST_HEAD),
        # Model code disagrees: Hugging Face's leaves its class default here, vLLM's does not.
        eps=config.number("latent_norm_eps", 0.0, 1.0, default=1e-6),
    )


def _mixture(config: Fields, layers: int) -> Mixture | None:
    if config.get("n_routed_experts") is None:
        return None
    count, top, inner = dense_config.mixture_sizes(
        config, "n_routed_experts", "moe_intermediate_size"
    )
    # No defaults: where a config leaves these out, codes that read it do not agree.
    groups = config.integer("n_group", most=count)
    kept = config.integer("topk_group", most=groups)
    if count % groups:
        raise config.bad("n_group", groups, f"a divisor of n_routed_experts = {count}")
    if groups > 1 and count // groups < 2:
        raise config.bad("n_group", groups, "groups of two experts or more")
    if top > kept * (count // groups):
        legal = f"at most the {kept * (count // groups)} experts of topk_group = {kept} groups"
        raise config.bad("num_experts_per_tok", top, legal)
    first = config.integer("first_k_dense_replace", most=layers, default=0, least=0)
    every = config.integer("moe_layer_freq", most=MAX_LAYERS, default=1)
    return Mixture(
        count, top, inner,
        score="sigmoid",
        renorm=config.flag("norm_topk_prob", True),
        scale=config.number("routed_scaling_factor", 0.0, 1e6),
        groups=groups,
        groups_kept=kept,
        dense=frozenset(n for n in range(layers) if n < first or n % every),
        bias=True,
        shared=inner * config.integer("n_shared_experts", most=1024, default=0, least=0),
    )  # fmt: skip


def _skips(config: Fields, prefix: str, layers: int) -> tuple[tuple[str, str], ...]:
    drafts = config.integer("num_nextn_predict_layers", most=MAX_LAYERS, default=0, least=0)
    stem = re.escape(prefix) + r"model\.layers\."
    rules = [(rf"{stem}\d+\.self_attn\.rotary_emb\.inv_freq", "computed from the config")]
    if prefix:
        rules.append((r"(vision_tower|mm_projector)\..*", "vision: only the text part is built"))
    for layer in range(layers, layers + drafts):
        rules.append((rf"{stem}{layer}\..*", "drafts of later tokens (num_nextn_predict_layers)"))
    return tuple(rules)
