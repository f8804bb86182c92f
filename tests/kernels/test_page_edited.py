"""Pages that no `seal` wrote: any scales, zeros and codes, as `Cache.edit` lets anyone write them.

Every column must give the scalar column's bits (a NaN only has to be a NaN), and all of them what
NumPy gives. Scales of all signs, zero, subnormal, too large, infinite and NaN; all 256 bytes."""

import numpy as np
import page_oracle as po
import pytest
from page_oracle import BF16, F32, FORMATS, HERE, PLAIN, WIDTHS

from octavo import _probe

SLOTS = [(f, form) for f in FORMATS for form in ("f32", "q8", "q8x2")
         if form in _probe.page_columns(f, "scalar")]  # fmt: skip


def signs(r, shape):
    return r.choice([-1.0, 1.0], shape)


def some(r, x, *values):
    """x with about one value in sixteen replaced."""
    return np.where(r.random(x.shape) < 1 / 16, r.choice(values, x.shape), x)


def last_two(r, x, value):
    """x with `value` in two late tokens, so that queries which see fewer must not notice."""
    x = x.copy()
    x[[40, 63]] = value
    return x


# x: positive numbers [64, groups], a page's honest scales. Named as what an editor did to them.
EDITS = {
    "honest": lambda r, x: x,
    "flipped": lambda r, x: -x,
    "signs": lambda r, x: x * signs(r, x.shape),
    "one_negative": lambda r, x: np.where(np.arange(64)[:, None] == r.integers(0, 16), -x, x),
    "equal": lambda r, x: np.full(x.shape, -0.5),
    "zero": lambda r, x: np.zeros(x.shape),
    "minus_zero": lambda r, x: some(r, x, -0.0, 0.0) * signs(r, x.shape),
    "nan": lambda r, x: last_two(r, x, np.nan),
    "inf": lambda r, x: last_two(r, -x, np.inf),
    "minus_inf": lambda r, x: some(r, x, -np.inf, np.inf),
    "1e30": lambda r, x: some(r, x, 1e30, -1e30),
    "largest": lambda r, x: r.choice([-1, 1, 0.9], x.shape) * (2 - 2**-7) * 2.0**127,
    "tiny": lambda r, x: x * signs(r, x.shape) * 2.0 ** -r.integers(90, 120, x.shape),
    "subnormal": lambda r, x: r.integers(-127, 128, x.shape) * 2.0**-133,
    "bits": lambda r, x: r.integers(0, 1 << 16, x.shape).astype(np.uint16).view(BF16),
}


