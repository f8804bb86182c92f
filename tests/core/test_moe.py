"""Mixtures of experts: a step equals the same kernels called expert by expert, whatever the batch,
threads, column and number of passes; what is wrong is refused at the door; a NaN fails alone.
"""

import numpy as np
import pytest
import tiny
from small import FAULTS, SANITIZED, fault, live

from octavo import _core, _probe
from octavo.errors import BusyError

pytestmark = pytest.mark.core
ISAS = [isa for isa in ("scalar", "avx2", "avx512", "amx") if _probe.runs_here(isa)]
HIDDEN, INNER, VOCAB, POISON = 64, 96, 50, 49
SCORES = {"sigmoid": 0, "softmax": 1, "top": 2}
LAYER = {"kv_heads": 1, "k_width": 16, "v_width": 16, "k_format": "f32", "v_format": "f32"}


class Model:
    """embed, one mixture, head, on random weights; and what it should give."""

    def __init__(self, runtime, fmt="q4g32", act="a8x2", experts=6, top=2, max_rows=256, seed=0,
                 scale=1.5, **how):  # fmt: skip
        rng = np.random.default_rng(seed)
        self.runtime, self.act, self.top, self.experts = runtime, act, top, experts
        self.how, self.scale = {"score": "sigmoid", "renorm": True} | how, scale
        self.weights = weights = _core.Weights(runtime)
        embed = rng.standard_normal((VOCAB, HIDDEN)).astype(np.float32)
        embed[POISON, 3] = np.nan
        self.embed = tiny.matrix(weights, "f32", embed)

        def random(n, k):
            return (rng.standard_normal((n, k)) / np.sqrt(k)).astype(np.float32)

        self.router = tiny.matrix(weights, "bf16", random(experts, HIDDEN))
        self.head = tiny.matrix(weights, "f32", random(VOCAB, HIDDEN))
        shapes = [(INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)] * experts
        ids = [tiny.matrix(weights, fmt, random(*shape)) for shape in shapes]
        self.first = ids[0]
        self.bias = (rng.standard_normal(experts) / 4).astype(np.float32)
        self.op = {"kind": "moe", "in": 0, "out": [0, 1], "w": [self.router], "top": top,
                   "matrices": np.array(ids, np.int32).reshape(-1, 3), "experts": experts,
                   "bias": [-1, weights.vector(self.bias)], "scale": scale} | self.how  # fmt: skip
        self.program = self.open(max_rows)

    def open(self, max_rows=256, width=None, **changes):
        width = self.experts + 2 * self.top if width is None else width
        ops = [{"kind": "embed", "out": [0], "w": [self.embed]}, self.op | changes,
               {"kind": "head", "in": 0, "w": [self.head]}]  # fmt: skip
        return _core.Program(self.weights, widths=[HIDDEN, width], ops=ops, ropes=[], act=self.act,
                             max_rows=max_rows)  # fmt: skip

    def cache(self):
        return _core.Cache(self.runtime, [LAYER], budget=1 << 24)

    def run(self, *batch):
        """x after the mixture and the router's record, rows of all sequences of the batch."""
        cache = self.cache()
        items = [(cache.open(), np.asarray(ids, np.int32), len(ids)) for ids in batch]
        step = _core.step(self.program, cache, items, captures=[(1, 0), (1, 1)])
        return (*step["captures"], step)

    def expected(self, ids):
        """The same through the public products and the probe's ops, expert by expert."""
        isa, top = self.runtime.isa, self.top
        x = self.weights.rows(self.embed, np.asarray(ids, np.int32))
        scores = self.weights.linear(self.router, x, "a32")
        m = len(x)
        chosen, gates = np.empty((m, top), np.int32), np.empty((m, top), np.float32)
        how = self.how
        _probe.op_route(isa, scores, self.bias, SCORES[how["score"]], how.get("groups", 1),
                        how.get("groups_kept", 1), how.get("outside_zero", False), how["renorm"],
                        self.scale, scores, chosen, gates)  # fmt: skip
        y = self.weighed(self.op["matrices"], x, chosen, gates, HIDDEN)
        return x + y, np.concatenate([scores, chosen.astype(np.float32), gates], axis=1)

    def weighed(self, matrices, x, chosen, gates, width):
        """The weighted sum of each row's experts, one expert after the other."""
        y = np.zeros((len(x), width), np.float32)
        for e, (gate, up, down) in enumerate(matrices.tolist()):
            rows, slot = np.nonzero(chosen == e)
            if not len(rows):
                continue
            g, u = self.linear(gate, x[rows]), self.linear(up, x[rows])
            _probe.op_swiglu(self.runtime.isa, g, u, g)
            places = np.arange(len(rows), dtype=np.int32)[:, None]
            weight, part = gates[rows, slot][:, None].copy(), y[rows].copy()
            _probe.op_combine(self.runtime.isa, self.linear(down, g), places, weight, 0, part)
            y[rows] = part
        return y

    def linear(self, w, x):
        floats = self.weights.info(w)["format"] in ("f32", "f16", "bf16")
        return self.weights.linear(w, np.ascontiguousarray(x), "a32" if floats else self.act)


