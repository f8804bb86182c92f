"""scores and mix of every page format, form and column, against NumPy and scalar, with `==`."""

import functools
import itertools

import numpy as np
import page_oracle as po
import pytest
from page_oracle import BF16, F32, FORMATS, HERE, PLAIN, WIDTHS
from walled import walled

import octavo
from octavo import _probe

SLOTS = [(f, form) for f in FORMATS for form in ("f32", "q8", "q8x2")
         if form in _probe.page_columns(f, "scalar")]  # fmt: skip
ROWS = [1, 3, 7, 16]


def need(isa):
    if isa not in HERE:
        pytest.skip(f"{isa} is absent on this machine")


def patterns(n, r):
    """Visible counts: whole, none, parts of a unit, whole units, ragged."""
    yield np.full(n, 64, np.int32)
    yield np.full(n, 17, np.int32)
    yield np.sort(r.integers(0, 65, n)).astype(np.int32)
    yield r.choice([0, 1, 16, 33], n).astype(np.int32)
    yield np.zeros(n, np.int32)


def page(fmt, d, role, seed, kind="outliers"):
    x = po.hostile(d, seed)[kind]
    with np.errstate(all="ignore"):
        rows = x.astype(PLAIN.get(fmt, np.dtype(BF16)))
    block, status = po.seal(fmt, "scalar", rows, role)
    assert status[0] == 0
    return block, rows.astype(F32)


def probabilities(n, visible, r):
    p = np.exp(3 * r.standard_normal((n, 64))).astype(F32)
    p[r.random((n, 64)) < 0.1] = 0
    return np.where(np.arange(64) < visible[:, None], p / p.max(), F32(0)).astype(F32)


def want_scores(fmt, form, rows, q, visible):
    if fmt in PLAIN:
        return po.scores_f(q, rows, visible)
    return po.page_scores(fmt, form, *po.encode(fmt, rows)[:3], q, visible)


def want_mix(fmt, form, rows, p, visible, o):
    if fmt in PLAIN:
        return po.mix_f(p, rows, visible, o)
    return po.page_mix(fmt, form, *po.encode(fmt, rows)[:3], p, visible, o)


# The columns are the fastest parameter and share what NumPy says: hence the caches of one case. All
# requests of a case go through NumPy at once, for a row of its answer is a matter of that row.


def stacked(*columns):
    """Each column, a list of arrays of equal lengths, as one array; and where to split it."""
    ends = np.cumsum([len(each) for each in columns[0]])[:-1]
    return [np.concatenate(column) for column in columns], ends


