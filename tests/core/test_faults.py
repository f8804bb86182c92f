"""Every allocation of the core fails once, in every public operation: a clean MemoryError (or fewer
lanes), the state before is the state after, and the next try gives the bits it always gives.

Needs a build with OCTAVO_BUILD=faults; `tools/sanitize` makes one.
"""

import gc

import numpy as np
import pytest
import small
import tiny
from kinds import KINDS, MIXTURES

from octavo import _core
from octavo.errors import OutOfPages

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(not small.FAULTS, reason="needs OCTAVO_BUILD=faults"),
]
LAYERS = 2
rng = np.random.default_rng(0)
MATRIX = rng.standard_normal((70, 64)).astype(np.float32)
X = rng.standard_normal((5, 64)).astype(np.float32)


class State:
    """A cache with a prefilled and a forked sequence, and one with windows."""

    def __init__(self, kind="heads"):
        self.kind = kind = KINDS[kind]
        self.runtime = _core.Runtime(1)
        self.weights = _core.Weights(self.runtime)
        self.matrix = tiny.matrix(self.weights, "q4g32m", MATRIX)
        self.program = kind.program(self.runtime)
        self.cache = kind.cache(self.runtime)
        self.window = kind.cache(self.runtime, "int4", sink_pages=1, recent_pages=2)
        self.other = kind.cache(self.runtime, "int4", prefix=False)
        ids = tiny.tokens(200) % 40
        self.seqs = [self.cache.open() for _ in range(3)]
        _core.step(self.program, self.cache, [(self.seqs[0], ids, 200)])
        self.seqs[1] = self.cache.fork(self.seqs[0])
        self.wide = self.window.open()
        _core.step(self.program, self.window, [(self.wide, ids, 200)])
        self.fork = self.window.fork(self.wide)
        self.ids = ids
        self.fill_tables(tiny.tokens(13 * 64, 3) % 40)

    def fill_tables(self, ids):
        """To the brim: 8 sequences and 16 pages here, 16 open slots there; the next grows them."""
        for _ in range(3):
            self.cache.open()
        full = self.cache.open()
        for at in range(0, len(ids), 416):
            _core.step(self.program, self.cache, [(full, ids[at : at + 416], 416)])
        for _ in range(11):
            _core.step(self.program, self.window, [(self.window.open(), ids[:1], 0)])

    def digest(self):
        caches = [
            self.kind.digest(self.cache, self.seqs),
            self.kind.digest(self.window, [self.wide, self.fork]),
            self.kind.digest(self.other, []),
        ]
        return caches, small.live("pages", "open"), self.weights.nbytes, self.runtime.threads

    def check(self):
        for cache in (self.cache, self.window, self.other):
            cache.check()


def step(s, **how):
    items = [(s.seqs[0], s.ids[:150], 140), (s.seqs[1], s.ids[:1], 0), (s.seqs[2], s.ids[:3], 2)]
    got = _core.step(s.program, s.cache, items, logits=True, argmax=True, topk=3, **how)
    return [small.bits(x) for x in got["logits"]] + [s.kind.page_bytes(s.cache, s.seqs[0])]


def halve(op, scores, ids, gates):
    gates /= 2


def routed(s):
    return step(s, **s.kind.route(halve))


def appended(s):
    k, v, q = s.kind.rows(100, 1)
    out = s.cache.append(s.seqs[0], k, v, 100, q, small.HEADS, 0.25, **s.kind.attend)
    return small.bits(out) + s.kind.page_bytes(s.cache, s.seqs[0])


def attended(s):
    query = s.kind.rows(3, 2)[2][: 3 * small.HEADS * s.kind.widths[2]]
    query = query.reshape(3, small.HEADS, -1)
    return s.cache.attend(s.seqs[0], 0, query, small.HEADS, 0.25, **s.kind.attend).tobytes()


def edited(s):
    page = s.cache.edit(s.seqs[0], 0, 1, s.kind.segments[0])
    return page.array("codes").tobytes()