def same(got, want):
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


def ids_of(n, seed=1):
    return np.random.default_rng(seed).integers(0, POISON, n)


@pytest.mark.parametrize("isa", ISAS[-1:] if SANITIZED else ISAS)
@pytest.mark.parametrize(
    ("fmt", "act"),
    [("f32", "a32"), ("bf16", "a8x2"), ("w8", "a8"), ("w8g32", "a8"), ("q4g32", "a8x2"),
     ("q4g32m", "a8g32")],
)  # fmt: skip
def test_a_step_equals_its_experts_one_by_one(isa, fmt, act):
    for threads in (1, 3):
        model = Model(_core.Runtime(threads, isa), fmt, act)
        for n in (1, 2, 7, 150):
            ids = ids_of(n, n)
            x, record, step = model.run(ids)
            assert step["ok"] == [True]
            want = model.expected(ids)
            same(x, want[0])
            same(record, want[1])


@pytest.mark.parametrize(
    "how",
    [{"experts": 1, "top": 1}, {"experts": 6, "top": 6, "renorm": False}, {"score": "softmax"},
     {"score": "top", "scale": 1.0}, {"experts": 8, "groups": 4, "groups_kept": 2},
     {"experts": 8, "top": 3, "groups": 4, "groups_kept": 1, "outside_zero": True}],
    ids=["one", "all", "softmax", "top", "groups", "zeros"],
)  # fmt: skip
def test_every_kind_of_router(how):
    model = Model(_core.Runtime(2), **how)
    ids = ids_of(40)
    x, record, _ = model.run(ids)
    want = model.expected(ids)
    same(x, want[0])
    same(record, want[1])


def mixture(model, fmts, experts, top, width_in, width_out, inner, rng, **how):
    """An op over buffers 0 and `how["out"]`, whose experts take turns in `fmts`; matrices by id."""
    def random(n, k):
        return (rng.standard_normal((n, k)) / np.sqrt(k)).astype(np.float32)

    shapes = [(inner, width_in), (inner, width_in), (width_out, inner)]
    ids = [[tiny.matrix(model.weights, fmts[e % len(fmts)], random(*s)) for s in shapes]
           for e in range(experts)]  # fmt: skip
    router = tiny.matrix(model.weights, "f32", random(experts, width_in))
    return {"kind": "moe", "w": [router], "matrices": np.array(ids, np.int32), "experts": experts,
            "top": top, "renorm": True, "scale": 1.5} | how  # fmt: skip


