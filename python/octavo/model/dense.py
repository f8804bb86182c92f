"""Decoders with grouped-query attention and gated SiLU MLPs: Llama, Qwen3, Mixtral and their kin.

Family files say what differs (norms of heads, order of rows, keys of the metadata); this module
lists the tensors by role and writes the program. Order of reading: `tensor_uses`, `program_of`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.errors import CheckpointError

from .spec import ModelSpec, Op, Program, TensorUse

# Role to tensor name; {} is the layer.
GGUF_NAMES = {
    "embed": "token_embd", "norm": "output_norm", "head": "output",
    "layers.{}.attn.norm": "blk.{}.attn_norm", "layers.{}.mlp.norm": "blk.{}.ffn_norm",
    "layers.{}.attn.q": "blk.{}.attn_q", "layers.{}.attn.k": "blk.{}.attn_k",
    "layers.{}.attn.v": "blk.{}.attn_v", "layers.{}.attn.o": "blk.{}.attn_output",
    "layers.{}.attn.q_norm": "blk.{}.attn_q_norm", "layers.{}.attn.k_norm": "blk.{}.attn_k_norm",
    "layers.{}.mlp.gate": "blk.{}.ffn_gate", "layers.{}.mlp.up": "blk.{}.ffn_up",
    "layers.{}.mlp.down": "blk.{}.ffn_down",
}  # fmt: skip
_HF = "model.layers.{}."
HF_NAMES = {
    "embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head",
    "layers.{}.attn.norm": f"{_HF}input_layernorm",
    "layers.{}.mlp.norm": f"{_HF}post_attention_layernorm",
    "layers.{}.attn.q": f"{_HF}self_attn.q_proj", "layers.{}.attn.k": f"{_HF}self_attn.k_proj",
    "layers.{}.attn.v": f"{_HF}self_attn.v_proj", "layers.{}.attn.o": f"{_HF}self_attn.o_proj",
    "layers.{}.attn.q_norm": f"{_HF}self_attn.q_norm",
    "layers.{}.attn.k_norm": f"{_HF}self_attn.k_norm",
    "layers.{}.mlp.gate": f"{_HF}mlp.gate_proj", "layers.{}.mlp.up": f"{_HF}mlp.up_proj",
    "layers.{}.mlp.down": f"{_HF}mlp.down_proj", "layers.{}.moe.router": f"{_HF}mlp.gate",
    "layers.{}.moe.{}.gate": f"{_HF}mlp.experts.{{}}.gate_proj",
    "layers.{}.moe.{}.up": f"{_HF}mlp.experts.{{}}.up_proj",
    "layers.{}.moe.{}.down": f"{_HF}mlp.experts.{{}}.down_proj",
}  # fmt: skip
EXPERT = ("gate", "up", "down")
BIASED = ("attn.q", "attn.k", "attn.v", "attn.o")


def unpermuted_rows(heads: int, head_dim: int) -> npt.NDArray[np.int32]:
    """Return the stored row of each half-split row, for files that hold rows interleaved.

    GGUF files of arch llama store the pair of channels ``(i, i + head_dim/2)`` as neighbours
    (formats.md C2).
    """
    rows = np.arange(heads * head_dim, dtype=np.int32).reshape(heads, head_dim // 2, 2)
    return np.ascontiguousarray(rows.swapaxes(1, 2).reshape(-1))


def biases_in(tensors: Mapping[str, Any], names: Mapping[str, str]) -> frozenset[str]:
    """Return which of the attention's linears have a bias in this file (layer 0 tells)."""
    return frozenset(r for r in BIASED if f"{names[f'layers.{{}}.{r}'].format(0)}.bias" in tensors)


def tensor_uses(
    spec: ModelSpec, names: Mapping[str, str], *, interleaved: bool = False
) -> tuple[TensorUse, ...]:
    """List every tensor that the model consumes, in the order of the program.

    Parameters
    ----------
    spec : ModelSpec
        Its numbers; `uses` is not looked at.
    names : Mapping
        `GGUF_NAMES` or `HF_NAMES`.
    interleaved : bool
        Rows of q and k (and their biases) are stored interleaved: map them back.
    """
    uses = [TensorUse("embed", f"{names['embed']}.weight", (spec.vocab, spec.hidden))]
    maps = {}
    if interleaved:
        maps["attn.q"] = unpermuted_rows(spec.heads, spec.head_dim)
        maps["attn.k"] = unpermuted_rows(spec.kv_heads, spec.head_dim)
    for layer in range(spec.layers):
        for part, shape in _layer_shapes(spec, layer).items():
            role, stem = f"layers.{layer}.{part}", names[f"layers.{{}}.{part}"].format(layer)
            uses.append(TensorUse(role, f"{stem}.weight", shape, maps.get(part)))
            if part in spec.biases:
                bias = TensorUse(f"{role}.bias", f"{stem}.bias", shape[:1], maps.get(part))
                uses.append(bias)
        uses += _expert_uses(spec, layer, names)
    uses.append(TensorUse("norm", f"{names['norm']}.weight", (spec.hidden,)))
    if not spec.tied:
        uses.append(TensorUse("head", f"{names['head']}.weight", (spec.vocab, spec.hidden)))
    return tuple(uses)


