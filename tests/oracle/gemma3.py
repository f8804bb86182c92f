"""Gemma3's text model in float64: local and global layers, norms of 1 + w on both sides of a
branch, gelu by tanh; and tiny random checkpoints of that family. Written from the design's kimi.md,
section 8, sharing no code with the package.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import fixtures
from .forward import F64, Config, Forward, Hook, _show, causal_attention


@dataclass(frozen=True)
class Shape:
    """A tiny model of the family; every `period`-th layer is global."""

    layers: int = 5
    period: int = 3
    hidden: int = 96
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    scalar: float = 24.0
    ffn: int = 128
    window: int = 40
    theta: float = 1e6
    local: float = 1e4
    linear: float = 8.0
    vocab: int = 300
    seed: int = 7


class Gemma3Forward(Forward):
    """`shape` has what the config says of layers; weights by the names of a text-only file."""

    def __init__(self, shape: Shape, weights: dict[str, Any], bf16_root: float) -> None:
        super().__init__(
            Config(shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.head_dim, 1e-6,
                   shape.theta),
            weights,
        )  # fmt: skip
        self.shape, self.bf16_root = shape, bf16_root
        half = np.arange(0, shape.head_dim, 2) / shape.head_dim
        self.freqs = {True: shape.theta**-half / shape.linear, False: shape.local**-half}

    def rms(self, x: F64, name: str) -> F64:
        mean = np.mean(x * x, axis=-1, keepdims=True)
        return x / np.sqrt(mean + self.config.eps) * (1 + self.weight(name))

    def attention(self, x: F64, layer: int, hook: Hook) -> F64:
        c, p = self.shape, f"model.layers.{layer}.self_attn"
        q, k, v = (
            (x @ self.weight(f"{p}.{n}_proj.weight").T).reshape(len(x), -1, c.head_dim)
            for n in "qkv"
        )
        whole = (layer + 1) % c.period == 0
        self.freq = self.freqs[whole]
        q = self.rope(self.rms(q, f"{p}.q_norm.weight"))
        k = self.rope(self.rms(k, f"{p}.k_norm.weight"))
        out = causal_attention(q, k, v, c.scalar**-0.5, 0 if whole else c.window)
        out = _show(hook, f"layers.{layer}.attn.out", out.reshape(len(x), -1))
        return out @ self.weight(f"{p}.o_proj.weight").T

    def gelu_mlp(self, x: F64, layer: int) -> F64:
        p = f"model.layers.{layer}.mlp"
        g, u = (x @ self.weight(f"{p}.{n}_proj.weight").T for n in ("gate", "up"))
        gelu = g / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (g + 0.044715 * g**3)))
        return (gelu * u) @ self.weight(f"{p}.down_proj.weight").T

    def hidden(self, ids: npt.ArrayLike, hook: Hook | None = None) -> F64:
        show = hook or (lambda name, array: None)
        rows = self.weights["model.embed_tokens.weight"][np.asarray(ids, dtype=np.int64)]
        x = np.asarray(rows, dtype=np.float64) * self.bf16_root
        for layer in range(self.config.layers):
            p = f"model.layers.{layer}"
            y = self.attention(self.rms(x, f"{p}.input_layernorm.weight"), layer, show)
            x = x + self.rms(y, f"{p}.post_attention_layernorm.weight")
            y = self.gelu_mlp(self.rms(x, f"{p}.pre_feedforward_layernorm.weight"), layer)
            x = x + self.rms(y, f"{p}.post_feedforward_layernorm.weight")
            x = _show(show, f"layers.{layer}.out", x)
        return self.rms(x, "model.norm.weight")


def random_weights(c: Shape) -> dict[str, npt.NDArray[np.float32]]:
    """Return random float32 weights by Hugging Face's names; norms are near 0, as 1 is added."""
    rng = np.random.default_rng(c.seed)
    w: dict[str, npt.NDArray[np.float32]] = {}

    def matrix(name: str, n: int, k: int, gain: float = 1.0) -> None:
        w[f"{name}.weight"] = (rng.standard_normal((n, k)) * gain / np.sqrt(k)).astype(np.float32)

    def norm(name: str, n: int) -> None:
        w[f"{name}.weight"] = (0.2 * rng.standard_normal(n)).astype(np.float32)

    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    matrix("model.embed_tokens", c.vocab, c.hidden, 2.0)
    for layer in range(c.layers):
        p = f"model.layers.{layer}"
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            norm(f"{p}.{name}_layernorm", c.hidden)
        for name, n, k in (("q", q, c.hidden), ("k", kv, c.hidden), ("v", kv, c.hidden),
                           ("o", c.hidden, q)):  # fmt: skip
            matrix(f"{p}.self_attn.{name}_proj", n, k)
        norm(f"{p}.self_attn.q_norm", c.head_dim)
        norm(f"{p}.self_attn.k_norm", c.head_dim)
        matrix(f"{p}.mlp.gate_proj", c.ffn, c.hidden, 1.5)
        matrix(f"{p}.mlp.up_proj", c.ffn, c.hidden)
        matrix(f"{p}.mlp.down_proj", c.hidden, c.ffn)
    norm("model.norm", c.hidden)
    return w


