"""The router: ids, gates and scores of every kind against a plain loop, bit for bit."""

import itertools

import numpy as np
import pytest
from op_oracle import COLUMNS, Guarded, exp32, fma32, need, poisoned, same, tree

from octavo import _probe

SIGMOID, SOFTMAX, TOP = range(3)
F = np.float32


def best(values, allowed, count):
    """Positions of the largest, equals by index, found one at a time."""
    chosen, left = [], list(allowed)
    values = np.asarray(values).tolist()  # a float32 is a Python float, which compares faster
    for _ in range(count):
        at = None
        for e, v in enumerate(values):
            if left[e] and (at is None or v > values[at]):
                at = e
        chosen.append(at)
        left[at] = False
    return chosen


def oracle(logits, top, *, bias=None, score=SIGMOID, groups=1, kept=1, zero=False, renorm=True,
           scale=1.0):  # fmt: skip
    """One row, as kernels.h writes it. Returns (sound, ids, gates, scores)."""
    n = len(logits)
    with np.errstate(all="ignore"):
        if score == SIGMOID:
            s = F(1) / (F(1) + exp32(-logits))
        elif score == SOFTMAX:
            e = exp32(logits - np.fmax.reduce(logits))
            s = e / tree(e)
        else:
            s = logits.copy()
        c = s if bias is None else s + bias
        bad = False, np.arange(top, dtype=np.int32), np.full(top, np.nan, F), s
        if np.isnan(c).any():
            return bad
        allowed = [True] * n
        if groups > 1:
            size, sums = n // groups, []
            for g in range(groups):
                two = sorted(c[g * size : (g + 1) * size])[-2:]
                sums.append(two[0] + two[1] if size > 1 else two[0])
            if np.isnan(sums).any():
                return bad
            stay = best(sums, [True] * groups, kept)
            inside = [e // size in stay for e in range(n)]
            c, allowed = (np.where(inside, c, F(0)), allowed) if zero else (c, inside)
        ids = sorted(best(c, allowed, top))
        gates = [s[e] for e in ids]
        if score == TOP:
            gates = list(exp32(np.array(gates) - max(gates)))
        total = F(0)
        for g in gates:
            total = total + g
        if renorm or score == TOP:
            gates = [g / (total + F(1e-20)) for g in gates]
        gates = np.array([g * F(scale) for g in gates], F)
        return (True, np.array(ids, np.int32), gates, s) if np.isfinite(gates).all() else bad


def run(isa, logits, top, *, bias=None, score=SIGMOID, groups=1, kept=1, zero=False, renorm=True,
        scale=1.0, rows=()):  # fmt: skip
    m, n = logits.shape
    s = Guarded((m, n))
    ids, gates = Guarded((m, top), np.int32, pad=0), Guarded((m, top), pad=0)
    bias = None if bias is None else poisoned(bias)[0]
    status = _probe.op_route(isa, poisoned(logits), bias, score, groups, kept, zero, renorm, scale,
                             s.array, ids.array, gates.array, *rows)  # fmt: skip
    return status, ids.take(), gates.take(), s.take()


def case(r):
    """A random router and rows with ties, equal biases, groups and infinities."""
    groups = int(r.choice([1, 1, 2, 4, 8]))
    n = groups * int(r.choice([1, 2, 3, 8, 17, 32, 48], p=[0.1, 0.2, 0.2, 0.2, 0.1, 0.1, 0.1]))
    kept = int(r.integers(1, groups + 1))
    zero = bool(r.random() < 0.3)
    most = n if zero else n // groups * kept
    logits = r.standard_normal((4, n)).astype(F)
    kind = r.integers(6)
    if kind == 1:
        logits = np.round(logits)
    elif kind == 2:
        logits[:] = logits[:, :1]
    elif kind == 3:
        logits[r.random(logits.shape) < 0.3] = -np.inf
    elif kind == 4:
        logits[r.random(logits.shape) < 0.05] = r.choice([np.inf, -np.inf, np.nan])
    elif kind == 5:
        logits *= 60
    bias = [None, np.full(n, F(0.25)), np.round(r.standard_normal(n), 1).astype(F) - F(1)]
    return logits, min(int(r.integers(1, 9)), most), {
        "bias": bias[r.integers(3)], "score": int(r.integers(3)), "groups": groups, "kept": kept,
        "zero": zero, "renorm": bool(r.integers(2)), "scale": float(r.choice([1.0, 2.827])),
    }  # fmt: skip


def test_the_router_equals_a_plain_loop():
    """There is one column; the others take it from the table."""
    isa = "scalar"
    r, seen = np.random.default_rng(0), 0
    for number in range(2500):
        logits, top, how = case(r)
        status, ids, gates, s = run(isa, logits, top, **how)
        want = [oracle(row, top, **how) for row in logits]
        assert status == int(not all(w[0] for w in want)), (number, how)
        for i, (_, *parts) in enumerate(want):
            same((ids[i], gates[i], s[i]), tuple(parts), (number, i, how))
        seen += len(logits)
    assert seen == 10_000


@pytest.mark.parametrize("isa", COLUMNS)
def test_the_shapes_of_real_routers(isa):
    """Kimi's, DeepSeek-V3's, Qwen3's, Mixtral's and gpt-oss's; and the most that there may be."""
    need(isa)
    r = np.random.default_rng(1)
    for n, top, how in (
        (384, 8, {"scale": 2.827}),
        (256, 8, {"groups": 8, "kept": 4, "scale": 2.5}),
        (128, 8, {"score": SOFTMAX}),
        (8, 2, {"score": SOFTMAX}),
        (32, 4, {"score": TOP}),
        (1024, 1024, {"renorm": False}),
    ):
        logits = r.standard_normal((3, n)).astype(F)
        how["bias"] = (r.standard_normal(n) / 8).astype(F) if "score" not in how else None
        status, ids, gates, s = run(isa, logits, top, **how)
        assert status == 0
        for i, row in enumerate(logits):
            _, *want = oracle(row, top, **how)
            same((ids[i], gates[i], s[i]), tuple(want), n)
            if how.get("renorm", True):
                assert abs(gates[i].sum(dtype=np.float64) / how.get("scale", 1) - 1) < 1e-6


@pytest.mark.parametrize("isa", COLUMNS)
def test_ties_go_to_the_lower_expert_and_bias_only_selects(isa):
    need(isa)
    _, ids, gates, s = run(isa, np.zeros((1, 9), F), 3)
    assert ids.tolist() == [[0, 1, 2]] and (s == 0.5).all()
    same(gates, np.full((1, 3), F(0.5) / F(1.5)))
    bias = np.zeros(9, F)
    bias[[3, 7]] = 1
    _, ids, gates, _ = run(isa, np.zeros((1, 9), F), 3, bias=bias, renorm=False)
    assert ids.tolist() == [[0, 3, 7]] and (gates == 0.5).all()


@pytest.mark.parametrize("isa", COLUMNS)
def test_a_range_of_rows_writes_those_alone_and_in_place_is_the_same(isa):
    need(isa)
    logits = np.random.default_rng(2).standard_normal((5, 24)).astype(F)
    want = run(isa, logits, 4)
    out = np.full((5, 4), 9, np.int32), np.full((5, 4), 9, F)
    s = logits.copy()
    for rows in ((0, 2), (2, 5)):
        assert (out[0][rows[0] :] == 9).all()
        _probe.op_route(isa, s, None, SIGMOID, 1, 1, False, True, 1.0, s, *out, *rows)
    same((*out, s), want[1:])


@pytest.mark.parametrize("isa", COLUMNS)
def test_combine_adds_a_row_s_experts_in_order_and_in_pieces(isa):
    need(isa)
    r = np.random.default_rng(3)
    for k in (1, 15, 16, 17, 64, 100):
        m, top = 6, 3
        order = r.permutation(m * top).astype(np.int32).reshape(m, top)
        order.sort(axis=1)  # a row's places ascend, as its experts do
        x, gate = r.standard_normal((m * top, k)).astype(F), r.standard_normal((m, top)).astype(F)
        want = np.zeros((m, k), F)
        for j in range(top):
            want = fma32(gate[:, j : j + 1], x[order[:, j]], want)
        for cuts in ([], [5], [1, 2, 17]):
            y = Guarded((m, k), fill=0)
            for a, b in itertools.pairwise([0, *cuts, m * top]):
                for rows in ((0, 4), (4, m)):
                    _probe.op_combine(isa, poisoned(x[a:b]), order, gate, a, y.array, *rows)
            same(y.take(), want, (k, cuts))
