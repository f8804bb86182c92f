"""Decoders with grouped-query attention and gated MLPs: Llama, Qwen3, Gemma3, gpt-oss, their kin.

Family files say what differs (norms of heads, order of rows, keys of the metadata); this module
lists the tensors by role and writes the program. Order of reading: `tensor_uses`, `program_of`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.errors import CheckpointError
from octavo.module_patterns import TEXT_PREFIX

from . import latent
from .spec import Mixture, ModelSpec, Op, Program, TensorUse

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
    "layers.{}.moe.router.bias": f"{_HF}mlp.gate.e_score_correction_bias",
    "layers.{}.moe.{}.gate": f"{_HF}mlp.experts.{{}}.gate_proj",
    "layers.{}.moe.{}.up": f"{_HF}mlp.experts.{{}}.up_proj",
    "layers.{}.moe.{}.down": f"{_HF}mlp.experts.{{}}.down_proj",
}  # fmt: skip
_MOST_USES = 1 << 18
EXPERT = ("gate", "up", "down")
BIASED = ("attn.q", "attn.k", "attn.v", "attn.o")


def unpermuted_rows(heads: int, head_dim: int) -> npt.NDArray[np.int32]:
    """Return the stored row of each half-split row, for files that hold rows interleaved.

    GGUF files of arch llama store the pair of channels ``(i, i + head_dim/2)`` as neighbours
    (formats.md C2).
    """
    rows = np.arange(heads * head_dim, dtype=np.int32).reshape(heads, head_dim // 2, 2)
    return np.ascontiguousarray(rows.swapaxes(1, 2).reshape(-1))


def names_in(tensors: Mapping[str, Any], names: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Return what stands before a text model's names in this file, and the names with it."""
    prefix = TEXT_PREFIX if f"{TEXT_PREFIX}{names['embed']}.weight" in tensors else ""
    return prefix, {role: prefix + name for role, name in names.items()}


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
    _check_count(spec)
    uses = [TensorUse("embed", f"{names['embed']}.weight", (spec.vocab, spec.hidden))]
    maps = {}
    if interleaved:
        maps["attn.q"] = unpermuted_rows(spec.heads, spec.head_dim)
        maps["attn.k"] = unpermuted_rows(spec.kv_heads, spec.head_dim)
    for layer in range(spec.layers):
        for part, shape in _layer_shapes(spec, layer).items():
            role, stem = f"layers.{layer}.{part}", names[f"layers.{{}}.{part}"].format(layer)
            tensor = stem if part == "attn.sinks" else f"{stem}.weight"
            offset = spec.norm_offset if part.endswith("norm") else 0.0
            uses.append(TensorUse(role, tensor, shape, maps.get(part), offset=offset))
            if part in spec.biases:
                bias = TensorUse(f"{role}.bias", f"{stem}.bias", shape[:1], maps.get(part))
                uses.append(bias)
        if spec.latent is not None:
            kv_b = f"{names['layers.{}.attn.kv_b'].format(layer)}.weight"
            uses += latent.head_uses(spec, spec.latent, layer, kv_b)
        uses += _expert_uses(spec, layer, names)
    norm = f"{names['norm']}.weight"
    uses.append(TensorUse("norm", norm, (spec.hidden,), offset=spec.norm_offset))
    if not spec.tied:
        uses.append(TensorUse("head", f"{names['head']}.weight", (spec.vocab, spec.hidden)))
    return tuple(uses)


def _check_count(spec: ModelSpec) -> None:
    """Refuse numbers, each of them legal, that list more matrices than any index of a file may."""
    experts = len(EXPERT) * spec.moe.experts if spec.moe else 0
    heads = 2 * spec.heads if spec.latent else 0
    if spec.layers * (experts + heads) > _MOST_USES:
        raise CheckpointError(
            f"model {spec.name!r:.60}: {spec.layers} layers of {experts} matrices of experts and "
            f"{heads} of latent heads; legal: at most {_MOST_USES} in all"
        )


