"""Views and edits of pages: read-only means read-only, a pinned page stays, a changed code changes
the next attention exactly, and nobody else's. The arithmetic here is NumPy's, on the layout that
int8.h draws."""

import ctypes
import gc
import itertools
import pickle

import numpy as np
import pytest
import small
import tiny

from octavo import _core
from octavo.errors import BusyError, ClosedError, OutOfPages, StaleHandleError

pytestmark = pytest.mark.core
HEADS, KV, DIM = 4, 2, 32


@pytest.fixture
def runtime():
    return _core.Runtime(1)


def open_cache(runtime, scheme="int8", form=None, budget=1 << 22, **kw):
    layers = tiny.layers(scheme, 1, kv_heads=KV, dim=DIM, form=form)
    return _core.Cache(runtime, layers, budget=budget, **kw)


def random_rows(n, seed):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, KV, DIM), dtype=np.float32) for _ in "kv")


def filled(cache, n=200, seed=0):
    seq = cache.open()
    k, v = random_rows(n, seed)
    cache.append(seq, k.ravel(), v.ravel(), n)
    return seq


def fed(runtime, cache, n=200, seed=0):
    program = small.program(runtime)
    seq = cache.open()
    ids = tiny.tokens(n, seed) % 40
    _core.step(program, cache, [(seq, ids, n)])
    return program, seq, ids


# ---- read-only --------------------------------------------------------------------------------


def test_views_cannot_be_made_writable(runtime):
    cache = open_cache(runtime)
    seq = filled(cache)
    for segment, part in itertools.product("kv", ("codes", "scales")):
        array = cache.page(seq, 0, 0, segment).array(part)
        before = array.tobytes()
        assert not array.flags.writeable and not array.flags.owndata
        for a in (array, array[:], array.view(np.uint8), np.asarray(array), array[0].T):
            assert not a.flags.writeable
            with pytest.raises(ValueError):
                a.setflags(write=True)
            with pytest.raises(ValueError):
                a[...] = 0
        assert memoryview(array).readonly
        with pytest.raises((TypeError, BufferError)):
            (ctypes.c_char * array.nbytes).from_buffer(array)
        with pytest.raises((TypeError, BufferError)):
            memoryview(array.base)
        with pytest.raises(TypeError):
            pickle.dumps(array.base)
        assert array.tobytes() == before


def test_a_view_shows_the_bytes_that_attention_reads(runtime):
    cache = open_cache(runtime)
    seq = filled(cache, 64)
    k, _ = decoded_by_hand(cache, seq, 1)
    np.testing.assert_array_equal(k.transpose(1, 0, 2), cache.decode(seq, 0, 0, "k"))
    a, b = (cache.page(seq, 0, 0, "k").array("codes") for _ in "ab")
    assert np.shares_memory(a, b)


# ---- pins -------------------------------------------------------------------------------------


def test_explicit_operations_on_pinned_pages_change_nothing(runtime):
    cache = open_cache(runtime)
    seq = filled(cache)
    view = cache.page(seq, 0, 1, "v").array("codes")
    before = small.digest(cache, [seq])
    refused = [
        lambda: cache.truncate(seq, 64),
        lambda: cache.truncate(seq, 0),
        lambda: cache.truncate(seq, 127),
        lambda: cache.release(seq),
        lambda: cache.close(),
        lambda: cache.edit(seq, 0, 1, "v"),
        lambda: cache.edit(seq, 0, 1, "k"),  # the same page
    ]
    for call in refused:
        with pytest.raises(BufferError, match="1 view"):
            call()
        assert small.digest(cache, [seq]) == before
        cache.check()
    cache.truncate(seq, 128)
    cache.edit(seq, 0, 0, "k").close()
    del view
    cache.truncate(seq, 64)
    cache.release(seq)
    cache.close()


def test_a_forced_release_keeps_the_page_for_its_views(runtime):
    cache = open_cache(runtime)
    seq = filled(cache)
    view = cache.page(seq, 0, 1, "v").array("codes")
    content, free = view.tobytes(), cache.ledger()["page_bytes"]
    cache.release(seq, True)
    cache.check()
    assert cache.ledger()["sealed"] == free and cache.ledger()["sequences"] == 0
    for i in range(20):  # churn: the page must not be given to anyone
        cache.release(filled(cache, 300, i))
    assert view.tobytes() == content
    del view
    assert cache.ledger()["sealed"] == 0
    cache.check()


