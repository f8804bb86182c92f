"""A float64 forward pass of Llama, Qwen3 (dense and MoE) and Mixtral in plain NumPy: what the
engine is measured against.

Written from the model's equations, one line each, and sharing no code with `octavo`: GGUF files
are opened and decoded by the `gguf` package, safetensors by the `safetensors` package. One layer's
weights are alive at a time and the head is applied in slices, so 640 tokens of a model with 49,152
ids need about half a gigabyte. It knows nothing of pages or caches: attention is over all rows.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

# Called as hook(name, array); a returned array takes the place of what it was shown.
Hook = Callable[[str, F64], "F64 | None"]


@dataclass(frozen=True)
class Config:
    """The numbers of one decoder-only model; `divisors` divide the RoPE frequencies (llama3)."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    theta: float
    divisors: F64 | None = None
    top: int = 0
    renorm: bool = True


# Router, and gate, up and down of expert {}: Qwen3-MoE's names, then Mixtral's.
MOE_NAMES = (
    ("mlp.gate", "mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj", "mlp.experts.{}.down_proj"),
    ("block_sparse_moe.gate", "block_sparse_moe.experts.{}.w1", "block_sparse_moe.experts.{}.w3",
     "block_sparse_moe.experts.{}.w2"),
)  # fmt: skip


def llama3_divisors(head_dim: int, theta: float, scaling: Mapping[str, Any]) -> F64:
    """Return what the frequencies are divided by under Llama 3.1's `rope_scaling`."""
    freq = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    factor, old = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns = old * freq / (2 * np.pi)  # how often the angle wraps within the old context
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - keep) / factor + keep)


