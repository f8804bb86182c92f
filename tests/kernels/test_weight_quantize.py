"""The quantize op: every column gives the oracle's codes, scales and sums, padding included."""

import numpy as np
import pytest
import weight_calls as calls
import weight_oracle as oracle

from octavo import _probe

CASES = [(act, isa) for act in calls.ACTS for isa in calls.ISAS]


def hostile(m, k, rng):
    """Rows of many sizes: ties, zeros, tiny, huge, one outlier."""
    x = rng.standard_normal((m, k)).astype(np.float32)
    x *= np.float32(2.0) ** rng.integers(-70, 60, (m, 1)).astype(np.float32)
    x[0] = np.arange(k) % 9 - 4
    if m > 4:
        x[1] = 0
        x[2] *= np.float32(2.0**-100)
        x[3, k // 2] = 1e30
        x[4, : k // 2] = -0.0
    if m > 6:
        x[5] = np.round(x[5] / np.abs(x[5]).max() * 254) / 2  # halves: ties after scaling
        x[6] = np.float32(2.0**-60)
    return x


def run(x, act, isa, span=None, apart=0):
    m, k = x.shape
    kp = oracle.groups(k) * 32 + apart
    scales = (m, kp // 32) if act == "a8g32" else (m,)
    out = {
        "hi": calls.Guarded((m, kp), np.int8),
        "lo": calls.Guarded((m, kp), np.int8),
        "scale": calls.Guarded(scales, np.float32, 4),
        "sum": calls.Guarded((m, kp // 32), np.int32, 4),
    }
    bad = calls.Guarded((m,), np.int32, 4)
    rows = calls.Rows(act, calls.poisoned(x), k, apart=apart)
    if act != "a32":
        rows.hi, rows.scale, rows.sum = (out[f].array for f in ("hi", "scale", "sum"))
        rows.lo = out["lo"].array if act == "a8x2" else None
    lo, hi = span or (0, m)
    status = _probe.quantize(isa, rows.tuple, calls.at(bad.array), lo, hi)
    for guarded in [*out.values(), bad]:
        guarded.check()
    return {f: g.array for f, g in out.items()}, bad.array, status


def check(got, x, act):
    codes, scale, total, bad = oracle.quantize(x, act)
    if act == "a32":
        return
    if act == "a8x2":
        assert got["hi"].max(initial=0) <= 127 and got["lo"].max(initial=0) <= 63
        value = 128 * got["hi"].astype(np.int32) + got["lo"]
    else:
        value = got["hi"]
    np.testing.assert_array_equal(value, codes)
    np.testing.assert_array_equal(got["sum"], total)
    np.testing.assert_array_equal(got["scale"].view(np.uint32)[~bad], scale.view(np.uint32)[~bad])
    assert np.isnan(got["scale"][bad]).all()


@pytest.mark.parametrize(("act", "isa"), CASES)
@pytest.mark.parametrize("k", [1, 7, 31, 32, 33, 64, 95, 576, 1000])
def test_codes_scales_and_sums(act, isa, k):
    if not _probe.runs_here(isa):
        pytest.skip(f"{isa} is absent on this machine")
    for m in (1, 7, 40):
        x = hostile(m, k, np.random.default_rng(k + m))
        got, bad, status = run(x, act, isa)
        assert status == 0 and not bad.any()
        check(got, x, act)


@pytest.mark.parametrize(("act", "isa"), CASES)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_non_finite_row_is_named_and_others_go_on(act, isa, wrong):
    if not _probe.runs_here(isa):
        pytest.skip(f"{isa} is absent on this machine")
    for k, column in [(33, 0), (33, 32), (96, 50), (7, 6)]:
        x = hostile(6, k, np.random.default_rng(3))
        x[3, column] = wrong
        got, bad, status = run(x, act, isa)
        assert status == 1 and bad.tolist() == [0, 0, 0, 1, 0, 0]
        check(got, x, act)


@pytest.mark.parametrize(("act", "isa"), CASES[len(calls.ISAS) :])
def test_groups_between_rows_are_zero(act, isa):
    if not _probe.runs_here(isa):
        pytest.skip(f"{isa} is absent on this machine")
    x = hostile(9, 70, np.random.default_rng(6))
    x[4, 3] = np.nan
    got, _, _ = run(x, act, isa, apart=64)
    for name, more in (("hi", 64), ("lo", 64), ("sum", 2), ("scale", 2)):
        if (name == "lo" and act != "a8x2") or (name == "scale" and act != "a8g32"):
            continue
        assert not got[name][:, -more:].any()
        got[name] = got[name][:, :-more]
    check(got, x, act)


@pytest.mark.parametrize(("act", "isa"), CASES[len(calls.ISAS) :])
def test_only_the_named_rows_are_written(act, isa):
    if not _probe.runs_here(isa):
        pytest.skip(f"{isa} is absent on this machine")
    x = hostile(9, 70, np.random.default_rng(5))
    got, bad, _ = run(x, act, isa, (2, 5))
    fill = np.int32(np.uint32(0xA5A5A5A5).view(np.int32))
    outside = [0, 1, 5, 6, 7, 8]
    assert (bad[outside] == fill).all() and (bad[2:5] == 0).all()
    assert (got["sum"][outside] == fill).all()
    check({f: a[2:5] for f, a in got.items()}, x[2:5], act)
