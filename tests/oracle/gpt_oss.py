"""gpt-oss in float64: windows and sinks in attention, YaRN, clamped SwiGLU of biased experts; and
tiny random MXFP4 checkpoints of that family. Written from the design's kimi.md, sections 4 and 8,
sharing no code with the package.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import fixtures
from .forward import F64, Config, Forward, Hook, _show, causal_attention
from .quantized import MXFP4, mxfp4_parts, mxfp4_values


@dataclass(frozen=True)
class Shape:
    """A tiny model of the family; layers of even index have the window."""

    layers: int = 4
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    window: int = 48
    experts: int = 6
    top: int = 2
    inner: int = 32
    factor: float = 32.0
    original: int = 4096
    vocab: int = 300
    seed: int = 5


class GptOssForward(Forward):
    """`weights` hold every expert by itself: ``mlp.experts.E.gate_proj.weight``, ``.bias``, ..."""

    def __init__(self, raw: dict[str, Any], weights: dict[str, npt.NDArray[Any]]) -> None:
        super().__init__(
            Config(
                layers=raw["num_hidden_layers"], hidden=raw["hidden_size"],
                heads=raw["num_attention_heads"], kv_heads=raw["num_key_value_heads"],
                head_dim=raw["head_dim"], eps=raw["rms_norm_eps"], theta=raw["rope_theta"],
                top=raw["num_experts_per_tok"],
            ),
            weights,
        )  # fmt: skip
        self.raw, self.mscale = raw, 1.0
        if raw.get("rope_scaling"):
            self.apply_yarn(raw["rope_scaling"])

    def apply_yarn(self, how: dict[str, Any]) -> None:
        d, base, s = self.raw["head_dim"], self.raw["rope_theta"], how["factor"]
        old = how["original_max_position_embeddings"]

        def corr(n: float) -> float:
            return d * math.log(old / (n * 2 * math.pi)) / (2 * math.log(base))

        lo, hi = max(corr(how["beta_fast"]), 0), min(corr(how["beta_slow"]), d - 1)
        for i in range(d // 2):
            r = min(max((i - lo) / (hi - lo), 0.0), 1.0)
            self.freq[i] = r * self.freq[i] / s + (1 - r) * self.freq[i]
        self.mscale = 0.1 * math.log(s) + 1

    def linear(self, x: F64, name: str) -> F64:
        return x @ self.weight(f"{name}.weight").T + self.weight(f"{name}.bias")

    def attention(self, x: F64, layer: int, hook: Hook) -> F64:
        p, width = f"model.layers.{layer}.self_attn", self.config.head_dim
        q, k, v = (self.linear(x, f"{p}.{n}_proj").reshape(len(x), -1, width) for n in "qkv")
        q, k = (self.rope(y) * self.mscale for y in (q, k))
        window = self.raw["sliding_window"] if layer % 2 == 0 else 0
        sinks = self.weight(f"{p}.sinks")
        out = causal_attention(q, k, v, window=window, sinks=sinks).reshape(len(x), -1)
        return self.linear(_show(hook, f"layers.{layer}.attn.out", out), f"{p}.o_proj")

    def expert(self, x: F64, name: str) -> F64:
        g = np.minimum(self.linear(x, f"{name}.gate_proj"), 7)
        u = np.clip(self.linear(x, f"{name}.up_proj"), -7, 7)
        return self.linear((u + 1) * g / (1 + np.exp(-1.702 * g)), f"{name}.down_proj")

    def mlp(self, x: F64, layer: int, hook: Hook) -> F64:
        p = f"model.layers.{layer}.mlp"
        logits, y = self.linear(x, f"{p}.router"), np.zeros_like(x)
        for row in range(len(x)):
            chosen = np.argsort(-logits[row], kind="stable")[: self.config.top]
            gates = np.exp(logits[row, chosen] - logits[row, chosen].max())
            for e, g in zip(chosen, gates / gates.sum(), strict=True):
                y[row] += g * self.expert(x[row : row + 1], f"{p}.experts.{e}")[0]
        return y


def _experts(c: Shape, rng: np.random.Generator, stem: str) -> tuple[dict[str, Any], ...]:
    """Return the stored parts of a layer's experts, and what each expert's tensors mean."""
    import ml_dtypes

    stored, meant = {}, {}
    for name, n, k in (("gate_up_proj", 2 * c.inner, c.hidden), ("down_proj", c.hidden, c.inner)):
        first = name == "gate_up_proj"
        codes = rng.integers(0, 16, (c.experts, n, k))
        scales = (122 + rng.integers(0, 2, (c.experts, n, k // 32))).astype(np.uint8)
        # Of gate and up so wide that both clamps are met.
        bias = rng.standard_normal((c.experts, n)) * (4 if first else 0.3)
        bias = bias.astype(ml_dtypes.bfloat16)
        stored |= mxfp4_parts(f"{stem}.{name}", codes, scales) | {f"{stem}.{name}_bias": bias}
        values, bias = mxfp4_values(codes, scales), bias.astype(np.float32)
        rows = {"gate_proj": slice(0, None, 2), "up_proj": slice(1, None, 2)}
        for e in range(c.experts):
            for module, cut in (rows if first else {"down_proj": slice(None)}).items():
                meant[f"{stem}.{e}.{module}.weight"] = values[e][cut]
                meant[f"{stem}.{e}.{module}.bias"] = bias[e][cut]
    return stored, meant


def random_weights(c: Shape) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return stored tensors (bf16, and MXFP4 parts), and float32 values by tensor or expert."""
    import ml_dtypes

    rng = np.random.default_rng(c.seed)
    plain: dict[str, npt.NDArray[Any]] = {}

    def add(name: str, *shape: int, gain: float = 1.0, mean: float = 0.0) -> None:
        gain = gain / np.sqrt(shape[1]) if len(shape) == 2 else gain
        values = mean + gain * rng.standard_normal(shape)
        plain[name] = values.astype(np.float32).astype(ml_dtypes.bfloat16)

    def linear(name: str, n: int, k: int, gain: float = 1.0) -> None:
        add(f"{name}.weight", n, k, gain=gain)
        add(f"{name}.bias", n, gain=0.3)

    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    add("model.embed_tokens.weight", c.vocab, c.hidden, gain=8.0)
    parts, meant = {}, {}
    for layer in range(c.layers):
        p = f"model.layers.{layer}"
        add(f"{p}.input_layernorm.weight", c.hidden, gain=0.1, mean=1.0)
        add(f"{p}.post_attention_layernorm.weight", c.hidden, gain=0.1, mean=1.0)
        for name, n, k in (("q", q, c.hidden), ("k", kv, c.hidden), ("v", kv, c.hidden),
                           ("o", c.hidden, q)):  # fmt: skip
            linear(f"{p}.self_attn.{name}_proj", n, k)
        add(f"{p}.self_attn.sinks", c.heads, gain=1.5)
        linear(f"{p}.mlp.router", c.experts, c.hidden, gain=2.0)
        some, values = _experts(c, rng, f"{p}.mlp.experts")
        parts |= some
        meant |= values
    add("model.norm.weight", c.hidden, gain=0.1, mean=1.0)
    add("lm_head.weight", c.vocab, c.hidden, gain=2.0)
    return plain | parts, meant | {k: w.astype(np.float32) for k, w in plain.items()}


