"""Tiny random models in real checkpoint formats, written on the fly.

Each has two layers, a byte-level BPE tokenizer of some 300 ids trained on the shipped text, and
logits spread like those of a real model, so that loader, engine, cache and studies run on them in
milliseconds. The files are written by the `gguf` and `safetensors` packages alone.
"""

import json
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .forward import GGUF_NAMES, GGUF_TOP_NAMES, MOE_NAMES, permute

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # ids 0, 1, 2


@dataclass(frozen=True)
class Tiny:
    """Shape of a tiny model; `arch` is "llama", "qwen3" (which adds per-head norms), "qwen3_moe" or
    "mixtral", whose layers have experts except those in `dense`."""

    arch: str = "llama"
    layers: int = 2
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    ffn: int = 96
    vocab: int = 300
    context: int = 2048
    tied: bool = True
    theta: float = 10000.0
    eps: float = 1e-5
    seed: int = 0
    experts: int = 0
    top: int = 0
    inner: int = 0
    dense: tuple[int, ...] = ()


LLAMA = Tiny()
QWEN3 = Tiny(arch="qwen3", head_dim=32, tied=False, theta=1e6, eps=1e-6)
WIDE = Tiny(hidden=256, heads=4, kv_heads=2, head_dim=64, ffn=256)  # rows that K-quants can hold


QWEN3_MOE = replace(QWEN3, arch="qwen3_moe", layers=3, experts=8, top=3, inner=32, dense=(1,))
MIXTRAL = replace(LLAMA, arch="mixtral", tied=False, experts=4, top=2, inner=96)


def text() -> str:
    """Return the public-domain text that the package ships."""
    return (files("octavo") / "data" / "alice.txt").read_text(encoding="ascii")


def random_weights(shape: Tiny) -> dict[str, npt.NDArray[np.float32]]:
    """Return random float32 weights by Hugging Face's names.

    Variances keep the residual stream near 1, one channel of every key is an outlier, and logits
    have a standard deviation of about 2: attention is neither flat nor one-hot and the argmax has
    a margin that float32 arithmetic resolves.
    """
    rng = np.random.default_rng(shape.seed)
    c, width = shape, shape.head_dim

    def matrix(n: int, k: int, gain: float = 1.0) -> npt.NDArray[np.float32]:
        return (rng.standard_normal((n, k)) * gain / np.sqrt(k)).astype(np.float32)

    def norm(n: int) -> npt.NDArray[np.float32]:
        return (1 + 0.1 * rng.standard_normal(n)).astype(np.float32)

    w = {"model.embed_tokens.weight": matrix(c.vocab, c.hidden, 2.0)}
    for layer in range(c.layers):
        p = f"model.layers.{layer}"
        w[f"{p}.input_layernorm.weight"] = norm(c.hidden)
        w[f"{p}.post_attention_layernorm.weight"] = norm(c.hidden)
        w[f"{p}.self_attn.q_proj.weight"] = matrix(c.heads * width, c.hidden)
        w[f"{p}.self_attn.k_proj.weight"] = matrix(c.kv_heads * width, c.hidden)
        w[f"{p}.self_attn.k_proj.weight"][3::width] *= 4
        w[f"{p}.self_attn.v_proj.weight"] = matrix(c.kv_heads * width, c.hidden)
        w[f"{p}.self_attn.o_proj.weight"] = matrix(c.hidden, c.heads * width)
        if c.arch.startswith("qwen3"):
            w[f"{p}.self_attn.q_norm.weight"] = norm(width)
            w[f"{p}.self_attn.k_norm.weight"] = norm(width)
        if c.experts and layer not in c.dense:
            router, *expert = MOE_NAMES[c.arch == "mixtral"]
            w[f"{p}.{router}.weight"] = matrix(c.experts, c.hidden, 2.0)
            for e in range(c.experts):
                for name in expert:
                    n, k = (c.hidden, c.inner) if name == expert[2] else (c.inner, c.hidden)
                    w[f"{p}.{name.format(e)}.weight"] = matrix(n, k)
            continue
        w[f"{p}.mlp.gate_proj.weight"] = matrix(c.ffn, c.hidden)
        w[f"{p}.mlp.up_proj.weight"] = matrix(c.ffn, c.hidden)
        w[f"{p}.mlp.down_proj.weight"] = matrix(c.hidden, c.ffn)
    w["model.norm.weight"] = norm(c.hidden)
    if not c.tied:
        w["lm_head.weight"] = matrix(c.vocab, c.hidden, 2.0)
    return w


