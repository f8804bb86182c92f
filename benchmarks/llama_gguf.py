"""Write a GGUF file with the shape of Llama-3-8B, fewer layers, and random 4-bit weights.

    python benchmarks/llama_gguf.py OUT.gguf [--form Q4_0] [--layers 4]

A model to time, not to talk to: decode must read more than a cache holds. The vocabulary shrinks
with the layers, so that the head has the share of a step that it has in the whole model (1/14 of
the weights); its tokens are the bytes and fillers. Tensors are made and written one by one.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

LAYERS, VOCAB = 32, 128256  # of the whole model
BLOCK = 32
FORMS = {"Q4_0": 18, "Q4_1": 20}  # bytes of a block: scale, minimum in Q4_1, 16 bytes of codes
UNIFORM = 4.61  # standard deviation of a code that is uniform in 0..15


def blocks(rng: np.random.Generator, form: str, n: int, k: int) -> np.ndarray:
    """Return n rows of random blocks, uint8 [n, k / 32 * bytes]; values have variance 1 / k."""
    out = np.empty((n, k // BLOCK, FORMS[form]), np.uint8)
    scale = np.float16(1 / (UNIFORM * k**0.5))
    sign = rng.integers(0, 2, (n, k // BLOCK)) * 2 - 1  # or Q4_0's codes, -8 to 7, have a mean
    head = np.zeros((n, k // BLOCK, (FORMS[form] - 16) // 2), np.float16)
    head[..., 0] = scale * sign if form == "Q4_0" else scale
    head[..., 1:] = -7.5 * scale
    out[..., :-16] = head.view(np.uint8)
    out[..., -16:] = np.frombuffer(rng.bytes(16 * n * k // BLOCK), np.uint8).reshape(n, -1, 16)
    return out.reshape(n, -1)


def byte_tokens() -> list[str]:
    """Return the 256 characters that byte-level BPE writes bytes as, in the order of bytes."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = iter(range(256, 512))
    return [chr(b if b in shown else next(other)) for b in range(256)]


def matrices(args: Any) -> dict[str, tuple[int, int]]:
    """Return the shape (n, k) of every matrix, by its name in the file."""
    kv = args.kv_heads * args.head_dim
    out = {"token_embd.weight": (args.vocab, args.hidden)}
    for i in range(args.layers):
        shapes = {
            "attn_q": (args.heads * args.head_dim, args.hidden),
            "attn_k": (kv, args.hidden),
            "attn_v": (kv, args.hidden),
            "attn_output": (args.hidden, args.heads * args.head_dim),
            "ffn_gate": (args.ffn, args.hidden),
            "ffn_up": (args.ffn, args.hidden),
            "ffn_down": (args.hidden, args.ffn),
        }
        out |= {f"blk.{i}.{name}.weight": shape for name, shape in shapes.items()}
    return {**out, "output.weight": (args.vocab, args.hidden)}


def norms(args: Any) -> list[str]:
    layers = [f"blk.{i}.{p}_norm.weight" for i in range(args.layers) for p in ("attn", "ffn")]
    return [*layers, "output_norm.weight"]


def describe(writer: Any, args: Any) -> None:
    """Add metadata and the vocabulary."""
    import gguf

    writer.add_name(f"random Llama-3-8B shape, {args.layers} layers")
    writer.add_context_length(8192)
    writer.add_embedding_length(args.hidden)
    writer.add_block_count(args.layers)
    writer.add_feed_forward_length(args.ffn)
    writer.add_head_count(args.heads)
    writer.add_head_count_kv(args.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    writer.add_rope_dimension_count(args.head_dim)
    writer.add_vocab_size(args.vocab)
    kinds = {"Q4_0": "MOSTLY_Q4_0", "Q4_1": "MOSTLY_Q4_1"}
    writer.add_file_type(gguf.LlamaFileType[kinds[args.form]])
    letters = byte_tokens()
    merges = [f"{letters[ord(a)]} {letters[ord(b)]}" for a, b in ("th", "in", "er", "an")]
    tokens = letters + [m.replace(" ", "") for m in merges]
    types = [gguf.TokenType.NORMAL] * len(tokens)
    fill = args.vocab - len(tokens)
    tokens += [f"<|filler_{i}|>" for i in range(fill)]
    types += [gguf.TokenType.CONTROL] * fill
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(args.vocab - 2)
    writer.add_eos_token_id(args.vocab - 1)


def write(args: Any) -> None:
    """Write the file: descriptions first, then one tensor after the other."""
    import gguf

    kind = gguf.GGMLQuantizationType[args.form]
    writer = gguf.GGUFWriter(str(args.out), "llama")
    describe(writer, args)
    for name, (n, k) in matrices(args).items():
        row = k // BLOCK * FORMS[args.form]
        writer.add_tensor_info(name, (n, row), np.dtype(np.uint8), n * row, raw_dtype=kind)
    for name in norms(args):
        writer.add_tensor_info(name, (args.hidden,), np.dtype(np.float32), 4 * args.hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(args.seed)
    for n, k in matrices(args).values():
        writer.write_tensor_data(blocks(rng, args.form, n, k))
    for _ in norms(args):
        writer.write_tensor_data(np.ones(args.hidden, np.float32))
    writer.close()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--form", choices=FORMS, default="Q4_0")
    parser.add_argument("--vocab", type=int, help="default: 128,256 * layers / 32")
    parser.add_argument("--seed", type=int, default=0)
    shape = {"layers": 4, "hidden": 4096, "heads": 32, "kv_heads": 8, "head_dim": 128, "ffn": 14336}
    for name, value in shape.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    args = parser.parse_args(argv)
    args.vocab = args.vocab or max(512, VOCAB * args.layers // LAYERS // BLOCK * BLOCK)
    write(args)
    print(f"{args.out}: {args.out.stat().st_size:,} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