def _expert_uses(spec: ModelSpec, layer: int, names: Mapping[str, str]) -> list[TensorUse]:
    moe = spec.mixture(layer)
    if moe is None:
        return []
    shapes, out = _mlp_shapes(spec, moe.inner), []
    for e in range(moe.experts):
        for part, shape in shapes.items():
            role = f"layers.{layer}.moe.{e}.{part}"
            stem = names[f"layers.{{}}.moe.{{}}.{part}"].format(layer, e)
            out.append(TensorUse(role, f"{stem}.weight", shape))
            if moe.expert_bias:
                out.append(TensorUse(f"{role}.bias", f"{stem}.bias", shape[:1]))
    biases = {"bias": moe.bias, "logit_bias": moe.logit_bias}
    for role in (f"layers.{{}}.moe.router.{name}" for name, there in biases.items() if there):
        out.append(TensorUse(role.format(layer), names[role].format(layer), (moe.experts,)))
    return out


def _mlp_shapes(spec: ModelSpec, inner: int) -> dict[str, tuple[int, ...]]:
    return {"gate": (inner, spec.hidden), "up": (inner, spec.hidden), "down": (spec.hidden, inner)}


def _layer_shapes(spec: ModelSpec, layer: int) -> dict[str, tuple[int, ...]]:
    shapes = _attention_shapes(spec) if spec.latent is None else latent.shapes(spec, spec.latent)
    shapes["mlp.norm"] = (spec.hidden,)
    if spec.out_norms:
        shapes |= {"attn.out_norm": (spec.hidden,), "mlp.out_norm": (spec.hidden,)}
    moe = spec.mixture(layer)
    if moe is None:
        return shapes | {f"mlp.{p}": n for p, n in _mlp_shapes(spec, spec.ffn).items()}
    shapes["moe.router"] = (moe.experts, spec.hidden)
    if moe.shared:
        shapes |= {f"shared.{p}": n for p, n in _mlp_shapes(spec, moe.shared).items()}
    return shapes


def _attention_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "attn.norm": (spec.hidden,),
        "attn.q": (q, spec.hidden), "attn.k": (kv, spec.hidden), "attn.v": (kv, spec.hidden),
        "attn.o": (spec.hidden, q),
    }  # fmt: skip
    if spec.qk_norm:
        shapes |= {"attn.q_norm": (spec.head_dim,), "attn.k_norm": (spec.head_dim,)}
    if spec.sinks:
        shapes["attn.sinks"] = (spec.heads,)
    return shapes


def vocabulary(tensors: Mapping[str, Any], names: Mapping[str, str], source: str) -> int:
    """Return the rows of the embedding: what token ids are checked against."""
    name = f"{names['embed']}.weight"
    embed = tensors.get(name)
    if embed is None or len(embed.shape) != 2:
        what = "missing" if embed is None else f"of shape {list(embed.shape)}"
        raise CheckpointError(f"{source}: tensor {name!r} is {what}; legal: [vocabulary, hidden]")
    return embed.shape[0]


def program_of(spec: ModelSpec) -> Program:
    """Write the program of a decoder.

    Buffers: ``x`` the residual stream, ``q k v`` projections (before RoPE), ``a`` the heads'
    output (`latent.buffers` where attention is that), ``n`` a norm's rows, ``router`` what a router
    decided (`Mixture.record`).
    """
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    buffers = {"x": spec.hidden}
    buffers |= (
        {"q": q, "k": kv, "v": kv, "a": q}
        if spec.latent is None else latent.buffers(spec, spec.latent)
    )  # fmt: skip
    buffers["n"] = spec.hidden
    if spec.moe is not None:
        buffers["router"] = spec.moe.record
    ops = [Op("embed", out=("x",), w=("embed",), scale=spec.embed_scale)]
    taps: dict[str, tuple[int, str]] = {"embed": (0, "x")}
    for layer in range(spec.layers):
        for op, seen in _layer_ops(spec, layer):
            taps |= {f"layers.{layer}.{name}": (len(ops), buffer) for name, buffer in seen.items()}
            ops.append(op)
    taps["norm"] = (len(ops), "n")
    ops.append(Op("norm", inputs=("x",), out=("n",), norm="norm", eps=spec.eps))
    ops.append(Op("head", inputs=("n",), w=("embed" if spec.tied else "head",)))
    ropes = (spec.rope,) if spec.local_rope is None else (spec.rope, spec.local_rope)
    return Program(buffers, tuple(ops), ropes, taps, spec.moe)


