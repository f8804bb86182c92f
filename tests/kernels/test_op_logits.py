"""Ops on rows of activations and logits: rmsnorm, gates, argmax, lse, topk, kl, sample."""

import math

import numpy as np
import pytest
from op_oracle import (
    COLUMNS,
    FAST,
    SIZES,
    Guarded,
    exp32,
    fma32,
    hostile,
    kl,
    need,
    poisoned,
    same,
    sample,
    topk_order,
    tree,
)

from octavo import _probe

VOCAB = 49152


# --- rmsnorm and gates ----------------------------------------------------------------------------
def run_rmsnorm(isa, x, k, w, eps, in_place=False):
    y = Guarded(x.shape, fill=x if in_place else None)
    x = y.array if in_place else poisoned(x)
    _probe.op_rmsnorm(isa, x, k, x.shape[1] // k, poisoned(w)[0], eps, y.array)
    return y.take()


def test_rmsnorm_scalar():
    for k in SIZES:
        w = np.random.default_rng(k).standard_normal(k).astype(np.float32)
        for name in ("normal", "ties", "mixed", "zeros", "denormal"):
            x = hostile(2 * k, k, rows=3)[name]
            y = run_rmsnorm("scalar", x, k, w, 1e-5)
            h = x.reshape(3, 2, k).astype(np.float64)
            want = h / np.sqrt((h * h).mean(-1, keepdims=True) + np.float32(1e-5)) * w
            err = np.abs(y - want.reshape(y.shape))
            # the sum errs by at most (k / 16 + 5) roundings, halved by the root; five more follow
            bound = 2.0**-24 * ((k / 16 + 5) / 2 + 5)
            assert (err <= bound * np.abs(want.reshape(y.shape)) + 2e-45).all(), (k, name)


def test_rmsnorm_scalar_sums_in_the_shape_of_num_h():
    x = hostile(576)["normal"][0]
    acc = np.zeros(16, np.float32)
    for i in range(0, 576, 16):
        acc = fma32(x[i : i + 16], x[i : i + 16], acc)
    r = np.float32(1) / np.sqrt(tree(acc) / np.float32(576) + np.float32(1e-5))
    w = np.linspace(0.5, 2, 576, dtype=np.float32)
    same(run_rmsnorm("scalar", x[None], 576, w, 1e-5)[0], (x * r) * w)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("isa", FAST)
def test_rmsnorm_columns(isa, in_place):
    need(isa)
    for k in [*SIZES, 33, 128, 4097]:
        w = np.random.default_rng(k).standard_normal(k).astype(np.float32)
        for name, x in hostile(2 * k, k, rows=2).items():
            args = (x, k, w, 1e-6, in_place)
            same(run_rmsnorm(isa, *args), run_rmsnorm("scalar", *args), (k, name))


GATES = ["swiglu", "geglu", "clamped_swiglu"]


def run_gate(op, isa, g, u, in_place=False):
    y = Guarded(g.shape, fill=g)
    g = y.array if in_place else poisoned(g)
    getattr(_probe, f"op_{op}")(isa, g, poisoned(u), y.array)
    return y.take()


def run_swiglu(isa, g, u, in_place=False):
    return run_gate("swiglu", isa, g, u, in_place)


def test_swiglu_scalar():
    x = hostile(1000, 1, rows=3)
    for name, g in x.items():
        u, g = x["normal"], (g * np.float32(10)).astype(np.float32)
        y = run_swiglu("scalar", g, u)
        with np.errstate(all="ignore"):
            same(y, (g / (np.float32(1) + exp32(-g))) * u, name)
            want = g.astype(np.float64) / (1 + np.exp(-g.astype(np.float64))) * u
        fine = np.isfinite(want) & (g > -80)
        err = np.abs(y[fine] - want[fine])
        assert (err <= 4 * 2.0**-24 * np.abs(want[fine]) + 2e-45).all(), name


def test_geglu_scalar():
    """Its steps, and gelu with a real tanh in float64 within the bound of kernels.h."""
    x = hostile(1000, 1, rows=3)
    c1, c2 = np.float32(1.5957691216057308), np.float32(0.07135481282553995)
    for name, g in x.items():
        u, g = x["normal"], (g * np.float32(3)).astype(np.float32)
        y = run_gate("geglu", "scalar", g, u)
        with np.errstate(all="ignore"):
            z = g * fma32(c2, g * g, c1)
            same(y, (g / (np.float32(1) + exp32(-z))) * u, name)
            g64 = g.astype(np.float64)
            inner = np.sqrt(2 / np.pi) * (g64 + 0.044715 * g64**3)
            # 1 + tanh cancels far below 0: there tanh(x) + 1 = 2 / (1 + exp(-2 x)).
            cdf = np.where(inner > -5, (1 + np.tanh(inner)) / 2, 1 / (1 + np.exp(-2 * inner)))
            want = g64 * cdf * u
        fine = np.isfinite(want) & (inner > -40)
        bound = (8 + 3 * np.abs(2 * inner[fine])) * 2.0**-24 * np.abs(want[fine]) + 2e-45
        assert (np.abs(y[fine] - want[fine]) <= bound).all(), name


def test_gelu_by_its_published_values():
    """Of the tanh form at a few points, to six decimals; and its limits."""
    g = np.array([[-3, -1, -0.5, 0, 0.5, 1, 3, -100, 100]], np.float32)
    want = [-0.003637, -0.158808, -0.154286, 0, 0.345714, 0.841192, 2.996363, 0, 100]
    y = run_gate("geglu", "scalar", g, np.ones_like(g))
    np.testing.assert_allclose(y[0], want, atol=1e-6)


def test_clamped_swiglu_scalar():
    x = hostile(1000, 1, rows=3)
    for name, g in x.items():
        for u in (x["steep"], x["ties"], x["special"]):
            g = (g * np.float32(4)).astype(np.float32)
            y = run_gate("clamped_swiglu", "scalar", g, u)
            with np.errstate(all="ignore"):
                gate, up = np.minimum(g, np.float32(7)), np.clip(u, np.float32(-7), np.float32(7))
                slope = np.float32(-1.702) * gate
                want = (gate / (np.float32(1) + exp32(slope))) * (up + np.float32(1))
                same(y, want, name)
                exact = gate.astype(np.float64)
                exact = exact / (1 + np.exp(-1.702 * exact)) * (up.astype(np.float64) + 1)
            fine = np.isfinite(exact) & (gate > -40)
            bound = (8 + 3 * np.abs(gate[fine])) * 2.0**-24 * np.abs(exact[fine]) + 2e-45
            # u + 1 is rounded to a float32, which shows where u is next to -1.
            bound += np.abs(gate[fine]) * 2.0**-23
            assert (np.abs(y[fine] - exact[fine]) <= bound).all(), name


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("isa", FAST)
@pytest.mark.parametrize("op", GATES)
def test_gate_columns(op, isa, in_place):
    need(isa)
    for k in SIZES:
        cases = hostile(k, k, rows=2)
        for name, g in cases.items():
            for scale in (1, 30):
                for u in (cases["normal"], cases["steep"], cases["nan"]):
                    args = (g * np.float32(scale), u, in_place)
                    same(run_gate(op, isa, *args), run_gate(op, "scalar", *args), (k, name))


@pytest.mark.parametrize("isa", FAST)
@pytest.mark.parametrize("op", GATES)
def test_gate_columns_over_all_exponents(op, isa):
    need(isa)
    g = np.random.default_rng(2).integers(0, 2**32, (1, 200_000), np.uint32).view(np.float32)
    u = np.roll(g, 1)
    same(run_gate(op, isa, g, u), run_gate(op, "scalar", g, u))


@pytest.mark.parametrize("isa", FAST)
def test_exp_columns_over_its_range_and_cuts(isa):
    """softmax around a maximum of 0 shows exp(x) for x <= 0, swiglu the overflow of exp(-g)."""
    need(isa)
    r = np.random.default_rng(0)
    x = np.concatenate([r.uniform(-90, 0, 200_000), r.uniform(-87.3367, -87.3363, 5000)])
    u = np.arange(-2000, 2000) + int(np.float32(-87.3365478515625).view(np.int32))
    x = np.concatenate([x.astype(np.float32), u.astype(np.int32).view(np.float32), [0]])
    x = np.resize(x, -(-len(x) // 16) * 16).astype(np.float32)[None]
    got, want = x.copy(), x.copy()
    for column, p in ((isa, got), ("scalar", want)):
        _probe.op_softmax(column, p, np.empty(1, np.float32), np.empty(1, np.float32))
    same(got, want)
    same(want, exp32(x))
    edge = int(np.float32(-88.3762588500976562).view(np.int32))
    g = (np.arange(-2000, 2000) + edge).astype(np.int32).view(np.float32)[None]
    ones = np.ones_like(g)
    same(run_swiglu(isa, g, ones), run_swiglu("scalar", g, ones))
    assert (run_swiglu(isa, g, ones) == 0).any() and (run_swiglu(isa, g, ones) != 0).any()


# --- argmax, lse, topk ----------------------------------------------------------------------------
def run_argmax(isa, x):
    index = Guarded((len(x),), np.int32)
    _probe.op_argmax(isa, poisoned(x, np.inf), index.array)
    return index.take()


def run_lse(isa, x):
    lse = Guarded((len(x),))
    status = _probe.op_lse(isa, poisoned(x), lse.array)
    return lse.take(), np.array(status)


def logit_cases(n, seed=0):
    cases = hostile(n, seed, rows=2)
    cases["all nan"] = np.full((2, n), np.nan, np.float32)
    cases["nan or -inf"] = np.where(np.arange(n) % 2, np.nan, -np.inf).astype(np.float32)[None]
    cases["last"] = np.where(np.arange(n) == n - 1, 5, -np.inf).astype(np.float32)[None]
    cases["rising"] = np.arange(n, dtype=np.float32)[None]
    return cases


def test_argmax_scalar():
    for n in SIZES:
        for name, x in logit_cases(n).items():
            for row, got in zip(x, run_argmax("scalar", x), strict=True):
                known = np.flatnonzero(~np.isnan(row))
                want = known[row[known] == row[known].max()][0] if len(known) else -1
                assert got == want, (n, name)


@pytest.mark.parametrize("isa", FAST)
def test_argmax_columns(isa):
    need(isa)
    for n in [*SIZES, 31, 33, VOCAB]:
        for name, x in logit_cases(n).items():
            same(run_argmax(isa, x), run_argmax("scalar", x), (n, name))


def test_lse_scalar():
    for n in [*SIZES, VOCAB]:
        for name, x in logit_cases(n).items():
            got, status = run_lse("scalar", x)
            for i, row in enumerate(x):
                if np.isnan(row).any() or (row == np.inf).any():
                    assert np.isnan(got[i]) and status == 1, (n, name)
                elif (row == -np.inf).all():
                    assert got[i] == -np.inf and status == 0, (n, name)
                else:
                    row = row.astype(np.longdouble)
                    want = row.max() + np.log(np.exp(row - row.max()).sum())
                    # n/16 roundings in an accumulator, one of the result; exp to 1.1 ulp
                    bound = 2.0**-24 * (n / 16 + 8 + abs(want))
                    assert abs(got[i] - want) <= bound and status == 0, (n, name)


def test_lse_of_one_logit_is_that_logit():
    x = np.array([[-3.25], [1e30]], np.float32)
    same(run_lse("scalar", x)[0], x[:, 0])


@pytest.mark.parametrize("isa", FAST)
def test_lse_columns(isa):
    need(isa)
    for n in [*SIZES, VOCAB]:
        for name, x in logit_cases(n).items():
            same(run_lse(isa, x), run_lse("scalar", x), (n, name))


def run_topk(isa, x, count):
    index, value = Guarded((len(x), count), np.int32, pad=0), Guarded((len(x), count), pad=0)
    _probe.op_topk(isa, poisoned(x, np.inf), index.array, value.array)
    return index.take(), value.take()


@pytest.mark.parametrize("isa", COLUMNS)
def test_topk(isa):
    need(isa)
    for n in [*SIZES, VOCAB]:
        for name, x in logit_cases(n).items():
            for count in {1, min(n, 5), min(n, 64), min(n, 1000)}:
                index, value = run_topk(isa, x, count)
                for i, row in enumerate(x):
                    want = topk_order(row)[:count].astype(np.int32)
                    np.testing.assert_array_equal(index[i], want, err_msg=f"{n} {count} {name}")
                    same(value[i], row[want])


# --- kl -------------------------------------------------------------------------------------------
def run_kl(isa, x, y):
    out = Guarded((len(x),), np.float64)
    store = np.full((2, len(x), x.shape[1] + 3), np.nan, np.float32)
    store[0, :, 1:-2], store[1, :, 1:-2] = x, y
    status = _probe.op_kl(isa, store[0, :, 1:-2], store[1, :, 1:-2], out.array)
    return out.take(), np.array(status)


def kl_cases(n):
    x = hostile(n, n, rows=2)
    r = np.random.default_rng(n)
    near = (x["normal"] * 5 + r.standard_normal((2, n)) * 1e-3).astype(np.float32)
    less = (x["normal"] * 5).astype(np.float32)
    less[:, : n // 2] = -np.inf
    return {
        "near": (x["normal"] * np.float32(5), near),
        "far": (x["steep"], x["normal"]),
        "wide": (x["wide"], x["steep"]),
        "base lacks": (less, x["normal"]),
        "both lack": (less, less[::-1].copy()),
    }


def test_kl_scalar():
    for n in [*SIZES, VOCAB]:
        for name, (x, y) in kl_cases(n).items():
            got, status = run_kl("scalar", x, y)
            for i in range(2):
                want = kl(x[i], y[i])
                bound = 1e-13 * (1 + abs(want)) * (1 + np.abs(x[i][x[i] > -np.inf]).max())
                assert got[i] == want or abs(got[i] - want) <= bound, (n, name, got[i], want)
            assert status == 0
            assert (run_kl("scalar", x, x)[0] == 0).all(), "equal rows"


@pytest.mark.parametrize("isa", COLUMNS)
def test_kl_of_special_rows(isa):
    need(isa)
    x = hostile(100, rows=2)
    less = x["normal"].copy()
    less[0, 4] = -np.inf
    value, status = run_kl(isa, x["normal"], less)
    assert value[0] == math.inf and np.isfinite(value[1]) and status == 0
    for bad in ("nan", "special", "minus inf"):
        for pair in ((x["normal"], x[bad]), (x[bad], x["normal"])):
            value, status = run_kl(isa, *pair)
            assert np.isnan(value).all() and status == 1


@pytest.mark.parametrize("isa", FAST)
def test_kl_columns(isa):
    need(isa)
    for n in [*SIZES, VOCAB]:
        for name, (x, y) in kl_cases(n).items():
            same(run_kl(isa, x, y), run_kl("scalar", x, y), (n, name))
            assert (run_kl(isa, y, y)[0] == 0).all()


# --- sample ---------------------------------------------------------------------------------------
def run_sample(isa, x, temperature, top_k, top_p, min_p, u):
    token = Guarded((len(x),), np.int32)
    work = Guarded((16 * x.shape[1],), np.uint8, offset=8)
    u = np.asarray(u, np.float64)
    _probe.op_sample(isa, poisoned(x), temperature, top_k, top_p, min_p, u, token.array, work.array)
    work.take()
    return token.take()


SETTINGS = [
    (1.0, 0, 1.0, 0.0),
    (0.0, 0, 1.0, 0.0),
    (0.7, 0, 0.9, 0.0),
    (1.3, 40, 1.0, 0.0),
    (0.9, 5, 0.5, 0.1),
    (2.0, 0, 1.0, 0.05),
    (1e-3, 1, 0.99, 0.2),
    (1e-42, 0, 1e-6, 1.0),
    (5.0, 900, 0.95, 1e-3),
]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("isa", COLUMNS)
def test_sample(isa, setting):
    need(isa)
    r = np.random.default_rng(1)
    for n in [1, 7, 16, 17, 100, 1000, 5000]:
        for name, x in logit_cases(n).items():
            x = np.repeat(x, 2, axis=0)
            u = r.uniform(0, 1, len(x))
            u[0], u[-1] = 0.0, np.nextafter(1.0, 0)
            got = run_sample(isa, x, *setting, u)
            want = [sample(row, *setting, v) for row, v in zip(x, u, strict=True)]
            np.testing.assert_array_equal(got, want, err_msg=f"{n} {name}")


@pytest.mark.parametrize("isa", COLUMNS)
def test_sample_of_a_vocabulary(isa):
    need(isa)
    x = (np.random.default_rng(2).standard_normal((6, VOCAB)) * 4).astype(np.float32)
    u = np.random.default_rng(3).uniform(0, 1, 6)
    for setting in SETTINGS:
        want = [sample(row, *setting, v) for row, v in zip(x, u, strict=True)]
        np.testing.assert_array_equal(run_sample(isa, x, *setting, u), want)


def test_sample_follows_the_softmax():
    x = np.array([[0.3, 2.0, -1.0, 1.0, -np.inf, 1.5]], np.float32)
    u = np.random.default_rng(4).uniform(0, 1, 40_000)
    got = run_sample("scalar", np.repeat(x, len(u), axis=0), 0.8, 0, 1.0, 0.0, u)
    p = np.exp(x[0].astype(np.float64) / np.float32(0.8))
    p /= p.sum()
    share = np.bincount(got, minlength=6) / len(u)
    assert (np.abs(share - p) <= 5 * np.sqrt(p * (1 - p) / len(u))).all() and share[4] == 0


def test_sample_without_a_candidate_is_minus_one():
    x = np.array([[np.nan, -np.inf, np.nan]], np.float32)
    for temperature in (0.0, 1.0):
        assert run_sample("scalar", x, temperature, 0, 1.0, 0.0, [0.5])[0] == -1


# --- any range of rows ----------------------------------------------------------------------------
def sliced(isa, cut):
    """All row-wise outputs of a call, made in the ranges [0, cut) and [cut, 7)."""
    x = hostile(100, 5, rows=7)["normal"]
    w, n = x[0].copy(), len(x)
    u = np.linspace(0, 0.99, n)
    y = [np.full_like(x, 9) for _ in range(2)]
    gated = [np.full_like(x, 9) for _ in GATES]
    s = np.ascontiguousarray(x[:, :96])
    row = [np.full(n, 9, np.float32) for _ in range(5)]
    o, m, total = x.copy(), w[:n].copy(), np.abs(w[:n])
    ids = [np.full(n, 9, np.int32) for _ in range(3)]
    top = np.full((n, 3), 9, np.int32), np.full((n, 3), 9, np.float32)
    half, kl_of = np.full(x.shape, 9, np.uint16), np.full(n, 9.0)
    work, cs = np.empty(1600, np.uint8), np.full((n, 100), 9, np.float32)
    for r in ((0, cut), (cut, n)):
        _probe.op_rmsnorm(isa, x, 100, 1, w, 1e-5, y[0], *r)
        for i, op in enumerate(GATES):
            getattr(_probe, f"op_{op}")(isa, x, x, gated[i], *r)
        _probe.op_hadamard(isa, x, 1, 100, 4, True, False, y[1], *r)
        _probe.op_softmax(isa, s, row[0], row[1], *r)
        _probe.op_merge(isa, o, m, total, x[::-1].copy(), w[7:14].copy(), total + 1, *r)
        _probe.op_argmax(isa, x, ids[0], *r)
        _probe.op_lse(isa, x, row[2], *r)
        _probe.op_topk(isa, x, *top, *r)
        _probe.op_kl(isa, x, x[::-1].copy(), kl_of, *r)
        _probe.op_cast(isa, x, "bf16", half, ids[1], *r)
        _probe.op_sample(isa, x, 1.0, 0, 0.9, 0.0, u, ids[2], work, *r)
        _probe.op_rope_table(isa, np.arange(n), u[:1].repeat(50) + 0.5, 1.0, cs, *r)
        _probe.op_rope(isa, gated[0], 1, 100, True, cs, *r)
    return (*y, *gated, s, *row, o, m, ids[0], ids[1], ids[2], *top, half, kl_of, cs)


@pytest.mark.parametrize("isa", COLUMNS)
def test_a_range_of_rows_is_that_part_of_the_whole(isa):
    need(isa)
    whole = sliced(isa, 0)
    for cut in (1, 3, 6):
        same(sliced(isa, cut), whole, cut)
