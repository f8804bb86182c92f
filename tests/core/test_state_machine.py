"""Random histories over two caches that share a runtime: one with a prefix index and a budget of a
few pages, one with sinks and recent pages. The shadow of a sequence is the list of what it was
fed; a fresh sequence that is fed the same must answer with the same bits. Every invariant is
recounted after every rule, and in the end everything is given back.

OCTAVO_RULES sets how many rules run: 20,000 by default, 3,000 under a sanitizer, and ten times
that in tests/long.
"""

import gc
import os
from dataclasses import dataclass, field

import numpy as np
import pytest
import small
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from octavo import _core
from octavo.errors import BusyError, NumericalError, OutOfPages

pytestmark = pytest.mark.core
RULES = int(os.environ.get("OCTAVO_RULES", "3000" if small.SANITIZED else "20000"))
STEPS = 50
SCHEMES = [
    ("int8", {"prefix": True}),
    ("int4-had", {"sink_pages": 1, "recent_pages": 1}),
]
DOCS = [np.random.default_rng(i).integers(0, 40, 1024).astype(np.int32) for i in range(3)]
DOCS[1][:100] = DOCS[0][:100]  # one page and a half in common

which = st.integers(0, 1 << 16)
done = {"rules": 0, "verified": 0, "short": 0, "cancelled": 0, "faults": 0}


@dataclass
class Shadow:
    """A live sequence and what it was fed: int tokens, or (seed, i) for row i of small.rows."""

    cache: int
    handle: int
    fed: list = field(default_factory=list)
    known: bool = True  # `fed` alone explains its state: never edited nor re-encoded
    edit: object = None  # the Page that is open for edit


