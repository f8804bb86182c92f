"""DeepSeek-V3 and Kimi K2 in float64: latent attention in its plain form, grouped sigmoid routing,
YaRN; and tiny random checkpoints of that family. Written from the equations of the design's
kimi.md, sections 3 to 5, sharing no code with the package.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import fixtures
from .forward import F64, Config, Forward, Hook, _show, _to_array, causal_attention


@dataclass(frozen=True)
class Shape:
    """A tiny model of the family; `yarn` is the config's rope_scaling."""

    layers: int = 3
    hidden: int = 64
    heads: int = 4
    q_rank: int | None = 48
    rank: int = 64
    nope: int = 32
    rope: int = 16
    v: int = 48
    ffn: int = 96
    experts: int = 8
    top: int = 3
    inner: int = 32
    shared: int = 1
    dense: int = 1
    groups: int = 4
    kept: int = 2
    factor: float = 2.5
    eps: float = 1e-6
    theta: float = 10000.0
    yarn: tuple[tuple[str, Any], ...] | None = None
    vocab: int = 300
    context: int = 2048
    seed: int = 3


def yarn(factor: float, original: int, fast: float = 32) -> tuple[tuple[str, Any], ...]:
    return (
        ("type", "yarn"), ("factor", factor), ("original_max_position_embeddings", original),
        ("beta_fast", fast), ("beta_slow", 1), ("mscale", 1.0), ("mscale_all_dim", 1.0),
    )  # fmt: skip


DSV3 = Shape(yarn=yarn(40.0, 64))
KIMI = replace(DSV3, groups=1, kept=1, factor=2.827, eps=1e-5, theta=50000.0, yarn=yarn(64.0, 64))