def config_of(c: Shape) -> dict[str, Any]:
    """Return a `config.json` of the family's own form."""
    kinds = ("sliding_attention", "full_attention")
    return {
        "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "attention_bias": True,
        "hidden_size": c.hidden, "intermediate_size": c.inner, "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads, "num_key_value_heads": c.kv_heads, "head_dim": c.head_dim,
        "num_local_experts": c.experts, "num_experts_per_tok": c.top, "experts_per_token": c.top,
        "hidden_act": "silu", "swiglu_limit": 7.0, "rms_norm_eps": 1e-5, "rope_theta": 150000,
        "rope_scaling": {
            "beta_fast": 32.0, "beta_slow": 1.0, "factor": c.factor, "rope_type": "yarn",
            "original_max_position_embeddings": c.original, "truncate": False,
        },
        "layer_types": [kinds[n % 2] for n in range(c.layers)], "sliding_window": c.window,
        "initial_context_length": c.original, "max_position_embeddings": 131072,
        "tie_word_embeddings": False, "vocab_size": c.vocab, "torch_dtype": "bfloat16",
        "quantization_config": MXFP4,
    }  # fmt: skip


def write_folder(path: Path, shape: Shape = Shape(), **config: Any) -> GptOssForward:
    """Write a folder of random weights and return the oracle of it.

    Parameters
    ----------
    **config
        Entries that replace or extend the numbers.
    """
    from safetensors.numpy import save_file

    path.mkdir(parents=True, exist_ok=True)
    stored, meant = random_weights(shape)
    raw = config_of(shape) | config
    save_file(stored, str(path / "model.safetensors"), metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(raw, indent=1))
    fixtures.tokenizer(shape.vocab).save(str(path / "tokenizer.json"))
    special = {"eos_token": fixtures.CONTROL[2], "bos_token": fixtures.CONTROL[1]}
    (path / "tokenizer_config.json").write_text(json.dumps(special))
    return GptOssForward(raw, meant)