def opened(s):
    return [s.cache.open() for _ in range(1)]


def matched(s):
    seq = s.cache.open()
    try:
        return s.cache.match(seq, s.ids), s.kind.page_bytes(s.cache, seq)
    except MemoryError:
        s.cache.release(seq)
        raise


def reencoded(s):
    seq = s.cache.reencode(s.seqs[0], s.other)
    return s.other.length(seq), s.kind.page_bytes(s.other, seq)


def new_matrix(s):
    i = tiny.matrix(s.weights, "w8g32", MATRIX)
    return s.weights.unpack(i)["codes"].tobytes()


def new_matrices(s):
    raw = MATRIX.astype(np.float32)
    one = {"format": "f32", "n": len(raw), "k": raw.shape[1], "codes": raw, "source": "values"}
    one |= {"values_type": "f32", "row_stride": raw.strides[0]}
    ids = s.weights.matrices([one, one, one])
    return b"".join(s.weights.unpack(i)["values"].tobytes() for i in ids)


def new_runtime(s):
    runtime = _core.Runtime(3)
    return run_on(runtime)


def more_threads(s):
    s.runtime.threads = 4
    s.sites = _core.fault_count()
    _core.fault(0)
    return step(s)


def run_on(runtime):
    program, cache = small.program(runtime), small.cache(runtime, "int8")
    got = _core.step(program, cache, [(cache.open(), tiny.tokens(100) % 40, 0)], logits=True)
    return small.bits(got["logits"][0])


OPERATIONS = {
    "Runtime": new_runtime,
    "Runtime.threads": more_threads,
    "Runtime.roofs": lambda s: s.runtime.roofs(1 << 20, 1e-3) is None,
    "Runtime.sample": lambda s: s.runtime.sample(X, np.full(5, 0.3)).tobytes(),
    "Weights": lambda s: _core.Weights(s.runtime).nbytes,
    "Weights.matrix": new_matrix,
    "Weights.matrices": new_matrices,
    "Weights.vector": lambda s: s.weights.vector(X[0]),
    "Weights.linear": lambda s: s.weights.linear(s.matrix, X, "a8x2").tobytes(),
    "Program": lambda s: run_on(s.runtime),
    "Cache": lambda s: small.cache(s.runtime, "k8v4", n=LAYERS).ledger()["page_bytes"],
    "Cache.open": opened,
    "Cache.fork": lambda s: s.cache.length(s.cache.fork(s.seqs[0])),
    "Cache.truncate": lambda s: s.window.truncate(s.fork, 150),
    "Cache.match": matched,
    "Cache.append": appended,
    "Cache.attend": attended,
    "Cache.decode": lambda s: s.cache.decode(s.seqs[0], 0, 1, s.kind.segments[1]).tobytes(),
    "Cache.edit": edited,
    "Cache.reencode": reencoded,
    "Cache.check": lambda s: s.cache.check(),
    "step": step,
    "step, routed": routed,
}
FEWER_LANES = ("Runtime", "Runtime.threads")
# Of the other kinds, what depends on a layer's kind.
OF_LAYERS = ["Cache.fork", "Cache.truncate", "Cache.match", "Cache.append", "Cache.attend",
             "Cache.decode", "Cache.edit", "Cache.reencode", "step", "step, routed"]  # fmt: skip