class Forward:
    """One model, ready to be run.

    Parameters
    ----------
    config : Config
    weights : mapping of str to array
        By the names of Hugging Face checkpoints (``model.layers.0.self_attn.q_proj.weight``, ...),
        each ``[out, in]``, any float dtype. Without ``lm_head.weight`` the head is tied. With
        ``self_attn.q_norm.weight`` heads are normalized before RoPE (Qwen3).
    """

    def __init__(self, config: Config, weights: Mapping[str, npt.NDArray[Any]]) -> None:
        self.config = config
        self.weights = weights
        half = np.arange(0, config.head_dim, 2, dtype=np.float64)
        self.freq = np.float64(config.theta) ** (-half / config.head_dim)
        if config.divisors is not None:
            self.freq = self.freq / config.divisors

    def weight(self, name: str) -> F64:
        return np.asarray(self.weights[name], dtype=np.float64)

    def rms(self, x: F64, name: str) -> F64:
        mean = np.mean(x * x, axis=-1, keepdims=True)
        return x / np.sqrt(mean + self.config.eps) * self.weight(name)

    def rope(self, x: F64) -> F64:
        """Rotate [n, heads, head_dim] at positions 0..n-1; channel j pairs with j + head_dim/2."""
        angle = np.arange(len(x), dtype=np.float64)[:, None, None] * self.freq
        a, b = np.split(x, 2, axis=-1)
        cos, sin = np.cos(angle), np.sin(angle)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def attention(self, x: F64, layer: int, hook: Hook) -> F64:
        c, prefix = self.config, f"model.layers.{layer}.self_attn"
        q, k, v = (
            (x @ self.weight(f"{prefix}.{p}_proj.weight").T).reshape(len(x), -1, c.head_dim)
            for p in "qkv"
        )
        if f"{prefix}.q_norm.weight" in self.weights:
            q = self.rms(q, f"{prefix}.q_norm.weight")
            k = self.rms(k, f"{prefix}.k_norm.weight")
        q = _show(hook, f"layers.{layer}.q", self.rope(q))
        k = _show(hook, f"layers.{layer}.k", self.rope(k))
        v = _show(hook, f"layers.{layer}.v", v)
        out = causal_attention(q, k, v)
        out = _show(hook, f"layers.{layer}.attn.out", out.reshape(len(x), -1))
        return out @ self.weight(f"{prefix}.o_proj.weight").T

    def gated(self, x: F64, *names: str) -> F64:
        """down(silu(gate x) * up x) of three matrices."""
        gate, up, down = (self.weight(f"{name}.weight") for name in names)
        g = x @ gate.T
        return (g / (1.0 + np.exp(-g)) * (x @ up.T)) @ down.T

    def mlp(self, x: F64, layer: int, hook: Hook) -> F64:
        prefix = f"model.layers.{layer}"
        for router, *expert in MOE_NAMES:
            if f"{prefix}.{router}.weight" in self.weights:
                names = [f"{prefix}.{part}" for part in expert]
                return self.mixture(x, f"{prefix}.{router}.weight", names, layer, hook)
        return self.gated(x, *(f"{prefix}.mlp.{part}_proj" for part in ("gate", "up", "down")))

    def mixture(self, x: F64, router: str, names: list[str], layer: int, hook: Hook) -> F64:
        """Softmax over all experts; the `top` largest, renormalized if the model says so."""
        logits = x @ self.weight(router).T
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        chosen = np.argsort(-p, axis=1, kind="stable")[:, : self.config.top]
        gates = np.take_along_axis(p, chosen, axis=1)
        if self.config.renorm:
            gates = gates / gates.sum(axis=1, keepdims=True)
        _show(hook, f"layers.{layer}.router", np.concatenate([p, chosen, gates], axis=1))
        y = np.zeros_like(x)
        for e in np.unique(chosen):
            rows, slot = np.nonzero(chosen == e)
            part = self.gated(x[rows], *(name.format(e) for name in names))
            y[rows] += gates[rows, slot][:, None] * part
        return y

    def hidden(self, ids: npt.ArrayLike, hook: Hook | None = None) -> F64:
        """Return the normalized last hidden states, float64 [n, hidden]."""
        show = hook or (lambda name, array: None)
        ids = np.asarray(ids, dtype=np.int64)
        x = np.asarray(self.weights["model.embed_tokens.weight"][ids], dtype=np.float64)
        for layer in range(self.config.layers):
            prefix = f"model.layers.{layer}"
            x = x + self.attention(self.rms(x, f"{prefix}.input_layernorm.weight"), layer, show)
            x = x + self.mlp(self.rms(x, f"{prefix}.post_attention_layernorm.weight"), layer, show)
            x = _show(show, f"layers.{layer}.out", x)
        return self.rms(x, "model.norm.weight")

    def logits(self, ids: npt.ArrayLike, hook: Hook | None = None, block: int = 8192) -> F64:
        """Return logits, float64 [n, vocab]; the head is applied `block` ids at a time."""
        x = self.hidden(ids, hook)
        tied = "lm_head.weight" not in self.weights
        head = self.weights["model.embed_tokens.weight" if tied else "lm_head.weight"]
        out = np.empty((len(x), len(head)))
        for lo in range(0, len(head), block):
            out[:, lo : lo + block] = x @ np.asarray(head[lo : lo + block], dtype=np.float64).T
        return out

    def logprobs(self, ids: npt.ArrayLike, hook: Hook | None = None) -> F64:
        """Return log-probabilities of every id after every token, float64 [n, vocab]."""
        out = self.logits(ids, hook)
        for row in out:
            top = row.max()
            row -= top + np.log(np.sum(np.exp(row - top)))
        return out


def causal_attention(
    q: F64, k: F64, v: F64, scale: float | None = None, window: int = 0, sinks: F64 | None = None
) -> F64:
    """Return softmax(q kT scale) v, float64 [m, heads, d_v]; the last query sees every key.

    `q` is [m, heads, d], `k` and `v` [n, kv_heads, ...], n >= m: query i stands at n - m + i. With
    a window the query at t sees t - window < s <= t; `sinks` [heads] are logits without a value.
    """
    m, heads, width = q.shape
    n, kv_heads, _ = k.shape
    at, t = np.arange(n)[None, :], np.arange(n - m, n)[:, None]
    seen = (at <= t) & (at > t - (window or n))
    out = np.empty((m, heads, v.shape[2]))
    for h in range(heads):
        g = h // (heads // kv_heads)
        s = q[:, h] @ k[:, g].T * (width**-0.5 if scale is None else scale)
        s = np.where(seen, s, -np.inf)
        top = s.max(axis=1, keepdims=True)
        p = np.exp(s - top)
        total = p.sum(axis=1, keepdims=True)
        if sinks is not None:
            total = total + np.exp(sinks[h] - top)
        out[:, h] = p @ v[:, g] / total
    return out


def _show(hook: Hook, name: str, array: F64) -> F64:
    shown = hook(name, array)
    return array if shown is None else np.asarray(shown, dtype=np.float64)


GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GGUF_TOP_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