@functools.lru_cache(maxsize=1)
def scores_of(fmt, form, d):
    """A block, and queries, visible counts and scores of every number of rows and pattern."""
    r = np.random.default_rng(d)
    block, rows = page(fmt, d, "k", 3)
    asked = []
    for n in ROWS:
        q = r.standard_normal((n, d)).astype(F32)
        q[n // 2] = 0
        asked += [(q, visible) for visible in patterns(n, r)]
    (q, visible), ends = stacked(*zip(*asked, strict=True))
    want = np.split(want_scores(fmt, form, rows, q, visible), ends)
    return block, [(*each, s) for each, s in zip(asked, want, strict=True)]


@pytest.mark.parametrize("isa", po.ISAS)
@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize(("fmt", "form"), SLOTS)
def test_scores_match_numpy(isa, fmt, form, d):
    need(isa)
    block, cases = scores_of(fmt, form, d)
    for q, visible, want in cases:
        s = po.scores(fmt, isa, form, block, d, q, visible)
        np.testing.assert_array_equal(s, want)


@pytest.mark.parametrize("rows", [1, 5, 6, 64])
@pytest.mark.parametrize(("isa", "fmt"), [(isa, fmt) for isa in po.ISAS for fmt in po.FORMATS])
def test_scores_are_added_to_what_is_there(isa, fmt, rows):
    """In the form f32: one addition, and -inf past what a query sees, whatever was there."""
    need(isa)
    rng, d = np.random.default_rng(rows), 64
    block, _ = page(fmt, d, "k", 1)
    q, there = (rng.standard_normal((rows, n)).astype(F32) for n in (d, 64))
    visible = rng.integers(0, 65, rows)
    visible[0] = 64
    there[:, 60:] = np.nan
    there[0, 60:] = 1
    bare = po.scores(fmt, isa, "f32", block, d, q, visible)
    got = po.scores(fmt, isa, "f32", block, d, q, visible, add=there)
    want = np.where(np.arange(64) < visible[:, None], there + bare, -np.inf).astype(F32)
    np.testing.assert_array_equal(got, want)


@functools.lru_cache(maxsize=1)
def mixes_of(fmt, form, d):
    """A block, and weights, visible counts, what is there, and the mix, as in `scores_of`."""
    r = np.random.default_rng(d)
    block, rows = page(fmt, d, "v", 4)
    asked = []
    for n in ROWS:
        o = r.standard_normal((n, d)).astype(F32)
        asked += [(probabilities(n, visible, r), visible, o) for visible in patterns(n, r)]
    (p, visible, o), ends = stacked(*zip(*asked, strict=True))
    want = np.split(want_mix(fmt, form, rows, p, visible, o), ends)
    return block, [(*each, mixed) for each, mixed in zip(asked, want, strict=True)]


@pytest.mark.parametrize("isa", po.ISAS)
@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize(("fmt", "form"), SLOTS)
def test_mix_matches_numpy(isa, fmt, form, d):
    need(isa)
    block, cases = mixes_of(fmt, form, d)
    for p, visible, o, want in cases:
        got = po.mix(fmt, isa, form, block, d, p, visible, o)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("d", [64, 80, 128])
@pytest.mark.parametrize(("fmt", "form"), SLOTS)
@pytest.mark.parametrize("isa", po.ISAS)
def test_nothing_is_read_past_the_ends(isa, fmt, form, d):
    need(isa)
    r = np.random.default_rng(d)
    (k, _), (v, _) = page(fmt, d, "k", 3), page(fmt, d, "v", 4)
    for n in (1, 6, 16, 19, 64):
        q, o, visible = r.standard_normal((n, d)).astype(F32), np.zeros((n, d), F32), np.full(n, 64)
        p = probabilities(n, visible, r)
        s = po.scores(fmt, isa, form, k, d, q, visible)
        got = po.scores(fmt, isa, form, k, d, q, visible, place=walled)
        np.testing.assert_array_equal(got, s)
        want = po.mix(fmt, isa, form, v, d, p, visible, o)
        got = po.mix(fmt, isa, form, v, d, p, visible, o, place=walled)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", ["spread", "zeros", "some_zeros", "constant", "ties", "huge"])
@pytest.mark.parametrize(("fmt", "form"), SLOTS)
@pytest.mark.parametrize("isa", po.ISAS)
def test_hostile_pages(isa, fmt, form, kind):
    need(isa)
    if fmt == "f16" and kind in ("spread", "huge"):
        pytest.skip("outside the range of f16")
    d, n, r = 64, 5, np.random.default_rng(9)
    visible = np.array([64, 64, 40, 64, 7], np.int32)
    block, rows = page(fmt, d, "k", 5, kind)
    q = (r.standard_normal((n, d)) * [[1], [1e-20], [1e10], [1e-12], [0]]).astype(F32)
    s = po.scores(fmt, isa, form, block, d, q, visible)
    np.testing.assert_array_equal(s, want_scores(fmt, form, rows, q, visible))
    block, rows = page(fmt, d, "v", 5, kind)
    p = probabilities(n, visible, r) * np.array([[1], [1e-30], [1e-38], [0], [1]], F32)
    o = np.zeros((n, d), F32)
    got = po.mix(fmt, isa, form, block, d, p, visible, o)
    np.testing.assert_array_equal(got, want_mix(fmt, form, rows, p, visible, o))


@pytest.mark.parametrize(("fmt", "form"), SLOTS)
@pytest.mark.parametrize("isa", po.ISAS)
def test_many_rows_match_scalar(isa, fmt, form):
    need(isa)
    r = np.random.default_rng(11)
    for n, d in ((64, 128), (37, 576), (64, 80)):
        block, _ = page(fmt, d, "k", 6)
        q, visible = r.standard_normal((n, d)).astype(F32), r.integers(0, 65, n).astype(np.int32)
        both = [po.scores(fmt, c, form, block, d, q, visible) for c in (isa, "scalar")]
        np.testing.assert_array_equal(*both)
        block, _ = page(fmt, d, "v", 6)
        p, o = probabilities(n, visible, r), r.standard_normal((n, d)).astype(F32)
        both = [po.mix(fmt, c, form, block, d, p, visible, o) for c in (isa, "scalar")]
        np.testing.assert_array_equal(*both)


@pytest.mark.parametrize("count", [2, 4, 5])
@pytest.mark.parametrize("form", ["f32", "q8", "q8x2"])
@pytest.mark.parametrize("fmt", ["int8", "int4"])
def test_pages_at_once_are_one_after_another(fmt, form, count):
    need("amx")
    r = np.random.default_rng(count)
    for n, d in ((64, 512), (16, 64), (37, 576), (33, 96), (70, 128), (5, 128)):
        blocks = [page(fmt, d, "v", seed)[0] for seed in range(count)]
        _, together = po.aligned(sum(b.nbytes for b in blocks))
        together[:] = np.concatenate(blocks)
        for seen in (64, 40):
            visible = np.full(n, 64, np.int32)
            visible[n // 2] = seen
            p = np.concatenate([probabilities(n, visible, r) for _ in blocks], axis=1)
            p[n // 3, ::7] = 1e-39
            p[n // 4] = 0
            start = want = r.standard_normal((n, d)).astype(F32)
            for i, block in enumerate(blocks):
                part = np.ascontiguousarray(p[:, 64 * i : 64 * i + 64])
                want = po.mix(fmt, "amx", form, block, d, part, visible, want)
            got = po.mix(fmt, "amx", form, together, d, p, visible, start, pages=count)
            np.testing.assert_array_equal(got, want)


def test_tile_products_are_there():
    """A column that is announced but absent would be a silent pass below."""
    need("amx")
    table = octavo.kernels("amx")
    for name, slot, form in itertools.product(("int8", "int4"), ("scores", "mix"), ("q8", "q8x2")):
        assert [k.isa for k in table if k[:4] == ("page", name, slot, form)] == ["amx"]


@pytest.mark.parametrize(("fmt", "form"), [s for s in SLOTS if s[1] != "f32"])
@pytest.mark.parametrize("isa", po.ISAS)
def test_many_rows_that_see_all_match_scalar(isa, fmt, form):
    """What tile products take: whole pages, 16 queries and more, strips that are not full."""
    need(isa)
    r = np.random.default_rng(17)
    shapes = ((15, 64), (16, 64), (17, 128), (63, 64), (64, 128), (33, 192), (48, 576), (20, 80))
    for n, d in shapes:
        q, p = r.standard_normal((n, d)).astype(F32), r.random((n, 64)).astype(F32)
        q[n - 1] = p[n - 1] = p[2, 1:] = 0
        visible, o = np.full(n, 64, np.int32), r.standard_normal((n, d)).astype(F32)
        for kind in ("gauss", "spread", "nan"):
            rows = po.hostile(d, 6)["gauss" if kind == "nan" else kind].astype(BF16).astype(F32)
            codes, scale, zero, _ = po.encode(fmt, rows)
            if kind == "nan":
                scale[5], scale[9] = np.nan, -scale[9]
                codes[7] = {"int8": -128, "int4": 15}[fmt]
                q[1, 7] = p[1, 9] = np.nan
            blocks = {}
            for role in "kv":
                packed = po.pack(fmt, role, codes, scale, zero)
                _, blocks[role] = po.aligned(packed.nbytes)
                blocks[role][:] = packed
            for f, role, x in ((po.scores, "k", (q, visible)), (po.mix, "v", (p, visible, o))):
                both = [f(fmt, c, form, blocks[role], d, *x) for c in (isa, "scalar")]
                np.testing.assert_array_equal(*both)
                for one in (slice(0, 1), slice(n - 1, n)):
                    alone = f(fmt, isa, form, blocks[role], d, *(each[one] for each in x))
                    np.testing.assert_array_equal(alone, both[0][one])


@pytest.mark.parametrize(("fmt", "form"), SLOTS)
@pytest.mark.parametrize("isa", po.ISAS)
def test_a_row_depends_on_itself_alone(isa, fmt, form):
    need(isa)
    d, n, r = 64, 11, np.random.default_rng(12)
    visible = r.integers(1, 65, n).astype(np.int32)
    kb, vb = page(fmt, d, "k", 7)[0], page(fmt, d, "v", 7)[0]
    q, p = r.standard_normal((n, d)).astype(F32), probabilities(n, visible, r)
    o = r.standard_normal((n, d)).astype(F32)
    s, m = (
        po.scores(fmt, isa, form, kb, d, q, visible),
        po.mix(fmt, isa, form, vb, d, p, visible, o),
    )
    for i in range(n):
        one = slice(i, i + 1)
        assert np.array_equal(po.scores(fmt, isa, form, kb, d, q[one], visible[one]), s[one])
        assert np.array_equal(po.mix(fmt, isa, form, vb, d, p[one], visible[one], o[one]), m[one])


@pytest.mark.parametrize(("fmt", "form"), [s for s in SLOTS if s[0] in PLAIN])
@pytest.mark.parametrize("isa", po.ISAS)
def test_open_pages_never_read_past_the_visible_tokens(isa, fmt, form):
    """Later units are absent (NaN), later rows of the last unit hold NaN: none of it gets in."""
    need(isa)
    d, n, r = 80, 3, np.random.default_rng(13)
    for most in (1, 15, 16, 17, 50, 64):
        visible = np.array([most, max(most - 3, 0), most], np.int32)
        q, p = r.standard_normal((n, d)).astype(F32), probabilities(n, visible, r)
        o = r.standard_normal((n, d)).astype(F32)
        for role in "kv":
            _, rows = page(fmt, d, role, 8)
            dirty = rows.copy()
            dirty[most:] = np.nan
            whole = po.pack_plain(dirty.astype(PLAIN[fmt]), role)
            unit, stride = whole.nbytes // 4, whole.nbytes // 4 + 320
            raw, apart = po.aligned(4 * stride, fill=0xFF)
            for u in range(4):
                apart[u * stride : u * stride + unit] = whole[u * unit : (u + 1) * unit]
            if role == "k":
                got = po.scores(fmt, isa, form, apart, d, q, visible, stride)
                want = want_scores(fmt, form, rows, q, visible)
            else:
                got = po.mix(fmt, isa, form, apart, d, p, visible, o, stride)
                want = want_mix(fmt, form, rows, p, visible, o)
            np.testing.assert_array_equal(got, want)
            assert raw.size


@pytest.mark.parametrize(("fmt", "form"), SLOTS)
@pytest.mark.parametrize("isa", po.ISAS)
def test_nan_reaches_the_output(isa, fmt, form):
    need(isa)
    d, r = 64, np.random.default_rng(14)
    visible = np.array([64, 64, 20], np.int32)
    q, p = r.standard_normal((3, d)).astype(F32), probabilities(3, visible, r)
    q[1, 7] = np.nan
    p[1, 9] = np.nan
    s = po.scores(fmt, isa, form, page(fmt, d, "k", 9)[0], d, q, visible)
    assert np.isnan(s[1]).all() and not np.isnan(s[[0, 2]]).any()
    o = po.mix(fmt, isa, form, page(fmt, d, "v", 9)[0], d, p, visible, np.zeros((3, d), F32))
    assert np.isnan(o[1]).all() and not np.isnan(o[[0, 2]]).any()


@pytest.mark.parametrize("form", ["q8", "q8x2"])
@pytest.mark.parametrize("fmt", ["int8", "int4"])
def test_dot_forms_cost_what_the_design_says(fmt, form):
    """formats.md A4: scores and mix of Gaussian rows, d = 128, dB against unquantized attention."""
    want = {("int8", "q8"): (40.7, 42.0), ("int8", "q8x2"): (43.7, 43.9),
            ("int4", "q8"): (20.0, 20.27), ("int4", "q8x2"): (20.02, 20.29)}[fmt, form]  # fmt: skip
    d, r = 128, np.random.default_rng(15)
    x = po.recipe(d)[:8]
    q = r.standard_normal((64, d)).astype(F32)
    p = r.random((64, 64)).astype(F32)
    visible, err, ref = np.full(64, 64, np.int32), np.zeros(2), np.zeros(2)
    for rows in x:
        exact = rows.astype(np.float64)
        s = po.scores(fmt, HERE[-1], form, po.seal(fmt, "scalar", rows, "k")[0], d, q, visible)
        o = po.mix(fmt, HERE[-1], form, po.seal(fmt, "scalar", rows, "v")[0], d, p, visible,
                   np.zeros((64, d), F32))  # fmt: skip
        for i, (have, true) in enumerate([(s, q @ exact.T), (o, p @ exact)]):
            err[i] += ((have - true) ** 2).sum()
            ref[i] += (true**2).sum()
    got = 10 * np.log10(ref / err)
    assert (np.abs(got - want) < 0.35).all(), (got, want)


@pytest.mark.parametrize("d", [80, 256])
@pytest.mark.parametrize(("fmt", "form"), [s for s in SLOTS if s[0] not in PLAIN])
@pytest.mark.parametrize("isa", po.ISAS)
def test_sealed_units_past_the_visible_tokens_do_not_count(isa, fmt, form, d):
    """NaN scales and wild codes from the next unit on: neither scores nor mix let them in."""
    need(isa)
    n, r = 4, np.random.default_rng(16)
    for most in (3, 16, 30, 48):
        visible = np.array([most, 0, most - 2, most], np.int32)
        q, p = r.standard_normal((n, d)).astype(F32), probabilities(n, visible, r)
        o = r.standard_normal((n, d)).astype(F32)
        rows = po.hostile(d, 10)["gauss"].astype(BF16).astype(F32)
        codes, scale, zero, _ = po.encode(fmt, rows)
        after = -(-most // 16) * 16
        codes[after:], scale[after:] = {"fp8": 0x7F, "int8": 127, "int4": 15}[fmt], np.nan
        if zero is not None:
            zero[after:] = np.nan
        blocks = {}
        for role in "kv":
            wild = po.pack(fmt, role, codes, scale, zero)
            _, blocks[role] = po.aligned(wild.nbytes)
            blocks[role][:] = wild
        s = po.scores(fmt, isa, form, blocks["k"], d, q, visible)
        np.testing.assert_array_equal(s, want_scores(fmt, form, rows, q, visible))
        got = po.mix(fmt, isa, form, blocks["v"], d, p, visible, o)
        np.testing.assert_array_equal(got, want_mix(fmt, form, rows, p, visible, o))
