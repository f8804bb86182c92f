"""Configs of large published models, by name: what a plan of them needs, and no weights.

Fields as the releases' `config.json` files spell them. What nobody has confirmed on the published
file is in `unverified`, and no figure of a plan depends on it. Lists of modules are of the text
part: the vision part of a release is not planned.
"""

from typing import Any, NamedTuple


class Known(NamedTuple):
    """A config, what it is of, and which of its fields are unverified."""

    config: dict[str, Any]
    release: str
    unverified: tuple[str, ...] = ()


_COMMON = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "hidden_size": 7168, "num_hidden_layers": 61,
    "q_lora_rank": 1536, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "intermediate_size": 18432, "moe_intermediate_size": 2048,
    "moe_layer_freq": 1, "num_experts_per_tok": 8, "n_shared_experts": 1,
    "scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": True,
    "hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}  # fmt: skip

_KIMI = _COMMON | {
    "model_type": "kimi_k2",
    "num_attention_heads": 64, "num_key_value_heads": 64,
    "first_k_dense_replace": 1, "n_routed_experts": 384, "n_group": 1, "topk_group": 1,
    "routed_scaling_factor": 2.827, "rope_theta": 50000.0,
    "max_position_embeddings": 262144, "vocab_size": 163840, "num_nextn_predict_layers": 0,
}  # fmt: skip


def _yarn(factor: float, beta_fast: float) -> dict[str, Any]:
    return {
        "type": "yarn", "factor": factor, "original_max_position_embeddings": 4096,
        "beta_fast": beta_fast, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
    }  # fmt: skip


_INT4_EXPERTS = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "type": "int", "num_bits": 4, "symmetric": True, "strategy": "group",
                "group_size": 32,
            },
            "input_activations": None, "output_activations": None,
        }
    },
    "kv_cache_scheme": None,
    "ignore": [
        "lm_head", "re:.*self_attn.*", "re:.*shared_experts.*",
        r"re:.*mlp\.(gate|up|gate_up|down)_proj.*",
    ],
}  # fmt: skip

_FP8_BLOCKS = {
    "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}  # fmt: skip

KNOWN = {
    "kimi-k2.5": Known(
        {
            "architectures": ["KimiK25ForConditionalGeneration"],
            "model_type": "kimi_k25",
            "text_config": _KIMI
            | {"rms_norm_eps": 1e-5, "rope_scaling": _yarn(64.0, 32.0)}
            | {"quantization_config": _INT4_EXPERTS},
        },
        "Kimi K2.5, its text part: experts in int4",
    ),
    "kimi-k2": Known(
        _KIMI
        | {"rms_norm_eps": 1e-6, "rope_scaling": _yarn(64.0, 1.0)}
        | {"quantization_config": _FP8_BLOCKS},
        "Kimi K2 Instruct 0905, in fp8 (0711 is as large, for a context of 131,072)",
        ("rms_norm_eps",),
    ),
    "deepseek-v3": Known(
        _COMMON
        | {
            "model_type": "deepseek_v3",
            "num_attention_heads": 128, "num_key_value_heads": 128,
            "first_k_dense_replace": 3, "n_routed_experts": 256, "n_group": 8, "topk_group": 4,
            "routed_scaling_factor": 2.5, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "rope_scaling": _yarn(40.0, 32.0), "max_position_embeddings": 163840,
            "vocab_size": 129280, "num_nextn_predict_layers": 1,
            "quantization_config": _FP8_BLOCKS,
        },
        "DeepSeek-V3, in fp8, without the layer that drafts later tokens",
    ),
}  # fmt: skip