def apply(model, op, x, y, norm=None, logit_bias=None):
    """What such an op does to rows x, added to y: expert by expert."""
    isa, top, n = model.runtime.isa, op["top"], x
    if norm is not None:
        n = np.empty_like(x)
        _probe.op_rmsnorm(isa, x, x.shape[1], 1, norm, 1e-5, n)
    scores = model.weights.linear(op["w"][0], n, "a32")
    scores = scores if logit_bias is None else scores + logit_bias
    chosen, gates = np.empty((len(x), top), np.int32), np.empty((len(x), top), np.float32)
    _probe.op_route(isa, scores, None, 0, 1, 1, False, True, 1.5, scores, chosen, gates)
    return y + model.weighed(op["matrices"], n, chosen, gates, y.shape[1])


@pytest.mark.parametrize("act", ["a32", "a8", "a8g32", "a8x2"])
def test_several_mixtures_of_other_sizes_norms_and_formats(act):
    """Experts in floats and in codes beside each other; in and out of other widths, one of them in
    rows that lie apart (2,048); a norm, and a bias of the router's logits."""
    model, rng = Model(_core.Runtime(2), act=act), np.random.default_rng(4)
    norm = (1 + rng.standard_normal(HIDDEN) / 8).astype(np.float32)
    bias = rng.standard_normal(9).astype(np.float32)
    first = mixture(model, ["f32", "q4g32", "w8g32"], 9, 4, HIDDEN, 2048, 32, rng, out=[1, 2],
                    norm=model.weights.vector(norm), eps=1e-5,
                    bias=[model.weights.vector(bias), -1])  # fmt: skip
    second = mixture(model, ["q4g32", "bf16"], 3, 2, 2048, HIDDEN, 64, rng, out=[0, 3])
    ids = ids_of(40)
    zeros = tiny.matrix(model.weights, "f32", np.zeros((2048, HIDDEN), np.float32))
    zero = {"kind": "norm_linear", "in": 0, "out": [1], "w": [zeros]}
    ops = [{"kind": "embed", "out": [0], "w": [model.embed]}, zero, first | {"in": 0},
           second | {"in": 1}, {"kind": "head", "in": 0, "w": [model.head]}]  # fmt: skip
    program = _core.Program(model.weights, widths=[HIDDEN, 2048, 9 + 8, 3 + 4], ops=ops, ropes=[],
                            act=act, max_rows=64)  # fmt: skip
    cache = model.cache()
    step = _core.step(program, cache, [(cache.open(), ids.astype(np.int32), 0)],
                      captures=[(2, 1), (3, 0)])  # fmt: skip
    x = model.weights.rows(model.embed, ids.astype(np.int32))
    wide = apply(model, first, x, np.zeros((40, 2048), np.float32), norm, bias)
    same(step["captures"][0], wide)
    same(step["captures"][1], apply(model, second, wide, x))


def test_widths_that_no_group_divides():
    """Float formats take any: 50 channels, 37 inside."""
    model, rng = Model(_core.Runtime(2), act="a32"), np.random.default_rng(5)
    embed = tiny.matrix(model.weights, "f32", rng.standard_normal((50, 50)))
    op = mixture(model, ["f32", "bf16"], 5, 3, 50, 50, 37, rng, out=[0, 1])
    ops = [{"kind": "embed", "out": [0], "w": [embed]}, op | {"in": 0},
           {"kind": "head", "in": 0, "w": [embed]}]  # fmt: skip
    program = _core.Program(model.weights, widths=[50, 5 + 6], ops=ops, ropes=[], act="a32",
                            max_rows=64)  # fmt: skip
    cache, ids = model.cache(), ids_of(33).astype(np.int32)
    step = _core.step(program, cache, [(cache.open(), ids, 0)], captures=[(1, 0)])
    x = model.weights.rows(embed, ids)
    same(step["captures"][0], apply(model, op, x, x))


