"""Linears: every slot of every column against the oracle, bit for bit, over odd shapes."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import weight_calls as calls
import weight_oracle as oracle
from walled import walled

from octavo import _probe

SLOTS = [(name, act) for name in calls.TRAITS for act in calls.ACTS
         if _probe.weight_column(name, "scalar", calls.ACTS.index(act))]  # fmt: skip
COLUMNS = [(name, act, isa) for name, act in SLOTS for isa in calls.columns(name, act)]
FAST = [c for c in COLUMNS if c[2] != "scalar"]


def inputs(m, k, rng):
    x = rng.standard_normal((m, k)).astype(np.float32)
    x *= np.float32(2.0) ** rng.integers(-4, 5, (m, 1)).astype(np.float32)
    if m > 2:
        x[1] = 0
        x[2] = np.float32(2.0**-70)
    return x


def chain(w, x, act):
    """The oracle's sums, before bias."""
    if w.values is not None:
        return oracle.linear_float(x, w.values)
    return oracle.linear_grouped(x, act, w.name, *w.logical)


def run(w, isa, rows, y, **options):
    """A linear into a guarded copy of y with a wider row; checks that nothing else is written."""
    m, n = y.shape
    out = calls.Guarded((m, n + 3), np.float32, 4)
    out.array[:, :n] = y
    status = calls.linear(w, isa, rows, out.array, **options)
    assert status == 0
    out.check()
    assert (out.array[:, n:].view(np.uint32) == 0xA5A5A5A5).all()
    return np.array(out.array[:, :n])


def equal(got, want, why=""):
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32), err_msg=why)


def test_every_fast_column_is_there():
    """A column that is announced but absent would be a silent pass below."""
    for name in calls.TRAITS:
        assert calls.columns(name, "a32")[0] == "scalar"
        for isa in ("avx2", "avx512"):
            assert not _probe.runs_here(isa) or isa in calls.columns(name, "a32")
        if name in calls.GROUPED and _probe.runs_here("amx"):
            assert "amx" in calls.columns(name, "a8") and "amx" in calls.columns(name, "a8x2")
    grouped = [act for name, act in SLOTS if name == "q4g32"]
    assert grouped == list(calls.ACTS)


# Columns of one slot follow each other, and share what they are compared with: hence the caches.


@functools.lru_cache(maxsize=1)
def oracle_cases(name, act, scale_type):
    """Odd shapes: weights, rows, what is there, bias, and the oracle's sums."""
    cases = []
    for n, k, m in [(1, 32, 1), (33, 64, 3), (32, 96, 7), (80, 70, 5), (31, 576, 2), (40, 33, 13)]:
        rng = np.random.default_rng(n * 1000 + k)
        w = calls.random_matrix(name, n, k, rng, scale_type)
        x = inputs(m, k, rng)
        bias = rng.standard_normal(n).astype(np.float32)
        start = rng.standard_normal((m, n)).astype(np.float32)
        cases.append((w, calls.oracle_rows(x, act), start, bias, chain(w, x, act)))
    return cases


@pytest.mark.parametrize(("name", "act", "isa"), COLUMNS)
@pytest.mark.parametrize("scale_type", [1, 2])
def test_linear_equals_the_oracle(name, act, isa, scale_type):
    if name in calls.FLOATS and scale_type == 2:
        pytest.skip("float formats have no scales")
    for w, rows, start, bias, sums in oracle_cases(name, act, scale_type):
        for b, add in [(None, False), (bias, False), (None, True), (bias, True)]:
            got = run(w, isa, rows, start, bias=b, add=add)
            equal(got, oracle.finish(sums, start, b, add), f"m{len(start)}n{w.n}k{w.k}")


