"""The files of a `kimi-mini` checkpoint, laid out like Kimi K2.5's: configs, tokenizer, tensors.

Writes `config.json`, `tiktoken.model`, `tokenizer_config.json`, `chat_template.jinja`,
`generation_config.json` and `model.safetensors`, and reads the tensors back as float32, by NumPy;
training is `train_kimi_mini.py`. The hard part is that names, dtypes and the packing of int4 are
the release's own, so that whatever loads the large model loads this one by the same path.
"""

import base64
import json
import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from octavo.study.kimi_mini import PIECES, SPECIAL

GROUP = 32
BASE_TOKENS, TOKENS = 992, 1024
# The distance of each special token from the first is that of Kimi's own ids.
SPECIAL_TOKENS = {
    BASE_TOKENS: "[BOS]",
    BASE_TOKENS + 1: "[EOS]",
    BASE_TOKENS + 2: "<|im_end|>",
    BASE_TOKENS + 3: "<|im_user|>",
    BASE_TOKENS + 4: "<|im_assistant|>",
    BASE_TOKENS + 9: "[EOT]",
    BASE_TOKENS + 10: "<|im_system|>",
    BASE_TOKENS + 17: "<|im_middle|>",
    BASE_TOKENS + 22: "<think>",
    BASE_TOKENS + 23: "</think>",
    BASE_TOKENS + 30: "[UNK]",
    BASE_TOKENS + 31: "[PAD]",
}
BOS, EOS, IM_END, EOT, PAD = 992, 993, 994, 1001, 1023
MEDIA_PLACEHOLDER = BASE_TOKENS + 21

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- set role = message['role'] -%}
{%- if role == 'user' -%}
<|im_user|>user<|im_middle|>
{%- elif role == 'assistant' -%}
<|im_assistant|>assistant<|im_middle|>
{%- else -%}
<|im_system|>{{ role }}<|im_middle|>
{%- endif -%}
{%- if role == 'assistant' -%}
<think></think>
{%- endif -%}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for item in message['content'] -%}
{%- if item['type'] == 'text' -%}
{{ item['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_assistant|>assistant<|im_middle|>
{%- if thinking is defined and not thinking -%}
<think></think>
{%- else -%}
<think>
{%- endif -%}
{%- endif -%}
"""


class Tokenizer:
    """Byte-pair encoding by ranks over `PIECES`; special tokens are found first.

    Parameters
    ----------
    ranks
        The id of each token's bytes, 0..991.
    """

    def __init__(self, ranks: dict[bytes, int]):
        self.ranks = ranks
        self.special = {name: token for token, name in SPECIAL_TOKENS.items()}
        self._known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        ids: list[int] = []
        for piece in PIECES.findall(text):
            found = self._known.get(piece)
            if found is None:
                found = self._known[piece] = self._piece(piece)
            ids += found
        return ids

    def _piece(self, piece: str) -> list[int]:
        if re.fullmatch(SPECIAL, piece):
            return [self.special[piece]]
        parts = [bytes([b]) for b in piece.encode()]
        while len(parts) > 1:
            pairs = [self.ranks.get(a + b, TOKENS) for a, b in pairwise(parts)]
            low = min(pairs)
            if low == TOKENS:
                break
            at = pairs.index(low)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return [self.ranks[p] for p in parts]


def train_tokenizer(text: Iterable[str]) -> Tokenizer:
    """Merges of the most frequent pair, ties to the smaller bytes, until there are 992 tokens.

    Raises
    ------
    ValueError
        The text is too plain for 736 merges.
    """
    seen = Counter(p for line in text for p in PIECES.findall(line))
    words = {
        tuple(bytes([b]) for b in piece.encode()): n
        for piece, n in seen.items()
        if not re.fullmatch(SPECIAL, piece)
    }
    ranks = {bytes([b]): b for b in range(256)}
    while len(ranks) < BASE_TOKENS:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, n in words.items():
            for pair in pairwise(word):
                pairs[pair] += n
        pairs = Counter({p: n for p, n in pairs.items() if p[0] + p[1] not in ranks})
        if not pairs:
            raise ValueError(f"train_tokenizer: {len(ranks)} tokens, the text gives no more pairs")
        best = min(pairs, key=lambda p: (-pairs[p], p))
        ranks[best[0] + best[1]] = len(ranks)
        merged: Counter[tuple[bytes, ...]] = Counter()
        for word, n in words.items():
            merged[_merge(word, best)] += n
        words = dict(merged)
    return Tokenizer(ranks)


def _merge(word: tuple[bytes, ...], pair: tuple[bytes, bytes]) -> tuple[bytes, ...]:
    """The word with each occurrence of the pair, from the left, made one."""
    out, i = [], 0
    while i < len(word):
        if word[i : i + 2] == pair:
            out.append(pair[0] + pair[1])
            i += 2
        else:
            out.append(word[i])
            i += 1
    return tuple(out)


def quantization_config() -> dict:
    """`quantization_config` of the release: int4 in groups of 32, the routed experts alone."""
    return {
        "config_groups": {
            "group_0": {
                "input_activations": None,
                "output_activations": None,
                "targets": ["Linear"],
                "weights": {
                    "actorder": None,
                    "block_structure": None,
                    "dynamic": False,
                    "group_size": GROUP,
                    "num_bits": 4,
                    "observer": "minmax",
                    "observer_kwargs": {},
                    "strategy": "group",
                    "symmetric": True,
                    "type": "int",
                },
            }
        },
        "format": "pack-quantized",
        "ignore": [
            "lm_head",
            "re:.*self_attn.*",
            "re:.*shared_experts.*",
            r"re:.*mlp\.(gate|up|gate_up|down)_proj.*",
            "re:vision_tower.*",
            "re:mm_projector.*",
        ],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


def text_config() -> dict:
    """`text_config`: the fields of `kimi_k2`."""
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "aux_loss_alpha": 0.001,
        "bos_token_id": BOS,
        "dtype": "bfloat16",
        "eos_token_id": EOS,
        "ep_size": 1,
        "first_k_dense_replace": 1,
        "hidden_act": "silu",
        "hidden_size": 256,
        "initializer_range": 0.02,
        "intermediate_size": 512,
        "kv_lora_rank": 64,
        "max_position_embeddings": 4096,
        "model_type": "kimi_k2",
        "moe_intermediate_size": 128,
        "moe_layer_freq": 1,
        "n_group": 1,
        "n_routed_experts": 16,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 4,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 4,
        "num_nextn_predict_layers": 0,
        "pad_token_id": PAD,
        "pretraining_tp": 1,
        "q_lora_rank": 128,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 32,
        "quantization_config": quantization_config(),
        "rms_norm_eps": 1e-5,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 4.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 1024,
            "type": "yarn",
        },
        "rope_theta": 50000.0,
        "routed_scaling_factor": 2.0,
        "scoring_func": "sigmoid",
        "seq_aux": True,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "use_cache": True,
        "v_head_dim": 32,
        "vocab_size": TOKENS,
    }


def config() -> dict:
    """`config.json`."""
    return {
        "architectures": ["KimiK25ForConditionalGeneration"],
        "bos_token_id": BOS,
        "dtype": "bfloat16",
        "eos_token_id": EOS,
        "ignore_index": -100,
        "media_placeholder_token_id": MEDIA_PLACEHOLDER,
        "model_type": "kimi_k25",
        "pad_token_id": PAD,
        "quantization_config": quantization_config(),
        "text_config": text_config(),
        "tie_word_embeddings": False,
        "vision_config": {"model_type": "kimi_k25_vision", "patch_size": 2, "vt_hidden_size": 4},
    }


def tokenizer_config() -> dict:
    """`tokenizer_config.json`; ids that it does not name are `<|reserved_token_{id}|>`."""
    added = {
        str(token): {
            "content": name,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token, name in SPECIAL_TOKENS.items()
    }
    return {
        "added_tokens_decoder": added,
        "additional_special_tokens": [
            n for t, n in SPECIAL_TOKENS.items() if t not in (BOS, EOS, PAD, PAD - 1)
        ],
        "bos_token": "[BOS]",
        "clean_up_tokenization_spaces": False,
        "eos_token": "[EOS]",
        "extra_special_tokens": {},
        "model_max_length": 4096,
        "pad_token": "[PAD]",
        "tokenizer_class": "TikTokenTokenizer",
        "unk_token": "[UNK]",
    }


def quantize(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes -7..7 int8 and scales bfloat16 of [n, k]: absmax / 7 of each 32 along k."""
    groups = weight.reshape(weight.shape[0], -1, GROUP)
    scale = (np.abs(groups).max(-1) / np.float32(7)).astype(ml_dtypes.bfloat16)
    wide = scale.astype(np.float32)[..., None]
    codes = np.rint(groups / np.where(wide == 0, np.float32(1), wide)).clip(-7, 7)
    return codes.astype(np.int8).reshape(weight.shape), scale


def pack(codes: np.ndarray) -> np.ndarray:
    """int32 [n, k / 8] of codes [n, k]: nibble i of word c is the code of column 8c + i, plus 8."""
    nibbles = (codes.astype(np.int32) + 8).astype(np.uint32).reshape(codes.shape[0], -1, 8)
    words = (nibbles << np.arange(0, 32, 4, dtype=np.uint32)).sum(-1, dtype=np.uint32)
    return words.view(np.int32)


def unpack(words: np.ndarray) -> np.ndarray:
    """int8 codes [n, 8 w] of int32 words [n, w]; the inverse of `pack`."""
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    nibbles = (words.view(np.uint32)[..., None] >> shifts) & 15
    return (nibbles.astype(np.int8) - 8).reshape(words.shape[0], -1)


def is_routed(name: str) -> bool:
    """Whether the tensor is a matrix of a routed expert, stored as int4."""
    return ".mlp.experts." in name


def save_tensors(path: Path, weights: dict[str, np.ndarray]) -> None:
    """Write `model.safetensors` from float32 tensors under the release's names without prefix."""
    out = {}
    for name, w in weights.items():
        key = f"language_model.{name}"
        if is_routed(name):
            codes, scale = quantize(w)
            stem = key.removesuffix(".weight")
            out[f"{stem}.weight_packed"] = pack(codes)
            out[f"{stem}.weight_scale"] = scale
            out[f"{stem}.weight_shape"] = np.array(w.shape, np.int32)
        elif name.endswith("e_score_correction_bias"):
            out[key] = w.astype(np.float32)
        else:
            out[key] = w.astype(ml_dtypes.bfloat16)
    out["vision_tower.patch_embed.proj.weight"] = np.zeros((4, 3, 2, 2), ml_dtypes.bfloat16)
    out["vision_tower.patch_embed.proj.bias"] = np.zeros(4, ml_dtypes.bfloat16)
    save_file(out, str(path), metadata={"format": "pt"})
    path.chmod(0o644)


def load_tensors(path: Path) -> dict[str, np.ndarray]:
    """The language model's tensors as float32, under the release's names without prefix."""
    stored, out = load_file(str(path)), {}
    for key, value in stored.items():
        name = key.removeprefix("language_model.")
        if name.endswith(".weight_packed"):
            stem = key.removesuffix(".weight_packed")
            scale = stored[f"{stem}.weight_scale"].astype(np.float32)
            codes = unpack(value).astype(np.float32)
            name = name.removesuffix("_packed")
            out[name] = codes * np.repeat(scale, GROUP, axis=1)
        elif key.startswith("language_model.") and not name.endswith(("_scale", "_shape")):
            out[name] = value.astype(np.float32)
    return out


def save(folder: Path, tokenizer: Tokenizer, weights: dict[str, np.ndarray]) -> None:
    """Write the checkpoint; `weights` as for `save_tensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in (
        ("config.json", config()),
        ("tokenizer_config.json", tokenizer_config()),
        (
            "generation_config.json",
            {"eos_token_id": [EOS, IM_END, EOT], "max_length": 4096},
        ),
    ):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    lines = (
        f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in tokenizer.ranks.items()
    )
    (folder / "tiktoken.model").write_text("".join(lines))
    save_tensors(folder / "model.safetensors", weights)
