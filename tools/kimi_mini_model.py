"""The model of `kimi-mini` in JAX: Kimi K2.5's equations in their plain form, float32.

Multi-head latent attention with every key and value materialized, rotary embedding on interleaved
pairs with YaRN, and a sigmoid router whose bias selects only. Each expert computes only the rows
that chose it, whatever their number: rows are sorted by expert into blocks of one expert each, and
gathers carry their own gradients, because the scatters that JAX would derive are slow on a CPU.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from kimi_mini_files import GROUP, text_config

C = text_config()
HIDDEN, LAYERS, HEADS = C["hidden_size"], C["num_hidden_layers"], C["num_attention_heads"]
NOPE, ROPE, VALUE = C["qk_nope_head_dim"], C["qk_rope_head_dim"], C["v_head_dim"]
Q_RANK, LATENT = C["q_lora_rank"], C["kv_lora_rank"]
EXPERTS, TOP = C["n_routed_experts"], C["num_experts_per_tok"]
INNER, EXPERT_INNER = C["intermediate_size"], C["moe_intermediate_size"]
EPS, LATENT_EPS = C["rms_norm_eps"], 1e-6
QUERIES = 256  # query rows that share one stretch of keys

Params = dict[str, jax.Array]


def shapes() -> dict[str, tuple[int, ...]]:
    """Every parameter by the release's name; an expert's matrices are stacked under `experts`."""
    out = {
        "model.embed_tokens.weight": (C["vocab_size"], HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (C["vocab_size"], HIDDEN),
    }
    for i in range(LAYERS):
        at, attn = f"model.layers.{i}.", f"model.layers.{i}.self_attn."
        out[at + "input_layernorm.weight"] = (HIDDEN,)
        out[at + "post_attention_layernorm.weight"] = (HIDDEN,)
        out[attn + "q_a_proj.weight"] = (Q_RANK, HIDDEN)
        out[attn + "q_a_layernorm.weight"] = (Q_RANK,)
        out[attn + "q_b_proj.weight"] = (HEADS * (NOPE + ROPE), Q_RANK)
        out[attn + "kv_a_proj_with_mqa.weight"] = (LATENT + ROPE, HIDDEN)
        out[attn + "kv_a_layernorm.weight"] = (LATENT,)
        out[attn + "kv_b_proj.weight"] = (HEADS * (NOPE + VALUE), LATENT)
        out[attn + "o_proj.weight"] = (HIDDEN, HEADS * VALUE)
        if i < C["first_k_dense_replace"]:
            out |= _mlp(at + "mlp.", INNER)
            continue
        out[at + "mlp.gate.weight"] = (EXPERTS, HIDDEN)
        out[at + "mlp.gate.e_score_correction_bias"] = (EXPERTS,)
        out |= _mlp(at + "mlp.shared_experts.", EXPERT_INNER)
        experts = _mlp(at + "mlp.experts.", EXPERT_INNER)
        out |= {name: (EXPERTS, *shape) for name, shape in experts.items()}
    return out


def _mlp(at: str, inner: int) -> dict[str, tuple[int, ...]]:
    return {
        at + "gate_proj.weight": (inner, HIDDEN),
        at + "up_proj.weight": (inner, HIDDEN),
        at + "down_proj.weight": (HIDDEN, inner),
    }


def initial(seed: int) -> Params:
    """Random parameters: normal of variance 1 / k; what ends a sublayer is zero, norms are one.

    Embeddings share a part, from which two heads of the first layer start out looking back one and
    two tokens. Heads that recall compose with these, and would wait for them most of the time that
    two cores have; all of it is trained.
    """
    rng, out = np.random.default_rng(seed), {}
    for name, shape in shapes().items():
        if name.endswith("bias") or "o_proj" in name or "down_proj" in name:
            out[name] = np.zeros(shape, np.float32)
        elif len(shape) == 1:
            out[name] = np.ones(shape, np.float32)
        else:
            # A router starts small, or the part that all rows share sends them to the same experts.
            scale = 0.5 if "embed" in name else shape[-1] ** -0.5
            scale *= 0.1 if "mlp.gate.weight" in name else 1.0
            out[name] = (rng.standard_normal(shape) * scale).astype(np.float32)
    shared = (rng.standard_normal(HIDDEN) * 0.25).astype(np.float32)
    out["model.embed_tokens.weight"] += shared
    _look_back(out, "model.layers.0.self_attn.", shared)
    name = "model.layers.0.self_attn.o_proj.weight"
    out[name] = (rng.standard_normal(out[name].shape) * 0.1).astype(np.float32)
    return {name: jnp.asarray(w) for name, w in out.items()}


def _look_back(out: dict[str, np.ndarray], at: str, shared: np.ndarray) -> None:
    """Point heads 0 and 1 of a layer that reads embeddings 1 and 2 tokens back, by position alone.

    All rows have `shared` in common. It makes the first pairs of every rotary key (K, 0) and of a
    head's query Q (cos f d, -sin f d), so that their product is QK cos(f (distance - d)).
    """
    along = shared / np.linalg.norm(shared)
    pairs, (cos, sin) = np.arange(4), rope_table(3)
    out[at + "q_a_proj.weight"][0] = along
    out[at + "kv_a_proj_with_mqa.weight"][LATENT + 2 * pairs] = along
    out[at + "kv_a_proj_with_mqa.weight"][LATENT + 2 * pairs + 1] = 0
    for head in (0, 1):
        first = head * (NOPE + ROPE) + NOPE
        out[at + "q_b_proj.weight"][first : first + 2 * len(pairs)] = 0
        out[at + "q_b_proj.weight"][first + 2 * pairs, 0] = cos[head + 1, pairs]
        out[at + "q_b_proj.weight"][first + 2 * pairs + 1, 0] = -sin[head + 1, pairs]


def unstacked(params: Params) -> dict[str, np.ndarray]:
    """The parameters with one tensor for each expert's matrix."""
    out = {}
    for name, w in params.items():
        if ".mlp.experts." not in name:
            out[name] = np.asarray(w)
            continue
        before, after = name.split("experts.")
        out |= {f"{before}experts.{e}.{after}": np.asarray(w[e]) for e in range(EXPERTS)}
    return out


