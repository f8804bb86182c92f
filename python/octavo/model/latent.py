"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434), in the absorbed form alone.

A layer keeps one latent vector and one rotated key per token, for all heads. With ``kv_b`` cut into
K_h and V_h, head h's query becomes ``K_h^T q`` and is compared with latents themselves; what it
gathers of them becomes its output by V_h. The plain form, which rebuilds every head's keys and
values, is the same function but not the same bits; one form for prefill and decode is what law one
asks for.
"""

from .spec import Cut, Latent, ModelSpec, Op, TensorUse

_HF = "model.layers.{}."
_ATTN = f"{_HF}self_attn."
HF_NAMES = {
    "layers.{}.attn.q_a": f"{_ATTN}q_a_proj",
    "layers.{}.attn.q_a_norm": f"{_ATTN}q_a_layernorm",
    "layers.{}.attn.q_b": f"{_ATTN}q_b_proj",
    "layers.{}.attn.kv_a": f"{_ATTN}kv_a_proj_with_mqa",
    "layers.{}.attn.kv_a_norm": f"{_ATTN}kv_a_layernorm",
    "layers.{}.attn.kv_b": f"{_ATTN}kv_b_proj",
}


def shapes(spec: ModelSpec, latent: Latent) -> dict[str, tuple[int, ...]]:
    """Return the shape of every attention tensor of a layer but ``kv_b``, by role."""
    q = spec.heads * (latent.nope + latent.rope)
    out: dict[str, tuple[int, ...]] = {"attn.norm": (spec.hidden,)}
    if latent.q_rank:
        out |= {
            "attn.q_a": (latent.q_rank, spec.hidden), "attn.q_a_norm": (latent.q_rank,),
            "attn.q_b": (q, latent.q_rank),
        }  # fmt: skip
    else:
        out["attn.q"] = (q, spec.hidden)
    return out | {
        "attn.kv_a": (latent.rank + latent.rope, spec.hidden), "attn.kv_a_norm": (latent.rank,),
        "attn.o": (spec.hidden, spec.heads * latent.v),
    }  # fmt: skip


def head_uses(spec: ModelSpec, latent: Latent, layer: int, tensor: str) -> list[TensorUse]:
    """List K_h^T and V_h of every head: pieces of ``kv_b``, rows [nope | v] of head after head."""
    each = latent.nope + latent.v
    stored = (spec.heads * each, latent.rank)
    uses = []
    for h in range(spec.heads):
        keys = Cut(stored, h * each, h * each + latent.nope, transposed=True)
        values = Cut(stored, h * each + latent.nope, (h + 1) * each)
        name = f"layers.{layer}.attn.kv_b.{h}"
        uses.append(TensorUse(f"{name}.k", tensor, (latent.rank, latent.nope), cut=keys))
        uses.append(TensorUse(f"{name}.v", tensor, (latent.v, latent.rank), cut=values))
    return uses


def buffers(spec: ModelSpec, latent: Latent) -> dict[str, int]:
    """Return the widths of attention's buffers.

    ``qa`` the query's own latent, ``q`` queries before RoPE, ``kv`` the latent before its norm and
    the rotated key before RoPE, ``ql`` absorbed queries, ``ol`` what the heads gather of latents,
    ``a`` their outputs.
    """
    heads = spec.heads
    return ({"qa": latent.q_rank} if latent.q_rank else {}) | {
        "q": heads * (latent.nope + latent.rope), "kv": latent.rank + latent.rope,
        "ql": heads * (latent.rank + latent.rope), "ol": heads * latent.rank,
        "a": heads * latent.v,
    }  # fmt: skip


def ops(spec: ModelSpec, latent: Latent, layer: int) -> list[tuple[Op, dict[str, str]]]:
    """Return the ops of a layer's attention, each with what can be seen after it: tap to buffer."""
    name = f"layers.{layer}.attn"
    norm = {"norm": f"{name}.norm", "eps": spec.eps}
    if latent.q_rank:
        first = [
            (Op("norm_linear", ("x",), ("qa", "kv"), (f"{name}.q_a", f"{name}.kv_a"), **norm),
             {"attn.latent": "kv"}),
            (Op("norm_linear", ("qa",), ("q",), (f"{name}.q_b",), norm=f"{name}.q_a_norm",
                eps=latent.eps), {"attn.q": "q"}),
        ]  # fmt: skip
    else:
        both = Op("norm_linear", ("x",), ("q", "kv"), (f"{name}.q", f"{name}.kv_a"), **norm)
        first = [(both, {"attn.q": "q", "attn.latent": "kv"})]
    keys, values = (tuple((f"{name}.kv_b.{h}.{p}",) for h in range(spec.heads)) for p in "kv")
    return [
        *first,
        (Op("head_linear", ("q",), ("ql",), matrices=keys, heads=spec.heads), {}),
        (Op("attend", ("ql", "kv"), ("ol",), layer=layer, heads=spec.heads, rope=0,
            scale=spec.softmax_scale, k_norm=f"{name}.kv_a_norm", eps=latent.eps), {}),
        (Op("head_linear", ("ol",), ("a",), matrices=values, heads=spec.heads),
         {"attn.out": "a"}),
        (Op("linear_add", ("a",), ("x",), (f"{name}.o",), bias=(None,)), {"mid": "x"}),
    ]  # fmt: skip