CASES = [("heads", name) for name in OPERATIONS if name != "step, routed"]
CASES += [(kind, name) for kind in MIXTURES for name in OF_LAYERS]
if small.TSAN:  # one thread: it has nothing to say there that AddressSanitizer's run has not
    CASES = [("heads", name) for name in FEWER_LANES]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_every_allocation_fails_cleanly(kind, name):
    operation = OPERATIONS[name]
    gc.collect()
    start = small.live()
    state = State(kind)
    with small.fault(0):
        want = operation(state)
        sites = getattr(state, "sites", None) or _core.fault_count()
    assert sites > 0
    del state
    survived = 0
    for mode in ("once", "from") if kind == "heads" else ("once",):
        for n in range(1, sites + 1):
            state = State(kind)
            before = state.digest()
            with small.fault(n, mode):
                try:
                    got = operation(state)
                except MemoryError as error:
                    assert not isinstance(error, OutOfPages)
                    assert "no memory" in str(error)
                    got = None
            state.check()
            if got is None:
                assert state.digest() == before
            else:
                assert name in FEWER_LANES and got == want
                survived += 1
                state = State(kind)
            assert operation(state) == want
            del state
    assert survived == 0 or name in FEWER_LANES
    assert survived > 0 or name not in FEWER_LANES
    gc.collect()
    assert small.live() == start


@pytest.mark.parametrize("kind", MIXTURES)
def test_every_allocation_of_a_program_fails_cleanly(kind):
    """Over weights that are there: its tables, and the scratch of heads, experts and rows."""
    weights, opened = KINDS[kind].model(_core.Runtime(1))
    before, failed = (small.live(), weights.nbytes), 0
    for n in range(1, 300):
        try:
            with small.fault(n):
                opened().close()
        except MemoryError as error:
            failed += 1
            assert "no memory" in str(error)
            assert (small.live(), weights.nbytes) == before
        else:
            break
    assert failed > 30 and small.live() == before[0]


# 62: the index, too, has to grow for the step; on one thread, as above
@pytest.mark.parametrize("idle", [3] if small.TSAN else [3, 62])
def test_a_failed_allocation_evicts_nothing(idle):
    """Growing the tables comes before eviction, so idle pages survive a call that fails."""
    runtime = _core.Runtime(1)
    program = small.program(runtime)
    text, ids = tiny.tokens(64 * idle) % 40, tiny.tokens(200, 7) % 40
    cache = small.cache(runtime, "int8")
    seq = cache.open()
    _core.step(program, cache, [(cache.open(), tiny.tokens(263) % 40, 263)])  # its scratch is grown
    before = cache.ledger()["open"]
    _core.step(program, cache, [(seq, ids[:63], 63)])
    ledger = cache.ledger()
    # Room for the step if one idle page goes.
    budget = (
        ledger["open"] - before + cache.needs([seq], [200])[0] + (idle - 1) * ledger["page_bytes"]
    )
    for n in range(1, 30):
        cache = small.cache(runtime, "int8", budget)
        seq = cache.open()
        for at in range(0, len(text), 64):
            _core.step(program, cache, [(seq, text[at : at + 64], 64)])
        cache.release(seq)
        seq = cache.open()
        _core.step(program, cache, [(seq, tiny.tokens(63, 5) % 40, 63)])
        before = small.digest(cache, [seq])
        assert before[1]["cached_pages"] == idle
        try:
            with small.fault(n, "from"):
                _core.step(program, cache, [(seq, ids, 200)])
        except MemoryError as error:
            assert not isinstance(error, OutOfPages)
            assert small.digest(cache, [seq]) == before
            cache.check()
        else:
            assert n > 3
            assert cache.ledger()["cached_pages"] == idle - 1
            return
    pytest.fail("the step never fitted")


@pytest.mark.parametrize(
    ("kind", "operation"), [("heads", step), ("latent", routed), ("windows", step)]
)
def test_cancel_at_every_tile_boundary(kind, operation):
    """Whatever the moment, nothing has changed and the next step gives the bits it always gives.
    (One thread, so that the one that calls meets every boundary.)"""
    state = State(kind)
    want = operation(State(kind))
    cancelled, before = 0, state.digest()
    for n in range(1, 10_000):
        _core.cancel_after(n)
        try:
            got = operation(state)
        except KeyboardInterrupt:
            cancelled += 1
            assert state.digest() == before
            state.check()
        else:
            assert got == want
            break
        finally:
            _core.cancel_after(0)
    assert cancelled > 20
