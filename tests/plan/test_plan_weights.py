"""Bytes of weights: what configs say of files, what schemes make of them, what a model holds."""

import numpy as np
import pytest
from oracle import fixtures

import octavo
from octavo.checkpoint import open_checkpoint
from octavo.errors import CheckpointError, UnsupportedError
from octavo.model import TensorUse
from octavo.plan.machine import tables
from octavo.plan.quantization import Grid, Stored, quantization_of
from octavo.plan.weights import config_bytes, scheme_bytes
from octavo.scheme import WeightScheme


def packed(*targets, ignore=(), **weights):
    """A pack-quantized config of one group."""
    grid = {"type": "int", "num_bits": 4, "symmetric": True, "strategy": "group", "group_size": 32}
    group = {"targets": list(targets or ["Linear"]), "weights": grid | weights}
    return {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": {"group_0": group}, "ignore": list(ignore),
    }  # fmt: skip


def grid_of(found, name="model.layers.0.mlp.up_proj", linear=True):
    quantized = quantization_of({"quantization_config": found}, "here", 2)
    return quantized.grid(name, linear)


@pytest.mark.parametrize(
    ("grid", "shape", "want"),
    [
        (Grid(4, (1, 32), 2, packed=True), (3, 64), Stored(3 * 32, 3 * 2 * 2, 8)),
        (Grid(4, (1, 32), 2, packed=True), (3, 40), Stored(3 * 20, 3 * 2 * 2, 8)),
        (Grid(4, (1, 32), 2, packed=True, zeros=True), (9, 64), Stored(288, 36 + 2 * 2 * 4, 8)),
        (Grid(8, (1, 0), 2, packed=True), (5, 6), Stored(5 * 8, 5 * 2, 8)),
        (Grid(8, (1, 0), 2), (5, 6), Stored(30, 10)),
        (Grid(8, (0, 0), 2), (5, 6), Stored(30, 2)),
        (Grid(8, (1, 3), 2, zeros=True), (5, 6), Stored(30, 20 + 10)),
        (Grid(8, (128, 128), 4), (576, 7168), Stored(576 * 7168, 5 * 56 * 4)),
    ],
)
def test_bytes_of_a_grid(grid, shape, want):
    assert grid.stored(*shape) == want


def test_configs_to_grids():
    assert grid_of(packed()) == Grid(4, (1, 32), 2, packed=True)
    assert grid_of(packed(num_bits=8, strategy="channel")) == Grid(8, (1, 0), 2, packed=True)
    assert grid_of(packed(symmetric=False)).zeros
    block = packed(type="float", num_bits=8, strategy="block", block_structure=[128, 64])
    assert grid_of(block | {"format": "float-quantized"}) == Grid(8, (128, 64), 2)
    tensor = packed(num_bits=8, strategy="tensor") | {"format": "int-quantized"}
    assert grid_of(tensor) == Grid(8, (0, 0), 2)
    assert grid_of(packed() | {"format": "dense"}) is None
    assert grid_of({"quant_method": "fp8", "weight_block_size": [128, 128]}) == Grid(
        8, (128, 128), 4
    )
    assert grid_of({"quant_method": "fp8"}) == Grid(8, (0, 0), 4)
    assert quantization_of({}, "here", 2) is None


def test_who_is_quantized():
    up, router = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.gate"
    every = packed(ignore=["lm_head", "re:.*self_attn.*", r"re:.*mlp\.down_proj"])
    assert grid_of(every, up) and not grid_of(every, "lm_head")
    assert not grid_of(every, "model.layers.0.self_attn.q_proj")
    assert not grid_of(every, "model.layers.0.mlp.down_proj")
    assert not grid_of(every, router, linear=False)
    assert not grid_of(packed("re:x"), up), "an expression matches from the start"
    assert grid_of(packed(up), up) and not grid_of(packed(up), f"{up}s")
    assert grid_of(packed(router), router, linear=False), "named, and so meant"
    kept = {"quant_method": "fp8", "modules_to_not_convert": [up]}
    assert not grid_of(kept, up) and not grid_of(kept, "lm_head") and grid_of(kept, f"{up}s")


def test_a_list_inside_of_the_text_model_knows_no_outer_name():
    head = TensorUse("head", "language_model.lm_head.weight", (64, 32))
    text = {"torch_dtype": "bfloat16", "quantization_config": packed(ignore=["lm_head"])}
    assert config_bytes({"text_config": text}, "here")(head) == Stored(2 * 64 * 32)
    text["quantization_config"] = packed()
    assert config_bytes({"text_config": text}, "here")(head) == Stored(64 * 16, 2 * 64, 8)