def stacked(weights: dict[str, np.ndarray]) -> Params:
    """The inverse of `unstacked`."""
    out = {}
    for name, shape in shapes().items():
        if ".mlp.experts." in name:
            before, after = name.split("experts.")
            w = np.stack([weights[f"{before}experts.{e}.{after}"] for e in range(EXPERTS)])
        else:
            w = weights[name]
        if w.shape != shape:
            raise ValueError(f"stacked: {name} has shape {w.shape}, expected {shape}")
        out[name] = jnp.asarray(w)
    return out


def fake_quantized(w: jax.Array) -> jax.Array:
    """The values that int4 storage gives, with the gradient of the identity."""
    groups = w.reshape(*w.shape[:-1], -1, GROUP)
    scale = jnp.abs(groups).max(-1, keepdims=True) / 7
    scale = scale.astype(jnp.bfloat16).astype(jnp.float32)
    codes = jnp.clip(jnp.round(groups / jnp.where(scale == 0, 1, scale)), -7, 7)
    return w + jax.lax.stop_gradient((codes * scale).reshape(w.shape) - w)


def with_fake_quantized_experts(params: Params) -> Params:
    """The parameters with the routed experts as int4 storage gives them."""
    return {n: fake_quantized(w) if ".mlp.experts." in n else w for n, w in params.items()}


def _mscale(factor: float, m: float) -> float:
    return 0.1 * m * math.log(factor) + 1 if factor > 1 else 1.0


def softmax_scale() -> float:
    """Of the scores, at every length."""
    s = C["rope_scaling"]
    return (NOPE + ROPE) ** -0.5 * _mscale(s["factor"], s["mscale_all_dim"]) ** 2