def _layer_ops(spec: ModelSpec, layer: int) -> list[tuple[Op, dict[str, str]]]:
    """Return a layer's ops, each with what can be seen after it: tap to buffer."""
    if spec.latent is None:
        return _attention_ops(spec, layer) + _mlp_ops(spec, layer)
    return latent.ops(spec, spec.latent, layer) + _mlp_ops(spec, layer)


def _attention_ops(spec: ModelSpec, layer: int) -> list[tuple[Op, dict[str, str]]]:
    name = f"layers.{layer}"

    def bias(part: str) -> str | None:
        return f"{name}.{part}.bias" if part in spec.biases else None

    qkv = tuple(f"attn.{p}" for p in "qkv")
    head_norms = (f"{name}.attn.q_norm", f"{name}.attn.k_norm") if spec.qk_norm else (None, None)
    window = spec.window_of(layer)
    return [
        (Op("norm_linear", inputs=("x",), out=("q", "k", "v"), w=tuple(f"{name}.{p}" for p in qkv),
            bias=tuple(bias(p) for p in qkv), norm=f"{name}.attn.norm", eps=spec.eps),
         {f"attn.{p}": p for p in "qkv"}),
        (Op("attend", inputs=("q", "k", "v"), out=("a",), layer=layer, heads=spec.heads,
            rope=int(window > 0 and spec.local_rope is not None), window=window,
            sinks=f"{name}.attn.sinks" if spec.sinks else None,
            scale=spec.softmax_scale, q_norm=head_norms[0], k_norm=head_norms[1], eps=spec.eps),
         {"attn.out": "a"}),
        (Op("linear_add", inputs=("a",), out=("x",), w=(f"{name}.attn.o",),
            bias=(bias("attn.o"),), out_norm=_out_norm(spec, f"{name}.attn"), eps=spec.eps),
         {"mid": "x"}),
    ]  # fmt: skip


def _out_norm(spec: ModelSpec, branch: str) -> str | None:
    return f"{branch}.out_norm" if spec.out_norms else None


def _mlp_ops(spec: ModelSpec, layer: int) -> list[tuple[Op, dict[str, str]]]:
    name, norm = f"layers.{layer}", {"norm": f"layers.{layer}.mlp.norm", "eps": spec.eps}
    act = {"activation": spec.activation}
    moe = spec.mixture(layer)
    if moe is None:
        out_norm = _out_norm(spec, f"{name}.mlp")
        return [(_gated(f"{name}.mlp", "x", out_norm=out_norm, **norm, **act), {"out": "x"})]
    if not moe.shared:
        return [(_mixture(moe, name, "x", **norm, **act), {"router": "router", "out": "x"})]
    # Both read the same normed rows: x changes between them.
    return [
        (Op("norm", inputs=("x",), out=("n",), **norm), {}),
        (_mixture(moe, name, "n", **act), {"router": "router"}),
        (_gated(f"{name}.shared", "n", **act), {"out": "x"}),
    ]  # fmt: skip


def _gated(name: str, rows: str, **fields: Any) -> Op:
    w = tuple(f"{name}.{p}" for p in EXPERT)
    return Op("gated_mlp", inputs=(rows,), out=("x",), w=w, **fields)


def _mixture(moe: Mixture, name: str, rows: str, **fields: Any) -> Op:
    experts = tuple(tuple(f"{name}.moe.{e}.{p}" for p in EXPERT) for e in range(moe.experts))
    biases = tuple(tuple(f"{w}.bias" for w in row) for row in experts) if moe.expert_bias else ()
    router = f"{name}.moe.router"
    bias = (f"{router}.logit_bias" if moe.logit_bias else None,
            f"{router}.bias" if moe.bias else None)  # fmt: skip
    return Op("moe", inputs=(rows,), out=("x", "router"), w=(router,), bias=bias, moe=moe,
              matrices=experts, biases=biases, **fields)  # fmt: skip