def contents(fmt, kind, d, r, parts="scales zeros"):
    """Logical codes, scales, zeros of a page after an edit; codes are the bytes' whole range."""
    shape = (64, d // po.group(d))
    span = {"int8": np.arange(-128, 128), "int4": np.arange(16)}.get(fmt, np.arange(256))
    codes = r.choice(span, (64, d))
    codes[:, ::5] = r.choice(span[[0, -1]], (64, len(range(0, d, 5))))  # where pairs would saturate
    if fmt == "fp8" and kind != "bits":
        codes = np.where(codes % 128 == 127, 0x7E, codes)  # else every output is NaN
    edits = [EDITS[kind if part in parts else "honest"] for part in ("scales", "zeros")]
    with np.errstate(all="ignore"):
        scale = np.asarray(edits[0](r, r.random(shape) + 0.25)).astype(BF16).astype(F32)
        zero = np.asarray(edits[1](r, r.standard_normal(shape))).astype(BF16).astype(F32)
    return codes, scale, zero if fmt == "int4" else None


def block_of(fmt, role, page):
    with np.errstate(all="ignore"):
        packed = po.pack(fmt, role, *page)
    _, block = po.aligned(packed.nbytes)
    block[:] = packed
    return block


def noise(fmt, d, r):
    """A block of a plain format with any bits at all in half of its places."""
    kind = np.dtype(PLAIN[fmt])
    x = r.standard_normal(64 * d).astype(kind)
    wild = r.integers(0, 256, x.nbytes).astype(np.uint8).view(kind)
    _, block = po.aligned(x.nbytes)
    block[:] = np.where(r.random(x.shape) < r.choice([0.001, 0.5]), wild, x).view(np.uint8)
    return block


def requests(n, d, r):
    """q, p, o and visible of n queries: the first sees the whole page with equal weights."""
    visible = np.array([64, 64, 17, 0, 33, 64, 50], np.int32)[:n]
    q = r.standard_normal((n, d)).astype(F32)
    q[0] = r.choice([-2, 2], d)
    p = r.random((n, 64)).astype(F32) ** 4
    p[r.random((n, 64)) < 0.1] = 0
    p[0] = 1
    p[1] *= F32(1e-20)
    p[np.arange(64) >= visible[:, None]] = 0
    return q, p, r.standard_normal((n, d)).astype(F32), visible


def same(got, want, what):
    equal = (got.view(np.uint32) == want.view(np.uint32)) | (np.isnan(got) & np.isnan(want))
    assert equal.all(), (what, np.argwhere(~equal)[:4], got[~equal][:4], want[~equal][:4])


def check_page(fmt, form, page, d, r):
    """scores and mix in every column; seven queries take the paths of many, three those of few.
    NumPy gets them all at once: a row of its answer is a matter of that row."""
    keys, values = (block_of(fmt, role, page) for role in "kv")
    asked = [requests(n, d, r) for n in (3, 7)]
    q, p, o, visible = (np.concatenate(each) for each in zip(*asked, strict=True))
    with np.errstate(all="ignore"):
        all_s = po.page_scores(fmt, form, *page, q, visible)
        all_o = po.page_mix(fmt, form, *page, p, visible, o)
    for (q, p, o, visible), part in zip(asked, (slice(0, 3), slice(3, 10)), strict=True):
        n, want_s, want_o = len(q), all_s[part], all_o[part]
        for isa in HERE:
            s = po.scores(fmt, isa, form, keys, d, q, visible)
            same(s, want_s, (isa, "scores", d, n))
            got = po.mix(fmt, isa, form, values, d, p, visible, o)
            same(got, want_o, (isa, "mix", d, n))


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize(("fmt", "form"), [s for s in SLOTS if s[0] not in PLAIN])
def test_edited_pages(fmt, form, kind):
    for d in WIDTHS:
        r = np.random.default_rng(d)
        check_page(fmt, form, contents(fmt, kind, d, r), d, r)


@pytest.mark.parametrize("part", ["scales", "zeros"])
@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("form", ["f32", "q8", "q8x2"])
def test_int4_pages_with_one_part_edited(form, kind, part):
    for d in (64, 80, 192):
        r = np.random.default_rng(d)
        check_page("int4", form, contents("int4", kind, d, r, part), d, r)


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("fmt", [f for f in FORMATS if f not in PLAIN])
def test_edited_pages_decode(fmt, kind):
    for d in WIDTHS:
        page = contents(fmt, kind, d, np.random.default_rng(d))
        with np.errstate(all="ignore"):
            want = po.decode(fmt, *page)
        for isa in HERE:
            for role in "kv":
                image = po.decode_block(fmt, isa, block_of(fmt, role, page), d, role)
                same(image, want.T.copy() if role == "k" else want, (isa, role, d))


def plain_results(fmt, isa, block, d, queries):
    q, p, o, visible = queries
    return {
        "k": po.decode_block(fmt, isa, block, d, "k"),
        "v": po.decode_block(fmt, isa, block, d, "v"),
        "scores": po.scores(fmt, isa, "f32", block, d, q, visible),
        "mix": po.mix(fmt, isa, "f32", block, d, p, visible, o),
    }


@pytest.mark.parametrize("fmt", PLAIN)
def test_plain_pages_of_any_bits(fmt):
    for d in WIDTHS:
        for seed in range(4):
            r = np.random.default_rng([d, seed])
            block, queries = noise(fmt, d, r), requests(7 if seed % 2 else 3, d, r)
            want = plain_results(fmt, "scalar", block, d, queries)
            for isa in HERE[1:]:
                for what, got in plain_results(fmt, isa, block, d, queries).items():
                    same(got, want[what], (isa, what, d))


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("form", ["q8", "q8x2"])
def test_a_flipped_page_gives_the_flipped_output(isa, form):
    """The public way in: `page.v.scales[...] *= -1`. Negating scales negates mix and scores."""
    d, r = 128, np.random.default_rng(3)
    codes, scale, _ = contents("int8", "honest", d, r)
    q, p, _, visible = requests(7, d, r)
    seen = np.arange(64) < visible[:, None]
    here, flipped = (block_of("int8", "v", (codes, s, None)) for s in (scale, -scale))
    zero = np.zeros((7, d), F32)
    both = [po.mix("int8", isa, form, b, d, p, visible, zero) for b in (here, flipped)]
    np.testing.assert_array_equal(both[0], -both[1])
    here, flipped = (block_of("int8", "k", (codes, s, None)) for s in (scale, -scale))
    both = [po.scores("int8", isa, form, b, d, q, visible)[seen] for b in (here, flipped)]
    np.testing.assert_array_equal(both[0], -both[1])
