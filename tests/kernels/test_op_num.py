"""The scalar conversions and functions that every column reproduces (num.h, op/real64.h)."""

import math

import ml_dtypes
import numpy as np
import pytest
from op_oracle import bits, exp32, floats, fma32, to_bf16

from octavo import _probe


def many_floats():
    r = np.random.default_rng(0)
    edges = np.array([0, 1, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000])
    u = np.concatenate([r.integers(0, 1 << 32, 200_000), edges, edges | 0x80000000])
    return u.astype(np.uint32)


@pytest.mark.parametrize(
    ("name", "dtype"), [("f32_to_bf16", ml_dtypes.bfloat16), ("f32_to_f16", np.float16)]
)
def test_narrowing_rounds_to_nearest_even(name, dtype):
    every = np.arange(1 << 16, dtype=np.uint16).view(dtype).astype(np.float32)
    every = every[np.isfinite(every)]
    upward = np.nextafter(every, np.float32(np.inf))
    middle = ((every.astype(np.float64) + np.roll(every, 1)) / 2).astype(np.float32)
    u = np.concatenate([many_floats(), bits(every), bits(upward), bits(middle)])
    with np.errstate(over="ignore", invalid="ignore"):
        want = floats(u).astype(dtype).view(np.uint16)
    got, nan = _probe.num(name, u), np.isnan(floats(u))
    np.testing.assert_array_equal(got[~nan], want[~nan])
    assert np.isnan(got[nan].astype(np.uint16).view(dtype)).all()


@pytest.mark.parametrize(
    ("name", "dtype", "count"),
    [
        ("bf16_to_f32", ml_dtypes.bfloat16, 1 << 16),
        ("f16_to_f32", np.float16, 1 << 16),
        ("e4m3_to_f32", ml_dtypes.float8_e4m3fn, 1 << 8),
    ],
)
def test_widening_is_exact(name, dtype, count):
    codes = np.arange(count, dtype=np.uint16 if count > 256 else np.uint8)
    want, got = (
        codes.view(dtype).astype(np.float32),
        floats(_probe.num(name, codes.astype(np.uint32))),
    )
    nan = np.isnan(want)
    np.testing.assert_array_equal(bits(got[~nan]), bits(want[~nan]))
    assert np.isnan(got[nan]).all()


def test_e4m3_rounds_to_nearest_even():
    x = np.random.default_rng(1).uniform(-448, 448, 100_000).astype(np.float32)
    x[::2] *= np.float32(2.0**-12)
    every = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    every = np.sort(every[~np.isnan(every)])
    x = np.concatenate([x, every, (every[1:] + every[:-1]) / 2])
    want = x.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    np.testing.assert_array_equal(_probe.num("f32_to_e4m3", bits(x)), want)


def test_bf16_up_is_the_next_bf16_above():
    x = np.abs(np.random.default_rng(2).standard_normal(10_000)).astype(np.float32)
    up = floats(_probe.num("bf16_to_f32", _probe.num("bf16_up", bits(x))))
    assert (up >= x).all()
    below = floats(_probe.num("bf16_to_f32", _probe.num("bf16_up", bits(x)) - 1))
    assert (below < x).all()
    exact = floats(to_bf16(x).astype(np.uint32) << 16)
    np.testing.assert_array_equal(_probe.num("bf16_up", bits(exact)), bits(exact) >> 16)


def test_exp_is_within_one_ulp_and_cut_off():
    x = np.random.default_rng(3).uniform(-87.3, 88.3, 200_000).astype(np.float32)
    want = np.exp(x.astype(np.float64))
    ulp = np.spacing(want.astype(np.float32)).astype(np.float64)
    assert np.max(np.abs(exp32(x) - want) / ulp) < 1.1
    edge = np.array([-87.34, -np.inf, 88.377, np.inf, 0.0, -0.0], np.float32)
    np.testing.assert_array_equal(exp32(edge), [0, 0, np.inf, np.inf, 1, 1])
    assert np.isnan(exp32(np.array([np.nan], np.float32)))[0]


def test_real64_matches_longdouble():
    r = np.random.default_rng(4)
    for x in np.concatenate([r.uniform(-700, 0, 2000), r.uniform(-1, 0, 2000), [0.0, -1e-300]]):
        want = np.exp(np.longdouble(x))
        assert abs(_probe.real64("exp", x) - want) <= 4e-16 * want
    for x in np.concatenate(
        [np.exp2(r.uniform(0, 20, 4000)), 1 + np.exp2(r.uniform(-52, 0, 1000))]
    ):
        want = np.log(np.longdouble(x))
        assert abs(_probe.real64("log", x) - want) <= 1e-15 * want
    assert _probe.real64("exp", -708.5) == 0 and _probe.real64("exp", -math.inf) == 0
    assert math.isnan(_probe.real64("exp", math.nan)) and _probe.real64("log", 1.0) == 0


def test_the_oracle_fma_rounds_once():
    r = np.random.default_rng(5)
    a, b, c = (r.standard_normal(20_000).astype(np.float32) for _ in range(3))
    from fractions import Fraction

    got = fma32(a, b, c)
    for i in range(2000):
        exact = Fraction(float(a[i])) * Fraction(float(b[i])) + Fraction(float(c[i]))
        near = got[i]
        for other in (np.nextafter(near, np.float32(9e9)), np.nextafter(near, np.float32(-9e9))):
            assert abs(Fraction(float(near)) - exact) <= abs(Fraction(float(other)) - exact)
