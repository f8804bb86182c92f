"""MXFP4 experts of gpt-oss: values against plain NumPy, rows taken apart, exactness in bfloat16."""

import ml_dtypes
import numpy as np
import pytest
from oracle import quantized as q
from quantized_kit import opened, packed, same

from octavo.checkpoint import open_checkpoint
from octavo.errors import CheckpointError

STEM = "model.layers.0.mlp.experts"
EXPERTS, HIDDEN, INNER = 3, 96, 64


def layer(seed=0, low=100, high=140):
    """Parts of one layer, and what a model should see of them: name to values."""
    rng = np.random.default_rng(seed)
    parts, want = {}, {}
    for stored, rows, k in (("gate_up_proj", 2 * INNER, HIDDEN), ("down_proj", HIDDEN, INNER)):
        codes = rng.integers(0, 16, (EXPERTS, rows, k))
        scales = rng.integers(low, high, (EXPERTS, rows, k // 32)).astype(np.uint8)
        bias = rng.standard_normal((EXPERTS, rows)).astype(ml_dtypes.bfloat16)
        parts |= q.mxfp4_parts(f"{STEM}.{stored}", codes, scales) | {f"{STEM}.{stored}_bias": bias}
        values, vector = q.mxfp4_values(codes, scales), bias.astype(np.float32)
        for e in range(EXPERTS):
            if stored == "down_proj":
                seen = {"down_proj": np.arange(rows)}
            else:
                even = np.arange(0, rows, 2)
                seen = {"gate_proj": even, "up_proj": even + 1}
            for module, chosen in seen.items():
                want[f"{STEM}.{e}.{module}.weight"] = values[e][chosen]
                want[f"{STEM}.{e}.{module}.bias"] = vector[e][chosen]
    return parts, want


@pytest.mark.parametrize("mmap", [True, False])
def test_every_expert_has_its_rows(tmp_path, mmap):
    parts, want = layer()
    other = {"model.norm.weight": np.ones(4, np.float32)}
    with opened(tmp_path, parts | other, q.MXFP4, mmap=mmap) as checkpoint:
        assert set(checkpoint.tensors) == {*want, *other}
        for name, values in want.items():
            tensor = checkpoint.tensors[name]
            assert tensor.type == ("BF16" if name.endswith("bias") else "MXFP4")
            assert tensor.shape == values.shape
            assert same(tensor.dequantize(), values)
        tensor = checkpoint.tensors[f"{STEM}.2.up_proj.weight"]
        assert same(tensor.dequantize(slice(3, 9)), want[tensor.name][3:9])
        assert checkpoint.nbytes == sum(p.nbytes for p in parts.values()) + 16
        assert len({t.offset for t in checkpoint.tensors.values()}) == 1 + 4 * EXPERTS
        with pytest.raises(TypeError, match=">= 2 axes"):
            checkpoint.tensors[f"{STEM}.2.up_proj.bias"].dequantize(slice(0, 1))


@pytest.mark.core
@pytest.mark.parametrize("low, high", [(0, 8), (100, 140), (240, 253)])
def test_they_are_held_in_bfloat16_exactly(tmp_path, low, high):
    """Over all scales whose products are finite, from subnormal ones to those near the top."""
    parts, want = layer(low=low, high=high)
    names = [n for n in want if n.endswith("weight")]
    with opened(tmp_path, parts, q.MXFP4) as checkpoint:
        formats, arrays, report = packed(checkpoint, *names)
    assert set(formats) == {"bf16"} and report.decoded == []
    for name, got in zip(names, arrays, strict=True):
        held = got["values"].view(ml_dtypes.bfloat16).astype(np.float32)
        assert same(held, want[name])


@pytest.mark.parametrize("scale, code, good", [
    (0, 1, True), (252, 7, True), (253, 5, True), (253, 6, False), (254, 3, True), (254, 4, False),
    (254, 12, False), (255, 0, False), (255, 1, False),
])  # fmt: skip
def test_values_beyond_float32_are_an_error_and_not_an_infinity(tmp_path, scale, code, good):
    parts, want = layer()
    name = f"{STEM}.1.up_proj.weight"
    codes, scales = (parts[f"{STEM}.gate_up_proj_{f}"] for f in ("blocks", "scales"))
    scales[1, 1], codes[1, 1] = scale, code | code << 4
    with opened(tmp_path, parts, q.MXFP4) as checkpoint:
        for other in want:
            if other != name:
                assert same(checkpoint.tensors[other].dequantize(), want[other])
        if good:
            magnitude = [0, 0.5, 1, 1.5, 2, 3, 4, 6][code]
            row = np.full(HIDDEN, magnitude * 2.0 ** (scale - 127)).astype(np.float32)
            assert same(checkpoint.tensors[name].dequantize()[0], row)
            assert same(row.astype(ml_dtypes.bfloat16).astype(np.float32), row)
        else:
            with pytest.raises(CheckpointError, match=rf"1\.up_proj\.weight' is {scale}.*legal: 0"):
                checkpoint.tensors[name].dequantize()


def name_of(part):
    return f"{STEM}.{part}"


@pytest.mark.parametrize("part, value, legal", [
    *[(f"{m}_proj_{f}", None, "gate_up_proj_blocks")
      for m in ("gate_up", "down") for f in ("blocks", "scales", "bias")],
    ("gate_up_proj_blocks", np.zeros((3, 128, 3, 8), np.uint8), "2 * inner"),
    ("gate_up_proj_blocks", np.zeros((3, 130, 3, 16), np.uint8), "multiple of 32"),
    ("gate_up_proj_blocks", np.zeros((0, 128, 3, 16), np.uint8), "experts"),
    ("gate_up_proj_blocks", np.zeros((3, 128, 48), np.uint8), "experts"),
    ("gate_up_proj_blocks", np.zeros((3, 128, 3, 16), np.int8), "U8"),
    ("gate_up_proj_scales", np.zeros((3, 128, 2), np.uint8), "[3, 128, 3]"),
    ("gate_up_proj_bias", np.zeros((3, 64), np.float32), "[3, 128]"),
    ("gate_up_proj_bias", np.zeros((3, 128), np.int64), "F32 or F16 or BF16"),
    ("down_proj_blocks", np.zeros((3, 64, 2, 16), np.uint8), "[3, 96, 2, 16]"),
    ("down_proj_blocks", np.zeros((2, 96, 2, 16), np.uint8), "[3, 96, 2, 16]"),
    ("down_proj_scales", np.zeros((3, 96, 2), np.float32), "U8 of shape [3, 96, 2]"),
    ("down_proj_bias", np.zeros((3, 64), ml_dtypes.bfloat16), "[3, 96]"),
    ("0.up_proj.weight", np.zeros((64, 96), np.float32), "no second form"),
    ("2.down_proj.bias", np.zeros(96, np.float32), "no second form"),
])  # fmt: skip
def test_wrong_parts_are_refused_at_open(tmp_path, part, value, legal):
    parts = layer()[0] | {name_of(part): value}
    with pytest.raises(CheckpointError) as error:
        opened(tmp_path, {n: t for n, t in parts.items() if t is not None}, q.MXFP4)
    text = str(error.value)
    assert STEM in text and "legal:" in text
    assert legal in text.partition("legal:")[2]
    assert name_of(part) in text or part == "gate_up_proj_blocks"


def test_two_layers_share_nothing(tmp_path):
    first, want = layer(0)
    second, more = layer(1)
    parts = first | {n.replace("layers.0", "layers.1"): t for n, t in second.items()}
    opened(tmp_path, parts, q.MXFP4).close()
    with open_checkpoint(tmp_path) as checkpoint:
        assert len(checkpoint.tensors) == 2 * len(want)
        for name, values in more.items():
            tensor = checkpoint.tensors[name.replace("layers.0", "layers.1")]
            assert same(tensor.dequantize(), values)