def test_views_outlive_every_owner(runtime):
    cache = open_cache(runtime)
    seq = filled(cache)
    view = cache.page(seq, 0, 2, "k").array("codes")
    content = view.tobytes()
    seam = small.live("pages")
    del cache, runtime
    gc.collect()
    assert view.tobytes() == content and small.live("pages") == seam
    del view
    gc.collect()


def test_ten_thousand_views_with_churn(runtime):
    """Owners dropped, the collector run, every other page reused: all views read back."""
    cache = open_cache(runtime, budget=1 << 20)
    held = filled(cache, 640, seed=1)
    pages = [cache.page(held, 0, i, s) for i in range(10) for s in "kv"]
    views = []
    for i in range(10_000):
        views.append(pages[i % 20].array(("codes", "scales")[i // 20 % 2]))
        if i % 2500 == 2499:
            cache.release(filled(cache, 1000, seed=i))
            gc.collect()
    content = [v.tobytes() for v in views[:40]]
    assert cache.ledger()["pins"] == 10_000
    with pytest.raises(BufferError, match="10000 views"):
        cache.close()
    cache.release(held, True)
    del pages
    for i in range(10):
        cache.release(filled(cache, 1000, seed=i))
    gc.collect()
    assert all(v.tobytes() == content[i % 40] for i, v in enumerate(views))
    assert cache.ledger()["sealed_pages"] == 10
    del views[::2]
    views.clear()
    gc.collect()
    assert cache.ledger()["pins"] == 0 and cache.ledger()["sealed"] == 0
    cache.check()
    cache.close()


def test_handles_of_pages_that_were_given_back_are_stale(runtime):
    cache = open_cache(runtime)
    seq = filled(cache)
    page, other = cache.page(seq, 0, 0, "k"), cache.page(seq, 0, 1, "k")
    cache.truncate(seq, 64)
    page.array("codes")
    with pytest.raises(StaleHandleError):
        other.array("codes")
    cache.release(seq)
    again = filled(cache)
    with pytest.raises(StaleHandleError):
        page.array("codes")
    assert page.page in {cache.page(again, 0, i, "k").page for i in range(3)}
    with pytest.raises(ClosedError):
        cache.page(seq, 0, 0, "k")
    page.close()
    with pytest.raises(ClosedError):
        page.array("codes")


def test_eviction_goes_around_pinned_pages(runtime):
    probe = small.cache(runtime).ledger()
    cache = small.cache(runtime, budget=8 * probe["page_bytes"] + 16 * probe["unit_bytes"])
    program, seq, ids = fed(runtime, cache, 256)
    view = cache.page(seq, 0, 3, "k").array("codes")
    content = view.tobytes()
    held, cached = view, cache.page(seq, 0, 0, "k").array("codes")
    del cached
    cache.release(seq, True)
    assert cache.ledger()["cached_pages"] == 4
    for i in range(3):
        _, other, _ = fed(runtime, cache, 256, 7 + i)
        cache.release(other)
        assert view.tobytes() == content
        cache.check()
    again = cache.open()
    assert cache.match(again, ids) == 192  # and page 3 would be a hit of 257 tokens
    with pytest.raises(OutOfPages) as short:
        _core.step(program, cache, [(cache.open(), tiny.tokens(500, 99) % 40, 500)])
    assert short.value.evictable <= 4 * probe["page_bytes"]
    assert held.tobytes() == content


# ---- edits ------------------------------------------------------------------------------------


def bf16(x):
    return (x.astype(np.uint32) << 16).view(np.float32)


def decoded_by_hand(cache, seq, pages):
    """[tokens][kv_heads][dim] of K and V from the bytes, by the drawing in int8.h."""
    out = []
    for segment in "kv":
        blocks = []
        for i in range(pages):
            page = cache.page(seq, 0, i, segment)
            codes = page.array("codes").reshape(KV, -1).astype(np.float32) - 128
            scale = bf16(page.array("scales").reshape(KV, 64))
            if segment == "k":  # [d/4][64][4]
                codes = codes.reshape(KV, DIM // 4, 64, 4).transpose(0, 2, 1, 3)
            else:  # [64/4][d][4]
                codes = codes.reshape(KV, 16, DIM, 4).transpose(0, 1, 3, 2)
            blocks.append(codes.reshape(KV, 64, DIM) * scale[..., None])
        out.append(np.concatenate(blocks, axis=1).transpose(1, 0, 2))
    return out


def attention(k, v, q, scale):
    """float64, [m][heads][dim]; each KV head serves HEADS // KV query heads."""
    k, v = (np.repeat(x.astype(np.float64), HEADS // KV, axis=1) for x in (k, v))
    s = np.einsum("mhd,thd->mht", q.astype(np.float64) * scale, k)
    p = np.exp(s - s.max(-1, keepdims=True))
    return np.einsum("mht,thd->mhd", p / p.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("form,tolerance", [("f32", 2e-6), ("q8x2", 4e-4), (None, 4e-2)])
@pytest.mark.parametrize("segment", "kv")
def test_a_changed_code_changes_attention_as_the_oracle_says(runtime, form, tolerance, segment):
    cache = open_cache(runtime, form=form)
    seq = filled(cache, 192)
    rng = np.random.default_rng(5)
    q = rng.standard_normal((3, HEADS, DIM), dtype=np.float32)
    first = cache.attend(seq, 0, q, HEADS, 0.3)
    want = attention(*decoded_by_hand(cache, seq, 3), q, 0.3)
    np.testing.assert_allclose(first, want, rtol=0, atol=tolerance * np.abs(want).max())
    page = cache.edit(seq, 0, 1, segment)
    codes, scales = page.array("codes"), page.array("scales")
    old = codes.copy(), scales.copy()
    for at in rng.integers(0, codes[0].size, 40):  # one KV head alone
        codes[1].flat[at] = rng.integers(1, 256)
    scales[1].flat[7] = 0x3F80  # 1.0
    del codes, scales
    page.close()
    second = cache.attend(seq, 0, q, HEADS, 0.3)
    want = attention(*decoded_by_hand(cache, seq, 3), q, 0.3)
    np.testing.assert_allclose(second, want, rtol=0, atol=tolerance * np.abs(want).max())
    np.testing.assert_array_equal(second[:, :2], first[:, :2])
    assert np.abs(second[:, 2:] - first[:, 2:]).max() > 10 * tolerance
    page = cache.edit(seq, 0, 1, segment)
    page.array("codes")[...], page.array("scales")[...] = old
    del page
    np.testing.assert_array_equal(cache.attend(seq, 0, q, HEADS, 0.3), first)


@pytest.mark.parametrize("scheme", ["int8", "int4", "fp8", "k8v4", "int4-had", "bf16", "f32"])
def test_pages_carried_over_by_hand_give_the_same_bits(runtime, scheme):
    """Every stored byte of another sequence's pages written into this one: it becomes the other."""
    cache = open_cache(runtime, scheme)
    a, b = filled(cache, 128, 1), filled(cache, 128, 2)
    q = np.random.default_rng(3).standard_normal((2, HEADS, DIM), dtype=np.float32)
    want = cache.attend(b, 0, q, HEADS, 0.3)
    assert np.any(cache.attend(a, 0, q, HEADS, 0.3) != want)
    for index, segment in itertools.product(range(2), "kv"):
        source = cache.page(b, 0, index, segment)
        page = cache.edit(a, 0, index, segment)
        for part in source.parts():
            page.array(part["name"])[...] = source.array(part["name"])
        page.close()
    np.testing.assert_array_equal(cache.attend(a, 0, q, HEADS, 0.3), want)
    cache.check()


def test_an_edit_is_the_sequences_own(runtime):
    """A fork, a sequence with the same prefix and the index keep what they had."""
    cache = small.cache(runtime)
    program, seq, ids = fed(runtime, cache, 200)
    twin, sharer = cache.fork(seq), cache.open()
    assert cache.match(sharer, ids) == 192
    view = cache.page(twin, 0, 1, "v").array("codes")
    before = view.tobytes(), small.page_bytes(cache, sharer)

    def answer(s):
        fork = cache.fork(s)
        got = _core.step(program, cache, [(fork, ids[:5], 0)], logits=True)["logits"][0]
        cache.release(fork)
        return small.bits(got)

    first = answer(seq)
    assert answer(twin) == first
    pages = cache.ledger()["sealed_pages"]
    page = cache.edit(seq, 0, 1, "v")
    assert cache.ledger()["sealed_pages"] == pages + 1
    page.array("codes")[...] ^= 0x55
    page.close()
    cache.check()
    assert answer(seq) != first and answer(twin) == first
    assert (view.tobytes(), small.page_bytes(cache, sharer)) == before
    # What was edited, or stands on it, is never found by others.
    _core.step(program, cache, [(seq, ids[:100], 100)])
    other = cache.open()
    assert cache.match(other, np.concatenate([ids, ids[:100], ids[:1]])) == 192
    third = cache.fork(seq)
    edited = answer(seq)
    assert answer(third) == edited
    page = cache.edit(third, 0, 1, "v")  # shared with seq: copied again
    page.array("codes")[...] ^= 0x55
    page.close()
    assert answer(seq) == edited
    del view
    for s in (seq, twin, sharer, other, third):
        cache.release(s)
    cache.check()


def test_edit_fork_truncate_and_feed_again(runtime):
    cache = small.cache(runtime)
    program, seq, ids = fed(runtime, cache, 200)
    cache.edit(seq, 0, 2, "k").close()
    assert cache.truncate(seq, 150) == 128  # the edited page is gone
    _core.step(program, cache, [(seq, ids[128:], 72)])
    cache.check()
    fresh = small.cache(runtime)
    want = fed(runtime, fresh, 200)[1]
    assert small.page_bytes(cache, seq) == small.page_bytes(fresh, want)
    twin = cache.fork(seq)
    cache.edit(twin, 0, 0, "k").close()
    cache.truncate(twin, 0)
    assert cache.match(twin, ids) == 192
    assert small.page_bytes(cache, twin) == small.page_bytes(fresh, want)
    cache.check()


def test_a_page_under_edit_keeps_others_out(runtime):
    cache = small.cache(runtime)
    program, seq, ids = fed(runtime, cache, 200)
    before = small.digest(cache, [seq])
    page = cache.edit(seq, 0, 1, "k")
    k, v, q = small.rows(1, 0)
    calls = [
        lambda: _core.step(program, cache, [(seq, ids[:1], 0)]),
        lambda: cache.append(seq, k, v, 1),
        lambda: cache.attend(seq, 0, q.reshape(1, 2, 16), 2, 1.0),
        lambda: cache.fork(seq),
        lambda: cache.truncate(seq, 10),
        lambda: cache.release(seq),
        lambda: cache.reencode(seq, small.cache(runtime)),
        lambda: cache.edit(seq, 0, 0, "k"),
    ]
    for call in calls:
        with pytest.raises(BusyError):
            call()
    other = cache.open()  # any other sequence goes on
    _core.step(program, cache, [(other, ids[:100], 0)])
    cache.reencode(other, small.cache(runtime))
    cache.release(other)
    array = page.array("codes")
    with pytest.raises(BufferError):
        page.close()
    del array
    page.close()
    after = small.digest(cache, [seq])
    assert after[0] == before[0] and after[1]["sealed_pages"] == before[1]["sealed_pages"] + 1
    cache.release(seq)


def test_a_released_sequence_under_edit(runtime):
    """The page stays the editor's until it is closed, then goes back once."""
    cache = small.cache(runtime)
    _, seq, _ = fed(runtime, cache, 200)
    page = cache.edit(seq, 0, 1, "k")
    array = page.array("codes")
    cache.release(seq, True)
    array[...] = 7
    kept = cache.ledger()["sealed_pages"]
    for i in range(5):
        s = cache.open()
        k, v, _ = small.rows(128, i)
        cache.append(s, k, v, 128)
        cache.release(s)
    assert (array == 7).all()
    del array
    page.close()
    assert cache.ledger()["sealed_pages"] == kept - 1
    cache.check()


def test_edits_of_what_is_not_sealed_are_refused(runtime):
    cache = small.cache(runtime, sink_pages=1, recent_pages=1)
    k, v, _ = small.rows(200, 0)
    seq = cache.open()
    cache.append(seq, k, v, 200)
    before = small.digest(cache, [seq])
    for index in (0, 2, 3):  # sink, recent, open
        assert not cache.page(seq, 0, index, "k").sealed
        with pytest.raises(ValueError, match="open"):
            cache.edit(seq, 0, index, "k")
        with pytest.raises(ValueError, match="open"):
            cache.page(seq, 0, index, "k").array("codes")
    for index in (-1, 4, 1 << 40):
        with pytest.raises(ValueError):
            cache.edit(seq, 0, index, "k")
    assert small.digest(cache, [seq]) == before