def _expert_uses(spec: ModelSpec, layer: int, names: Mapping[str, str]) -> list[TensorUse]:
    if spec.moe is None or not spec.is_moe(layer):
        return []
    inner, hidden = spec.moe.inner, spec.hidden
    shapes = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    return [
        TensorUse(f"layers.{layer}.moe.{e}.{part}",
                  f"{names[f'layers.{{}}.moe.{{}}.{part}'].format(layer, e)}.weight", shapes[part])
        for e in range(spec.moe.experts) for part in EXPERT
    ]  # fmt: skip


def _layer_shapes(spec: ModelSpec, layer: int) -> dict[str, tuple[int, ...]]:
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "attn.norm": (spec.hidden,),
        "attn.q": (q, spec.hidden), "attn.k": (kv, spec.hidden), "attn.v": (kv, spec.hidden),
        "attn.o": (spec.hidden, q),
    }  # fmt: skip
    if spec.qk_norm:
        shapes |= {"attn.q_norm": (spec.head_dim,), "attn.k_norm": (spec.head_dim,)}
    shapes["mlp.norm"] = (spec.hidden,)
    if spec.moe is not None and spec.is_moe(layer):
        return shapes | {"moe.router": (spec.moe.experts, spec.hidden)}
    return shapes | {
        "mlp.gate": (spec.ffn, spec.hidden), "mlp.up": (spec.ffn, spec.hidden),
        "mlp.down": (spec.hidden, spec.ffn),
    }  # fmt: skip


def vocabulary(tensors: Mapping[str, Any], names: Mapping[str, str], source: str) -> int:
    """Return the rows of the embedding: what token ids are checked against."""
    name = f"{names['embed']}.weight"
    embed = tensors.get(name)
    if embed is None or len(embed.shape) != 2:
        what = "missing" if embed is None else f"of shape {list(embed.shape)}"
        raise CheckpointError(f"{source}: tensor {name!r} is {what}; legal: [vocabulary, hidden]")
    return embed.shape[0]


def program_of(spec: ModelSpec) -> Program:
    """Write the program of a dense decoder.

    Buffers: ``x`` the residual stream, ``q k v`` projections (before RoPE), ``a`` the heads'
    output, ``n`` the final norm, ``router`` what a router decided (`Mixture.record`).
    """
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    buffers = {"x": spec.hidden, "q": q, "k": kv, "v": kv, "a": q, "n": spec.hidden}
    if spec.moe is not None:
        buffers["router"] = spec.moe.record
    ops = [Op("embed", out=("x",), w=("embed",))]
    taps: dict[str, tuple[int, str]] = {"embed": (0, "x")}
    for layer in range(spec.layers):
        at, part = len(ops), f"layers.{layer}"
        ops += _layer_ops(spec, layer)
        taps |= {f"{part}.attn.{name}": (at, name) for name in ("q", "k", "v")}
        taps |= {f"{part}.attn.out": (at + 1, "a"), f"{part}.mid": (at + 2, "x")}
        taps[f"{part}.out"] = (at + 3, "x")
        if spec.is_moe(layer):
            taps[f"{part}.router"] = (at + 3, "router")
    taps["norm"] = (len(ops), "n")
    ops.append(Op("norm", inputs=("x",), out=("n",), norm="norm", eps=spec.eps))
    ops.append(Op("head", inputs=("n",), w=("embed" if spec.tied else "head",)))
    return Program(buffers, tuple(ops), (spec.rope,), taps, spec.moe)


def _layer_ops(spec: ModelSpec, layer: int) -> list[Op]:
    name = f"layers.{layer}"

    def bias(part: str) -> str | None:
        return f"{name}.{part}.bias" if part in spec.biases else None

    qkv = tuple(f"attn.{p}" for p in "qkv")
    head_norms = (f"{name}.attn.q_norm", f"{name}.attn.k_norm") if spec.qk_norm else (None, None)
    return [
        Op("norm_linear", inputs=("x",), out=("q", "k", "v"), w=tuple(f"{name}.{p}" for p in qkv),
           bias=tuple(bias(p) for p in qkv), norm=f"{name}.attn.norm", eps=spec.eps),
        Op("attend", inputs=("q", "k", "v"), out=("a",), layer=layer, heads=spec.heads, rope=0,
           scale=spec.head_dim**-0.5, q_norm=head_norms[0], k_norm=head_norms[1], eps=spec.eps),
        Op("linear_add", inputs=("a",), out=("x",), w=(f"{name}.attn.o",), bias=(bias("attn.o"),)),
        _mlp_op(spec, layer),
    ]  # fmt: skip


def _mlp_op(spec: ModelSpec, layer: int) -> Op:
    name = f"layers.{layer}"
    if spec.moe is None or not spec.is_moe(layer):
        return Op("gated_mlp", inputs=("x",), out=("x",), norm=f"{name}.mlp.norm", eps=spec.eps,
                  w=tuple(f"{name}.mlp.{p}" for p in EXPERT))  # fmt: skip
    gate, up, down = ([f"{name}.moe.{e}.{p}" for e in range(spec.moe.experts)] for p in EXPERT)
    return Op("moe", inputs=("x",), out=("x", "router"), norm=f"{name}.mlp.norm", eps=spec.eps,
              w=(f"{name}.moe.router",), moe=spec.moe,
              experts=tuple(zip(gate, up, down, strict=True)))  # fmt: skip