def test_more_slots_than_a_pass_holds():
    """All of 1,300 rows choose expert 2 (more than a pass), and others in between."""
    model = Model(_core.Runtime(2), "q4g32", "a8", max_rows=1300)
    bias = model.weights.vector(np.array([0, 0, 9, 0, 0, 0], np.float32))
    model.bias = np.array([0, 0, 9, 0, 0, 0], np.float32)
    model.program = model.open(1300, bias=[-1, bias])
    ids = ids_of(1300)
    x, record, step = model.run(ids)
    assert (record[:, 6:8] == 2).any(axis=1).all()
    want = model.expected(ids)
    same(x, want[0])
    same(record, want[1])
    each = sum(model.weights.info(model.first + i)["nbytes"] for i in range(3))
    assert step["cost"]["expert"][1] == each * len(np.unique(record[:, 6:8]))


def test_who_shares_the_batch_and_how_a_prompt_is_cut_change_nothing():
    model = Model(_core.Runtime(2))
    ids = ids_of(60)
    alone, _, _ = model.run(ids)
    x, _, _ = model.run(ids_of(31, 5), ids, ids[:9])
    same(x[31:91], alone)
    for cuts in ([1, 2, 3], [40]):
        cache = model.cache()
        seq, got = cache.open(), []
        for part in np.split(ids, cuts):
            step = _core.step(model.program, cache, [(seq, part.astype(np.int32), 0)],
                              captures=[(1, 0)])  # fmt: skip
            got.append(step["captures"][0])
        same(np.concatenate(got), alone)


def test_a_nan_fails_its_sequence_alone():
    model = Model(_core.Runtime(2))
    ids = ids_of(20)
    alone, _, _ = model.run(ids)
    x, record, step = model.run([POISON, 1], ids)
    assert step["ok"] == [False, True]
    same(x[2:], alone)
    assert np.isnan(record[0, 8:]).all() and record[0, 6:8].tolist() == [0, 1]


