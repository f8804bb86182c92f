"""Packed int4 of compressed-tensors: values and bits against plain NumPy, and what is refused."""

import copy

import ml_dtypes
import numpy as np
import pytest
from oracle import fixtures
from oracle import quantized as q
from quantized_kit import opened, packed, same, write
from safetensors.numpy import load_file, save_file

from octavo.checkpoint import open_checkpoint
from octavo.errors import CheckpointError, UnsupportedError
from octavo.model import check_tensors, model_of

BF16, F16 = ml_dtypes.bfloat16, np.float16
MODULE = "model.layers.0.mlp.experts.0.gate_proj"


def matrix(n, k, dtype=BF16, seed=0):
    """Codes with every value in every nibble, and scales of any sign, zero and subnormal."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-8, 8, (n, k))
    codes[0, :16] = np.arange(-8, 8)
    codes[-1, 8:16] = -8
    scales = (rng.standard_normal((n, k // 32)) * 0.02).astype(dtype)
    scales[0, 0], scales[-1, -1] = 0.0, -0.0
    scales.view(np.uint16)[n // 2, 0] = 1
    return codes, scales


def changed(section, **fields):
    """The config with fields of one section ("", "group", "weights") changed or (...) removed."""
    config = copy.deepcopy(q.INT4)
    group = config["config_groups"]["group_0"]
    where = {"": config, "group": group, "weights": group["weights"]}[section]
    where.update(fields)
    for key in [k for k, v in fields.items() if v is ...]:
        del where[key]
    return config


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("shape", [(1, 32), (7, 64), (33, 160), (300, 2048)])
def test_values_are_codes_times_scales(tmp_path, shape, dtype, mmap):
    codes, scales = matrix(*shape, dtype)
    want = q.int4_values(codes, scales)
    with opened(tmp_path, q.int4_parts(MODULE, codes, scales), q.INT4, mmap=mmap) as checkpoint:
        assert list(checkpoint.tensors) == [f"{MODULE}.weight"]
        tensor = checkpoint.tensors[f"{MODULE}.weight"]
        assert (tensor.type, tensor.shape) == ("INT4_G32", shape)
        assert tensor.nbytes == codes.size // 2 + scales.nbytes + 8
        assert same(tensor.dequantize(), want)
        for rows in (slice(0, 1), slice(1, None), slice(-3, -1), slice(5, 2)):
            assert same(tensor.dequantize(rows), want[rows])
        with pytest.raises(ValueError, match="step 1"):
            tensor.dequantize(slice(0, None, 2))


@pytest.mark.core
@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("mapped", [False, True])
def test_every_code_and_scale_is_held_bit_for_bit(tmp_path, dtype, mapped):
    names, parts, wants = [], {}, []
    for i, shape in enumerate([(32, 32), (70, 96), (1, 64), (129, 2080)]):
        codes, scales = matrix(*shape, dtype, seed=i)
        parts |= q.int4_parts(f"m.{i}", codes, scales)
        names.append(f"m.{i}.weight")
        wants.append((codes, scales))
    row_map = np.arange(32, dtype=np.int32)[::-1].copy() if mapped else None
    names = names[:1] if mapped else names
    with opened(tmp_path, parts, q.INT4) as checkpoint:
        formats, arrays, report = packed(checkpoint, *names, row_map=row_map)
        again = packed(checkpoint, *names, scheme="q4g32", row_map=row_map)[1]
    assert set(formats) == {"q4g32"} and report.decoded == []
    assert {(r.stored, r.format) for r in report.rows} == {("INT4_G32", "q4g32")}
    for got, other, (codes, scales) in zip(arrays, again, wants, strict=False):
        rows = slice(None) if row_map is None else row_map
        assert same(got["codes"], (codes + 8).astype(np.uint8)[rows])
        assert same(got["scales"].view(np.uint16), scales.view(np.uint16)[rows])
        assert same(other["codes"], got["codes"]) and same(other["scales"], got["scales"])


def test_the_codes_are_views_of_the_file(tmp_path):
    codes, scales = matrix(64, 64)
    with opened(tmp_path, q.int4_parts(MODULE, codes, scales), q.INT4) as checkpoint:
        tensor = checkpoint.tensors[f"{MODULE}.weight"]
        first, second = tensor.packed.raw(), tensor.packed.raw()
        assert np.shares_memory(first, second) and not first.flags.writeable
        assert checkpoint.nbytes == 64 * 32 + scales.nbytes + 8
        assert "1 INT4_G32" in repr(checkpoint) and "INT4_G32, [64, 64]" in repr(tensor)
        assert len(checkpoint.identity) == 64


@pytest.mark.parametrize("nested", [False, True])
def test_the_config_stands_at_the_top_or_in_the_text_config(tmp_path, nested):
    codes, scales = matrix(4, 32)
    parts = q.int4_parts(MODULE, codes, scales) | {"x.bias": np.ones(3, np.float32)}
    config = changed("weights", type=..., symmetric=..., strategy=..., actorder=..., dynamic=...)
    config["config_groups"]["group_0"]["format"] = "pack-quantized"
    write(tmp_path, parts, config, nested=nested)
    with open_checkpoint(tmp_path) as checkpoint:
        assert [t.type for t in checkpoint.tensors.values()].count("INT4_G32") == 1
        assert checkpoint.tensors["x.bias"].type == "F32"
        found = checkpoint.metadata["config"]
        assert (found["text_config"] if nested else found)["quantization_config"] == config


@pytest.mark.parametrize("where", ["", "nested"])
def test_parts_without_a_config_stay_parts(tmp_path, where):
    write(tmp_path, q.int4_parts(MODULE, *matrix(4, 32)), None, nested=bool(where))
    with open_checkpoint(tmp_path) as checkpoint:
        assert set(checkpoint.tensors) == set(q.int4_parts(MODULE, *matrix(4, 32)))


@pytest.mark.parametrize("section, field, value", [
    ("", "format", "int-quantized"), ("", "format", ...), ("", "kv_cache_scheme", {"num_bits": 8}),
    ("", "sparsity_config", {"format": "sparse-24"}), ("", "transform_config", {"a": 1}),
    ("", "config_groups", {"a": {}, "b": {}}),
    ("group", "targets", ["Linear", "Embedding"]), ("group", "targets", ...),
    ("group", "input_activations", {"num_bits": 8}), ("group", "output_activations", {"a": 1}),
    ("group", "format", "int-quantized"),
    ("weights", "num_bits", 8), ("weights", "num_bits", ...), ("weights", "type", "float"),
    ("weights", "symmetric", False), ("weights", "strategy", "channel"),
    ("weights", "group_size", 128), ("weights", "group_size", ...), ("weights", "group_size", -1),
    ("weights", "actorder", "weight"), ("weights", "actorder", True), ("weights", "dynamic", True),
    ("weights", "block_structure", [128, 128]),
])  # fmt: skip
def test_other_settings_are_refused_by_field_and_value(tmp_path, section, field, value):
    config = changed(section, **{field: value})
    shown = "None" if value is ... else "2 groups" if field == "config_groups" else repr(value)
    with pytest.raises(UnsupportedError) as error:
        opened(tmp_path, q.int4_parts(MODULE, *matrix(4, 32)), config)
    assert f"{field} is {shown}" in str(error.value) and "config.json" in str(error.value)


@pytest.mark.parametrize("section, field, value", [
    ("", "config_groups", []), ("", "config_groups", None), ("", "config_groups", {"a": 1}),
    ("", "config_groups", {}), ("", "ignore", {}),
    ("group", "weights", None), ("group", "weights", [4]), ("", "ignore", "lm_head"),
    ("", "ignore", [1]), ("", "ignore", ["re:a("]),
])  # fmt: skip
def test_malformed_configs_are_refused(tmp_path, section, field, value):
    config = changed(section, **{field: value})
    with pytest.raises(CheckpointError, match=f"{field}.*legal:"):
        opened(tmp_path, q.int4_parts(MODULE, *matrix(4, 32)), config)


PACKED, SCALE, SHAPE = (f"{MODULE}.weight_{part}" for part in ("packed", "scale", "shape"))


def numbers(*shape, dtype=np.int32):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize("change, named, legal", [
    ({PACKED: None}, f"{MODULE}.weight_(scale|shape)", PACKED),
    ({PACKED: None, SCALE: None}, SHAPE, PACKED),
    ({SCALE: None}, SCALE, "one beside"),
    ({SHAPE: None}, SHAPE, "one beside"),
    ({SHAPE: np.array([4, 96], np.int32)}, SHAPE, r"rows of .* \[4, 8\]"),
    ({SHAPE: np.array([5, 64], np.int32)}, SHAPE, r"rows of .* \[4, 8\]"),
    ({SHAPE: np.array([-4, -64], np.int32)}, SHAPE, "multiple of 32"),
    ({SHAPE: np.array([0, 64], np.int32)}, SHAPE, "n >= 1"),
    ({SHAPE: np.array([4, 48], np.int32), PACKED: numbers(4, 6)}, SHAPE, "multiple of 32"),
    ({SHAPE: np.array([4, 64, 1], np.int32)}, SHAPE, r"I32 or I64 of shape \[2\]"),
    ({SHAPE: np.array([4, 64], np.float32)}, SHAPE, "I32 or I64"),
    ({SHAPE: np.array([1 << 62, 64])}, SHAPE, r"rows of .* \[4, 8\]"),
    ({PACKED: numbers(4, 8, dtype=np.float32)}, PACKED, r"I32 of shape \[4, 8\]"),
    ({PACKED: numbers(4, 8, 1)}, SHAPE, r"rows of .* \[4, 8, 1\]"),
    ({SCALE: numbers(4, 2, dtype=np.float32)}, SCALE, r"BF16 or F16 of shape \[4, 2\]"),
    ({SCALE: numbers(4, 3, dtype=BF16)}, SCALE, r"BF16 or F16 of shape \[4, 2\]"),
    ({SCALE: numbers(4, dtype=BF16)}, SCALE, r"BF16 or F16 of shape \[4, 2\]"),
    ({f"{MODULE}.weight": numbers(4, 64, dtype=BF16)}, f"{MODULE}.weight", "no second form"),
    ({f"{MODULE}.weight_zero_point": numbers(1, 2)}, "weight_zero_point", "symmetric"),
])  # fmt: skip
def test_wrong_parts_are_refused_at_open(tmp_path, change, named, legal):
    parts = q.int4_parts(MODULE, *matrix(4, 64)) | change
    with pytest.raises(CheckpointError, match=f"{named}.*legal: .*{legal}") as error:
        opened(tmp_path, {n: t for n, t in parts.items() if t is not None}, q.INT4)
    assert "model.safetensors" in str(error.value)


def test_columns_in_another_order_are_not_read(tmp_path):
    parts = q.int4_parts(MODULE, *matrix(4, 64)) | {f"{MODULE}.weight_g_idx": numbers(64)}
    with pytest.raises(UnsupportedError, match="weight_g_idx"):
        opened(tmp_path, parts, q.INT4)


def test_a_family_takes_what_is_packed_and_nothing_else(tmp_path):
    fixtures.write_folder(tmp_path, fixtures.QWEN3_MOE)
    q.pack_folder(tmp_path, "int4", r".*\.experts\..*")
    with open_checkpoint(tmp_path) as checkpoint:
        spec, _ = model_of(checkpoint)
        assert check_tensors(spec, checkpoint.tensors, "f") == {}
        experts = [use for use in spec.uses if ".moe." in use.role and "router" not in use.role]
        assert {checkpoint.tensors[use.tensor].type for use in experts} == {"INT4_G32"}
    good = load_file(tmp_path / "model.safetensors")
    ninth = MODULE.replace("experts.0", "experts.8")
    save_file(good | q.int4_parts(ninth, *matrix(32, 64)), tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        with pytest.raises(CheckpointError, match=f"'{ninth}.weight' is not part of family"):
            model_of(checkpoint)
    less = {name: t for name, t in good.items() if not name.startswith(f"{MODULE}.")}
    save_file(less, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        with pytest.raises(CheckpointError, match=f"'{MODULE}.weight' .* is missing"):
            model_of(checkpoint)


KIMI = ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*",
        r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"]  # fmt: skip
PLAIN = ["lm_head", "model.layers.0.self_attn.o_proj", "model.layers.0.mlp.gate_proj",
         "model.layers.1.mlp.shared_experts.up_proj"]  # fmt: skip
UNJUDGED = ["model.embed_tokens", "model.layers.1.mlp.gate", "vision_tower.blocks.0.wqkv"]


@pytest.mark.parametrize("prefix", ["", "language_model."])
def test_the_ignore_list_agrees_with_the_file(tmp_path, prefix):
    expert = prefix + MODULE
    plain = {f"{prefix}{m}.weight": numbers(4, 32, dtype=BF16) for m in PLAIN + UNJUDGED}
    plain |= {f"{prefix}model.norm.weight": numbers(32, dtype=BF16)}
    parts = q.int4_parts(expert, *matrix(4, 32)) | plain
    with opened(tmp_path / "good", parts, changed("", ignore=KIMI)) as checkpoint:
        assert set(checkpoint.tensors) == {f"{expert}.weight", *plain}
    for module in PLAIN:
        more = parts | q.int4_parts(prefix + module, *matrix(4, 32))
        more.pop(f"{prefix}{module}.weight")
        with pytest.raises(CheckpointError, match=f"'{prefix}{module}' is packed.*ignore list"):
            opened(tmp_path / "packed", more, changed("", ignore=KIMI))
    for gone, module in zip(KIMI, [PLAIN[i] for i in (0, 1, 3, 2)], strict=True):
        less = changed("", ignore=[e for e in KIMI if e != gone])
        with pytest.raises(CheckpointError, match=f"'{prefix}{module}' is stored as BF16"):
            opened(tmp_path / "plain", parts, less)


def test_a_plain_module_among_packed_ones_of_its_kind_is_refused(tmp_path):
    parts = q.int4_parts("blocks.0.w1", *matrix(4, 32))
    plain = {"blocks.1.w1.weight": numbers(4, 32, dtype=np.float32)}
    with pytest.raises(CheckpointError, match=r"'blocks\.1\.w1' is stored as F32"):
        opened(tmp_path, parts | plain, q.INT4)
    with opened(tmp_path, parts | plain, changed("", ignore=["blocks.1.w1"])) as checkpoint:
        assert len(checkpoint.tensors) == 2


def test_the_class_linear_means_every_packed_module(tmp_path):
    parts = q.int4_parts(MODULE, *matrix(4, 32))
    with pytest.raises(CheckpointError, match=f"'{MODULE}' is packed.*ignore list"):
        opened(tmp_path, parts, changed("", ignore=["Linear"]))


def test_a_checkpoint_with_nothing_packed_is_plain(tmp_path):
    norm = {"model.norm.weight": numbers(4, dtype=np.float32)}
    with opened(tmp_path, norm, q.INT4) as checkpoint:
        assert [t.type for t in checkpoint.tensors.values()] == ["F32"]