def cut(n, sealed, recent):
    """Where a sequence can be cut: a sealed page at its start alone, and never where a page that is
    to be among the `recent` ones has lost its rows."""

    def good(at):
        page = at // 64
        return not (at % 64 and sealed[page]) and not any(sealed[max(0, page - recent) : page])

    return next(at for at in (n, *range(n // 64 * 64, -1, -64)) if good(at))


class World:
    """What outlives an example: runtime, weights and the caches that fresh sequences run in. One
    thread: which lane takes a task is chance, and a replay must cancel at the same boundary."""

    def __init__(self):
        self.runtime = _core.Runtime(1)
        self.weights, self.make_program = small.model(self.runtime)
        self.program = self.make_program()
        self.fresh = [
            small.cache(self.runtime, scheme, 1 << 22, **(kw | {"prefix": False}))
            for scheme, kw in SCHEMES
        ]

    def replay(self, cache, fed, tail):
        """Bits of the last logits of a fresh sequence fed `fed`, then tokens `tail` in one step."""
        seq = cache.open()
        at = 0
        while at < len(fed):
            end = at
            if isinstance(fed[at], tuple):
                seed = fed[at][0]
                while end < len(fed) and fed[end] == (seed, end - at):
                    end += 1
                k, v, _ = small.rows(128, seed)
                cache.append(seq, k[: (end - at) * 16], v[: (end - at) * 16], end - at)
            else:
                while end < len(fed) and not isinstance(fed[end], tuple) and end - at < 400:
                    end += 1
                ids = np.array(fed[at:end], np.int32)
                _core.step(self.program, cache, [(seq, ids, len(ids))])
            at = end
        got = _core.step(self.program, cache, [(seq, tail, len(tail) - 1)], logits=True)
        pages = small.page_bytes(cache, seq)
        cache.release(seq)
        return small.bits(got["logits"][0]), pages


class CacheMachine(RuleBasedStateMachine):
    world = None

    @initialize(pages=st.integers(6, 16))
    def start(self, pages):
        type(self).world = type(self).world or World()
        gc.collect()
        self.before = small.live()
        self.caches = [
            small.cache(self.world.runtime, scheme, pages * 2200 + 3000, **kw)
            for scheme, kw in SCHEMES
        ]
        self.program = self.world.make_program()  # its scratch grows: no example sees another's
        self.seqs: list[Shadow] = []
        self.views = []  # (array, bytes, cache)

    # ---- helpers ------------------------------------------------------------------------------

    def pick(self, i, cache=None) -> Shadow:
        own = [s for s in self.seqs if cache is None or s.cache == cache]
        return own[i % len(own)]

    def state(self):
        out = []
        for cache in self.caches:
            ledger = cache.ledger()
            del ledger["tables"]
            out.append(ledger)
        return out, [len(s.fed) for s in self.seqs]

    def attempt(self, shadow, call, *expected):
        """Run call(); a refusal must be one of the expected and change nothing. None: refused."""
        before = self.state()
        try:
            return call()
        except expected as error:
            done["short"] += isinstance(error, OutOfPages)
            # What ran before it failed has made its room: idle pages of the index may be gone.
            cached = {"cached_pages", "sealed_pages", "sealed"}
            after = self.state()
            if not isinstance(error, KeyboardInterrupt | NumericalError):
                cached = set()
            for a, b in zip(before[0], after[0], strict=True):
                assert {k: v for k, v in a.items() if k not in cached} == {
                    k: v for k, v in b.items() if k not in cached
                }, error
            assert before[1] == after[1]
            return None
        except BusyError:
            assert shadow.edit if shadow else any(s.edit for s in self.seqs)
            assert before == self.state()
            return None

    def tokens(self, shadow, doc, n):
        at = len(shadow.fed)
        return DOCS[doc][at : at + n]

    def run_step(self, chosen, first_last=True, expect_fit=True):
        """Step (shadow, ids) pairs of one cache; the result, or None if it was refused."""
        cache = self.caches[chosen[0][0].cache]
        handles, counts = [s.handle for s, _ in chosen], [len(t) for _, t in chosen]
        needed, room = cache.needs(handles, counts)
        items = [(s.handle, t, len(t) - 1) for s, t in chosen]
        shadow = next((s for s, _ in chosen if s.edit), None)
        refusals = (OutOfPages, KeyboardInterrupt) + (() if expect_fit else (MemoryError,))
        got = self.attempt(
            shadow, lambda: _core.step(self.program, cache, items, logits=True), *refusals
        )
        if got is None and expect_fit and not shadow:
            assert needed > room
        if got is not None:
            assert needed <= room and not shadow
            for (s, ids), ok in zip(chosen, got["ok"], strict=True):
                assert ok == (small.POISON not in ids)
                if ok:
                    s.fed += ids.tolist()
        return got

    def verify(self, shadow, before, ids, logits):
        if not shadow.known:
            return
        want, pages = self.world.replay(self.world.fresh[shadow.cache], before, ids)
        assert small.bits(logits) == want
        assert small.page_bytes(self.caches[shadow.cache], shadow.handle) == pages
        done["verified"] += 1

    # ---- rules --------------------------------------------------------------------------------

    @precondition(lambda self: len(self.seqs) < 7)
    @rule(cache=st.integers(0, 1))
    def open(self, cache):
        self.seqs.append(Shadow(cache, self.caches[cache].open()))

    @precondition(lambda self: self.seqs)
    @rule(i=which, doc=st.integers(0, 2), n=st.integers(1, 150), look=st.booleans())
    def prefill(self, i, doc, n, look):
        shadow = self.pick(i)
        before, ids = list(shadow.fed), self.tokens(shadow, doc, n)
        if len(ids) == 0:
            return
        got = self.run_step([(shadow, ids)])
        if got and look:
            self.verify(shadow, before, ids, got["logits"][0])

    @precondition(lambda self: self.seqs)
    @rule(i=which, n=st.integers(1, 20))
    def decode(self, i, n):
        for at in range(n):
            shadow = self.pick(i)
            before, ids = list(shadow.fed), self.tokens(shadow, 0, 1)
            got = self.run_step([(shadow, ids)]) if len(ids) else None
            if got is None:
                break
            if at == n - 1 and n % 4 == 0:
                self.verify(shadow, before, ids, got["logits"][0])

    @precondition(lambda self: len({s.cache for s in self.seqs}) < len(self.seqs))
    @rule(cache=st.integers(0, 1), sizes=st.lists(st.integers(1, 70), min_size=2, max_size=6))
    def batch(self, cache, sizes):
        own = [s for s in self.seqs if s.cache == cache]
        chosen = [
            (s, ids)
            for i, (s, n) in enumerate(zip(own, sizes, strict=False))
            if len(ids := self.tokens(s, i % 3, n))
        ]
        if not chosen:
            return
        before = [list(s.fed) for s, _ in chosen]
        got = self.run_step(chosen)
        if got:
            last = len(chosen) - 1
            self.verify(*chosen[last][:1], before[last], chosen[last][1], got["logits"][last])

    @precondition(lambda self: self.seqs)
    @rule(i=which, n=st.integers(1, 30), at=which)
    def poisoned(self, i, n, at):
        """Non-finite rows fail their sequence alone."""
        shadow = self.pick(i)
        ids = self.tokens(shadow, 0, n).copy()
        if len(ids) == 0:
            return
        ids[at % len(ids)] = small.POISON
        other = next((s for s in self.seqs if s.cache == shadow.cache and s is not shadow), None)
        chosen = [(shadow, ids)]
        if other and not other.edit and len(self.tokens(other, 1, 3)):
            before = list(other.fed)
            chosen.append((other, self.tokens(other, 1, 3)))
        got = self.run_step(chosen)
        if got and len(chosen) == 2:
            self.verify(other, before, chosen[1][1], got["logits"][1])

    @precondition(lambda self: self.seqs)
    @rule(i=which, n=st.integers(1, 100), seed=st.integers(0, 3), bad=st.sampled_from([0, 0, 0, 1]))
    def append_rows(self, i, n, seed, bad):
        shadow = self.pick(i)
        cache = self.caches[shadow.cache]
        k, v, q = small.rows(128, seed)
        k, v, q = k[: n * 16].copy(), v[: n * 16], q[: n * 32]
        if bad:
            k[seed] = np.inf
        refusals = (OutOfPages, NumericalError) if bad else (OutOfPages,)
        out = self.attempt(
            shadow, lambda: cache.append(shadow.handle, k, v, n, q, 2, 0.25), *refusals
        )
        if out is not None:
            assert not bad and np.isfinite(out).all()
            shadow.fed += [(seed, j) for j in range(n)]

    @precondition(lambda self: 0 < len(self.seqs) < 7)
    @rule(i=which)
    def fork(self, i):
        shadow = self.pick(i)
        cache = self.caches[shadow.cache]
        made = self.attempt(shadow, lambda: cache.fork(shadow.handle), OutOfPages)
        if made is not None:
            self.seqs.append(Shadow(shadow.cache, made, list(shadow.fed), shadow.known))

    @precondition(lambda self: self.seqs)
    @rule(i=which, back=st.one_of(st.integers(0, 20), st.integers(0, 600)))
    def truncate(self, i, back):
        shadow = self.pick(i)
        cache = self.caches[shadow.cache]
        n = max(0, len(shadow.fed) - back)
        pages = [
            cache.page(shadow.handle, 0, i, "k").sealed for i in range(-(-len(shadow.fed) // 64))
        ]
        kept = self.attempt(
            shadow, lambda: cache.truncate(shadow.handle, n), BufferError, OutOfPages
        )
        if kept is not None:
            assert kept == (n if n == len(shadow.fed) else cut(n, pages, shadow.cache))
            del shadow.fed[kept:]

    @precondition(lambda self: len(self.seqs) < 7)
    @rule(doc=st.integers(0, 2), n=st.integers(1, 400), salt=st.sampled_from([0, 0, 0, 9]))
    def match(self, doc, n, salt):
        cache = self.caches[0]
        shadow = Shadow(0, cache.open())
        hit = cache.match(shadow.handle, DOCS[doc][:n], salt)
        assert hit % 64 == 0 and hit < n
        shadow.fed = DOCS[doc][:hit].tolist()
        self.seqs.append(shadow)
        if hit:
            self.prefill(len(self.seqs) - 1, doc, n - hit, True)

    @precondition(lambda self: len(self.views) < 8 and any(len(s.fed) > 64 for s in self.seqs))
    @rule(i=which, index=which, segment=st.sampled_from("kv"))
    def view(self, i, index, segment):
        shadow = self.pick(i)
        pages = (len(shadow.fed) + 63) // 64
        if pages == 0:
            return
        cache = self.caches[shadow.cache]
        page = cache.page(shadow.handle, 0, index % pages, segment)
        if not page.sealed:
            return
        part = page.parts()[index % len(page.parts())]["name"]
        array = page.array(part)
        if not shadow.edit:
            self.views.append((array, array.tobytes(), shadow.cache))

    @precondition(lambda self: self.views)
    @rule(i=which)
    def drop_view(self, i):
        array, content, _ = self.views.pop(i % len(self.views))
        assert array.tobytes() == content
        del array

    @precondition(lambda self: any(len(s.fed) > 64 for s in self.seqs))
    @rule(i=which, index=which)
    def edit(self, i, index):
        shadow = self.pick(i)
        if len(shadow.fed) < 64:
            return
        cache, index = self.caches[shadow.cache], index % (len(shadow.fed) // 64)
        page = self.attempt(
            shadow,
            lambda: cache.edit(shadow.handle, 0, index, "v"),
            *(BufferError, OutOfPages, ValueError),
        )
        if page is not None:
            codes = page.array("codes")
            codes[0].flat[index % codes[0].size] ^= 1
            shadow.known, shadow.edit = False, page

    @precondition(lambda self: any(s.edit for s in self.seqs))
    @rule(close=st.booleans())
    def end_edit(self, close):
        shadow = next(s for s in self.seqs if s.edit)
        if close:
            shadow.edit.close()
        shadow.edit = None

    @precondition(lambda self: 0 < len(self.seqs) < 7)
    @rule(i=which)
    def reencode(self, i):
        shadow = self.pick(i)
        to = 1 - shadow.cache
        made = self.attempt(
            shadow,
            lambda: self.caches[shadow.cache].reencode(shadow.handle, self.caches[to]),
            *(OutOfPages, KeyboardInterrupt),
        )
        if made is not None:
            fed = [("reencoded", j) for j in range(len(shadow.fed))]
            self.seqs.append(Shadow(to, made, fed, False))

    @precondition(lambda self: self.seqs and small.FAULTS)
    @rule(i=which, nth=st.integers(1, 30))
    def cancelled_step(self, i, nth):
        shadow = self.pick(i)
        ids = self.tokens(shadow, 0, 70)
        if len(ids) == 0:
            return
        _core.cancel_after(nth)
        try:
            got = self.run_step([(shadow, ids)], expect_fit=False)
        finally:
            _core.cancel_after(0)
        done["cancelled"] += got is None

    @precondition(lambda self: self.seqs and small.FAULTS)
    @rule(i=which, nth=st.integers(1, 6), kind=st.sampled_from(["step", "fork", "edit", "match"]))
    def failed_allocation(self, i, nth, kind):
        shadow = self.pick(i)
        cache = self.caches[shadow.cache]
        with small.fault(nth, "from"):
            if kind == "step":
                ids = self.tokens(shadow, 2, 70)
                got = self.run_step([(shadow, ids)], expect_fit=False) if len(ids) else None
            else:
                call = {
                    "fork": lambda: cache.fork(shadow.handle),
                    "edit": lambda: cache.edit(shadow.handle, 0, 0, "k"),
                    "match": lambda: cache.match(shadow.handle, DOCS[0][:200]),
                }[kind]
                got = self.attempt(shadow, call, MemoryError, BufferError, ValueError)
        done["faults"] += got is None
        if got is None or kind == "step":
            return
        if kind == "fork":
            self.seqs.append(Shadow(shadow.cache, got, list(shadow.fed), shadow.known))
        elif kind == "match":
            shadow.fed = DOCS[0][:got].tolist()
        else:
            shadow.known = False

    @precondition(lambda self: self.seqs)
    @rule(i=which, force=st.booleans())
    def release(self, i, force):
        shadow = self.pick(i)
        cache = self.caches[shadow.cache]
        gone = self.attempt(
            shadow, lambda: cache.release(shadow.handle, force) or True, BufferError
        )
        if gone:
            self.seqs.remove(shadow)
            shadow.edit = None

    @rule(cache=st.integers(0, 1))
    def drop_prefix(self, cache):
        self.caches[cache].drop_prefix()

    @precondition(lambda self: self.views)
    @rule(i=which)
    def close_with_views(self, i):
        cache = self.caches[self.views[i % len(self.views)][2]]
        assert self.attempt(None, cache.close, BufferError) is None
        assert not cache.closed

    # ---- always -------------------------------------------------------------------------------

    @invariant()
    def holds(self):
        done["rules"] += 1
        for i, cache in enumerate(getattr(self, "caches", [])):
            cache.check()
            own = [s for s in self.seqs if s.cache == i]
            assert cache.ledger()["sequences"] == len(own)
            assert [cache.length(s.handle) for s in own if not s.edit] == [
                len(s.fed) for s in own if not s.edit
            ]

    def teardown(self):
        if not hasattr(self, "caches"):
            return
        for array, content, _ in self.views:
            assert array.tobytes() == content
        array = None
        self.views.clear()
        for shadow in self.seqs:
            shadow.edit = None
            self.caches[shadow.cache].release(shadow.handle)
        for cache in self.caches:
            cache.drop_prefix()
            cache.check()
            ledger = cache.ledger()
            zero = {"sealed", "open", "sealed_pages", "cached_pages", "open_units", "sequences"}
            assert all(ledger[name] == 0 for name in zero | {"pins"}), ledger
            cache.close()
        after = small.live()
        for tag in ("pages", "open", "weights", "threads"):
            assert after[tag] == self.before[tag], tag


def test_random_histories_keep_every_invariant():
    examples = max(1, RULES // 34)  # an example has some 38 rules
    done.update(dict.fromkeys(done, 0))
    run_state_machine_as_test(
        CacheMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            derandomize=True,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(done)
    assert done["rules"] >= RULES
