"""FP8 in blocks of 128 x 128: values against plain NumPy, ragged edges, and what is refused."""

import ml_dtypes
import numpy as np
import pytest
from oracle import quantized as q
from quantized_kit import opened, packed, same

from octavo.errors import CheckpointError, UnsupportedError

MODULE = "model.layers.0.self_attn.kv_a_proj_with_mqa"
WEIGHT, SCALE = f"{MODULE}.weight", f"{MODULE}.weight_scale_inv"


def matrix(n, k, dtype=np.float32):
    """Every byte but the two NaNs, and scales that differ from block to block, one of them 0."""
    rng = np.random.default_rng(n + k)
    codes = rng.integers(0, 256, (n, k)).astype(np.uint8)
    codes[codes & 127 == 127] = 1
    scales = (rng.standard_normal((-(-n // 128), -(-k // 128))) * 1e-4).astype(dtype)
    scales[-1, 0] = 0
    scales[0, 0] = 3e-39 if dtype == np.float32 else scales[0, 0]  # subnormal
    return codes, scales


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (576, 256), (128, 128), (129, 300), (300, 1000)])
def test_values_are_codes_times_the_scale_of_their_block(tmp_path, shape, dtype, mmap):
    codes, scales = matrix(*shape, dtype)
    want = q.fp8_values(codes, scales)
    parts = q.fp8_parts(MODULE, codes, scales) | {"model.norm.weight": np.ones(4, np.float32)}
    with opened(tmp_path, parts, q.FP8, mmap=mmap) as checkpoint:
        assert set(checkpoint.tensors) == {WEIGHT, "model.norm.weight"}
        tensor = checkpoint.tensors[WEIGHT]
        assert (tensor.type, tensor.shape) == ("FP8_BLOCK", shape)
        assert tensor.nbytes == codes.nbytes + scales.nbytes
        assert same(tensor.dequantize(), want)
        for rows in (slice(0, 1), slice(100, 140), slice(-1, None)):
            assert same(tensor.dequantize(rows), want[rows])


def test_the_two_nans_stay_nan(tmp_path):
    codes = np.array([[0x7F, 0xFF, 0x7E, 0xFE]], np.uint8)
    parts = q.fp8_parts(MODULE, codes, np.array([[0.5]], np.float32))
    with opened(tmp_path, parts, q.FP8) as checkpoint:
        got = checkpoint.tensors[WEIGHT].dequantize()
    np.testing.assert_array_equal(got, [[np.nan, np.nan, 224, -224]])


@pytest.mark.core
def test_they_are_held_as_the_same_floats(tmp_path):
    codes, scales = matrix(130, 200)
    with opened(tmp_path, q.fp8_parts(MODULE, codes, scales), q.FP8) as checkpoint:
        formats, (got,), report = packed(checkpoint, WEIGHT)
    assert formats == ["f32"] and report.decoded == ["FP8_BLOCK"]
    assert same(got["values"], q.fp8_values(codes, scales))


@pytest.mark.parametrize("field, value", [
    ("weight_block_size", None), ("weight_block_size", [64, 128]), ("weight_block_size", 128),
    ("fmt", "e5m2"), ("activation_scheme", "static"),
])  # fmt: skip
def test_other_settings_are_refused_by_field_and_value(tmp_path, field, value):
    with pytest.raises(UnsupportedError) as error:
        opened(tmp_path, q.fp8_parts(MODULE, *matrix(4, 4)), q.FP8 | {field: value})
    assert f"{field} is {value!r}" in str(error.value)


def test_a_scale_format_changes_nothing(tmp_path):
    codes, scales = matrix(4, 4)
    parts = q.fp8_parts(MODULE, codes, scales)
    with opened(tmp_path, parts, q.FP8 | {"scale_fmt": "ue8m0"}) as checkpoint:
        assert same(checkpoint.tensors[WEIGHT].dequantize(), q.fp8_values(codes, scales))


@pytest.mark.parametrize("change, named, legal", [
    ({SCALE: None}, SCALE, f"one beside '{WEIGHT}'"),
    ({WEIGHT: None}, SCALE, f"'{WEIGHT}', which is missing"),
    ({SCALE: np.ones((2, 2), np.float32)}, SCALE, r"F32 or BF16 of shape \[3, 2\]"),
    ({SCALE: np.ones((2, 3), np.float32)}, SCALE, r"F32 or BF16 of shape \[3, 2\]"),
    ({SCALE: np.ones(6, np.float32)}, SCALE, r"F32 or BF16 of shape \[3, 2\]"),
    ({SCALE: np.ones((3, 2), np.float64)}, SCALE, "F32 or BF16"),
    ({WEIGHT: np.ones((300, 200), np.float32)}, WEIGHT, "F8_E4M3"),
    ({WEIGHT: np.ones((300, 200), ml_dtypes.float8_e5m2)}, WEIGHT, "F8_E4M3"),
    ({WEIGHT: np.ones(300, ml_dtypes.float8_e4m3fn)}, WEIGHT, r"shape \[n, k\]"),
    ({WEIGHT: np.ones((0, 200), ml_dtypes.float8_e4m3fn)}, WEIGHT, r"shape \[n, k\]"),
])  # fmt: skip
def test_wrong_parts_are_refused_at_open(tmp_path, change, named, legal):
    parts = q.fp8_parts(MODULE, *matrix(300, 200)) | change
    with pytest.raises(CheckpointError, match=f"{named}.*legal: .*{legal}"):
        opened(tmp_path, {n: t for n, t in parts.items() if t is not None}, q.FP8)