def test_cost_counts_the_experts_chosen_once_each():
    model = Model(_core.Runtime(1), experts=6, top=2)
    bytes_of = [model.weights.info(model.first + i)["nbytes"] for i in range(18)]
    for n in (1, 3, 100):
        _, record, step = model.run(ids_of(n))
        used = np.unique(record[:, 6:8]).astype(int)
        _, nbytes, int8, f32 = step["cost"]["expert"]
        assert nbytes == sum(sum(bytes_of[3 * e : 3 * e + 3]) for e in used)
        assert (int8, f32) == (n * 2 * 3 * 2 * HIDDEN * INNER, 0)
        assert step["cost"]["route"][1:] == (model.weights.info(model.router)["nbytes"], 0,
                                             n * 2 * 6 * HIDDEN)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"experts": 0, "matrices": np.zeros((0, 3), np.int32)}, "experts is 0"),
        ({"experts": 2000, "matrices": np.zeros((2000, 3), np.int32)}, "experts is 2000"),
        ({"top": 0}, "top is 0"), ({"top": 7}, "top is 7"),
        ({"groups": 4}, "groups is 4"), ({"groups": 3, "groups_kept": 4}, "groups_kept 4"),
        ({"groups": 3, "top": 3}, "top is 3, legal are 1 to 2"),
        ({"score": "tanh"}, "score is 'tanh'"), ({"scale": float("nan")}, "scale"),
        ({"out": [0]}, "n_out is 1"), ({"out": [0, 0]}, "aliases"), ({"out": [0, 9]}, "buffer 9"),
        ({"w": [0]}, "rows of the matrix"),
        ({"matrices": np.full((6, 3), 3, np.int32)}, "down of expert 0 is 96 x 64"),
        ({"matrices": np.full((6, 3), 99, np.int32)}, "gate of expert 0 is matrix 99"),
        ({"matrices": np.full((6, 3), -1, np.int32)}, "gate of expert 0 is matrix -1"),
        ({"matrices": np.zeros((5, 3), np.int32)}, "has 5 rows"),
        ({"matrices": np.zeros((6, 2), np.int32)}, "matrices"),
        ({"bias": [0, 0]}, None), ({"bias": [-1, 7]}, "vector 7"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_at_the_door(changes, says):
    model = Model(_core.Runtime(1))
    if says is None:
        model.open(**changes).close()
        return
    want, before = model.run(ids_of(9))[0], live()
    with pytest.raises(ValueError, match=says):
        model.open(**changes)
    assert live() == before
    same(model.run(ids_of(9))[0], want)


def test_the_record_has_a_width():
    with pytest.raises(ValueError, match="width of out"):
        Model(_core.Runtime(1)).open(width=11)


def test_matrices_are_copied_before_strangers_code_runs():
    model = Model(_core.Runtime(1))
    table = np.array(model.op["matrices"])

    class Ropes:
        def __iter__(self):
            table.resize((10**6, 3), refcheck=False)
            table[...] = 10**6
            return iter(())

    ops = [{"kind": "embed", "out": [0], "w": [model.embed]}, model.op | {"matrices": table},
           {"kind": "head", "in": 0, "w": [model.head]}]  # fmt: skip
    model.program = _core.Program(model.weights, widths=[HIDDEN, 10], ops=ops, ropes=Ropes(),
                                  act=model.act, max_rows=256)  # fmt: skip
    same(model.run(ids_of(9))[0], model.expected(ids_of(9))[0])


def test_the_router_is_never_held_in_codes():
    model = Model(_core.Runtime(1))
    coded = tiny.matrix(model.weights, "w8g32", np.ones((6, HIDDEN), np.float32))
    with pytest.raises(ValueError, match="held as w8g32"):
        model.open(w=[coded])


def routed(model, ids, function):
    """x and the record of a step whose router `function(scores, ids, gates)` may change."""
    cache = model.cache()
    items = [(cache.open(), np.asarray(ids, np.int32), len(ids))]
    step = _core.step(model.program, cache, items, captures=[(1, 0), (1, 1)], route={1: function})
    return step["captures"]


def test_a_hook_that_changes_nothing_changes_no_bit():
    model, ids, calls = Model(_core.Runtime(2)), ids_of(70), []
    want = model.run(ids)

    def look(scores, chosen, gates):
        calls.append((scores.copy(), chosen.copy(), gates.copy()))

    x, record = routed(model, ids, look)
    same(x, want[0])
    same(record, want[1])
    ((scores, chosen, gates),) = calls
    same(np.concatenate([scores, chosen.astype(np.float32), gates], axis=1), want[1])


def test_an_expert_banned_by_a_hook_is_as_one_that_the_router_cannot_choose():
    model, ids = Model(_core.Runtime(2)), ids_of(70)

    def ban(scores, chosen, gates):
        c = scores + model.bias
        c[:, 2] = -np.inf
        chosen[...] = np.sort(np.argsort(-c, axis=1, kind="stable")[:, :2], axis=1)
        s = np.take_along_axis(scores, chosen, axis=1)
        total = s[:, :1] + s[:, 1:] + np.float32(1e-20)
        gates[...] = s / total * np.float32(model.scale)

    x, record = routed(model, ids, ban)
    assert (model.run(ids)[1][:, 6:8] == 2).any() and not (record[:, 6:8] == 2).any()
    bias = model.bias.copy()
    bias[2] = -np.inf
    model.bias, index = bias, model.weights.vector(bias)
    model.program = model.open(bias=[-1, index])
    same(x, model.run(ids)[0])


def put(array, value):
    array[...] = value


@pytest.mark.parametrize(
    ("function", "error", "says"),
    [
        (lambda s, i, g: put(i[3], [1, 1]), ValueError, r"ids\[3, 1\] is 1; .* distinct"),
        (lambda s, i, g: put(i[0], [2, 1]), ValueError, "ascend"),
        (lambda s, i, g: put(i[0], [-1, 1]), ValueError, r"ids\[0, 0\] is -1"),
        (lambda s, i, g: put(i[9], [1, 6]), ValueError, r"ids\[9, 1\] is 6"),
        (lambda s, i, g: put(g[5], np.nan), ValueError, r"gates\[5, 0\] is not finite"),
        (lambda s, i, g: put(g[5], np.inf), ValueError, r"gates\[5, 0\] is not finite"),
        (lambda s, i, g: 1 / 0, ZeroDivisionError, "division"),
        (lambda s, i: None, TypeError, "positional"),
        (lambda s, i, g: setattr(i, "shape", (20,)), TypeError, "ids"),
        (lambda s, i, g: setattr(g, "dtype", np.int32), TypeError, "gates"),
    ],
)  # fmt: skip
def test_a_bad_hook_is_an_error_and_changes_nothing(function, error, says):
    model, ids = Model(_core.Runtime(2)), ids_of(10).astype(np.int32)
    cache = model.cache()
    seq = cache.open()
    with pytest.raises(error, match=says):
        _core.step(model.program, cache, [(seq, ids, 0)], route={1: function})
    assert cache.length(seq) == 0
    cache.check()
    step = _core.step(model.program, cache, [(seq, ids, 0)], captures=[(1, 0)])
    same(step["captures"][0], model.run(ids)[0])


@pytest.mark.parametrize("route", [{0: print}, {2: print}, {3: print}, {1: 5}, {"1": print}, [1]])
def test_hooks_belong_to_routers(route):
    model = Model(_core.Runtime(1))
    cache = model.cache()
    with pytest.raises((TypeError, ValueError), match="route"):
        _core.step(model.program, cache, [(cache.open(), ids_of(3).astype(np.int32), 0)],
                   route=route)  # fmt: skip


def test_a_hook_cannot_wait_for_the_step_it_is_in():
    model, seen = Model(_core.Runtime(1)), []

    def function(scores, chosen, gates):
        with pytest.raises(BusyError):
            model.runtime.lse(scores)
        seen.append(1)

    routed(model, ids_of(3), function)
    assert seen == [1] and model.runtime.lse(np.zeros((1, 4), np.float32)).shape == (1,)


needs_faults = pytest.mark.skipif(not FAULTS, reason="the build has no fault seam")


@needs_faults
def test_every_allocation_of_a_mixture_fails_cleanly():
    model = Model(_core.Runtime(1))
    before, failed = live(), 0
    for n in range(1, 200):
        try:
            with fault(n):
                model.open().close()
        except MemoryError:
            failed += 1
            assert live() == before
        else:
            break
    assert failed > 20 and live() == before


def cancelled_after(n, model, cache, seq, ids):
    """x after the mixture; None: a step was cancelled at boundary n and has changed nothing."""
    _core.cancel_after(n)
    try:
        step = _core.step(model.program, cache, [(seq, ids, 0)], captures=[(1, 0)])
    except KeyboardInterrupt:
        assert cache.length(seq) == 0
        cache.check()
        return None
    finally:
        _core.cancel_after(0)
    return step["captures"][0]


@needs_faults
def test_cancelled_at_every_tile_boundary_nothing_has_changed():
    """Boundaries are those of the thread that calls. Alone it meets all of them; beside a worker,
    which may be first at every tile, at least the end of every loop. A step is cancelled or whole.
    """
    model, ids = Model(_core.Runtime(1), act="a8"), ids_of(150).astype(np.int32)
    want, cache = model.run(ids)[0], model.cache()
    seq, met = cache.open(), 0
    while (got := cancelled_after(met + 1, model, cache, seq, ids)) is None:
        met += 1
    same(got, want)
    assert met > 100, "a boundary at every row that the head reduces, and those before"
    model = Model(_core.Runtime(2), act="a8")
    for n in range(1, met + 1):
        cache = model.cache()
        got = cancelled_after(n, model, cache, cache.open(), ids)
        if got is not None:
            same(got, want)
            assert n > 15, "a mixture and a head are more loops"
