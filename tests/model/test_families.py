"""Specs and programs of the families: numbers, names, permuted rows, and what is refused."""

import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from oracle import fixtures, forward

from octavo.checkpoint import open_checkpoint
from octavo.errors import CheckpointError, UnsupportedError
from octavo.model import TensorUse, model_of, spec_of
from octavo.model.dense import unpermuted_rows
from octavo.model.fields import Fields
from octavo.model.rope import frequencies, rope_from_config, rope_from_gguf
from octavo.plan.configs import KNOWN


class Tensor:
    """A tensor of a made-up checkpoint: a shape, and values where a family reads them."""

    type = "F32"

    def __init__(self, shape, values=None):
        self.shape, self.values = tuple(shape), values

    def dequantize(self):
        return np.asarray(self.values, np.float32)


def gguf_like(path, tensors=(), drop=(), **changes):
    """A real GGUF file's checkpoint with metadata and tensors changed."""
    with open_checkpoint(path) as real:
        metadata = dict(real.metadata)
        found = {n: Tensor(t.shape) for n, t in real.tensors.items() if n not in drop}
    metadata |= {k.replace("__", "."): v for k, v in changes.items()}
    return SimpleNamespace(path=path, kind="gguf", metadata=metadata, tensors=found | dict(tensors))


def folder_like(path, tensors=(), drop=(), **changes):
    """A real folder's checkpoint with its config and tensors changed."""
    with open_checkpoint(path) as real:
        config = dict(real.metadata["config"]) | changes
        found = {n: Tensor(t.shape) for n, t in real.tensors.items() if n not in drop}
    return SimpleNamespace(
        path=path, kind="safetensors", metadata={"config": config}, tensors=found | dict(tensors)
    )


def test_llama_gguf_numbers(tiny_llama):
    shape = fixtures.LLAMA
    with open_checkpoint(tiny_llama) as checkpoint:
        spec, program = model_of(checkpoint)
    got = (spec.layers, spec.hidden, spec.heads, spec.kv_heads, spec.head_dim, spec.ffn)
    assert got == (2, 64, 4, 2, 16, 96)
    assert (spec.vocab, spec.context, spec.tied, spec.qk_norm) == (300, 2048, True, False)
    weights = fixtures.random_weights(shape)
    assert spec.parameters == sum(w.size for w in weights.values())
    assert [op.kind for op in program.ops] == [
        "embed",
        *["norm_linear", "attend", "linear_add", "gated_mlp"] * 2,
        "norm",
        "head",
    ]
    assert program.ops[-1].w == ("embed",), "a tied matrix is held once"


def test_qwen3_folder_numbers(tiny_qwen3):
    with open_checkpoint(tiny_qwen3) as checkpoint:
        spec, program = model_of(checkpoint)
    assert (spec.head_dim, spec.qk_norm, spec.tied) == (32, True, False)
    attend = program.ops[2]
    assert attend.q_norm == "layers.0.attn.q_norm"
    assert attend.scale == 32**-0.5
    assert program.ops[-1].w == ("head",)


def test_rows_are_mapped_back_for_llama_gguf_alone(tmp_path, tiny_llama):
    with open_checkpoint(tiny_llama) as checkpoint:
        spec, _ = model_of(checkpoint)
    maps = {u.role for u in spec.uses if u.row_map is not None}
    assert maps == {f"layers.{i}.attn.{p}" for i in range(2) for p in "qk"}
    path = fixtures.write_gguf(tmp_path / "q.gguf", fixtures.QWEN3)
    with open_checkpoint(path) as checkpoint:
        spec, _ = model_of(checkpoint)
    assert all(u.row_map is None for u in spec.uses)


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 2), (3, 64), (4, 6)])
def test_unpermuted_rows_equal_the_oracle(heads, head_dim):
    w = np.arange(heads * head_dim)[:, None]
    np.testing.assert_array_equal(
        unpermuted_rows(heads, head_dim), forward.unpermute(w, heads)[:, 0]
    )


def test_every_tap_names_a_buffer_after_an_op(tiny_llama):
    with open_checkpoint(tiny_llama) as checkpoint:
        _, program = model_of(checkpoint)
    for name, (op, buffer) in program.taps.items():
        assert buffer in program.ops[op].out, name
    assert "layers.1.attn.out" in program.taps


def test_lowering_uses_handles(tiny_llama):
    with open_checkpoint(tiny_llama) as checkpoint:
        spec, program = model_of(checkpoint)
    low = program.lowered({u.role: i for i, u in enumerate(spec.uses)})
    assert low["ops"][0] == {
        **dict.fromkeys(("in", "in2", "in3", "norm", "q_norm", "k_norm", "rope"), -1),
        "kind": "embed", "out": [0], "n_out": 1, "w": [0], "bias": [], "out_norm": -1, "sinks": -1,
        "eps": 0.0, "scale": 1.0, "activation": "silu", "layer": 0, "heads": 0, "window": 0,
    }  # fmt: skip
    assert low["ropes"][0]["dim"] == 16