class _GGUFWeights(Mapping[str, npt.NDArray[Any]]):
    """The tensors of a GGUF file under Hugging Face's names, decoded at each access."""

    def __init__(self, tensors: Mapping[str, Any], config: Config, permuted: bool) -> None:
        top = dict(GGUF_TOP_NAMES)
        for layer in range(config.layers):
            for ours, theirs in GGUF_NAMES.items():
                top[f"model.layers.{layer}.{ours}"] = f"blk.{layer}.{theirs}"
        self.tensors = {
            f"{k}.weight": tensors[f"{v}.weight"]
            for k, v in top.items()
            if f"{v}.weight" in tensors
        }
        self.config = config
        self.permuted = permuted
        self._kept: dict[str, npt.NDArray[np.float32]] = {}

    def __getitem__(self, name: str) -> npt.NDArray[np.float32]:
        from gguf.quants import dequantize

        if name in self._kept:
            return self._kept[name]
        tensor = self.tensors[name]
        w = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        w = w.reshape([int(n) for n in reversed(tensor.shape)])
        for part, heads in (("q_proj", self.config.heads), ("k_proj", self.config.kv_heads)):
            if self.permuted and part in name:
                w = unpermute(w, heads)
        if "embed" in name or "lm_head" in name:
            self._kept[name] = w
        return w

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def unpermute(w: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Undo the row order of llama GGUF files: pairs (2j, 2j+1) become (j, j + head_dim/2)."""
    return w.reshape(heads, -1, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def permute(w: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """The row order of llama GGUF files: what `unpermute` undoes."""
    return w.reshape(heads, 2, -1, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def from_gguf(path: str | Path) -> Forward:
    """Open a llama or qwen3 GGUF file with the `gguf` package."""
    import gguf

    reader = gguf.GGUFReader(str(path))
    arch = reader.fields["general.architecture"].contents()

    def field(key: str, default: Any = None) -> Any:
        found = reader.fields.get(f"{arch}.{key}")
        return default if found is None else found.contents()

    tensors = {t.name: t for t in reader.tensors}
    heads, hidden = field("attention.head_count"), field("embedding_length")
    divisors = tensors.get("rope_freqs.weight")
    config = Config(
        layers=field("block_count"),
        hidden=hidden,
        heads=heads,
        kv_heads=field("attention.head_count_kv", heads),
        head_dim=field("attention.key_length", hidden // heads),
        eps=float(np.float32(field("attention.layer_norm_rms_epsilon"))),
        theta=float(field("rope.freq_base", 10000.0)),
        divisors=None if divisors is None else np.asarray(divisors.data, dtype=np.float64),
    )
    return Forward(config, _GGUFWeights(tensors, config, permuted=arch == "llama"))


def from_folder(path: str | Path) -> Forward:
    """Open a Hugging Face folder: `config.json` and safetensors files (f32, f16 or bf16)."""
    from safetensors import deserialize

    path = Path(path)
    raw = json.loads((path / "config.json").read_text())
    weights: dict[str, npt.NDArray[Any]] = {}
    for shard in sorted(path.glob("*.safetensors")):
        for name, entry in deserialize(shard.read_bytes()):
            weights[name] = _to_array(entry)
    heads = raw["num_attention_heads"]
    width = raw.get("head_dim") or raw["hidden_size"] // heads
    theta, scaling = float(raw.get("rope_theta", 10000.0)), raw.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in {"default", "llama3"}:
        raise NotImplementedError(f"rope_type {kind!r}")
    if raw.get("tie_word_embeddings", False):
        weights.pop("lm_head.weight", None)
    config = Config(
        layers=raw["num_hidden_layers"],
        hidden=raw["hidden_size"],
        heads=heads,
        kv_heads=raw.get("num_key_value_heads", heads),
        head_dim=width,
        eps=float(raw["rms_norm_eps"]),
        theta=theta,
        divisors=llama3_divisors(width, theta, scaling) if kind == "llama3" else None,
        top=raw.get("num_experts_per_tok", 0),
        renorm=raw.get("norm_topk_prob", True),
    )
    return Forward(config, weights)


def _to_array(entry: Mapping[str, Any]) -> npt.NDArray[Any]:
    data, shape = entry["data"], entry["shape"]
    if entry["dtype"] == "BF16":  # the upper half of a float32
        wide = np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16
        return wide.view(np.float32).reshape(shape)
    return np.frombuffer(data, dtype={"F32": "<f4", "F16": "<f2"}[entry["dtype"]]).reshape(shape)