@functools.lru_cache(maxsize=1)
def scalar_cases(name, act, n):
    """Of many lengths and numbers of rows: weights, rows, what is there, bias, and the result."""
    cases = []
    lengths = [32, 64, 96, 576] + ([1, 7, 33] if name in calls.FLOATS or n == 33 else [])
    for k in lengths if n < 290 else [64]:
        rng = np.random.default_rng(n + k)
        w = calls.random_matrix(name, n, k, rng, 1 + k % 2)
        bias = rng.standard_normal(n).astype(np.float32)
        for m in (1, 2, 3, 4, 5, 6, 7, 9, 13, 24, 25, 128, 131) if k <= 64 else (1, 4, 6, 13):
            x = inputs(m, k, rng)
            rows = calls.oracle_rows(x, act)
            start = rng.standard_normal((m, n)).astype(np.float32)
            want = run(w, "scalar", rows, start, bias=bias, add=True)
            cases.append((w, rows, start, bias, want))
    return cases


@pytest.mark.parametrize(("name", "act", "isa"), FAST)
@pytest.mark.parametrize("n", [1, 31, 32, 33, 80, 290])
def test_fast_columns_equal_scalar(name, act, isa, n):
    for w, rows, start, bias, want in scalar_cases(name, act, n):
        got = run(w, isa, rows, start, bias=bias, add=True)
        equal(got, want, f"m{len(start)}n{n}k{w.k}")


@functools.lru_cache(maxsize=1)
def long_cases(name, act, k):
    """Weights; rows and the result, of some numbers of rows."""
    rng, cases = np.random.default_rng(k), []
    w = calls.random_matrix(name, 34, k, rng)
    for m in (1, 6, 11, 25) if k < 3000 else (1, 6, 14, 25):
        rows = calls.oracle_rows(inputs(m, k, rng), act)
        cases.append((rows, run(w, "scalar", rows, np.zeros((m, 34), np.float32))))
    return w, cases


@pytest.mark.parametrize(("name", "act", "isa"), FAST)
@pytest.mark.parametrize("k", [1056, 2100, 16500])
def test_long_rows_in_chunks(name, act, isa, k):
    """Lengths that pass every chunk a kernel may cut k into."""
    w, cases = long_cases(name, act, k)
    for rows, want in cases:
        equal(run(w, isa, rows, np.zeros_like(want)), want, f"m{len(want)}")


@pytest.mark.parametrize(("name", "act", "isa"), COLUMNS)
def test_tiles_alone_write_their_outputs_only(name, act, isa):
    n, k, m = 75, 40, 133
    rng = np.random.default_rng(21)
    w = calls.random_matrix(name, n, k, rng)
    rows = calls.oracle_rows(inputs(m, k, rng), act)
    start = rng.standard_normal((m, n)).astype(np.float32)
    whole = run(w, isa, rows, start)
    for lo, hi in [(0, 1), (2, 4), (1, 6), (5, 6), (3, 3)]:
        got = run(w, isa, rows, start, span=(lo, hi))
        want = start.copy()
        for tile in range(lo, hi):
            r, c = tile // 3 * 128, tile % 3 * 32
            want[r : r + 128, c : c + 32] = whole[r : r + 128, c : c + 32]
        equal(got, want, f"tiles {lo}..{hi}")


@pytest.mark.parametrize(("name", "act", "isa"), COLUMNS)
def test_a_row_does_not_depend_on_its_batch(name, act, isa):
    n, k, m = 64, 96, 140
    rng = np.random.default_rng(22)
    w = calls.random_matrix(name, n, k, rng)
    x = inputs(m, k, rng)
    whole = run(w, isa, calls.oracle_rows(x, act), np.zeros((m, n), np.float32))
    for lo, hi in [(0, 1), (5, 7), (130, 135), (20, 140), (139, 140)]:
        part = run(w, isa, calls.oracle_rows(x[lo:hi], act), np.zeros((hi - lo, n), np.float32))
        equal(part, whole[lo:hi], f"rows {lo}..{hi}")


@pytest.mark.parametrize(("name", "act", "isa"), [c for c in COLUMNS if c[1] != "a32"])
def test_rows_may_lie_further_apart(name, act, isa):
    n, m = 34, 19
    rng = np.random.default_rng(27)
    for k in (40, 96):
        w = calls.random_matrix(name, n, k, rng)
        x, start = inputs(m, k, rng), np.zeros((m, n), np.float32)
        want = run(w, isa, calls.oracle_rows(x, act), start)
        equal(run(w, isa, calls.oracle_rows(x, act, apart=64), start), want, f"k{k}")


