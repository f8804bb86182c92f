"""Ops of attention: cast, hadamard, rope, scores, mix, softmax, merge."""

import ml_dtypes
import numpy as np
import pytest
from op_oracle import (
    COLUMNS,
    FAST,
    Guarded,
    exp32,
    fma32,
    hadamard,
    hostile,
    need,
    poisoned,
    same,
    splitmix_signs,
    to_bf16,
    tree,
)

from octavo import _probe

WIDTHS = [16, 64, 80, 96, 100, 128, 512, 576]
BLOCKS = {16: (1, 2, 4, 8, 16), 64: (32, 64), 80: (16,), 96: (32,), 100: (4,), 128: (128, 64)}


# --- cast -----------------------------------------------------------------------------------------
def cast(isa, x, kind):
    y = Guarded(x.shape, np.float32 if kind == "f32" else np.uint16)
    bad = Guarded((x.shape[0],), np.int32)
    status = _probe.op_cast(isa, poisoned(x), kind, y.array, bad.array)
    return y.take(), bad.take(), np.array(status)


def cast_cases(n):
    cases = hostile(n, rows=3)
    edge = np.ones((3, n), np.float32)
    edge[0, n // 2] = np.nextafter(np.float32(2.0**56), np.float32(0))  # rounds to 2^56 in bf16
    edge[1, n - 1] = 65519.996
    edge[2, 0] = -65520.0
    return {**cases, "edge": edge, "largest": np.full((3, n), np.float32(255 * 2.0**48))}


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("n", [1, 15, 16, 17, 64, 100])
def test_cast_scalar(n, kind):
    for name, x in cast_cases(n).items():
        y, bad, status = cast("scalar", x, kind)
        with np.errstate(over="ignore", invalid="ignore"):
            if kind == "bf16":
                want, limit = to_bf16(x), 2.0**56
                value = want.view(ml_dtypes.bfloat16).astype(np.float64)
            elif kind == "f16":
                want, limit = x.astype(np.float16).view(np.uint16), np.inf
                value = want.view(np.float16).astype(np.float64)
            else:
                want, limit, value = x, np.inf, x.astype(np.float64)
        known = ~np.isnan(x)
        np.testing.assert_array_equal(y[known], want[known], err_msg=name)
        wrong = ~(np.abs(value) < limit)
        first = np.where(wrong.any(1), wrong.argmax(1), -1)
        np.testing.assert_array_equal(bad, first, err_msg=name)
        assert status == int(wrong.any())


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("isa", FAST)
def test_cast_columns(isa, kind):
    need(isa)
    for n in [1, 7, 15, 16, 17, 31, 32, 33, 64, 100, 576, 1000]:
        for name, x in cast_cases(n).items():
            same(cast(isa, x, kind), cast("scalar", x, kind), (n, name))


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("isa", COLUMNS)
def test_cast_of_every_bit_pattern_class(isa, kind):
    need(isa)
    u = np.random.default_rng(7).integers(0, 1 << 32, (8, 4096), dtype=np.uint32)
    same(cast(isa, u.view(np.float32), kind), cast("scalar", u.view(np.float32), kind))


# --- hadamard -------------------------------------------------------------------------------------
def blocks_of(d):
    return BLOCKS.get(d, (d & -d, 16))


def run_hadamard(isa, x, heads, d, block, signs, inverse, in_place):
    if in_place:
        y = Guarded(x.shape, fill=x)
        _probe.op_hadamard(isa, y.array, heads, d, block, signs, inverse, y.array)
    else:
        y = Guarded(x.shape)
        _probe.op_hadamard(isa, poisoned(x), heads, d, block, signs, inverse, y.array)
    return y.take()


def test_hadamard_signs_are_those_of_formats_md():
    first = [0x9ECC3104737AFA89, 0x365E05B61AC16EE8]
    want = [bool(first[i // 64] >> (i % 64) & 1) for i in range(128)]
    np.testing.assert_array_equal(splitmix_signs(128), want)
    ones = np.ones((1, 576), np.float32)
    got = run_hadamard("scalar", ones, 1, 576, 1, True, False, False)
    np.testing.assert_array_equal(got[0] < 0, splitmix_signs(576))


@pytest.mark.parametrize("d", WIDTHS)
def test_hadamard_scalar(d):
    x = np.random.default_rng(d).standard_normal((2, 3 * d)).astype(np.float32)
    for block in blocks_of(d):
        for signs in (False, True):
            y = run_hadamard("scalar", x, 3, d, block, signs, False, False)
            want = hadamard(x.reshape(2, 3, d), block, signs, False).reshape(2, -1)
            bound = 2.0**-24 * (2 + np.log2(block)) * np.sqrt(block) * 6
            assert np.abs(y - want).max() <= bound
            back = run_hadamard("scalar", y, 3, d, block, signs, True, False)
            assert np.abs(back - x).max() <= 2 * bound


@pytest.mark.parametrize(
    ("block", "bits"),
    [(32, 0x3E3504F3), (128, 0x3DB504F3), (512, 0x3D3504F3), (64, 0x3E000000), (16, 0x3E800000)],
)
def test_hadamard_constants(block, bits):
    x = np.zeros((1, 512), np.float32)
    x[0, 0] = 1
    y = run_hadamard("scalar", x, 1, 512, block, False, False, False)
    assert y.view(np.uint32)[0, block - 1] == bits


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("isa", FAST)
def test_hadamard_columns(isa, in_place):
    need(isa)
    for d in WIDTHS:
        for name, x in hostile(3 * d, d, rows=2).items():
            for block in blocks_of(d):
                for signs, inverse in ((0, 0), (1, 0), (1, 1)):
                    args = (x, 3, d, block, signs, inverse, in_place)
                    same(run_hadamard(isa, *args), run_hadamard("scalar", *args), (d, block, name))


# --- scores and mix -------------------------------------------------------------------------------
def attention_case(nq, d, visible, seed=0):
    r = np.random.default_rng(seed)
    q = r.standard_normal((nq, d)).astype(np.float32)
    x = r.standard_normal((64, d)).astype(np.float32)
    p = r.uniform(0, 1, (nq, 64)).astype(np.float32)
    scale = r.uniform(0.5, 2, 64).astype(np.float32)
    visible = np.asarray(visible, np.int32)
    top = int(visible.max(initial=0))
    x[top:] = np.nan  # never decoded
    p[np.arange(64) >= visible[:, None]] = np.nan
    return q, x, p, scale, visible


def visibles(nq, seed=0):
    r = np.random.default_rng(seed)
    yield np.full(nq, 64)
    yield np.zeros(nq)
    yield np.full(nq, 17)
    yield np.minimum(64, 30 + np.arange(nq) // 3)
    yield r.integers(0, 65, nq)


def run_scores(isa, q, x, scale, visible):
    s = Guarded((len(q), 64))
    kt = Guarded((q.shape[1] * 64,), fill=np.ascontiguousarray(x.T).ravel())
    _probe.op_scores_f32(isa, poisoned(q), kt.array, scale, visible, s.array)
    return s.take()


def run_mix(isa, p, v, scale, visible, o):
    out = Guarded(o.shape, fill=o)
    rows = Guarded(v.shape, fill=v, pad=0)
    _probe.op_mix_f32(isa, poisoned(p), rows.array, scale, visible, out.array)
    return out.take()


def test_scores_scalar():
    for d in (16, 64, 100):
        for visible in visibles(5):
            q, x, _, scale, visible = attention_case(5, d, visible)
            for sc in (None, scale):
                s = np.zeros((5, 64), np.float32)
                for c in range(d):
                    s = fma32(q[:, c : c + 1], x[None, :, c], s)
                s = s if sc is None else s * sc
                s[np.arange(64) >= visible[:, None]] = -np.inf
                same(run_scores("scalar", q, x, sc, visible), s)


def test_mix_scalar():
    for d in (16, 64, 100):
        for visible in visibles(5):
            o, v, p, scale, visible = attention_case(5, d, visible)
            for sc in (None, scale):
                w, want = p if sc is None else p * sc, o.copy()
                for i, end in enumerate(visible):
                    for t in range(end):
                        want[i] = fma32(w[i, t], v[t], want[i])
                same(run_mix("scalar", p, v, sc, visible, o), want)


@pytest.mark.parametrize("nq", [1, 2, 3, 5, 6, 7, 9, 13, 64])
@pytest.mark.parametrize("isa", FAST)
def test_scores_and_mix_columns(isa, nq):
    need(isa)
    for d in (1, 16, 17, 64, 80, 128, 576):
        for k, visible in enumerate(visibles(nq)):
            q, x, p, scale, visible = attention_case(nq, d, visible, seed=nq)
            for sc in (None, scale):
                args = (q, x, sc, visible)
                same(run_scores(isa, *args), run_scores("scalar", *args), (d, k))
                args = (p, x, sc, visible, q)
                same(run_mix(isa, *args), run_mix("scalar", *args), (d, k))


@pytest.mark.parametrize("isa", COLUMNS)
def test_scores_and_mix_depend_on_their_own_query_alone(isa):
    """Law two: a query gives the same bits alone, in any company and by any slicing."""
    need(isa)
    r = np.random.default_rng(3)
    q, x, p, _, visible = attention_case(9, 64, r.integers(0, 65, 9))
    whole, mixed = run_scores(isa, q, x, None, visible), run_mix(isa, p, x, None, visible, q)
    s, o = Guarded((9, 64)), Guarded(q.shape, fill=q)
    kt = np.ascontiguousarray(x.T)
    for lo, hi in ((0, 2), (2, 9)):
        _probe.op_scores_f32(isa, q, kt, None, visible, s.array, lo, hi)
        _probe.op_mix_f32(isa, p, x, None, visible, o.array, lo, hi)
    same(s.take(), whole)
    same(o.take(), mixed)
    for i in range(9):
        one = slice(i, i + 1)
        same(run_scores(isa, q[one], x, None, visible[one]), whole[one])
        same(run_mix(isa, p[one], x, None, visible[one], q[one]), mixed[one])


# --- softmax and merge ----------------------------------------------------------------------------
def run_softmax(isa, x):
    s, m, total = Guarded(x.shape, fill=x), Guarded((len(x),)), Guarded((len(x),))
    _probe.op_softmax(isa, s.array, m.array, total.array)
    return s.take(), m.take(), total.take()


@pytest.mark.parametrize("n", [16, 64, 256])
def test_softmax_scalar(n):
    for name, x in hostile(n, n, rows=3).items():
        p, m, total = run_softmax("scalar", x)
        for i, row in enumerate(x):
            if np.isnan(row).any():
                assert np.isnan(m[i]) and np.isnan(total[i])
                continue
            assert m[i] == row.max() and not (m[i] == 0 and np.signbit(m[i]))
            with np.errstate(invalid="ignore"):
                want = exp32(row - m[i]) if m[i] > -np.inf else np.zeros(n, np.float32)
            same(p[i], want, name)
            same(total[i : i + 1], np.array([tree(want)]), name)


@pytest.mark.parametrize("isa", FAST)
def test_softmax_columns(isa):
    need(isa)
    for n in (16, 32, 48, 64, 256, 1024):
        for name, x in hostile(n, n, rows=3).items():
            half = x.copy()
            half[:, n // 3 :] = -np.inf
            same(run_softmax(isa, x), run_softmax("scalar", x), (n, name))
            same(run_softmax(isa, half), run_softmax("scalar", half), (n, name))


def merge_case(rows, d, seed=0):
    r = np.random.default_rng(seed)
    o, o2 = (r.standard_normal((rows, d)).astype(np.float32) for _ in range(2))
    m, m2 = ((r.standard_normal(rows) * 20).astype(np.float32) for _ in range(2))
    s, s2 = (r.uniform(1, 256, rows).astype(np.float32) for _ in range(2))
    m[::4] = -np.inf
    m2[::3] = -np.inf
    m2[1::5] = m[1::5]
    o[m == -np.inf], s[m == -np.inf] = 0, 0
    return o, m, s, o2, m2, s2


def run_merge(isa, o, m, s, o2, m2, s2):
    out, top, total = Guarded(o.shape, fill=o), Guarded(m.shape, fill=m), Guarded(s.shape, fill=s)
    _probe.op_merge(isa, out.array, top.array, total.array, poisoned(o2), m2, s2)
    return out.take(), top.take(), total.take()


def test_merge_scalar():
    o, m, s, o2, m2, s2 = merge_case(40, 64)
    got_o, got_m, got_s = run_merge("scalar", o, m, s, o2, m2, s2)
    top = np.maximum(m, m2)
    dead = top == -np.inf
    assert dead.any()
    with np.errstate(invalid="ignore"):
        a, b = exp32(m - top), exp32(m2 - top)
    same(got_m, top)
    same(got_s, np.where(dead, s, fma32(s2, b, s * a)))
    same(got_o, np.where(dead[:, None], o, fma32(o2, b[:, None], o * a[:, None])))


def test_merge_keeps_nan():
    o, m, s, o2, m2, s2 = merge_case(2, 16, seed=1)
    m[0], m2[1] = np.nan, np.nan
    for value in run_merge("scalar", o, m, s, o2, m2, s2):
        assert np.isnan(value).all()


@pytest.mark.parametrize("isa", FAST)
def test_merge_columns(isa):
    need(isa)
    for d in (1, 15, 16, 17, 64, 100, 512):
        case = merge_case(30, d, d)
        same(run_merge(isa, *case), run_merge("scalar", *case), d)
