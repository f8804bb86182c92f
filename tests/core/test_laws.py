"""Laws one and two on a random two-layer model: the same bits however tokens arrive, whoever shares
the batch, on any number of threads and in every column."""

import os

import numpy as np
import pytest
import tiny

from octavo import _core, _probe

pytestmark = pytest.mark.core
ISAS = [isa for isa in ("scalar", "avx2", "avx512", "amx") if _probe.runs_here(isa)]
if os.environ.get("OCTAVO_SANITIZER") == "tsan":
    ISAS = ISAS[-1:]  # what threads share is the same in every column, and scalar takes minutes
WINDOWS = [(0, 0), (1, 2)]
CASES, FORMATS = tiny.CASES, ["f32", "bf16", "w8", "w8g32", "q4g32", "q4g32z", "q4g32m"]
COLUMNS = [("heads", s, f) for s in ("bf16", "fp8", "k8v4", "int4-had") for f in FORMATS]
COLUMNS += [("latent", "int8", "bf16"), ("latent", "fp8", "w8"), ("latent", "int4-had", "q4g32")]
COLUMNS += [("latent", "bf16", "q4g32m"), ("latent", "f16", "f32")]
if "OCTAVO_SANITIZER" in os.environ:  # memory is touched alike under most schemes; bits are seen to
    CASES = [c for c in CASES if c[1] in ("f32", "bf16", "k8v4", "int4-had")]
    COLUMNS = COLUMNS[::4]
if os.environ.get("OCTAVO_SANITIZER") == "tsan":
    CASES = [c for c in CASES if c[1] != "f32"]  # which threads share as they do bf16


def open_cache(runtime, scheme, windows=(0, 0), kind="heads", **kw):
    kw.setdefault("budget", 1 << 24)
    sinks, recent = windows
    return _core.Cache(
        runtime,
        tiny.KINDS[kind][1](scheme, form=kw.pop("form", None)),
        sink_pages=sinks,
        recent_pages=recent,
        **kw,
    )


@pytest.fixture(scope="module")
def runtime():
    return _core.Runtime(2)


@pytest.fixture(scope="module")
def progs(runtime):
    return {kind: make(runtime, "q4g32m", max_rows=300) for kind, (make, *_) in tiny.KINDS.items()}


@pytest.fixture
def prog(progs):
    return progs["heads"]


@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize(("kind", "scheme"), CASES)
def test_chunking_changes_no_bit(runtime, progs, kind, scheme, windows):
    ids, prog, segments = tiny.tokens(300), progs[kind], tiny.KINDS[kind][2]
    whole = open_cache(runtime, scheme, windows, kind)
    seq = whole.open()
    want = tiny.feed(prog, whole, seq, ids, [])
    pages = tiny.sealed_bytes(whole, seq, segments=segments)
    assert scheme == "f32" or pages
    ragged = np.cumsum(np.random.default_rng(3).integers(1, 90, 20))
    for cuts in (range(1, 300), [c for c in ragged if c < 300], [64, 128, 192, 256], [63, 65, 127]):
        cache = open_cache(runtime, scheme, windows, kind)
        other = cache.open()
        got = tiny.feed(prog, cache, other, ids, list(cuts))
        np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))
        assert tiny.sealed_bytes(cache, other, segments=segments) == pages
        cache.check()


@pytest.mark.parametrize("form", ["f32", "q8", "q8x2"])
@pytest.mark.parametrize(("kind", "scheme"), [("heads", "k8v4"), ("latent", "int4")])
def test_chunking_changes_no_bit_in_any_form(runtime, progs, kind, scheme, form):
    ids = tiny.tokens(200)
    want = None
    for cuts in ([], range(1, 200), [70, 150]):
        cache = open_cache(runtime, scheme, kind=kind, form=form)
        got = tiny.feed(progs[kind], cache, cache.open(), ids, list(cuts))
        want = got if want is None else want
        np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize(("kind", "scheme"), CASES)
def test_fork_and_truncate_equal_a_fresh_sequence(runtime, progs, kind, scheme, windows):
    ids, other = tiny.tokens(300), tiny.tokens(300, seed=2)
    prog, segments = progs[kind], tiny.KINDS[kind][2]
    cache = open_cache(runtime, scheme, windows, kind)
    seq = cache.open()
    tiny.feed(prog, cache, seq, ids[:200], [])
    for cut in (200, 199, 130, 128, 64, 40, 0):
        twin = cache.fork(seq)
        cache.check()
        mixed = np.concatenate([ids[:cut], other[cut:250]])
        kept = cache.truncate(twin, cut)
        assert kept <= cut
        cache.check()
        branch = cache.fork(twin)
        got = tiny.feed(prog, cache, branch, mixed[kept:], [])
        fresh_cache = open_cache(runtime, scheme, windows, kind)
        fresh = fresh_cache.open()
        want = tiny.feed(prog, fresh_cache, fresh, mixed, [])[kept:]
        np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))
        pages = tiny.sealed_bytes(fresh_cache, fresh, segments=segments)
        assert tiny.sealed_bytes(cache, branch, segments=segments) == pages
        cache.release(branch)
        cache.release(twin)
        cache.check()
    got = tiny.feed(prog, cache, seq, ids[200:], [])
    fresh_cache = open_cache(runtime, scheme, windows, kind)
    want = tiny.feed(prog, fresh_cache, fresh_cache.open(), ids, [])[200:]
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


