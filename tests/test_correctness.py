"""The engine against the float64 oracle: every log-probability, with exact activations and cache.

The oracle shares no code with the package and decodes weights with the `gguf` package. Bounds are
of float32 arithmetic: at most 2e-4 nats on the log-probability of any id, and the same argmax at
every position.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from oracle import fixtures, gemma3, gpt_oss, latent
from oracle.forward import Forward, from_folder, from_gguf
from oracle.quantized import pack_folder

import octavo

BOUND = 2e-4
SHAPES = [fixtures.LLAMA, fixtures.QWEN3, fixtures.QWEN3_MOE, fixtures.MIXTRAL]


def engine_logprobs(path: Path, ids: list[int]) -> np.ndarray:
    """Return the engine's log-probabilities of every id, float64 [n, vocab], 128 rows at a time."""
    with octavo.LLM(path, kv="f32", act="a32") as llm, llm.sequence() as sequence:
        out = []
        for lo in range(0, len(ids), 128):
            logits = sequence.append(ids[lo : lo + 128], all_logits=True).astype(np.float64)
            top = logits.max(axis=1, keepdims=True)
            logits -= top + np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
            out.append(logits)
        return np.concatenate(out)


def check(path: Path, oracle: Forward, ids: list[int]) -> None:
    want = oracle.logprobs(ids)
    got = engine_logprobs(path, ids)
    assert got.shape == want.shape
    worst = np.unravel_index(np.argmax(np.abs(got - want)), got.shape)
    assert abs(got[worst] - want[worst]) <= BOUND, f"position and id {worst}"
    np.testing.assert_array_equal(got.argmax(axis=1), want.argmax(axis=1))


def tiny_ids(count: int = 300) -> list[int]:
    return fixtures.tokenizer().encode(fixtures.text()).ids[:count]


@pytest.mark.model
@pytest.mark.wikitext
def test_smollm2_on_wikitext(smollm2, wikitext):
    with octavo.LLM(smollm2) as llm:
        ids = llm.tokenizer.encode(wikitext[:4000])[:640]
    assert len(ids) == 640
    check(smollm2, from_gguf(smollm2), ids)


@pytest.mark.model
def test_smollm2_on_the_shipped_text(smollm2):
    with octavo.LLM(smollm2) as llm:
        ids = llm.tokenizer.encode(fixtures.text())[:200]
    check(smollm2, from_gguf(smollm2), ids)


@pytest.mark.core
@pytest.mark.parametrize("quant", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_tiny_llama_gguf(tmp_path, quant):
    path = fixtures.write_gguf(tmp_path / "m.gguf", quant=quant)
    check(path, from_gguf(path), tiny_ids())


@pytest.mark.core
@pytest.mark.parametrize("quant", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_k_quants_are_decoded(tmp_path, quant):
    path = fixtures.write_gguf(tmp_path / "m.gguf", fixtures.WIDE, quant=quant)
    check(path, from_gguf(path), tiny_ids(150))


@pytest.mark.core
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.arch)
def test_safetensors_folder(tmp_path, shape, dtype):
    fixtures.write_folder(tmp_path, shape, dtype=dtype, shards=2)
    check(tmp_path, from_folder(tmp_path), tiny_ids())


@pytest.mark.core
@pytest.mark.parametrize("nested", [False, True], ids=["text", "nested"])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("shape", [latent.DSV3, latent.KIMI], ids=["dsv3", "kimi"])
def test_absorbed_latent_attention_is_the_plain_form(tmp_path, shape, dtype, nested):
    latent.write_folder(tmp_path, shape, dtype=dtype, nested=nested)
    check(tmp_path, latent.from_folder(tmp_path), tiny_ids())


@pytest.mark.core
@pytest.mark.parametrize(
    "change",
    [
        {"q_rank": None},
        {"yarn": None},
        {"shared": 0},
        {"shared": 2, "dense": 0},
        {"heads": 1, "nope": 16, "v": 16},
        {"heads": 5, "rank": 96, "rope": 32},
        {"dense": 3},
    ],
    ids=str,
)
def test_other_shapes_of_latent_attention(tmp_path, change):
    shape = replace(latent.DSV3, **change)
    latent.write_folder(tmp_path, shape)
    check(tmp_path, latent.from_folder(tmp_path), tiny_ids(150))


@pytest.mark.core
@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_the_norms_of_latents_have_an_eps_of_their_own(tmp_path, eps):
    latent.write_folder(tmp_path, latent.KIMI, latent_norm_eps=eps)
    check(tmp_path, latent.from_folder(tmp_path), tiny_ids(100))


@pytest.mark.core
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"window": 300},
        {"window": 1},
        {"window": 64, "layers": 3},
        {"heads": 8, "kv_heads": 1, "head_dim": 32},
        {"experts": 3, "top": 3, "inner": 64, "original": 64},
    ],
    ids=str,
)
def test_gpt_oss_with_windows_sinks_and_mxfp4_experts(tmp_path, change):
    shape = gpt_oss.Shape(**change)
    oracle = gpt_oss.write_folder(tmp_path, shape)
    check(tmp_path, oracle, tiny_ids())
    with octavo.LLM(tmp_path, progress=False) as llm:
        rows = {r.kind: (r.stored, r.format, r.count) for r in llm.report.rows}
        assert not llm.report.skipped
    experts = shape.layers * shape.experts
    assert rows["layers.*.moe.*.gate"] == ("MXFP4", "bf16", experts)
    assert rows["layers.*.moe.*.gate.bias"] == ("BF16", "f32", experts)


