"""Bytes of caches: equal to the ledger of a real one, and to the drawings of the formats."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest

import octavo
from octavo import _core
from octavo.model import LayerShape, spec_of
from octavo.plan.configs import KNOWN
from octavo.plan.kv import PAGE_TOKENS, all_costs, kv_cost
from octavo.plan.machine import head_bytes, tables
from octavo.scheme import KVScheme

# Bits of a code, 16-bit numbers per token and group, bytes of an open value.
DRAWN = {"f32": (32, 0, 4), "f16": (16, 0, 2), "bf16": (16, 0, 2), "fp8": (8, 1, 2),
         "int8": (8, 1, 2), "int4": (4, 2, 2)}  # fmt: skip
WIDTHS = {16: 1, 64: 1, 80: 1, 128: 1, 192: 3, 256: 2, 512: 4, 576: 9}  # groups of a row
SHAPES = [(3, 64, 64), (8, 128, 128), (1, 512, 64), (2, 80, 256)]
SCHEMES = [*tables().pages, "k8v4", "int4-had", "int8,sinks=1,recent=2", "int4,layer0=bf16",
           "f32:int4,recent=1"]  # fmt: skip


@pytest.fixture(scope="module")
def runtime():
    return _core.Runtime(1)


def spec_like(kv_heads, k_width, v_width, layers=3):
    shapes = (LayerShape(kv_heads, k_width, v_width),) * layers
    return SimpleNamespace(cache_layers=shapes, latent=None)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", tables().pages)
def test_blocks_are_as_drawn(name, width):
    if name not in DRAWN:
        pytest.skip(f"{name}: not drawn here")
    bits, extra, value = DRAWN[name]
    block = 64 * (width * bits // 8 + 2 * extra * WIDTHS[width])
    keys = {"k_width": width, "k_format": name}
    values = {"v_width": width, "v_format": name}
    assert head_bytes(**keys, **values) == (2 * block, 2 * width * value)
    latent = head_bytes(latent=True, v_width=64, **keys)
    assert latent == (block + 64 * 64 * value, (width + 64) * value)


def real_cache(runtime, spec, scheme):
    return _core.Cache(
        runtime, scheme.core_layers(spec.cache_layers), budget=1 << 26,
        sink_pages=scheme.sink_pages, recent_pages=scheme.recent_pages,
    )  # fmt: skip


def check_costs(cache, cost):
    """The plan's figures before there is a history."""
    ledger = cache.ledger()
    assert (cost.page_bytes, 16 * cost.row_bytes) == (ledger["page_bytes"], ledger["unit_bytes"])
    for tokens in (1, 63, 64, 65, 128, 191, 192, 1000, 4096, 262_144):
        assert cost.needed(tokens) == cache.bytes_for(tokens), tokens


def check_history(cache, cost, spec, lengths):
    """And of one that grows to each of these lengths."""
    seq, at = cache.open(), 0
    k, v = (sum(s.kv_heads * getattr(s, w) for s in spec.cache_layers)
            for w in ("k_width", "v_width"))  # fmt: skip
    rows = np.ones(max(np.diff(lengths, prepend=0)) * max(k, v), np.float32)
    for tokens in lengths:
        cache.append(seq, rows[: (tokens - at) * k], rows[: (tokens - at) * v], tokens - at)
        ledger, at = cache.ledger(seq), tokens
        assert cost.nbytes(tokens) == ledger["sealed"] + ledger["open"], tokens
    cache.release(seq)


@pytest.mark.core
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", SCHEMES)
def test_costs_equal_a_real_cache(runtime, name, shape):
    scheme, spec = KVScheme.parse(name), spec_like(*shape)
    cache = real_cache(runtime, spec, scheme)
    check_costs(cache, kv_cost(spec, scheme))
    cache.close()


@pytest.mark.core
@pytest.mark.parametrize("name", ["bf16", "int4", "int8,sinks=1,recent=1"])
def test_bytes_of_a_history_equal_the_ledger(runtime, name):
    scheme, spec = KVScheme.parse(name), spec_like(2, 32, 32)
    cache = real_cache(runtime, spec, scheme)
    check_history(cache, kv_cost(spec, scheme), spec, (1, 16, 17, 64, 100, 200, 300))
    cache.close()


@pytest.fixture(scope="module", params=["kimi-k2.5", "deepseek-v3"])
def latent_model(request):
    name = request.param
    return name, spec_of(KNOWN[name].config, name), octavo.plan(name).formats