@pytest.mark.parametrize(("name", "act", "isa"), COLUMNS)
def test_nothing_is_read_past_the_ends(name, act, isa):
    n, k = 64, 64
    rng = np.random.default_rng(29)
    w = calls.random_matrix(name, n, k, rng)
    for m in (1, 5, 8, 9, 16, 23, 33, 131):
        rows = calls.oracle_rows(inputs(m, k, rng), act)
        want = run(w, isa, rows, np.zeros((m, n), np.float32))
        there = {f: getattr(rows, f) for f in ("hi", "lo", "scale", "sum")}
        walls = {f: walled(a) for f, a in there.items() if a is not None}
        rows = replace(rows, x=walled(np.ascontiguousarray(rows.x[:, :k])), **walls)
        got = run(replace(w, data=walled(w.data)), isa, rows, np.zeros((m, n), np.float32))
        equal(got, want, f"m{m}")


@pytest.mark.parametrize(("name", "act", "isa"), COLUMNS)
def test_a_nan_row_stays_alone(name, act, isa):
    n, k, m = 33, 64, 9
    rng = np.random.default_rng(23)
    w = calls.random_matrix(name, n, k, rng)
    x = inputs(m, k, rng)
    clean = run(w, isa, calls.oracle_rows(x, act), np.zeros((m, n), np.float32))
    x[4, 40] = np.nan
    with np.errstate(invalid="ignore"):
        got = run(w, isa, calls.oracle_rows(x, act), np.zeros((m, n), np.float32))
    assert np.isnan(got[4]).all()
    others = [r for r in range(m) if r != 4]
    equal(got[others], clean[others])


@pytest.mark.parametrize(("name", "act", "isa"), [c for c in COLUMNS if c[0] in calls.GROUPED])
def test_extreme_codes_and_inputs(name, act, isa):
    """The largest integer sums that the forms can make, where 16-bit pairs would saturate."""
    n, k, m = 34, 96, 6
    rng = np.random.default_rng(24)
    w = calls.random_matrix(name, n, k, rng)
    wide = calls.TRAITS[name]["code_bits"] == 8
    codes = np.where(rng.random((n, k)) < 0.5, 0x80, 0x7F) if wide else np.full((n, k), 15)
    codes[3] = 0x80 if wide else 0
    w.codes = codes.astype(np.uint8)
    if w.zeros is not None:
        w.zeros[::2] = 0
        w.zeros[1::2] = 15
    w.data = calls.pack(name, "scalar", n, k, calls.plain_source(*w_parts(w)))
    x = np.where(rng.random((m, k)) < 0.5, -1, 1).astype(np.float32)
    x[0], x[1] = 1, -1
    x[2] = np.where(np.arange(k) % 2, 1, 0.4961)  # a8x2: lo at both ends
    got = run(w, isa, calls.oracle_rows(x, act), np.zeros((m, n), np.float32))
    equal(got, chain(w, x, act))


def w_parts(w):
    return w.codes, w.scales, w.zeros, w.mins


@pytest.mark.parametrize(("act", "isa"), [c[1:] for c in COLUMNS if c[0] == "w8"])
def test_sums_over_all_of_k_are_exact(act, isa):
    """Integers far above 2^24 are rounded once; in a8x2 they leave 32 bits."""
    n, k, m = 34, 8224, 12
    rng = np.random.default_rng(25)
    w = calls.random_matrix("w8", n, k, rng)
    w.codes[::2] = 0x7F
    w.codes[1::2] = 0x80
    w.codes[:, ::97] = 3
    w.scales[:] = 1
    w.data = calls.pack("w8", "scalar", n, k, calls.plain_source(*w_parts(w)))
    x = rng.uniform(0.9, 1, (m, k)).astype(np.float32)
    x[2] *= -1
    if act == "a8x2":
        assert abs(oracle.quantize(x, act)[0].astype(np.int64).sum() * 127) > 2**33
    got = run(w, isa, calls.oracle_rows(x, act), np.zeros((m, n), np.float32))
    equal(got, chain(w, x, act))