# ---- the loader's contract


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"drop": ["blk.1.ffn_up.weight"]}, CheckpointError, "blk.1.ffn_up.weight"),
        ({"tensors": {"blk.0.extra": Tensor([4])}}, CheckpointError, "blk.0.extra"),
        ({"tensors": {"blk.0.attn_v.weight": Tensor([32, 60])}}, CheckpointError, r"\[32, 60\]"),
        ({"drop": ["token_embd.weight"]}, CheckpointError, "token_embd"),
        ({"general__architecture": "lama"}, UnsupportedError, "nearest: 'llama'"),
        ({"general__architecture": "mamba9"}, UnsupportedError, "known: llama, qwen3"),
        ({"llama__block_count": 10**9}, CheckpointError, "block_count"),
        ({"llama__block_count": True}, CheckpointError, "block_count"),
        ({"llama__attention__head_count": 0}, CheckpointError, "head_count"),
        ({"llama__attention__head_count_kv": 3}, CheckpointError, "head_count_kv"),
        ({"llama__embedding_length": None}, CheckpointError, "is missing"),
        ({"llama__attention__layer_norm_rms_epsilon": float("nan")}, CheckpointError, "epsilon"),
        ({"llama__expert_count": 8}, UnsupportedError, "mixture of experts"),
        ({"llama__rope__scaling__type": "yarn"}, UnsupportedError, "yarn"),
        ({"llama__rope__dimension_count": 8}, UnsupportedError, "head_dim = 16"),
        ({"llama__rope__freq_base": -1.0}, CheckpointError, "freq_base"),
        ({"llama__attention__key_length": 15}, CheckpointError, "key_length is 15; .* even"),
        (
            {"llama__attention__key_length": 1 << 22, "llama__attention__head_count": 1 << 22},
            CheckpointError,
            "at most 16777216 channels",
        ),
        ({"llama__attention__value_length": np.array([16, 16])}, UnsupportedError, "head_dim = 16"),
        ({"llama__attention__head_count_kv": np.array([2, 1])}, UnsupportedError, "differs"),
        ({"llama__attention__head_count_kv": np.array(["2", "2"])}, CheckpointError, "kv is"),
    ],
)
def test_gguf_refusals_name_what_is_wrong(tiny_llama, change, error, text):
    with pytest.raises(error, match=text):
        model_of(gguf_like(tiny_llama, **change))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, UnsupportedError, "Gemma"),
        ({"architectures": None}, UnsupportedError, "known: DeepseekV3ForCausalLM"),
        ({"hidden_act": "gelu"}, UnsupportedError, "activation"),
        ({"num_hidden_layers": 2.0}, CheckpointError, "num_hidden_layers"),
        ({"num_hidden_layers": 1}, CheckpointError, "not part of family"),
        ({"tie_word_embeddings": "yes"}, CheckpointError, "tie_word_embeddings"),
        ({"attention_bias": True}, CheckpointError, "bias"),
        ({"rope_scaling": {"rope_type": "dynamic"}}, UnsupportedError, "dynamic"),
        ({"rope_scaling": 7}, CheckpointError, "rope_scaling"),
        ({"partial_rotary_factor": 0.5}, UnsupportedError, "partial_rotary_factor is 0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, UnsupportedError, "part of a head"),
        ({"head_dim": 33}, CheckpointError, "head_dim is 33; legal: an even width"),
        ({"hidden_size": [[64], [64, 64]]}, CheckpointError, "hidden_size"),
        ({"hidden_size": [{}]}, CheckpointError, "hidden_size"),
        ({"hidden_size": [None, 64]}, CheckpointError, "hidden_size"),
    ],
)
def test_config_refusals_name_what_is_wrong(tiny_qwen3, change, error, text):
    with pytest.raises(error, match=text):
        model_of(folder_like(tiny_qwen3, **change))


def test_tensors_that_a_rule_skips(tiny_qwen3):
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": Tensor([16])}
    spec, _ = model_of(folder_like(tiny_qwen3, tensors=extra))
    assert not spec.tied
    tied, program = model_of(folder_like(tiny_qwen3, tie_word_embeddings=True))
    assert tied.tied and program.ops[-1].w == ("embed",)


def test_biases_are_used_and_mapped(tiny_llama):
    extra = {f"blk.{i}.attn_{p}.bias": Tensor([n]) for i in range(2)
             for p, n in (("q", 64), ("k", 32), ("v", 32))}  # fmt: skip
    spec, program = model_of(gguf_like(tiny_llama, tensors=extra))
    assert program.ops[1].bias == tuple(f"layers.0.attn.{p}.bias" for p in "qkv")
    bias = next(u for u in spec.uses if u.role == "layers.1.attn.q.bias")
    np.testing.assert_array_equal(bias.row_map, unpermuted_rows(4, 16))