@pytest.mark.core
@pytest.mark.parametrize("nested", [False, True], ids=["text", "nested"])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_gemma3_of_either_form(tmp_path, dtype, nested):
    check(tmp_path, gemma3.write_folder(tmp_path, dtype=dtype, nested=nested), tiny_ids())


@pytest.mark.core
@pytest.mark.parametrize(
    "change",
    [
        {"window": 1},
        {"window": 65, "period": 2},
        {"window": 280, "period": 6, "layers": 7, "hidden": 64},
        {"period": 1, "linear": 1.0},
        {"head_dim": 64, "kv_heads": 1, "scalar": 168.0},
    ],
    ids=str,
)
def test_other_shapes_of_gemma3(tmp_path, change):
    check(tmp_path, gemma3.write_folder(tmp_path, gemma3.Shape(**change)), tiny_ids())


@pytest.mark.core
def test_gemma3_by_the_keys_of_newer_configs(tmp_path):
    """A list of kinds in place of the pattern, and an object of RoPE for each kind."""
    shape = gemma3.Shape()
    kinds = ["full_attention" if n % 3 == 2 else "sliding_attention" for n in range(5)]
    ropes = {
        "sliding_attention": {"rope_type": "default", "rope_theta": shape.local},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": shape.theta},
    }
    old = ("sliding_window_pattern", "rope_theta", "rope_local_base_freq", "rope_scaling")
    oracle = gemma3.write_folder(tmp_path, shape, drop=old, layer_types=kinds,
                                 rope_parameters=ropes)  # fmt: skip
    check(tmp_path, oracle, tiny_ids())


@pytest.mark.core
@pytest.mark.parametrize("method, modules, stored, held", [
    ("int4", r".*\.experts\..*", "INT4_G32", "q4g32"),
    ("fp8", r".*_proj", "FP8_BLOCK", "f32"),
])  # fmt: skip
def test_quantized_safetensors(tmp_path, method, modules, stored, held):
    """Against the oracle fed with what the codes and scales mean, in rows of ragged blocks."""
    shape = replace(fixtures.QWEN3_MOE, hidden=160, inner=96)
    fixtures.write_folder(tmp_path, shape)
    config = from_folder(tmp_path).config
    check(tmp_path, Forward(config, pack_folder(tmp_path, method, modules)), tiny_ids())
    with octavo.LLM(tmp_path, progress=False) as llm:
        rows = {r.kind: (r.stored, r.format, r.count) for r in llm.report.rows}
        assert llm.report.decoded == ([stored] if held == "f32" else [])
        assert not llm.report.skipped
    assert rows["layers.*.moe.*.down"] == (stored, held, 2 * shape.experts)
    assert rows["layers.*.moe.router"] == ("F32", "f32", 2)


@pytest.mark.core
@pytest.mark.parametrize("renorm", [True, False])
def test_a_captured_router_is_the_oracle_s(tmp_path, renorm):
    shape = fixtures.QWEN3_MOE
    fixtures.write_folder(tmp_path, shape, norm_topk_prob=renorm)
    ids, seen = tiny_ids(100), {}
    check(tmp_path, from_folder(tmp_path), ids)
    from_folder(tmp_path).hidden(ids, lambda name, x: seen.update({name: x}))
    with octavo.LLM(tmp_path, kv="f32", act="a32") as llm, llm.capture("layers.*.router") as taps:
        assert list(taps) == ["layers.0.router", "layers.2.router"], "layer 1 is dense"
        llm.sequence().append(ids)
    for name, got in taps.items():
        assert (got.ids.dtype, got.gates.shape) == (np.int32, (100, shape.top))
        want = np.split(seen[name], [shape.experts, shape.experts + shape.top], axis=1)
        np.testing.assert_allclose(got.scores, want[0], atol=1e-5)
        order = np.argsort(want[1], axis=1)
        np.testing.assert_array_equal(got.ids, np.take_along_axis(want[1], order, axis=1))
        np.testing.assert_allclose(got.gates, np.take_along_axis(want[2], order, axis=1), atol=1e-5)


@pytest.mark.core
def test_qwen3_gguf(tmp_path):
    path = fixtures.write_gguf(tmp_path / "m.gguf", fixtures.QWEN3)
    check(path, from_gguf(path), tiny_ids())


@pytest.mark.core
def test_llama3_rope_scaling(tmp_path):
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    fixtures.write_folder(tmp_path, rope_scaling=scaling)
    check(tmp_path, from_folder(tmp_path), tiny_ids())


@pytest.mark.core
def test_score_is_the_log_probability_of_the_next_token(tiny_llama):
    ids = tiny_ids(200)
    want = from_gguf(tiny_llama).logprobs(ids)[np.arange(199), ids[1:]]
    with octavo.LLM(tiny_llama, kv="f32", act="a32") as llm:
        got = llm.score(ids)
    assert got.dtype == np.float32 and got.shape == (199,)
    np.testing.assert_allclose(got, want, atol=BOUND, rtol=0)
