"""Specs of dense decoders from GGUF metadata and from `config.json`, shared by the families.

Every number is range-checked, and a key that asks for something that is not built (experts,
windows, another activation) is refused by name rather than ignored.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.errors import CheckpointError

from .dense import BIASED, GGUF_NAMES, HF_NAMES, biases_in, tensor_uses, vocabulary
from .fields import MAX_LAYERS, MAX_WIDTH, Fields
from .rope import rope_from_config, rope_from_gguf
from .spec import Mixture, ModelSpec

MAX_EXPERTS = 1024


def from_gguf(
    meta: Fields, tensors: Mapping[str, Any], *, qk_norm: bool = False, interleaved: bool = False
) -> ModelSpec:
    """Make the spec from keys ``<arch>.*``.

    Parameters
    ----------
    meta : Fields
        The metadata under the prefix ``<arch>.``.
    tensors : Mapping of str to Tensor
        For presence and shapes, and the values of ``rope_freqs.weight``.
    qk_norm : bool
        Heads of q and k are normalized before RoPE.
    interleaved : bool
        The file holds the rows of q and k interleaved.
    """
    hidden = meta.integer("embedding_length")
    heads = meta.integer("attention.head_count")
    head_dim = _head_dim(meta, "attention.key_length", hidden, heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        meta.refuse(key, (head_dim,), f"a width other than head_dim = {head_dim}")
    meta.refuse("expert_count", (0,), "a mixture of experts")
    meta.refuse("attention.sliding_window", (0,), "sliding-window attention")
    divisors = _rope_divisors(meta, tensors, head_dim)
    tied = "output.weight" not in tensors
    spec = ModelSpec(
        family=meta.prefix.rstrip("."),
        name=str(meta.values.get("general.name", "")),
        layers=meta.integer("block_count", most=MAX_LAYERS),
        hidden=hidden,
        heads=heads,
        kv_heads=_kv_heads(meta, "attention.head_count_kv", heads),
        head_dim=head_dim,
        ffn=meta.integer("feed_forward_length"),
        vocab=vocabulary(tensors, GGUF_NAMES, meta.source),
        context=meta.integer("context_length", most=1 << 40),
        eps=meta.number("attention.layer_norm_rms_epsilon", 0.0, 1.0),
        rope=rope_from_gguf(meta, head_dim, divisors),
        tied=tied,
        qk_norm=qk_norm,
        biases=biases_in(tensors, GGUF_NAMES),
        consumed=() if divisors is None else ("rope_freqs.weight",),
    )
    return replace(spec, uses=tensor_uses(spec, GGUF_NAMES, interleaved=interleaved))


def from_hf(
    config: Fields,
    tensors: Mapping[str, Any],
    *,
    qk_norm: bool = False,
    moe: Mixture | None = None,
    names: Mapping[str, str] = HF_NAMES,
    theta: float = 10000.0,
    hidden_act: str = "silu",
    skips: tuple[tuple[str, str], ...] = (),
    **fields: Any,
) -> ModelSpec:
    """Make the spec from a ``config.json``; further parameters as in `from_gguf`.

    Parameters
    ----------
    moe : Mixture, optional
        What the family read of its experts.
    names : Mapping
        Tensor names by role.
    theta : float
        Base of RoPE where the config has none.
    hidden_act : str
        What the config must call the activation.
    skips : tuple of (pattern, reason)
        Rules of the family's own.
    **fields
        Of the spec: what the family read beside its numbers.
    """
    hidden = config.integer("hidden_size")
    heads = config.integer("num_attention_heads")
    head_dim = _head_dim(config, "head_dim", hidden, heads)
    config.refuse("hidden_act", (hidden_act,), "another activation")
    config.refuse("mlp_bias", (False,), "a bias in the MLP")
    config.refuse("use_sliding_window", (False,), "sliding-window attention")
    tied = config.flag("tie_word_embeddings")
    inv_freq = re.escape(names["layers.{}.attn.q"].rpartition(".")[0]).replace(r"\{\}", r"\d+")
    skips += ((rf"{inv_freq}\.rotary_emb\.inv_freq", "computed from the config"),)
    if tied:
        head = re.escape(f"{names['head']}.weight")
        skips += ((head, f"tied to {names['embed']} (tie_word_embeddings)"),)
    spec = ModelSpec(
        family=config.text("model_type", "llama"),
        name=config.text("_name_or_path"),
        layers=config.integer("num_hidden_layers", most=MAX_LAYERS),
        hidden=hidden,
        heads=heads,
        kv_heads=_kv_heads(config, "num_key_value_heads", heads),
        head_dim=head_dim,
        ffn=config.integer("intermediate_size"),
        vocab=vocabulary(tensors, names, config.source),
        context=config.integer("max_position_embeddings", most=1 << 40),
        eps=config.number("rms_norm_eps", 0.0, 1.0),
        rope=rope_from_config(config, head_dim, theta),
        tied=tied,
        qk_norm=qk_norm,
        moe=moe,
        biases=frozenset(BIASED if config.flag("attention_bias") else ()),
        skips=skips,
        **fields,
    )
    return replace(spec, uses=tensor_uses(spec, names))


def mixture_sizes(config: Fields, experts: str, inner: str) -> tuple[int, int, int]:
    """Return experts, chosen experts and inner width; `experts` and `inner` are the family's keys.

    Raises
    ------
    CheckpointError
        Where a number is out of range: no experts, or more chosen than there are.
    """
    count = config.integer(experts, most=MAX_EXPERTS)
    top = config.integer("num_experts_per_tok", most=count)
    return count, top, config.integer(inner)


def _head_dim(fields: Fields, key: str, hidden: int, heads: int) -> int:
    given = fields.integer(key, default=None)
    if given is None and (hidden % heads or hidden // heads % 2):
        raise CheckpointError(
            f"{fields.source}: hidden width {hidden} over {heads} heads; "
            "legal: an even whole number of channels per head, or an explicit head width"
        )
    dim = hidden // heads if given is None else given
    if dim % 2 or heads * dim > MAX_WIDTH:
        legal = f"an even width, and at most {MAX_WIDTH} channels in {heads} heads"
        raise fields.bad(key, dim, legal)
    return dim


def _kv_heads(fields: Fields, key: str, heads: int) -> int:
    kv = fields.integer(key, most=heads, default=heads)
    if heads % kv:
        raise fields.bad(key, kv, f"a divisor of the {heads} query heads")
    return kv


def _rope_divisors(
    meta: Fields, tensors: Mapping[str, Any], head_dim: int
) -> npt.NDArray[np.float32] | None:
    stored = tensors.get("rope_freqs.weight")
    if stored is None:
        return None
    if stored.shape != (head_dim // 2,):
        shape = list(stored.shape)
        raise meta.bad("rope_freqs.weight", shape, f"a tensor of shape [{head_dim // 2}]")
    values = stored.dequantize()
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise meta.bad("rope_freqs.weight", values.tolist(), "finite divisors above 0")
    return values