def tokenizer(vocab: int = 300) -> Any:
    """Train a byte-level BPE tokenizer of `vocab` ids (at least 259) on the shipped text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in CONTROL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator([text()], trainer)
    assert tok.get_vocab_size() == vocab, tok.get_vocab_size()
    return tok


def write_folder(
    path: Path, shape: Tiny = LLAMA, *, dtype: str = "F32", shards: int = 1, **config: Any
) -> dict[str, npt.NDArray[np.float32]]:
    """Write a Hugging Face folder of random weights and return them as stored (float32).

    Parameters
    ----------
    dtype : {"F32", "F16", "BF16"}
        Matrices are stored in it; norms always in F32.
    shards : int
        More than one writes `model.safetensors.index.json` too.
    **config
        Entries that replace or extend `config.json`, such as `rope_scaling`.
    """
    import ml_dtypes
    from safetensors.numpy import save_file

    types = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
    path.mkdir(parents=True, exist_ok=True)
    stored = {
        k: w.astype(types[dtype] if w.ndim == 2 else np.float32)
        for k, w in random_weights(shape).items()
    }
    names = list(stored)
    index = {}
    for i in range(shards):
        part = names[i::shards]
        name = f"model-{i + 1:05}-of-{shards:05}.safetensors" if shards > 1 else "model.safetensors"
        save_file({k: stored[k] for k in part}, str(path / name), metadata={"format": "pt"})
        index |= {k: name for k in part}
    if shards > 1:
        total = sum(w.nbytes for w in stored.values())
        listing = {"metadata": {"total_size": total}, "weight_map": index}
        (path / "model.safetensors.index.json").write_text(json.dumps(listing))
    (path / "config.json").write_text(json.dumps(_config(shape) | config, indent=1))
    tokenizer(shape.vocab).save(str(path / "tokenizer.json"))
    special = {"eos_token": CONTROL[2], "bos_token": CONTROL[1], "chat_template": TEMPLATE}
    (path / "tokenizer_config.json").write_text(json.dumps(special))
    return {k: w.astype(np.float32) for k, w in stored.items()}


def _config(c: Tiny) -> dict[str, Any]:
    classes = {"llama": "Llama", "qwen3": "Qwen3", "qwen3_moe": "Qwen3Moe", "mixtral": "Mixtral"}
    moe: dict[str, Any] = {}
    if c.arch == "qwen3_moe":
        moe = {"num_experts": c.experts, "moe_intermediate_size": c.inner, "norm_topk_prob": True,
               "decoder_sparse_step": 1, "mlp_only_layers": list(c.dense)}  # fmt: skip
    elif c.arch == "mixtral":
        moe = {"num_local_experts": c.experts, "sliding_window": None}
    moe |= {"num_experts_per_tok": c.top} if c.experts else {}
    return moe | {
        "architectures": [f"{classes[c.arch]}ForCausalLM"],
        "model_type": c.arch,
        "hidden_size": c.hidden,
        "intermediate_size": c.ffn,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "vocab_size": c.vocab,
        "max_position_embeddings": c.context,
        "rms_norm_eps": c.eps,
        "rope_theta": c.theta,
        "rope_scaling": None,
        "tie_word_embeddings": c.tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }


def write_gguf(path: Path, shape: Tiny = LLAMA, *, quant: str = "F32") -> Path:
    """Write a random llama or qwen3 model as GGUF; llama rows of q and k are permuted.

    Parameters
    ----------
    quant : str
        Type of the matrices: "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", or a
        K-quant ("Q2_K" to "Q6_K"; needs rows of 256, see `WIDE`). Norms are F32. K-quants, which
        the `gguf` package cannot encode, are random codes under scales of a sensible size.
    """
    import gguf
    from gguf.quants import quantize

    kind = gguf.GGMLQuantizationType[quant]
    writer = gguf.GGUFWriter(str(path), shape.arch)
    _gguf_metadata(writer, shape)
    renames = [(f".{k}.", f".{v}.") for k, v in GGUF_NAMES.items()]
    renames += GGUF_TOP_NAMES.items()
    rng = np.random.default_rng(shape.seed + 1)
    for name, w in random_weights(shape).items():
        for part, heads in (("q_proj", shape.heads), ("k_proj", shape.kv_heads)):
            if shape.arch == "llama" and part in name:
                w = permute(w, heads)
        for theirs, ours in [*renames, ("model.layers.", "blk.")]:
            name = name.replace(theirs, ours)
        if w.ndim == 1:
            writer.add_tensor(name, w)
        elif quant.endswith("_K"):
            writer.add_tensor(name, _random_k_blocks(rng, w, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, quantize(w, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_metadata(writer: Any, c: Tiny) -> None:
    tok = json.loads(tokenizer(c.vocab).to_str())
    vocab = tok["model"]["vocab"]
    pieces = sorted(vocab, key=vocab.__getitem__)
    merges = [m if isinstance(m, str) else " ".join(m) for m in tok["model"]["merges"]]
    writer.add_name(f"tiny-{c.arch}")
    writer.add_block_count(c.layers)
    writer.add_context_length(c.context)
    writer.add_embedding_length(c.hidden)
    writer.add_feed_forward_length(c.ffn)
    writer.add_head_count(c.heads)
    writer.add_head_count_kv(c.kv_heads)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_layer_norm_rms_eps(c.eps)
    writer.add_rope_freq_base(c.theta)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_vocab_size(c.vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(pieces)
    writer.add_token_types([3 if p in CONTROL else 1 for p in pieces])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def _random_k_blocks(rng: np.random.Generator, w: npt.NDArray[Any], kind: Any) -> npt.NDArray[Any]:
    """Return random K-quant rows, scaled so that their values have about the spread of `w`."""
    import gguf
    from gguf.quants import dequantize

    size, nbytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (w.shape[0], w.shape[1] // size, nbytes), dtype=np.uint8)
    # The float16 fields of a block by offset, and their ratio: where codes are unsigned, that of
    # the minimum makes the mean of the values zero.
    fields = {
        "Q2_K": {80: 1.0, 82: 1.5},
        "Q3_K": {108: 1.0},
        "Q4_K": {0: 1.0, 2: 7.5},
        "Q5_K": {0: 1.0, 2: 15.5},
        "Q6_K": {208: 1.0},
    }[kind.name]

    def put(scale: float) -> npt.NDArray[Any]:
        for offset, ratio in fields.items():
            value = np.array([scale * ratio], np.float16)
            blocks[..., offset : offset + 2] = value.view(np.uint8)
        return blocks.reshape(w.shape[0], -1)

    spread = float(dequantize(put(1e-3), kind).std())
    rows = put(1e-3 * float(w.std()) / spread)
    return rows


def varied(shape: Tiny, **changes: Any) -> Tiny:
    """Return `shape` with some fields changed."""
    return replace(shape, **changes)
