"""The prefix index: what is found, what is never found, what is evicted and in which order."""

import numpy as np
import pytest
import small
import tiny

from octavo import _core
from octavo.errors import OutOfPages

pytestmark = pytest.mark.core


@pytest.fixture(scope="module")
def runtime():
    return _core.Runtime(1)


@pytest.fixture(scope="module")
def program(runtime):
    return small.program(runtime, max_rows=2048)


def ids(n, seed=0):
    return (tiny.tokens(n, seed) % 40).astype(np.int32)


def feed(program, cache, tokens, seq=None, **kw):
    seq = cache.open() if seq is None else seq
    step = _core.step(program, cache, [(seq, tokens, len(tokens))], **kw)
    return seq if step["ok"] == [True] else None


def hit(cache, tokens, salt=0):
    seq = cache.open()
    n = cache.match(seq, tokens, salt)
    cache.check()
    cache.release(seq, True)
    return n


def pages(runtime, n, units=8):
    """A budget of n sealed pages and some open rows."""
    ledger = small.cache(runtime).ledger()
    return n * ledger["page_bytes"] + units * ledger["unit_bytes"]


def test_whole_pages_only_and_one_token_is_left(runtime, program):
    cache = small.cache(runtime)
    text = ids(200)
    feed(program, cache, text)
    for n, want in [(1, 0), (63, 0), (64, 0), (65, 64), (128, 64), (129, 128), (200, 192)]:
        assert hit(cache, text[:n]) == want
    longer = np.concatenate([text, ids(100, 9)])
    assert hit(cache, longer) == 192
    other = longer.copy()
    other[130] = (other[130] + 1) % 40
    assert hit(cache, other) == 128
    other[0] = (other[0] + 1) % 40
    assert hit(cache, other) == 0


def test_equal_pages_at_other_places_are_not_equal(runtime, program):
    """The key is the whole history, not the 64 tokens."""
    cache = small.cache(runtime)
    block, other = ids(64), ids(64, 1)
    feed(program, cache, np.concatenate([block, other]))
    assert hit(cache, np.concatenate([other, block, block])) == 0
    assert hit(cache, np.concatenate([block, block, block])) == 64


def test_a_shared_bucket_is_not_a_hit(runtime, program):
    """A hundred and fifty histories that go on with the same 64 tokens: whatever their hashes, each
    finds its own second page."""
    cache = small.cache(runtime, budget=1 << 24)
    same, last = ids(64, 999), ids(1)
    for salt in range(2):
        seqs = [cache.open() for _ in range(150)]
        for i, seq in enumerate(seqs):
            assert cache.match(seq, ids(65, i), salt) == 0
            feed(program, cache, np.concatenate([ids(64, i), same]), seq)
        for i, seq in enumerate(seqs):
            found = cache.open()
            assert cache.match(found, np.concatenate([ids(64, i), same, last]), salt) == 128
            for index in range(2):
                own = cache.page(seq, 0, index, "k").page
                assert cache.page(found, 0, index, "k").page == own
            cache.release(found)
    cache.check()


def test_salts_do_not_see_each_other(runtime, program):
    cache = small.cache(runtime)
    text = ids(200)
    for salt in (0, 1, (1 << 63) - 1):
        assert hit(cache, text, salt) == 0
        seq = cache.open()
        assert cache.match(seq, text, salt) == 0
        feed(program, cache, text, seq)
        assert hit(cache, text, salt) == 192
    assert hit(cache, text, 2) == 0
    with pytest.raises(ValueError):
        hit(cache, text, 1 << 63)


def test_match_takes_an_empty_sequence(runtime, program):
    cache = small.cache(runtime)
    text = ids(200)
    seq = feed(program, cache, text)
    with pytest.raises(ValueError, match="not empty"):
        cache.match(seq, text)
    cache.truncate(seq, 0)
    assert cache.match(seq, text) == 192
    assert cache.match(cache.open(), text[:0]) == 0


def test_two_that_compute_the_same_keep_one_page(runtime, program):
    cache = small.cache(runtime)
    text = ids(200)
    a, b = cache.open(), cache.open()
    _core.step(program, cache, [(a, text, 200), (b, text, 200)])
    assert cache.ledger()["sealed_pages"] == 3
    c = feed(program, cache, text)
    assert cache.ledger()["sealed_pages"] == 3
    cache.check()
    assert [cache.page(s, 0, 1, "k").page for s in (b, c)] == [cache.page(a, 0, 1, "k").page] * 2
    for s in (a, b):
        cache.release(s)
        cache.check()
    assert cache.ledger()["cached_pages"] == 0
    cache.release(c)
    assert cache.ledger()["cached_pages"] == 3