def config_of(c: Shape) -> dict[str, Any]:
    """Return the numbers of a text-only release."""
    return {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "head_dim": c.head_dim,
        "hidden_size": c.hidden, "intermediate_size": c.ffn, "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads, "num_key_value_heads": c.kv_heads, "rms_norm_eps": 1e-6,
        "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": c.scalar,
        "rope_theta": c.theta, "rope_local_base_freq": c.local, "attention_bias": False,
        "rope_scaling": {"factor": c.linear, "rope_type": "linear"}, "sliding_window": c.window,
        "sliding_window_pattern": c.period, "max_position_embeddings": 32768,
        "final_logit_softcapping": None, "attn_logit_softcapping": None, "vocab_size": c.vocab,
        "torch_dtype": "bfloat16",
    }  # fmt: skip


def write_folder(
    path: Path, shape: Shape = Shape(), *, dtype: str = "BF16", nested: bool = False,
    drop: tuple[str, ...] = (), **config: Any,
) -> Gemma3Forward:  # fmt: skip
    """Write a folder of random weights and return the oracle of it.

    Parameters
    ----------
    dtype : {"F32", "BF16"}
    nested : bool
        As the large sizes: tensors under `language_model.`, the numbers in `text_config`, and a
        vision tower beside them.
    drop : tuple of str
        Entries that are left out of the config.
    **config
        Entries that replace or extend the numbers.
    """
    import ml_dtypes
    from safetensors.numpy import save_file

    path.mkdir(parents=True, exist_ok=True)
    kind = {"F32": np.float32, "BF16": ml_dtypes.bfloat16}[dtype]
    stored = {k: w.astype(kind) for k, w in random_weights(shape).items()}
    raw = {k: v for k, v in (config_of(shape) | config).items() if k not in drop}
    files = stored
    if nested:
        files = {f"language_model.{k}": w for k, w in stored.items()}
        files["vision_tower.vision_model.encoder.weight"] = np.zeros((4, 4), np.float32)
        files["multi_modal_projector.mm_soft_emb_norm.weight"] = np.zeros(4, np.float32)
        raw = {
            "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
            "text_config": {k: v for k, v in raw.items() if k != "architectures"},
            "vision_config": {"model_type": "siglip_vision_model"}, "torch_dtype": "bfloat16",
        }  # fmt: skip
    save_file(files, str(path / "model.safetensors"), metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(raw, indent=1))
    fixtures.tokenizer(shape.vocab).save(str(path / "tokenizer.json"))
    special = {"eos_token": fixtures.CONTROL[2], "bos_token": fixtures.CONTROL[1]}
    (path / "tokenizer_config.json").write_text(json.dumps(special))
    root = float(np.float32(np.sqrt(shape.hidden)).astype(ml_dtypes.bfloat16))
    return Gemma3Forward(shape, {k: w.astype(np.float32) for k, w in stored.items()}, root)
