"""Attention with sliding windows and learned sinks: the values, against float64; both laws,
whatever the window; what is before a window is not read, nor counted; what is wrong is refused.
"""

import numpy as np
import pytest
import tiny
from small import SANITIZED

from octavo import _core, _probe

pytestmark = pytest.mark.core
ISAS = [isa for isa in ("scalar", "avx2", "avx512", "amx") if _probe.runs_here(isa)]
if SANITIZED:
    ISAS = ISAS[-1:]
HEADS, KV_HEADS, DIM, SCALE = tiny.HEADS, tiny.KV_HEADS, tiny.DIM, tiny.DIM**-0.5
WINDOWS = [1, 63, 64, 65, 300]
SINKS = np.linspace(-3, 3, HEADS, dtype=np.float32)
KEPT = {"plain": {}, "kept": {"sink_pages": 1, "recent_pages": 2}}


def rows(n, seed=0, kv_heads=KV_HEADS, dim=DIM):
    rng = np.random.default_rng(seed)
    k, v = (rng.standard_normal((n, kv_heads, dim)).astype(np.float32) for _ in "kv")
    return k, v, rng.standard_normal((n, HEADS, dim)).astype(np.float32)


def cache_of(runtime, scheme="f32", kept="plain", **kw):
    layers = tiny.layers(scheme, 1, form=kw.pop("form", None))
    return _core.Cache(runtime, layers, budget=kw.pop("budget", 1 << 25), **KEPT[kept])


def fed(cache, k, v):
    seq = cache.open()
    for at in range(0, len(k), 8192):
        part = slice(at, at + 8192)
        cache.append(seq, k[part].ravel(), v[part].ravel(), len(k[part]))
    return seq