def test_what_must_never_be_indexed(runtime, program):
    text = ids(200)
    # Captures and the like ask for quiet steps; what follows one is not indexed either.
    cache = small.cache(runtime)
    seq = feed(program, cache, text[:100], quiet=True)
    feed(program, cache, text[100:], seq)
    assert hit(cache, text) == 0
    # Rows that are not finite, and whatever their sequence does not hold.
    cache = small.cache(runtime)
    bad = text.copy()
    bad[150] = small.POISON
    assert feed(program, cache, bad) is None
    assert hit(cache, bad) == 0 and cache.ledger()["sealed_pages"] == 0
    # The user's own rows, and tokens after them.
    cache = small.cache(runtime)
    k, v, _ = small.rows(64, 0)
    seq = cache.open()
    cache.append(seq, k, v, 64)
    feed(program, cache, text, seq)
    assert hit(cache, text) == 0 and cache.ledger()["sealed_pages"] == 4
    # Re-encoded from another scheme.
    cache, source = small.cache(runtime), small.cache(runtime, "bf16")
    seq = source.reencode(feed(program, source, text), cache)
    feed(program, cache, ids(100, 3), seq)
    assert hit(cache, text) == 0
    # Windows make a page's form depend on what follows it.
    cache = small.cache(runtime, sink_pages=1)
    feed(program, cache, text)
    assert hit(cache, text) == 0
    cache = small.cache(runtime, prefix=False)
    feed(program, cache, text)
    assert hit(cache, text) == 0


def test_a_cancelled_or_refused_step_leaves_no_entry(runtime, program):
    cache = small.cache(runtime, budget=pages(runtime, 4))
    seq = cache.open()
    with pytest.raises(OutOfPages) as short:
        feed(program, cache, ids(500), seq)
    assert short.value.needed > short.value.available and short.value.evictable == 0
    assert hit(cache, ids(500)) == 0 and cache.length(seq) == 0
    if small.FAULTS:
        _core.cancel_after(3)
        with pytest.raises(KeyboardInterrupt):
            feed(program, cache, ids(100), seq)
        _core.cancel_after(0)
        assert hit(cache, ids(100)) == 0
    cache.check()