def test_prefix_hits_equal_a_fresh_sequence(runtime, prog):
    ids = tiny.tokens(300)
    cache = open_cache(runtime, "int8")
    first = cache.open()
    want = tiny.feed(prog, cache, first, ids, [])
    cache.release(first)
    cache.check()
    assert cache.ledger()["cached_pages"] == 4
    second = cache.open()
    assert cache.match(second, ids) == 256
    got = tiny.feed(prog, cache, second, ids[256:], [])
    np.testing.assert_array_equal(got.view(np.uint32), want[256:].view(np.uint32))
    third = cache.open()
    assert cache.match(third, ids, salt=7) == 0
    cache.check()


@pytest.mark.parametrize(("kind", "scheme", "fmt"), COLUMNS)
def test_threads_batch_and_columns_change_no_bit(kind, fmt, scheme):
    """1, 2 and 4 threads; alone and among nine; scalar, avx2, avx512 and amx. The scalar column is
    slow: it takes one of the thread counts in turns, so that every format meets all of them."""
    ids = tiny.tokens(150)
    want, turn = None, COLUMNS.index((kind, scheme, fmt)) % 3
    for isa in ISAS:
        for threads in (1, 2, 4)[turn : turn + 1] if isa == "scalar" else (1, 2, 4):
            rt = _core.Runtime(threads, isa)
            prog = tiny.KINDS[kind][0](rt, fmt, max_rows=512)
            cache = open_cache(rt, scheme, kind=kind, budget=1 << 25)
            solo = cache.open()
            got = tiny.feed(prog, cache, solo, ids, [100])
            want = got if want is None else want
            np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))
            seqs = [cache.open() for _ in range(9)]
            for end, at in ((60, 0), (61, 60), (100, 61), (150, 100)):
                items = [
                    (s, ids[at:end] if i == 4 else tiny.tokens(3 + i * 2, seed=i), 0)
                    for i, s in enumerate(seqs)
                ]
                step = _core.step(prog, cache, items, logits=True)
                np.testing.assert_array_equal(
                    step["logits"][4].view(np.uint32), want[at:end].view(np.uint32)
                )
            cache.check()


@pytest.mark.parametrize("act", ["a32", "a8", "a8g32", "a8x2"])
def test_activation_forms_change_no_bit_across_columns(act):
    ids = tiny.tokens(70)
    results = []
    for isa in ISAS:
        rt = _core.Runtime(2, isa)
        prog = tiny.program(rt, "q4g32m", act=act)
        cache = open_cache(rt, "int8")
        results.append(tiny.feed(prog, cache, cache.open(), ids, [20, 21, 22]))
    for got in results[1:]:
        np.testing.assert_array_equal(got.view(np.uint32), results[0].view(np.uint32))


@pytest.mark.parametrize("n", [4096 + 700, 2 * 32768 + 2 * 4096 + 300])
def test_long_context_splits_and_merges_the_same(n):
    """Past a super-chunk of 4,096 tokens and a run of 32,768 the fold is one, whoever walks: one
    lane all of it (more than 64 queries), lanes chunks, or lanes super-chunks."""
    rng = np.random.default_rng(5)
    heads, step = 4, 1 << 13
    k, v = (rng.standard_normal((n, 2, 32)).astype(np.float32) for _ in "kv")
    q = rng.standard_normal((65, heads, 32)).astype(np.float32)
    want = None
    for threads in (1, 4, 32):
        rt = _core.Runtime(threads)
        cache = _core.Cache(rt, tiny.layers("k8v4", 1), budget=1 << 25)
        seq = cache.open()
        for at in range(0, n, step):
            part = slice(at, min(n, at + step))
            cache.append(seq, k[part].ravel(), v[part].ravel(), part.stop - at)
        want = cache.attend(seq, 0, q, heads, 0.2) if want is None else want
        for rows in (1, 3, 65):
            got = cache.attend(seq, 0, q[:rows].copy(), heads, 0.2)
            np.testing.assert_array_equal(got.view(np.uint32), want[:rows].view(np.uint32))