class LatentForward(Forward):
    """The plain form: every head's keys and values are rebuilt from the latents."""

    def __init__(self, raw: dict[str, Any], weights: dict[str, npt.NDArray[Any]]) -> None:
        self.raw = raw
        super().__init__(
            Config(
                layers=raw["num_hidden_layers"], hidden=raw["hidden_size"],
                heads=raw["num_attention_heads"], kv_heads=1, head_dim=raw["qk_rope_head_dim"],
                eps=raw["rms_norm_eps"], theta=raw["rope_theta"],
            ),
            weights,
        )  # fmt: skip
        self.scale = (raw["qk_nope_head_dim"] + raw["qk_rope_head_dim"]) ** -0.5
        if raw.get("rope_scaling"):
            self.apply_yarn(raw["rope_scaling"])

    def apply_yarn(self, how: dict[str, Any]) -> None:
        d, base, s = self.raw["qk_rope_head_dim"], self.raw["rope_theta"], how["factor"]
        old = how["original_max_position_embeddings"]

        def corr(n: float) -> float:
            return d * math.log(old / (n * 2 * math.pi)) / (2 * math.log(base))

        lo, hi = max(math.floor(corr(how["beta_fast"])), 0), math.ceil(corr(how["beta_slow"]))
        hi = min(hi, d - 1)
        for i in range(d // 2):
            r = min(max((i - lo) / ((hi - lo) or 0.001), 0.0), 1.0)
            self.freq[i] = r * self.freq[i] / s + (1 - r) * self.freq[i]
        self.scale *= (0.1 * how["mscale_all_dim"] * math.log(s) + 1) ** 2

    def rotate(self, x: F64) -> F64:
        """Neighbours (2i, 2i + 1) of [n, heads, rope] turn at positions 0..n-1."""
        angle = np.arange(len(x), dtype=np.float64)[:, None, None] * self.freq
        a, b = x[..., 0::2], x[..., 1::2]
        out = np.empty_like(x)
        out[..., 0::2] = a * np.cos(angle) - b * np.sin(angle)
        out[..., 1::2] = b * np.cos(angle) + a * np.sin(angle)
        return out

    def latent_rms(self, x: F64, name: str) -> F64:
        eps = self.raw.get("latent_norm_eps", 1e-6)
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * self.weight(name)

    def attention(self, x: F64, layer: int, hook: Hook) -> F64:
        r, n, p = self.raw, len(x), f"model.layers.{layer}.self_attn"
        nope, rope, v, heads = (
            r[key] for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
                               "num_attention_heads")
        )  # fmt: skip
        if r["q_lora_rank"]:
            q = self.latent_rms(x @ self.weight(f"{p}.q_a_proj.weight").T,
                                f"{p}.q_a_layernorm.weight")  # fmt: skip
            q = q @ self.weight(f"{p}.q_b_proj.weight").T
        else:
            q = x @ self.weight(f"{p}.q_proj.weight").T
        q = q.reshape(n, heads, nope + rope)
        kv = x @ self.weight(f"{p}.kv_a_proj_with_mqa.weight").T
        c = self.latent_rms(kv[:, : r["kv_lora_rank"]], f"{p}.kv_a_layernorm.weight")
        key = self.rotate(kv[:, None, r["kv_lora_rank"] :])
        c = _show(hook, f"layers.{layer}.latent", c)
        full = (c @ self.weight(f"{p}.kv_b_proj.weight").T).reshape(n, heads, nope + v)
        keys = np.concatenate([full[..., :nope], np.repeat(key, heads, axis=1)], axis=-1)
        queries = np.concatenate([q[..., :nope], self.rotate(q[..., nope:])], axis=-1)
        out = causal_attention(queries, keys, full[..., nope:], self.scale).reshape(n, -1)
        out = _show(hook, f"layers.{layer}.attn.out", out)
        return out @ self.weight(f"{p}.o_proj.weight").T

    def mlp(self, x: F64, layer: int, hook: Hook) -> F64:
        p = f"model.layers.{layer}.mlp"
        parts = ("gate_proj", "up_proj", "down_proj")
        if f"{p}.gate.weight" not in self.weights:
            return self.gated(x, *(f"{p}.{part}" for part in parts))
        chosen, gates = self.route(x, p, layer, hook)
        y = np.zeros_like(x)
        for row in range(len(x)):
            for e, g in zip(chosen[row], gates[row], strict=True):
                names = (f"{p}.experts.{e}.{part}" for part in parts)
                y[row] += g * self.gated(x[row : row + 1], *names)[0]
        if f"{p}.shared_experts.gate_proj.weight" in self.weights:
            y = y + self.gated(x, *(f"{p}.shared_experts.{part}" for part in parts))
        return y

    def route(self, x: F64, p: str, layer: int, hook: Hook) -> tuple[npt.NDArray[Any], F64]:
        r = self.raw
        s = 1.0 / (1.0 + np.exp(-(x @ self.weight(f"{p}.gate.weight").T)))
        c = s + self.weight(f"{p}.gate.e_score_correction_bias")
        count, groups = c.shape[1], r["n_group"]
        chosen = np.empty((len(x), r["num_experts_per_tok"]), np.int64)
        for row in range(len(x)):
            keep = np.full(count, True)
            if groups > 1:
                best = np.sort(c[row].reshape(groups, -1), axis=1)[:, -2:].sum(axis=1)
                kept = np.argsort(-best, kind="stable")[: r["topk_group"]]
                keep = np.isin(np.arange(count) // (count // groups), kept)
            order = np.argsort(-np.where(keep, c[row], -np.inf), kind="stable")
            chosen[row] = np.sort(order[: chosen.shape[1]])
        gates = np.take_along_axis(s, chosen, axis=1)
        if r["norm_topk_prob"]:
            gates = gates / (gates.sum(axis=1, keepdims=True) + 1e-20)
        gates = gates * r["routed_scaling_factor"]
        _show(hook, f"layers.{layer}.router", np.concatenate([s, chosen, gates], axis=1))
        return chosen, gates


def from_folder(path: Path) -> LatentForward:
    """Open a folder of unquantized safetensors; a prefix `language_model.` is taken off."""
    from safetensors import deserialize

    raw = json.loads((path / "config.json").read_text())
    weights: dict[str, npt.NDArray[Any]] = {}
    for shard in sorted(path.glob("*.safetensors")):
        for name, entry in deserialize(shard.read_bytes()):
            weights[name.removeprefix("language_model.")] = _to_array(entry)
    return LatentForward(raw.get("text_config", raw), weights)


def random_weights(c: Shape) -> dict[str, npt.NDArray[np.float32]]:
    """Return random float32 weights by Hugging Face's names; routers' biases are of both signs."""
    rng = np.random.default_rng(c.seed)

    def matrix(n: int, k: int, gain: float = 1.0) -> npt.NDArray[np.float32]:
        return (rng.standard_normal((n, k)) * gain / np.sqrt(k)).astype(np.float32)

    def norm(n: int) -> npt.NDArray[np.float32]:
        return (1 + 0.1 * rng.standard_normal(n)).astype(np.float32)

    def gated(name: str, inner: int) -> None:
        w[f"{name}.gate_proj.weight"] = matrix(inner, c.hidden)
        w[f"{name}.up_proj.weight"] = matrix(inner, c.hidden)
        w[f"{name}.down_proj.weight"] = matrix(c.hidden, inner)

    w = {"model.embed_tokens.weight": matrix(c.vocab, c.hidden, 2.0)}
    for layer in range(c.layers):
        p = f"model.layers.{layer}"
        w[f"{p}.input_layernorm.weight"] = norm(c.hidden)
        w[f"{p}.post_attention_layernorm.weight"] = norm(c.hidden)
        q = c.heads * (c.nope + c.rope)
        if c.q_rank:
            w[f"{p}.self_attn.q_a_proj.weight"] = matrix(c.q_rank, c.hidden)
            w[f"{p}.self_attn.q_a_layernorm.weight"] = norm(c.q_rank)
            w[f"{p}.self_attn.q_b_proj.weight"] = matrix(q, c.q_rank)
        else:
            w[f"{p}.self_attn.q_proj.weight"] = matrix(q, c.hidden)
        w[f"{p}.self_attn.kv_a_proj_with_mqa.weight"] = matrix(c.rank + c.rope, c.hidden)
        w[f"{p}.self_attn.kv_a_layernorm.weight"] = norm(c.rank)
        w[f"{p}.self_attn.kv_b_proj.weight"] = matrix(c.heads * (c.nope + c.v), c.rank)
        w[f"{p}.self_attn.o_proj.weight"] = matrix(c.hidden, c.heads * c.v)
        if layer < c.dense:
            gated(f"{p}.mlp", c.ffn)
            continue
        w[f"{p}.mlp.gate.weight"] = matrix(c.experts, c.hidden, 2.0)
        bias = (rng.standard_normal(c.experts) * 0.2).astype(np.float32)
        w[f"{p}.mlp.gate.e_score_correction_bias"] = bias
        for e in range(c.experts):
            gated(f"{p}.mlp.experts.{e}", c.inner)
        if c.shared:
            gated(f"{p}.mlp.shared_experts", c.shared * c.inner)
    w["model.norm.weight"] = norm(c.hidden)
    w["lm_head.weight"] = matrix(c.vocab, c.hidden, 2.0)
    return w


def config_of(c: Shape) -> dict[str, Any]:
    """Return the `config.json` of a text-only release."""
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "hidden_size": c.hidden,
        "intermediate_size": c.ffn,
        "moe_intermediate_size": c.inner,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.heads,
        "q_lora_rank": c.q_rank,
        "kv_lora_rank": c.rank,
        "qk_nope_head_dim": c.nope,
        "qk_rope_head_dim": c.rope,
        "v_head_dim": c.v,
        "n_routed_experts": c.experts,
        "n_shared_experts": c.shared,
        "num_experts_per_tok": c.top,
        "first_k_dense_replace": c.dense,
        "moe_layer_freq": 1,
        "n_group": c.groups,
        "topk_group": c.kept,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "routed_scaling_factor": c.factor,
        "num_nextn_predict_layers": 0,
        "rms_norm_eps": c.eps,
        "rope_theta": c.theta,
        "rope_scaling": dict(c.yarn) if c.yarn else None,
        "max_position_embeddings": c.context,
        "vocab_size": c.vocab,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def write_folder(
    path: Path, shape: Shape = DSV3, *, dtype: str = "F32", nested: bool = False, **config: Any
) -> dict[str, npt.NDArray[np.float32]]:
    """Write a folder of random weights and return them as stored (float32).

    Parameters
    ----------
    dtype : {"F32", "BF16"}
        Matrices are stored in it; norms and biases always in F32.
    nested : bool
        As Kimi K2.5: tensors under `language_model.`, the numbers in `text_config`, and a vision
        tower beside them.
    **config
        Entries that replace or extend the numbers.
    """
    import ml_dtypes
    from safetensors.numpy import save_file

    path.mkdir(parents=True, exist_ok=True)
    kind = {"F32": np.float32, "BF16": ml_dtypes.bfloat16}[dtype]
    stored = {
        k: w.astype(kind if w.ndim == 2 else np.float32) for k, w in random_weights(shape).items()
    }
    raw = config_of(shape) | config
    files = stored
    if nested:
        files = {f"language_model.{k}": w for k, w in stored.items()}
        files["vision_tower.encoder.weight"] = np.zeros((4, 4), np.float32)
        files["mm_projector.proj.bias"] = np.zeros(4, np.float32)
        raw = {
            "architectures": ["KimiK25ForConditionalGeneration"],
            "model_type": "kimi_k25",
            "text_config": raw | {"model_type": "kimi_k2"},
        }
    save_file(files, str(path / "model.safetensors"), metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(raw, indent=1))
    fixtures.tokenizer(shape.vocab).save(str(path / "tokenizer.json"))
    special = {"eos_token": fixtures.CONTROL[2], "bos_token": fixtures.CONTROL[1]}
    (path / "tokenizer_config.json").write_text(json.dumps(special))
    return {k: w.astype(np.float32) for k, w in stored.items()}