# ---- RoPE


def test_frequencies_are_rounded_once():
    rope = frequencies(64, 1e5)
    exact = [float(np.float32(1e5 ** (-2 * i / 64))) for i in range(32)]
    assert rope.freq.dtype == np.float64
    assert rope.freq.tolist() == exact


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}


def test_llama3_scaling_equals_the_oracle_and_its_description():
    rope = rope_from_config(Fields({"rope_theta": 5e5, "rope_scaling": LLAMA3}, "t"), 128)
    plain = frequencies(128, 5e5).freq
    want = plain / forward.llama3_divisors(128, 5e5, LLAMA3)
    np.testing.assert_allclose(rope.freq, want, rtol=2e-7)
    wavelength = 2 * np.pi / plain
    keep, slow = wavelength < 8192 / 4, wavelength > 8192
    assert keep.any() and slow.any()
    np.testing.assert_array_equal(rope.freq[keep], plain[keep])
    np.testing.assert_allclose(rope.freq[slow], plain[slow] / 8, rtol=2e-7)


def test_linear_scaling_both_ways_and_stored_divisors():
    config = Fields({"rope_scaling": {"type": "linear", "factor": 4.0}}, "t")
    want = frequencies(32, 1e4, 4.0).freq
    np.testing.assert_array_equal(rope_from_config(config, 32).freq, want)
    newer = Fields({"rope_parameters": {"rope_type": "linear", "factor": 4.0,
                                        "rope_theta": 1e4}}, "t")  # fmt: skip
    np.testing.assert_array_equal(rope_from_config(newer, 32).freq, want)
    meta = Fields({"a.rope.scaling.type": "linear", "a.rope.scaling.factor": 4.0}, "t", "a.")
    np.testing.assert_array_equal(rope_from_gguf(meta, 32, None).freq, want)
    divisors = np.linspace(1, 8, 16, dtype=np.float32)
    stored = rope_from_gguf(Fields({}, "t", "a."), 32, divisors)
    np.testing.assert_array_equal(stored.freq, frequencies(32, 1e4, divisors).freq)


def test_rope_divisors_of_a_file(tiny_llama):
    values = np.linspace(1, 8, 8)
    spec, _ = model_of(gguf_like(tiny_llama, {"rope_freqs.weight": Tensor([8], values)}))
    np.testing.assert_array_equal(spec.rope.freq, frequencies(16, 1e4, values).freq)
    for bad in (Tensor([9], np.ones(9)), Tensor([8], np.zeros(8)), Tensor([8], [np.nan] * 8)):
        with pytest.raises(CheckpointError, match="rope_freqs"):
            model_of(gguf_like(tiny_llama, {"rope_freqs.weight": bad}))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("theta", "scaling", "says"),
    [
        (1.0, YARN, "rope_theta is 1.0"),
        (1e-300, None, "rope_theta"),
        (1e4, {"type": "linear", "factor": 0.5}, "turns by 2 radians"),
        (1e4, {"type": "linear", "factor": 5e-324}, "factor"),
        (1e4, YARN | {"factor": 5e-324}, "factor"),
        (1e4, YARN | {"beta_fast": 5e-324}, "beta_fast"),
        (1e4, LLAMA3 | {"factor": 5e-324}, "factor"),
    ],
)
def test_bases_and_factors_that_no_angle_comes_of_are_refused(theta, scaling, says):
    config = Fields({"rope_theta": theta, "rope_scaling": scaling}, "t")
    with pytest.raises(CheckpointError, match=says):
        rope_from_config(config, 64)


@pytest.mark.filterwarnings("error")
def test_stored_divisors_too_small_are_refused():
    with pytest.raises(CheckpointError, match="radians a token"):
        rope_from_gguf(Fields({}, "t", "a."), 32, np.full(16, 1e-45, np.float32))


@pytest.mark.parametrize("change", [{"factor": 0}, {"factor": "8"}, {"high_freq_factor": 0.5},
                                    {"original_max_position_embeddings": -1}])  # fmt: skip
def test_llama3_scaling_refuses_nonsense(change):
    config = Fields({"rope_scaling": LLAMA3 | change}, "t")
    with pytest.raises(CheckpointError, match=next(iter(change))):
        rope_from_config(config, 64)