def attention(q, k, v, positions, window=0, sinks=None):
    """Softmax over what each position sees, in float64; a sink takes a share and gives nothing."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, HEADS // x.shape[1], axis=1) for x in (k, v))
    s = np.einsum("thd,shd->ths", q, k) * SCALE
    t, at = np.asarray(positions)[:, None], np.arange(len(k))[None]
    seen = (at <= t) & ((at > t - window) if window else True)
    s = np.where(seen[:, None], s, -np.inf)
    if sinks is not None:
        s = np.concatenate([s, np.broadcast_to(sinks[None, :, None], (*s.shape[:2], 1))], axis=2)
    p = np.exp(s - s.max(axis=2, keepdims=True))
    p /= p.sum(axis=2, keepdims=True)
    return np.einsum("ths,shd->thd", p[..., : len(k)], v)


def same(got, want, note=""):
    got, want = np.asarray(got).view(np.uint32), np.asarray(want).view(np.uint32)
    np.testing.assert_array_equal(got, want, err_msg=str(note))


# ---- values


@pytest.mark.parametrize("sinks", [None, SINKS], ids=["plain", "sinks"])
@pytest.mark.parametrize("window", [0, *WINDOWS, 2**31 - 1])
def test_values_are_those_of_the_definition(window, sinks):
    n = 700
    k, v, q = rows(n)
    cache, flat = cache_of(_core.Runtime(2)), [k.ravel(), v.ravel(), n, q.ravel()]
    got = cache.append(cache.open(), *flat, HEADS, SCALE, window, sinks)
    want = attention(q, k, v, range(n), window, sinks)
    np.testing.assert_allclose(got.reshape(want.shape), want, atol=2e-6)


@pytest.mark.parametrize("window", [0, 2, 64, 300])
@pytest.mark.parametrize("scheme", ["bf16", "int8", "int4-had"])
def test_queries_after_the_last_token(scheme, window):
    """They stand at the next position, where nothing is stored yet."""
    cache, n = cache_of(_core.Runtime(2), scheme, form="f32"), 523
    k, v, _ = rows(n)
    seq = fed(cache, k, v)
    parts = [[cache.decode(seq, 0, i, s, True) for i in range(-(-n // 64))] for s in "kv"]
    k, v = (np.concatenate(p, axis=1).swapaxes(0, 1) for p in parts)
    q = rows(5, seed=1)[2]
    got = cache.attend(seq, 0, q, HEADS, SCALE, window, SINKS)
    want = attention(q, k, v, [n] * 5, window, SINKS)
    np.testing.assert_allclose(got, want, atol=4e-6)


@pytest.mark.parametrize("n", [0, 64, 256, 300])
def test_a_window_of_one_after_the_last_token_is_empty(n):
    cache = cache_of(_core.Runtime(1))
    k, v, _ = rows(n)
    seq = fed(cache, k, v)
    for sinks in (None, SINKS):
        got = cache.attend(seq, 0, rows(3)[2], HEADS, SCALE, 1, sinks)
        assert (got == 0).all()


def test_sinks_of_all_sizes():
    """A sink of -inf is none; a large one leaves nothing; a NaN reaches its own head alone."""
    k, v, q = rows(300)
    cache = cache_of(_core.Runtime(1))
    seq = fed(cache, k, v)
    plain = cache.attend(seq, 0, q[:2], HEADS, SCALE)
    none = np.full(HEADS, -np.inf, np.float32)
    np.testing.assert_array_equal(cache.attend(seq, 0, q[:2], HEADS, SCALE, 0, none), plain)
    large = np.full(HEADS, 200, np.float32)
    assert (cache.attend(seq, 0, q[:2], HEADS, SCALE, 0, large) == 0).all()
    some = np.array([np.nan, -np.inf, -np.inf, -np.inf], np.float32)
    got = cache.attend(seq, 0, q[:2], HEADS, SCALE, 0, some)
    assert np.isnan(got[:, 0]).all()
    np.testing.assert_array_equal(got[:, 1:], plain[:, 1:])


# ---- the laws


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("scheme", ["f32", "bf16", "fp8", "k8v4", "int4-had"])
def test_cuts_of_a_prompt_change_no_bit(scheme, window, kept):
    runtime, n = _core.Runtime(2), 420
    k, v, q = rows(n)

    def fed_at(cuts):
        cache, out = cache_of(runtime, scheme, kept), []
        seq = cache.open()
        for lo, hi in zip([0, *cuts], [*cuts, n], strict=True):
            part = [x[lo:hi].ravel() for x in (k, v, q)]
            out.append(cache.append(seq, *part[:2], hi - lo, part[2], HEADS, SCALE, window, SINKS))
        cache.check()
        return np.concatenate(out)

    want = fed_at([])
    for cuts in (range(1, n), [64, 128, 300], [63, 65, 127, 129, 255, 257, 319], [1, 200, 201]):
        same(fed_at(list(cuts)), want, cuts)


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("window", [1, 64, 200])
def test_cuts_threads_batch_and_columns_change_no_bit_of_a_model(window, kept):
    """A layer with a window below one without; alone, in pieces, among others of other lengths."""
    ids, want = tiny.tokens(330), None
    for isa in ISAS:
        for threads in (1, 3):
            runtime = _core.Runtime(threads, isa)
            prog = tiny.program(runtime, "q4g32", max_rows=512, window=window)
            cache = _core.Cache(runtime, tiny.layers("k8v4"), budget=1 << 24, **KEPT[kept])
            got = tiny.feed(prog, cache, cache.open(), ids, [100, 101, 290])
            want = got if want is None else want
            same(got, want, (isa, threads))
            seqs = [cache.open() for _ in range(5)]
            for at, end in ((0, 90), (90, 91), (91, 300), (300, 330)):
                items = [
                    (s, ids[at:end] if i == 2 else tiny.tokens(7 + 20 * i, seed=i), 0)
                    for i, s in enumerate(seqs)
                ]
                step = _core.step(prog, cache, items, logits=True)
                same(step["logits"][2], want[at:end])
            cache.check()


@pytest.mark.parametrize("window", [1, 70, 300])
@pytest.mark.parametrize("scheme", ["bf16", "int4-had"])
def test_latent_layers_have_windows_too(scheme, window):
    n, want = 330, None
    rng = np.random.default_rng(0)
    draw = [(n, tiny.RANK), (n, tiny.ROPE), (n, HEADS * (tiny.RANK + tiny.ROPE))]
    c, r, q = (rng.standard_normal(shape).astype(np.float32) for shape in draw)
    for cuts in ([], [1, 64, 257], range(1, n)):
        layers = tiny.latent_layers(scheme, 1)
        cache, out = _core.Cache(_core.Runtime(2), layers, budget=1 << 24), []
        seq = cache.open()
        for lo, hi in zip([0, *cuts], [*cuts, n], strict=True):
            part = [x[lo:hi].ravel() for x in (c, r, q)]
            out.append(cache.append(seq, *part[:2], hi - lo, part[2], HEADS, SCALE, window, SINKS))
        want = np.concatenate(out) if want is None else want
        same(np.concatenate(out), want)
    first = want.reshape(n, HEADS, tiny.RANK)[0]
    assert np.abs(first - c[0]).max() > 0.1, "the sinks take a share"


@pytest.fixture(scope="module")
def long_histories():
    """k, v, and caches that hold them on 1, 4 and 32 threads, each with its sequence."""
    k, v, _ = rows(2 * 32768 + 4096 + 300)
    caches = [cache_of(_core.Runtime(threads), "k8v4") for threads in (1, 4, 32)]
    return k, v, [(cache, fed(cache, k, v)) for cache in caches]


@pytest.mark.parametrize("window", [100, 5000, 9000, 40_000])
def test_long_histories_fold_the_same(long_histories, window):
    """Past a run of 32,768 tokens: spans of chunks, or of super-chunks, or one lane all of it."""
    k, v, held = long_histories
    q, want = rows(65, seed=5)[2], None
    for cache, seq in held:
        whole = cache.attend(seq, 0, q, HEADS, SCALE, window, SINKS)
        want = whole if want is None else want
        same(whole, want)
        for some in (1, 3):
            same(cache.attend(seq, 0, q[:some].copy(), HEADS, SCALE, window, SINKS), want[:some])
    exact = attention(q[:1], k[-window:], v[-window:], [window], window, SINKS)
    assert np.abs(want[:1] - exact).max() < 0.05


# ---- what is before a window


def poison(cache, seq, index):
    """Every scale of a page of head 0 and 1 becomes NaN."""
    for segment in "kv":
        page = cache.edit(seq, 0, index, segment)
        page.array("scales")[...] = 0x7FC0  # a bfloat16 NaN
        page.close()


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_pages_before_every_window_are_not_read(scheme):
    cache, q = cache_of(_core.Runtime(2), scheme), rows(70, seed=3)[2]
    k, v, _ = rows(650)
    seq = fed(cache, k, v)
    want = cache.attend(seq, 0, q, HEADS, SCALE, 130, SINKS)
    for index in range((650 - 130 + 1) // 64):
        poison(cache, seq, index)
    same(cache.attend(seq, 0, q, HEADS, SCALE, 130, SINKS), want)
    poison(cache, seq, (650 - 130 + 1) // 64)
    assert np.isnan(cache.attend(seq, 0, q, HEADS, SCALE, 130, SINKS)).all()


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
@pytest.mark.parametrize("window", [64, 100, 300])
def test_rows_that_share_pages_with_others_do_not_see_them(scheme, window):
    """Rows of one append, whose windows begin in several pages: a poisoned one reaches its own."""
    runtime, n, old = _core.Runtime(2), 400, 512
    k, v, q = rows(old + n)

    def run(poisoned):
        cache = cache_of(runtime, scheme)
        seq = fed(cache, k[:old], v[:old])
        if poisoned:
            poison(cache, seq, 7)  # tokens 448 to 511
        part = [x[old:].ravel() for x in (k, v, q)]
        out = cache.append(seq, *part[:2], n, part[2], HEADS, SCALE, window, SINKS)
        return out.reshape(n, -1)

    clean, got = run(False), run(True)
    # The page in which a window begins is read whole; pages before it are not.
    reached = (old + np.arange(n) - window + 1) // 64 <= 7
    assert reached.any() and not reached.all()
    assert np.isnan(got[reached]).any(axis=1).all()
    same(got[~reached], clean[~reached])


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("window", [0, *WINDOWS])
def test_cost_counts_what_windows_show(window, kept):
    """Of layer 0 pages and units that any row's window touches, and pairs; of layer 1, all."""
    runtime = _core.Runtime(1)
    prog = tiny.program(runtime, "f32", max_rows=512, window=window)
    cache = _core.Cache(runtime, tiny.layers("int8"), budget=1 << 24, **KEPT[kept])
    sinks, recent = cache_kept(kept)
    ledger, seq, at = cache.ledger(), cache.open(), 0
    for n in (1, 63, 200, 1, 90, 1):
        step = _core.step(prog, cache, [(seq, tiny.tokens(n, seed=n), n)])
        nbytes = int8 = f32 = 0
        for size in (window, 0):
            # By the reading law, as the last row of the step has it.
            pages = {t // 64 for r in range(at, at + n) for t in seen_by(r, size)}
            sealed = {p for p in pages if sinks <= p < (at + n - 1) // 64 - recent}
            opened = sorted(pages - sealed)
            units = sum(-(-min(64, at + n - 64 * p) // 16) for p in opened)
            nbytes += len(sealed) * ledger["page_bytes"] + units * ledger["unit_bytes"]
            for r in range(at, at + n):
                closed = sum(sinks <= t // 64 < r // 64 - recent for t in seen_by(r, size))
                int8 += closed
                f32 += len(seen_by(r, size)) - closed
        each = 2 * 2 * HEADS * DIM
        assert step["cost"]["attend"][1:] == (nbytes / 2, int8 * each, f32 * each), (n, at)
        at += n


def seen_by(t, window):
    return range(max(0, t - window + 1) if window else 0, t + 1)


def cache_kept(kept):
    return KEPT[kept].get("sink_pages", 0), KEPT[kept].get("recent_pages", 0)


# ---- refusals


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"window": -1}, ValueError, "window"), ({"window": 2**31}, ValueError, "window"),
        ({"window": 1.5}, TypeError, "window"),
        ({"sinks": np.zeros(HEADS + 1, np.float32)}, ValueError, "sinks"),
        ({"sinks": np.zeros(HEADS)}, TypeError, "sinks"),
        ({"sinks": [0.0] * HEADS}, TypeError, "sinks"),
    ],
)  # fmt: skip
def test_arguments_are_checked(change, error, says):
    cache = cache_of(_core.Runtime(1))
    k, v, q = rows(10)
    seq = fed(cache, k, v)
    with pytest.raises(error, match=f"attend: {says}"):
        cache.attend(seq, 0, q, HEADS, SCALE, **change)
    with pytest.raises(error, match=f"append: {says}"):
        cache.append(seq, k.ravel(), v.ravel(), 10, q.ravel(), HEADS, SCALE, **change)
    assert cache.length(seq) == 10
