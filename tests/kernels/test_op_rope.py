"""Rotary embedding: the rotation, and the table of its angles against exact sines and cosines."""

from fractions import Fraction

import numpy as np
import pytest
from op_oracle import FAST, Guarded, fma32, need, same

from octavo import _probe


def run_rope(isa, x, heads, d, half_split, cs):
    y = Guarded(x.shape, fill=x)
    _probe.op_rope(isa, y.array, heads, d, half_split, cs)
    return y.take()


def rope_case(heads, d, rows=3):
    r = np.random.default_rng(d)
    x = r.standard_normal((rows, heads * d)).astype(np.float32)
    angle = r.uniform(0, 7, (rows, d // 2))
    return x, np.stack([np.cos(angle), np.sin(angle)], -1).reshape(rows, d).astype(np.float32)


@pytest.mark.parametrize("half_split", [False, True])
@pytest.mark.parametrize("d", [2, 16, 64, 100])
def test_rope_scalar(d, half_split):
    x, cs = rope_case(4, d)
    y = run_rope("scalar", x, 4, d, half_split, cs)
    h = x.reshape(3, 4, d)
    if half_split:
        a, b = h[..., : d // 2], h[..., d // 2 :]
    else:
        a, b = h[..., ::2], h[..., 1::2]
    c, s = cs[:, None, ::2], cs[:, None, 1::2]
    u, v = fma32(a, c, -(b * s)), fma32(b, c, a * s)
    want = np.concatenate([u, v], -1) if half_split else np.stack([u, v], -1)
    same(y, want.reshape(x.shape))


@pytest.mark.parametrize("half_split", [False, True])
@pytest.mark.parametrize("isa", FAST)
def test_rope_columns(isa, half_split):
    need(isa)
    for d in [2, 6, 16, 30, 32, 34, 64, 96, 100, 128, 576]:
        x, cs = rope_case(3, d)
        args = (x, 3, d, half_split, np.ascontiguousarray(cs))
        same(run_rope(isa, *args), run_rope("scalar", *args), d)


def run_table(isa, pos, freq, mscale=1.0):
    cs = np.full((len(pos) + 1, 2 * len(freq)), 7, np.float32)
    _probe.op_rope_table(isa, pos, freq, mscale, cs[:-1])
    assert (cs[-1] == 7).all()
    return cs[:-1]


def exact_sincos(angle):
    """sin and cos of a float64 angle to about 2^-63, by longdouble after an exact reduction."""
    pi = Fraction(
        int("3243F6A8885A308D313198A2E03707344A4093822299F31D0082EFA98EC4E6C89", 16), 16**64
    )
    n = round(Fraction(angle) / (pi / 2))
    r = Fraction(angle) - n * pi / 2
    hi = float(r)
    r = np.longdouble(hi) + np.longdouble(float(r - Fraction(hi)))
    s, c = np.sin(r), np.cos(r)
    return [(s, c), (c, -s), (-s, -c), (-c, s)][n % 4]


@pytest.mark.parametrize("theta", [1e4, 1e6])
def test_rope_table_scalar(theta):
    """Within 0.500001 ulp of the true sine and cosine of the float64 product."""
    r = np.random.default_rng(1)
    pos = np.concatenate([[0, 1, 2, 2**24 - 1, 2**24, 355, 710], r.integers(0, 2**24, 120)])
    freq = theta ** -(np.arange(0, 64, 2) / 64)
    got = run_table("scalar", pos, freq)
    wrong, worst = 0, 0.0
    for i, p in enumerate(pos):
        for j, f in enumerate(freq):
            s, c = exact_sincos(float(p) * float(f))
            for value, want in ((got[i, 2 * j], c), (got[i, 2 * j + 1], s)):
                near = np.float32(want)
                wrong += near != value
                worst = max(worst, abs(value - want) / np.spacing(np.abs(near)))
    assert wrong == 0 and worst <= 0.500001


def test_rope_table_scales_and_takes_negative_positions():
    freq = np.array([1.0, 0.25, 1e-3])
    a, b = run_table("scalar", np.array([5]), freq), run_table("scalar", np.array([-5]), freq)
    np.testing.assert_array_equal(a[:, ::2], b[:, ::2])
    np.testing.assert_array_equal(a[:, 1::2], -b[:, 1::2])
    scaled = run_table("scalar", np.array([5]), freq, 1.3)
    np.testing.assert_array_equal(scaled, a * np.float32(1.3))


@pytest.mark.parametrize("isa", FAST)
def test_rope_table_columns(isa):
    need(isa)
    pos = np.random.default_rng(0).integers(0, 2**24, 50)
    for half in (1, 3, 8, 32, 50):
        freq = 1e4 ** -(np.arange(half) / half)
        same(run_table(isa, pos, freq, 1.1), run_table("scalar", pos, freq, 1.1), half)
