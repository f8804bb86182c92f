"""RTN: nearest codes for the stored scale, error bounds of each grid, and packing keeps them."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import octavo
from octavo.quant import rtn

GRIDS = [("w8", None), ("w8g32", None), ("q4g32", None), ("q4g32", 7), ("q4g32", "ggml"),
         ("q4g32z", None), ("q4g32m", None)]  # fmt: skip


def matrix(n=5, k=96, seed=0, scale=1.0):
    return (np.random.default_rng(seed).standard_normal((n, k)) * scale).astype(np.float32)


@pytest.mark.parametrize(("fmt", "grid"), GRIDS)
def test_codes_are_the_nearest_for_the_stored_scale(fmt, grid):
    """No other code of the grid would come closer: checked by trying them all."""
    w = matrix()
    q = rtn.quantize(w, fmt, grid)
    legal = range(-127, 128) if fmt in ("w8", "w8g32") else range(1 if grid == 7 else 0, 16)
    error = np.abs(q.values() - w)
    for code in legal:
        other = rtn.Quantized(fmt, np.full_like(q.codes, code), q.scales, q.zeros, q.mins,
                              q.scale_type)  # fmt: skip
        assert (error <= np.abs(other.values() - w) + 1e-6).all(), code


@pytest.mark.parametrize(
    ("fmt", "steps"), [("w8", 127), ("w8g32", 127), ("q4g32m", 15), ("q4g32z", 15)]
)
def test_error_is_half_a_step(fmt, steps):
    w = matrix(seed=1)
    q = rtn.quantize(w, fmt)
    step = np.repeat(q.scales.astype(np.float32), 96 // q.scales.shape[1], axis=1)
    slack = 1.0 if fmt == "q4g32z" else 0.5  # a rounded zero point may clip half a step more
    assert (np.abs(q.values() - w) <= step * slack * 1.01 + 1e-6).all()
    assert (step.reshape(5, 3, 32)[..., 0] > 0).all() and steps


def test_grids_of_q4g32():
    w = np.zeros((1, 32), np.float32)
    w[0, :2] = [7.5, -3.0]
    assert rtn.quantize(w, "q4g32").scales[0, 0] == 1.0
    assert rtn.quantize(w, "q4g32").codes[0, :3].tolist() == [15, 5, 8]
    assert rtn.quantize(w * 7 / 7.5, "q4g32", 7).codes[0, 0] == 15
    ggml = rtn.quantize(w, "q4g32", "ggml")
    assert (float(ggml.scales[0, 0]), ggml.codes[0, 0]) == (-0.9375, 0)
    assert ggml.values()[0, 0] == 7.5


def test_groups_of_zeros():
    for fmt, grid in GRIDS:
        q = rtn.quantize(np.zeros((2, 64), np.float32), fmt, grid)
        assert not q.values().any() and not q.scales.astype(np.float32).any()


def test_scales_leave_f16_only_where_they_must():
    assert rtn.quantize(matrix(), "q4g32").scales.dtype == np.float16
    for scale in (1e-6, 1e6):
        q = rtn.quantize(matrix(scale=scale), "q4g32")
        assert q.scales.dtype == ml_dtypes.bfloat16 and q.scale_type == "bf16"
        np.testing.assert_allclose(q.values(), matrix(scale=scale), atol=scale * 0.35)


@pytest.mark.parametrize(("bad", "text"), [
    (np.full((2, 32), np.nan, np.float32), r"w\[0, 0\]"), (np.zeros(3, np.float32), "shape"),
    (np.zeros((0, 32), np.float32), "shape"), (np.zeros((2, 33), np.float32), "multiple of 32"),
])  # fmt: skip
def test_refusals(bad, text):
    with pytest.raises(ValueError, match=text):
        rtn.quantize(bad, "q4g32")
    with pytest.raises(ValueError, match="legal: w8, w8g32"):
        rtn.quantize(matrix(), "q3g32")


def test_one_scale_a_row_takes_any_length():
    w = matrix(5, 45)
    w[2] = 0
    q = rtn.quantize(w, "w8")
    np.testing.assert_array_equal(q.scales[:, 0], np.abs(w).max(axis=1) / np.float32(127))
    linear = octavo.Linear(w, weights="w8", act="a8", threads=1)
    held = linear.unpack()
    assert held["codes"].dtype == np.int8 and held["scales"].dtype == np.float32
    np.testing.assert_array_equal(held["codes"], q.codes)
    np.testing.assert_array_equal(held["scales"], q.scales)
    np.testing.assert_array_equal(linear.dequantize(), q.values())


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(1, 4), st.sampled_from(GRIDS), st.integers(0, 99))
def test_packing_keeps_codes_and_values(n, groups, case, seed):
    fmt, grid = case
    w = matrix(n, 32 * groups, seed)
    q = rtn.quantize(w, fmt, grid)
    linear = octavo.Linear(w, octavo.WeightScheme(fmt, grid=grid))
    np.testing.assert_array_equal(linear.dequantize(), q.values())
    np.testing.assert_array_equal(linear.unpack()["codes"], q.codes)