@pytest.mark.parametrize(
    ("shape", "changes", "says"),
    [
        (fixtures.QWEN3_MOE, {"num_experts": 0}, "num_experts is 0"),
        (fixtures.QWEN3_MOE, {"num_experts": 2000}, "num_experts is 2000"),
        (fixtures.QWEN3_MOE, {"num_experts": 7}, r"mlp.gate.weight' .* has shape \[8, 64\]"),
        (fixtures.QWEN3_MOE, {"num_experts_per_tok": 9}, "num_experts_per_tok is 9"),
        (fixtures.QWEN3_MOE, {"moe_intermediate_size": 64}, "has shape"),
        (fixtures.QWEN3_MOE, {"decoder_sparse_step": 0}, "decoder_sparse_step is 0"),
        (fixtures.QWEN3_MOE, {"mlp_only_layers": [3]}, "mlp_only_layers"),
        (fixtures.QWEN3_MOE, {"mlp_only_layers": "1"}, "mlp_only_layers"),
        (fixtures.MIXTRAL, {"sliding_window": 4096}, "sliding_window"),
        (fixtures.MIXTRAL, {"num_local_experts": None}, "num_local_experts is missing"),
    ],
)  # fmt: skip
def test_impossible_mixtures_are_refused_by_name(tmp_path, shape, changes, says):
    fixtures.write_folder(tmp_path, shape)
    with pytest.raises((CheckpointError, UnsupportedError), match=says):
        model_of(folder_like(tmp_path, **changes))


def test_missing_and_extra_experts_are_named(tmp_path):
    fixtures.write_folder(tmp_path, fixtures.MIXTRAL)
    gone = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    with pytest.raises(CheckpointError, match=f"{gone}.*layers.1.moe.3.down.* is missing"):
        model_of(folder_like(tmp_path, drop=[gone]))
    extra = gone.replace(".3.", ".4.")
    with pytest.raises(CheckpointError, match=f"{extra}.* is not part of family 'mixtral'"):
        model_of(folder_like(tmp_path, tensors={extra: Tensor((64, 96))}))


def test_which_layers_of_qwen3_moe_have_experts(tmp_path):
    fixtures.write_folder(tmp_path, fixtures.QWEN3_MOE)
    with open_checkpoint(tmp_path) as checkpoint:
        spec, program = model_of(checkpoint)
    assert [spec.is_moe(n) for n in range(3)] == [True, False, True]
    assert [op.kind for op in program.ops[4:13:4]] == ["moe", "gated_mlp", "moe"]
    weights = fixtures.random_weights(fixtures.QWEN3_MOE)
    assert spec.parameters == sum(w.size for w in weights.values())
    for dense, step, listed in (((0, 2), 2, []), ((0, 2, 3), 2, [3])):
        folder = tmp_path / f"{step}-{len(listed)}"
        shape = replace(fixtures.QWEN3_MOE, layers=4, dense=dense)
        fixtures.write_folder(folder, shape, decoder_sparse_step=step, mlp_only_layers=listed)
        with open_checkpoint(folder) as checkpoint:
            other, _ = model_of(checkpoint)
        assert [n for n in range(4) if not other.is_moe(n)] == list(dense)
    moe = program.ops[4]
    assert moe.matrices[7] == tuple(f"layers.0.moe.7.{p}" for p in ("gate", "up", "down"))


def test_long_lists_of_dense_layers_are_read_at_once():
    """Each layer was looked up in the list: some 20 seconds for this one."""
    config = {"architectures": ["Qwen3MoeForCausalLM"], "num_hidden_layers": 4096,
              "decoder_sparse_step": 4096, "mlp_only_layers": [0] * 300_000,
              "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
              "vocab_size": 300, "hidden_size": 64, "num_attention_heads": 4,
              "intermediate_size": 96, "max_position_embeddings": 64,
              "rms_norm_eps": 1e-6}  # fmt: skip
    start = time.process_time()
    assert spec_of(config, "t").moe.dense == frozenset(range(4095))
    assert time.process_time() - start < 5


def test_parameters_do_not_wrap_around():
    spec = spec_of(KNOWN["kimi-k2"].config, "t")
    wide = TensorUse("embed", "embed", (1 << 40, 1 << 30))
    assert replace(spec, uses=(wide,)).parameters == 1 << 70


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"n_group": None}, CheckpointError, "n_group is missing"),
        ({"topk_group": None}, CheckpointError, "topk_group is missing"),
        ({"routed_scaling_factor": None}, CheckpointError, "routed_scaling_factor is missing"),
        ({"rope_interleave": False}, UnsupportedError, "rope_interleave is False"),
    ],
)
def test_what_codes_do_not_agree_on_has_no_default(change, error, says):
    with pytest.raises(error, match=says):
        spec_of(KNOWN["deepseek-v3"].config | change, "t")


def test_gates_are_divided_by_their_sum_unless_the_config_says_no():
    known = KNOWN["deepseek-v3"].config
    absent = {k: v for k, v in known.items() if k != "norm_topk_prob"}
    assert spec_of(absent, "t").moe.renorm
    assert not spec_of(known | {"norm_topk_prob": False}, "t").moe.renorm