def test_truncated_and_refed_sequences_index_what_they_hold(runtime, program):
    cache = small.cache(runtime)
    text, other = ids(300), ids(300, 1)
    seq = feed(program, cache, text)
    for cut in (299, 256, 200, 130, 64, 63, 0):
        kept = cache.truncate(seq, cut)
        # Inside the open page anywhere, inside a sealed one at its start.
        assert kept == (cut if cut >= 256 else cut // 64 * 64)
        mixed = np.concatenate([text[:kept], other[kept:300]])
        feed(program, cache, mixed[kept:], seq)
        assert hit(cache, mixed) == 256
        assert hit(cache, text) == 256
        fresh = small.cache(runtime)
        same = feed(program, fresh, mixed)
        assert small.page_bytes(cache, seq) == small.page_bytes(fresh, same)
        cache.truncate(seq, 0)
        feed(program, cache, text, seq)
        cache.check()


def test_a_fork_extends_the_index_for_both(runtime, program):
    cache = small.cache(runtime)
    text = ids(100)
    seq = feed(program, cache, text)
    twin = cache.fork(seq)
    a, b = ids(100, 1), ids(100, 2)
    feed(program, cache, a, seq)
    feed(program, cache, b, twin)
    assert hit(cache, np.concatenate([text, a])) == 192
    assert hit(cache, np.concatenate([text, b])) == 192
    assert cache.ledger()["sealed_pages"] == 5
    cache.check()


# ---- eviction -----------------------------------------------------------------------------------


def test_least_recently_used_leaves_go_first(runtime, program):
    cache = small.cache(runtime, budget=pages(runtime, 8, units=8))
    old, new = ids(257, 1), ids(257, 2)
    for text in (old, new):
        seq = cache.open()
        for at in range(0, 256, 64):
            feed(program, cache, text[at : at + 64], seq)
        cache.release(seq)
    assert cache.ledger()["cached_pages"] == 8
    assert hit(cache, new) == hit(cache, old) == 256  # old is now the younger
    seq = feed(program, cache, ids(128, 3))
    assert hit(cache, new) == 128 and hit(cache, old) == 256  # two pages, from the end
    cache.check()
    feed(program, cache, ids(128, 4))
    assert hit(cache, new) == 0 and hit(cache, old) == 256
    cache.release(seq)
    assert cache.ledger()["cached_pages"] == 6


def test_what_a_sequence_holds_is_not_evicted(runtime, program):
    cache = small.cache(runtime, budget=pages(runtime, 8, units=16))
    text = ids(257, 1)
    cache.release(feed(program, cache, text[:256]))
    held = cache.open()
    assert cache.match(held, text[:129]) == 128
    with pytest.raises(OutOfPages):
        feed(program, cache, ids(512, 5))
    assert hit(cache, text) == 256  # refused: nothing was evicted
    for seed, n in ((6, 256), (7, 128), (8, 128)):
        feed(program, cache, ids(n, seed))
    assert hit(cache, text) == 192
    with pytest.raises(OutOfPages):
        feed(program, cache, ids(128, 9))  # two pages short, and one alone is idle
    assert hit(cache, text) == 192
    feed(program, cache, text[128:200], held)
    assert cache.length(held) == 200
    cache.check()


def test_needs_is_the_truth(runtime, program):
    """A step is accepted exactly if needs() says that it fits, whatever is cached or pinned."""
    rng = np.random.default_rng(0)
    cache = small.cache(runtime, budget=pages(runtime, 12, units=20))
    seqs, views, accepted, refused = [], [], 0, 0
    for _ in range(400):
        if len(seqs) > 3 or (seqs and rng.random() < 0.3):
            cache.release(seqs.pop(int(rng.integers(len(seqs)))), True)
        if rng.random() < 0.2 and seqs and cache.length(seqs[0]) > 64:
            views.append(cache.page(seqs[0], 0, 0, "k").array("codes"))
        if len(views) > 3 or (views and rng.random() < 0.2):
            views.pop(0)
        seq, text = cache.open(), ids(400, int(rng.integers(6)))
        seqs.append(seq)
        at = cache.match(seq, text)
        n = int(rng.integers(1, 401 - at))
        needed, room = cache.needs([seq], [n])
        try:
            feed(program, cache, text[at : at + n], seq)
            assert needed <= room
            accepted += 1
        except OutOfPages as error:
            assert needed > room
            assert error.available + error.evictable == room and error.needed == needed
            refused += 1
        cache.check()
    assert accepted > 50 and refused > 50


def test_the_index_equals_a_model(runtime, program):
    """Against a set of token prefixes, with growth past the first 64 nodes and rehashing."""
    rng = np.random.default_rng(1)
    cache = small.cache(runtime, budget=1 << 24)
    stems = [ids(640, s) for s in range(4)]
    known = set()
    for i in range(150):
        stem, cut = stems[i % 4], int(rng.integers(0, 640))
        text = np.concatenate([stem[:cut], ids(640 - cut, 100 + i % 17)])[: rng.integers(1, 641)]
        want = 0
        while want + 64 < len(text) and text[: want + 64].tobytes() in known:
            want += 64
        seq = cache.open()
        assert cache.match(seq, text) == want
        feed(program, cache, text[want:], seq)
        known |= {text[:n].tobytes() for n in range(64, len(text) + 1, 64)}
        if i % 3:
            cache.release(seq)
    assert cache.ledger()["sealed_pages"] == len(known) > 128
    cache.check()


def test_drop_prefix_drops_what_is_idle(runtime, program):
    cache = small.cache(runtime)
    text = ids(300)
    seq = feed(program, cache, text)
    cache.release(feed(program, cache, ids(300, 1)))
    held = cache.page(seq, 0, 3, "k").array("codes")
    cache.drop_prefix()
    cache.check()
    assert hit(cache, ids(300, 1)) == 0 and hit(cache, text) == 256
    cache.truncate(seq, 256)
    cache.release(seq, True)
    cache.drop_prefix()
    assert hit(cache, text) == 256  # the view holds the last page, and that its parents
    del held
    cache.drop_prefix()
    assert hit(cache, text) == 0 and cache.ledger()["sealed"] == 0
    cache.check()