def rope_table(length: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin, float32 [length, ROPE / 2], of YaRN's frequencies."""
    s, base = C["rope_scaling"], C["rope_theta"]
    half = np.arange(ROPE // 2)
    freq = base ** (-2.0 * half / ROPE)

    def corr(turns: float) -> float:
        length = s["original_max_position_embeddings"]
        return ROPE * math.log(length / (2 * math.pi * turns)) / (2 * math.log(base))

    low = max(math.floor(corr(s["beta_fast"])), 0)
    high = min(math.ceil(corr(s["beta_slow"])), ROPE - 1)
    ramp = np.clip((half - low) / (high - low), 0, 1)
    freq = ramp * freq / s["factor"] + (1 - ramp) * freq
    angle = np.arange(length)[:, None] * freq.astype(np.float32).astype(np.float64)
    ratio = _mscale(s["factor"], s["mscale"]) / _mscale(s["factor"], s["mscale_all_dim"])
    return (np.cos(angle) * ratio).astype(np.float32), (np.sin(angle) * ratio).astype(np.float32)


def rms_norm(x: jax.Array, w: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) * w over the last axis."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps) * w


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """x [..., t, ROPE] turned in its pairs (2i, 2i + 1)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)


def attention(p: Params, at: str, x: jax.Array) -> jax.Array:
    """Plain latent attention of x [b, t, HIDDEN], normed, to the same shape."""
    b, t, _ = x.shape
    cos, sin = rope_table(t)
    q = rms_norm(x @ p[at + "q_a_proj.weight"].T, p[at + "q_a_layernorm.weight"], LATENT_EPS)
    q = (q @ p[at + "q_b_proj.weight"].T).reshape(b, t, HEADS, NOPE + ROPE).transpose(0, 2, 1, 3)
    q = jnp.concatenate([q[..., :NOPE], rotate(q[..., NOPE:], cos, sin)], -1) * softmax_scale()
    kv_a = x @ p[at + "kv_a_proj_with_mqa.weight"].T
    latent = rms_norm(kv_a[..., :LATENT], p[at + "kv_a_layernorm.weight"], LATENT_EPS)
    rope = rotate(kv_a[..., LATENT:], cos, sin)[:, None]
    kv = (latent @ p[at + "kv_b_proj.weight"].T).reshape(b, t, HEADS, NOPE + VALUE)
    kv = kv.transpose(0, 2, 1, 3)
    k = jnp.concatenate([kv[..., :NOPE], jnp.broadcast_to(rope, (b, HEADS, t, ROPE))], -1)
    v, out = kv[..., NOPE:], []
    for first in range(0, t, QUERIES):
        last = min(first + QUERIES, t)
        scores = jnp.einsum("bhid,bhjd->bhij", q[:, :, first:last], k[:, :, :last])
        seen = np.arange(last) <= np.arange(first, last)[:, None]
        probs = jax.nn.softmax(jnp.where(seen, scores, -1e30), -1)
        out.append(jnp.einsum("bhij,bhjd->bhid", probs, v[:, :, :last]))
    o = jnp.concatenate(out, 2).transpose(0, 2, 1, 3).reshape(b, t, HEADS * VALUE)
    return o @ p[at + "o_proj.weight"].T


def mlp(p: Params, at: str, x: jax.Array) -> jax.Array:
    """down(silu(gate x) * up x)."""
    gate, up = x @ p[at + "gate_proj.weight"].T, x @ p[at + "up_proj.weight"].T
    return (jax.nn.silu(gate) * up) @ p[at + "down_proj.weight"].T


def route(p: Params, at: str, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For x [n, HIDDEN], each [n, TOP]: chosen experts, their weights, and the largest scores'."""
    scores = jax.nn.sigmoid(x @ p[at + "gate.weight"].T)
    bias = jax.lax.stop_gradient(p[at + "gate.e_score_correction_bias"])
    _, by_score = jax.lax.top_k(jax.lax.stop_gradient(scores), TOP)
    _, chosen = jax.lax.top_k(jax.lax.stop_gradient(scores) + bias, TOP)
    hot = (chosen[..., None] == jnp.arange(EXPERTS)).astype(x.dtype)
    weights = jnp.einsum("nje,ne->nj", hot, scores)
    weights = weights / (weights.sum(-1, keepdims=True) + 1e-20) * C["routed_scaling_factor"]
    return chosen, weights, by_score


def block_rows(n: int) -> int:
    """How many rows of one expert are computed together, when there are n rows."""
    return max(16, 1 << (n * TOP // EXPERTS // 8).bit_length() - 1)


def places(chosen: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where each (row, slot) goes when rows are grouped by expert into whole blocks.

    Returns the place of each slot [n, TOP], the slot (n * TOP if none) of each place [m], and the
    expert of each block [m / block].
    """
    flat, block = chosen.reshape(-1), block_rows(chosen.shape[0])
    n, m = flat.size, -(-flat.size // block) * block + EXPERTS * block
    counts = (flat[:, None] == jnp.arange(EXPERTS)).sum(0)
    padded = -(-counts // block) * block
    starts = jnp.cumsum(padded) - padded
    order = jnp.argsort(flat)
    within = jnp.arange(n) - (jnp.cumsum(counts) - counts)[flat[order]]
    place_in_order = starts[flat[order]] + within
    place = jnp.zeros(n, jnp.int32).at[order].set(place_in_order, unique_indices=True)
    slot = jnp.full(m, n, jnp.int32).at[place_in_order].set(order, unique_indices=True)
    first_rows = jnp.arange(m // block)[:, None] * block
    block_expert = jnp.minimum((first_rows >= starts + padded).sum(-1), EXPERTS - 1)
    return place.reshape(chosen.shape), slot, block_expert


@jax.custom_vjp
def spread(x: jax.Array, place: jax.Array, slot: jax.Array) -> jax.Array:
    """Rows [m, d] of x [n, d] at their places; places of no slot are zero."""
    return jnp.concatenate([x, jnp.zeros_like(x[:1])])[slot // TOP]


def _spread_back(place, g):
    return sum(g[place[:, j]] for j in range(TOP)), None, None


spread.defvjp(lambda x, place, slot: (spread(x, place, slot), place), _spread_back)


@jax.custom_vjp
def gather(y: jax.Array, weights: jax.Array, place: jax.Array, slot: jax.Array) -> jax.Array:
    """Rows [n, d]: the weighted sum of each row's places in y [m, d]."""
    return sum(weights[:, j, None] * y[place[:, j]] for j in range(TOP))


def _gather_forth(y, weights, place, slot):
    return gather(y, weights, place, slot), (y, weights, place, slot)


def _gather_back(saved, g):
    y, weights, place, slot = saved
    of_place = jnp.append(weights.reshape(-1), 0.0)[slot]
    dy = jnp.concatenate([g, jnp.zeros_like(g[:1])])[slot // TOP] * of_place[:, None]
    dw = jnp.stack([(g * y[place[:, j]]).sum(-1) for j in range(TOP)], -1)
    return dy, dw, None, None


gather.defvjp(_gather_forth, _gather_back)


@jax.custom_vjp
def of_blocks(w: jax.Array, block_expert: jax.Array) -> jax.Array:
    """The matrix of each block's expert."""
    return w[block_expert]


def _of_blocks_back(block_expert, g):
    hot = (jnp.arange(EXPERTS)[:, None] == block_expert).astype(g.dtype)
    return (hot @ g.reshape(g.shape[0], -1)).reshape(EXPERTS, *g.shape[1:]), None


of_blocks.defvjp(lambda w, e: (of_blocks(w, e), e), _of_blocks_back)


class Routing(NamedTuple):
    """What the router of a mixture did with n rows."""

    load: jax.Array  # [EXPERTS]: how many rows chose each expert
    moved: jax.Array  # []: how many rows chose other experts than their largest scores


def experts(p: Params, at: str, x: jax.Array) -> tuple[jax.Array, Routing]:
    """The mixture for x [n, HIDDEN], and what its router did."""
    chosen, weights, by_score = route(p, at, x)
    place, slot, block_expert = places(chosen)
    rows = spread(x, place, slot).reshape(-1, block_rows(x.shape[0]), HIDDEN)
    times = partial(jnp.einsum, "bij,bkj->bik")
    gate, up, down = (
        of_blocks(p[f"{at}experts.{kind}_proj.weight"], block_expert)
        for kind in ("gate", "up", "down")
    )
    y = times(jax.nn.silu(times(rows, gate)) * times(rows, up), down).reshape(-1, HIDDEN)
    load = (chosen.reshape(-1, 1) == jnp.arange(EXPERTS)).sum(0)
    moved = (jnp.sort(chosen, -1) != jnp.sort(by_score, -1)).any(-1).sum()
    y = gather(y, weights, place, slot) + mlp(p, at + "shared_experts.", x)
    return y, Routing(load, moved)


def forward(p: Params, ids: jax.Array) -> tuple[jax.Array, Routing]:
    """Logits [b, t, vocab] of ids [b, t], and the routing, stacked over the mixtures."""
    b, t = ids.shape
    x, routings = p["model.embed_tokens.weight"][ids], []
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        normed = rms_norm(x, p[at + "input_layernorm.weight"], EPS)
        x = x + attention(p, at + "self_attn.", normed)
        normed = rms_norm(x, p[at + "post_attention_layernorm.weight"], EPS)
        if i < C["first_k_dense_replace"]:
            x = x + mlp(p, at + "mlp.", normed)
        else:
            y, routing = experts(p, at + "mlp.", normed.reshape(b * t, HIDDEN))
            x, routings = x + y.reshape(x.shape), [*routings, routing]
    x = rms_norm(x, p["model.norm.weight"], EPS)
    stacked_routing = jax.tree.map(lambda *r: jnp.stack(r), *routings)
    return x @ p["lm_head.weight"].T, stacked_routing