@pytest.mark.parametrize(
    ("found", "error", "text"),
    [
        (7, CheckpointError, "quantization_config is 7"),
        ({"quant_method": "awq"}, UnsupportedError, "'awq'.*'compressed-tensors', 'fp8'"),
        ({"quant_method": 4}, CheckpointError, "quant_method"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, CheckpointError, "two integers"),
        ({"quant_method": "fp8", "weight_block_size": [0, 128]}, CheckpointError, "two integers"),
        (packed() | {"config_groups": {}}, CheckpointError, "config_groups"),
        (packed() | {"config_groups": {"g": 1}}, CheckpointError, "config_groups.g"),
        (packed() | {"format": "marlin-24"}, UnsupportedError, "marlin-24.*pack-quantized"),
        (packed(num_bits=3), UnsupportedError, "num_bits is 3"),
        (packed(num_bits=4.0), CheckpointError, "num_bits is 4.0"),
        (packed(type="float"), UnsupportedError, "type is 'float'"),
        (packed(group_size=0), CheckpointError, "group_size is 0"),
        (packed(group_size=None), CheckpointError, "group_size is missing"),
        (packed(strategy="tensor_group"), UnsupportedError, "tensor_group"),
        (packed(actorder="group"), UnsupportedError, "actorder"),
        (packed(symmetric=1), CheckpointError, "symmetric"),
        (packed("re:(?=a)b"), UnsupportedError, "group_0: targets is 're:.*not read"),
        (packed(ignore=["re:a{2}"]), UnsupportedError, "quantization_config: ignore is 're:a"),
        (packed("re:("), CheckpointError, "targets is 're:.*legal: a pattern of re"),
        (packed("re:" + "a" * 2000), CheckpointError, "1024 characters"),
        (packed(4), CheckpointError, "targets is .4.*a list of names"),
        (packed() | {"ignore": "lm_head"}, CheckpointError, "ignore is 'lm_head'"),
        ({"quant_method": "fp8", "modules_to_not_convert": 1}, CheckpointError, "convert is 1"),
    ],
)
def test_configs_that_are_refused(found, error, text):
    with pytest.raises(error, match=f"(?s)here.*{text}"):
        grid_of(found)


def test_two_groups_must_not_differ_on_a_module():
    found = packed("re:.*up_proj")
    found["config_groups"]["other"] = packed("Linear", num_bits=8)["config_groups"]["group_0"]
    assert grid_of(found, "model.layers.0.mlp.down_proj").bits == 8
    with pytest.raises(CheckpointError, match=r"up_proj.*two groups"):
        grid_of(found)


@pytest.mark.parametrize("name", [None, "int8", 4])
def test_a_config_must_name_its_float_type(name):
    with pytest.raises(CheckpointError, match="torch_dtype"):
        config_bytes({"torch_dtype": name}, "here")
    assert config_bytes({"dtype": "float16"}, "here")


@pytest.mark.parametrize("name", tables().weights)
def test_schemes_take_what_packing_gives(name):
    """Rows are a whole number of blocks of 32."""
    use = TensorUse("layers.0.mlp.up", "up.weight", (96, 128))
    held = scheme_bytes(WeightScheme(name), lambda _: Stored(1))(use)
    linear = octavo.Linear(np.ones((96, 128), np.float32), name, threads=1)
    assert held.codes + held.scales == linear.nbytes
    linear.close()


def test_a_scheme_keeps_what_it_keeps():
    held = scheme_bytes(WeightScheme("q4g32"), lambda _: Stored(11))
    assert held(TensorUse("embed", "e", (64, 32))) == Stored(11)
    assert held(TensorUse("layers.0.moe.router", "r", (64, 32))) == Stored(11)
    assert held(TensorUse("norm", "n", (32,))) == Stored(4 * 32)
    assert scheme_bytes(WeightScheme(), held) is held
    w = octavo.plan("kimi-k2.5", weights="q4g32").weights
    assert w.expert_bytes == 44_040_192 * 9 // 16 and w.part("head").nbytes == 2 * 163_840 * 7168


def test_a_gguf_file_counts_its_tensors(tiny_llama):
    plan = octavo.plan(tiny_llama)
    with open_checkpoint(tiny_llama) as checkpoint:
        assert plan.weights.nbytes == checkpoint.nbytes
    assert (plan.context, plan.weights.tied) == (2048, True)


@pytest.mark.parametrize("shape", [fixtures.QWEN3, fixtures.QWEN3_MOE, fixtures.MIXTRAL], ids=str)
def test_a_config_foretells_its_tensors(tmp_path, shape):
    fixtures.write_folder(tmp_path, shape)
    w = octavo.plan(tmp_path).weights
    with open_checkpoint(tmp_path) as checkpoint:
        assert w.nbytes == w.file_bytes == checkpoint.nbytes
    moe = sum(n not in shape.dense for n in range(shape.layers)) if shape.experts else 0
    assert (w.layers, w.experts, w.top) == (moe, shape.experts, shape.top)
    assert w.expert_parameters == (3 * shape.hidden * shape.inner if shape.experts else 0)
    assert w.part("routers").parameters == moe * shape.experts * shape.hidden


@pytest.mark.core
def test_an_open_model_counts_what_it_holds(tiny_llama):
    with octavo.LLM(tiny_llama, kv="int8", weights="w8g32", context=512, threads=1) as llm:
        plan = octavo.plan(llm)
        assert (plan.kv.scheme, plan.context, plan.model) == ("int8", 512, llm.name)
        assert plan.weights.nbytes == sum(row.nbytes for row in llm.report.rows)
        assert plan.kv.token_bytes == llm.bytes().sealed_token_bytes
        assert octavo.plan(llm, 64, "int4").kv.scheme == "int4"
        assert octavo.plan(llm, weights="w8g32") == plan
        with pytest.raises(ValueError, match="holds 'w8g32'"):
            octavo.plan(llm, weights="bf16")
        with pytest.raises(ValueError, match="1 to 512"):
            octavo.plan(llm, 513)