@pytest.mark.core
@pytest.mark.parametrize("name", [*tables().pages, "int4-had", "int8,sinks=1,recent=1"])
def test_costs_of_latents_equal_a_real_cache(runtime, latent_model, name):
    """All 61 layers, of which the ledger is the core's own. The models' are the same: one of them
    has a history, and neither under TSan, as it is one thread's work."""
    (model, spec, formats), scheme = latent_model, KVScheme.parse(name)
    assert spec.cache_layers == (LayerShape(1, 512, 64, latent=True),) * 61
    cost, cache = kv_cost(spec, scheme), real_cache(runtime, spec, scheme)
    check_costs(cache, cost)
    if model == "kimi-k2.5" and os.environ.get("OCTAVO_SANITIZER") != "tsan":
        check_history(cache, cost, spec, (1, 17, 64, 65, 130, 193))
    cache.close()
    if scheme == KVScheme(scheme.k):
        assert cost in formats


@pytest.mark.parametrize("name", ["int4", "bf16", "int8,sinks=1,recent=2"])
def test_the_longest_history_is_the_longest(name):
    cost = kv_cost(spec_like(1, 16, 16, 1), KVScheme.parse(name))
    for budget in range(0, 12 * cost.page_bytes + 6 * 64 * cost.row_bytes, 97):
        tokens = cost.tokens_in(budget)
        assert tokens % PAGE_TOKENS == 0
        assert tokens == 0 or cost.needed(tokens) <= budget
        assert cost.needed(tokens + PAGE_TOKENS) > budget


def test_a_latent_has_one_format():
    with pytest.raises(ValueError, match=r"'k8v4'.*one latent.*the same format.*such as 'int8'"):
        octavo.plan("kimi-k2.5", kv="k8v4")
    with pytest.raises(ValueError, match=r"one latent.*transform"):
        octavo.plan("kimi-k2.5", kv="int4-had:int4")
    assert octavo.plan("kimi-k2.5", kv="int4-had").kv.token_bytes == 24_400


def test_a_width_that_no_page_holds():
    with pytest.raises(ValueError, match=r"k_width is 24.*multiples of 16"):
        kv_cost(spec_like(1, 24, 24), KVScheme("bf16"))
    assert all_costs(spec_like(1, 24, 24)) == ()


def config(architecture, layers, hidden, heads, kv_heads, head_dim, ffn, vocab, **more):
    return {
        "architectures": [f"{architecture}ForCausalLM"], "torch_dtype": "bfloat16",
        "num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": head_dim, "intermediate_size": ffn,
        "vocab_size": vocab, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False, **more,
    }  # fmt: skip


FAMILIES = {  # config, bf16 bytes per token, parameters as published
    "SmolLM2-135M": (
        config("Llama", 30, 576, 9, 3, 64, 1536, 49152, tie_word_embeddings=True),
        23_040, 134_515_008,
    ),
    "Llama-3-8B": (
        config("Llama", 32, 4096, 32, 8, 128, 14336, 128256), 131_072, 8_030_261_248,
    ),
    "Qwen3-8B": (
        config("Qwen3", 36, 4096, 32, 8, 128, 12288, 151936), 147_456, 8_190_735_360,
    ),
    "Qwen3-30B-A3B": (
        config("Qwen3Moe", 48, 2048, 32, 4, 128, 6144, 151936, num_experts=128,
               num_experts_per_tok=8, moe_intermediate_size=768, norm_topk_prob=True),
        98_304, 30_532_122_624,
    ),
    "Mixtral-8x7B": (
        config("Mixtral", 32, 4096, 32, 8, 128, 14336, 32000, num_local_experts=8,
               num_experts_per_tok=2),
        131_072, 46_702_792_704,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_other_families(tmp_path, name):
    fields, token_bytes, parameters = FAMILIES[name]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields))
    plan = octavo.plan(path)
    assert plan.kv.token_bytes == token_bytes
    assert plan.weights.parameters == parameters
    assert plan.weights.nbytes == 2 * parameters
    assert plan == octavo.plan(tmp_path), "a folder is its config"


def test_a_tied_embedding_is_read_whole_and_counted_once(tmp_path):
    fields, _, parameters = FAMILIES["SmolLM2-135M"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    w = octavo.plan(tmp_path).weights
    assert w.active_parameters == parameters and w.other_read == 2 * parameters
    assert w.parameters_without_embedding == parameters - 49152 * 576
    assert "experts" not in repr(octavo.plan(tmp_path, memory="1 GiB"))


def test_active_parameters_of_a_mixture(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FAMILIES["Mixtral-8x7B"][0]))
    w = octavo.plan(tmp_path).weights
    idle = 32 * 6 * 3 * 4096 * 14336 + 32000 * 4096
    assert w.active_parameters == 46_702_792_704 - idle
    assert w.routed_read + w.other_read == 2 * w.active_parameters
