"""Caches by replay: one pass over a trace against counted simulations of each cache by itself."""

import numpy as np
import pytest

from octavo.engine.flight import RECORD, Flight
from octavo.engine.replay import NEVER, POLICIES, places

INF = float("inf")


def simulate(keys, policy, size):
    """Which accesses hit in one cache of `size`, as the policies are defined."""
    cache, last, count, hits = set(), {}, {}, []

    def worth(k, t):
        """The least is given up."""
        if policy == "lru":
            return last[k]
        if policy == "lfu":
            return count[k], last[k]
        return -next((u for u in range(t + 1, len(keys)) if keys[u] == k), INF), k

    for t, key in enumerate(keys):
        hits.append(key in cache)
        if size and key not in cache:
            if len(cache) == size:
                cache.remove(min(cache, key=lambda k, t=t: worth(k, t)))
            cache.add(key)
        last[key], count[key] = t, count.get(key, 0) + 1
    return hits


def traces():
    rng = np.random.default_rng(0)
    yield "empty", []
    yield "one", [4]
    yield "same", [2] * 9
    yield "cycle", list(range(5)) * 6
    yield "there and back", [*range(6), *range(5, -1, -1)] * 3
    for kinds in (2, 5, 12):
        yield f"even {kinds}", rng.integers(0, kinds, 150).tolist()
        share = 1 / np.arange(1, kinds + 1)
        yield f"skewed {kinds}", rng.choice(kinds, 150, p=share / share.sum()).tolist()
    drift = rng.integers(0, 4, 150) + np.arange(150) // 20
    yield "drifting", drift.tolist()


TRACES = dict(traces())


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", TRACES)
def test_places_give_the_hits_of_every_size(name, policy):
    keys = TRACES[name]
    found = places(np.array(keys, np.int64), policy)
    kinds = len(set(keys))
    assert found.shape == (len(keys),)
    assert (found == NEVER).sum() == kinds
    for size in range(kinds + 3):
        assert (found < size).tolist() == simulate(keys, policy, size), size


def test_nothing_beats_belady():
    for keys in TRACES.values():
        best = np.sort(places(np.array(keys, np.int64), "belady"))
        for policy in ("lru", "lfu"):
            assert (best <= np.sort(places(np.array(keys, np.int64), policy))).all()


# ---- of flight records -----------------------------------------------------------------------

LAYERS, EXPERTS, TOP = (1, 2, 4), 6, 2


def random_flight(steps=25, seed=1, experts=EXPERTS):
    """Steps of one to three tokens, two experts each; experts of all sizes."""
    rng = np.random.default_rng(seed)
    nbytes = rng.integers(100, 999, (len(LAYERS), experts))
    rows = []
    for step in range(steps):
        for slot, layer in enumerate(LAYERS):
            for token in range(1 + step % 3):
                for e in np.sort(rng.choice(experts, TOP, replace=False)):
                    rows.append((step, token, step, 7, layer, e, 0.5, nbytes[slot, e]))
    return Flight(np.array(rows, RECORD), LAYERS, nbytes)


def reads(flight):
    """(step, layer, expert) of every read, in order, by going through the rows."""
    return sorted({(int(r["step"]), int(r["layer"]), int(r["expert"])) for r in flight.array})


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_replayed_hits_equal_a_counted_simulation(policy, shared):
    flight = random_flight()
    order = reads(flight)
    size_of = {(int(r["layer"]), int(r["expert"])): int(r["nbytes"]) for r in flight.array}
    most = EXPERTS * (len(LAYERS) if shared else 1)
    run = flight.replay(policy, range(most + 2), shared=shared)
    assert run.policy == policy and run.shared is shared and run.layers == LAYERS
    assert run.hits.shape == run.missed_bytes.shape == (most + 2, 3)
    for size in range(most + 2):
        hits = np.zeros(3, int)
        missed = np.zeros(3, int)
        for part in [LAYERS] if shared else [(layer,) for layer in LAYERS]:
            keys = [(layer, e) for _, layer, e in order if layer in part]
            for key, hit in zip(keys, simulate(keys, policy, size), strict=True):
                hits[LAYERS.index(key[0])] += hit
                missed[LAYERS.index(key[0])] += 0 if hit else size_of[key]
        assert run.hits[size].tolist() == hits.tolist()
        assert run.missed_bytes[size].tolist() == missed.tolist()
        assert run.hit_rate[size] == hits.sum() / len(order)
        assert run.bytes_per_token[size] == missed.sum() / flight.tokens
    assert run.accesses.tolist() == [sum(key[1] == layer for key in order) for layer in LAYERS]
    np.testing.assert_array_equal(run.layer_hit_rate, run.hits / run.accesses)
    assert (run.hits[-1] == run.accesses - EXPERTS).all(), "all were used: first touches miss"


def test_sizes_have_their_own_shape():
    flight = random_flight()
    curve = flight.replay("lru")
    assert curve.size.tolist() == list(range(EXPERTS + 1))
    one = flight.replay("lru", 3)
    assert one.size.shape == one.hit_rate.shape == () and one.hits.shape == (3,)
    assert one.hit_rate == curve.hit_rate[3] and "3" in str(one)
    grid = flight.replay("lru", [[1, 2], [3, 99]])
    np.testing.assert_array_equal(grid.hit_rate, curve.hit_rate[[[1, 2], [3, 6]]])
    np.testing.assert_array_equal(grid.memory, curve.memory[[[1, 2], [3, 6]]])
    assert grid.hits.shape == (2, 2, 3)
    wide = random_flight(experts=90).replay("lfu", shared=True)
    assert len(wide.size) == 65 and wide.size[0] == 0 and wide.size[-1] == 270
    assert (np.diff(wide.size) > 0).all()


def test_memory_is_what_the_largest_experts_take():
    flight = random_flight()
    sizes = sorted(flight.expert_bytes.ravel().tolist(), reverse=True)
    assert flight.replay(size=[0, 2, 18], shared=True).memory.tolist() == [
        0, sum(sizes[:2]), sum(sizes),
    ]  # fmt: skip
    each = sum(sum(sorted(row.tolist())[-2:]) for row in flight.expert_bytes)
    assert flight.replay(size=2).memory == each


@pytest.mark.parametrize(
    ("args", "error", "says"),
    [
        (("fifo",), ValueError, "'fifo' is not known; known: .*lru"),
        (("lru", -1), ValueError, "a size is -1; legal: 0 to"),
        (("lru", [1, 2**40]), ValueError, "a size is 1099511627776"),
        (("lru", 2.0), TypeError, "not float64"),
        (("lru", True), TypeError, "not bool"),
        (("lru", "3"), TypeError, "must be an int"),
    ],
)
def test_bad_arguments_are_refused(args, error, says):
    with pytest.raises(error, match=says):
        random_flight().replay(*args)


# ---- loads and plans -------------------------------------------------------------------------


def test_load_counts_rows():
    flight = random_flight()
    load = flight.load()
    for slot, layer in enumerate(LAYERS):
        for e in range(EXPERTS):
            rows = [r for r in flight.array if r["layer"] == layer and r["expert"] == e]
            assert load.counts[slot, e] == len(rows)
            assert load.gates[slot, e] == sum(float(r["gate"]) for r in rows)
    np.testing.assert_allclose(load.share.sum(axis=1), 1)


def test_entropy_and_imbalance_of_known_loads():
    rows = [(t, 0, t, 0, 1, e, 1, 5) for t, e in enumerate([0, 1, 2, 3])]
    rows += [(t, 0, t, 0, 2, 3, 1, 5) for t in range(4)]
    load = Flight(np.array(rows, RECORD), LAYERS, np.full((3, 4), 5)).load()
    np.testing.assert_allclose(load.entropy[:2], [np.log(4), 0])
    np.testing.assert_allclose(load.effective[:2], [4, 1])
    np.testing.assert_array_equal(load.imbalance[:2], [1, 4])
    assert np.isnan(load.share[2]).all() and np.isnan(load.entropy[2])
    text = str(load)
    assert "100.0 %" in text and text.splitlines()[5].split()[-3:] == ["-", "-", "-"]


def test_a_plan_keeps_what_is_read_most():
    flight, other = random_flight(), random_flight(seed=2)
    other = Flight(other.array, LAYERS, flight.expert_bytes)
    order, weight = reads(flight), flight.expert_bytes
    often = {(s, e): sum(key[1:] == (layer, e) for key in order)
             for s, layer in enumerate(LAYERS) for e in range(EXPERTS)}  # fmt: skip
    for memory in (1, 99, 2500, 4000, 10**9):
        left, want = memory, np.zeros((3, EXPERTS), bool)
        for key in sorted(often, key=lambda k: (-often[k], k)):
            if weight[key] <= left:
                want[key] = True
                left -= weight[key]
        plan = flight.plan(memory)
        np.testing.assert_array_equal(plan.resident, want)
        assert plan.nbytes == weight[want].sum() <= memory
        for judge, got in ((flight, plan), (other, flight.plan(memory, on=other))):
            np.testing.assert_array_equal(got.resident, want)
            keys = [(LAYERS.index(layer), e) for _, layer, e in reads(judge)]
            assert got.hit_rate == np.mean([want[k] for k in keys])
            missed = sum(int(weight[k]) for k in keys if not want[k])
            assert got.bytes_per_token == missed / judge.tokens
            total = sum(int(weight[k]) for k in keys)
            assert got.ways[0][1:] == (0, total / judge.tokens)
            slots = min(memory // weight.max(), weight.size)
            assert got.slots == slots
            runs = [judge.replay("lru", slots // 3)]
            runs += [judge.replay(p, slots, shared=True) for p in ("lru", "belady")]
            assert [w[1:] for w in got.ways[2:]] == [(r.hit_rate, r.bytes_per_token) for r in runs]
    assert flight.plan(10**9).hit_rate == 1 and flight.plan(1).hit_rate == 0
    assert "most used stay" in str(flight.plan("4 KiB"))


def test_plans_are_refused_where_they_mean_nothing():
    flight = random_flight()
    for memory, error in ((0, ValueError), ("much", ValueError), (2.5, TypeError)):
        with pytest.raises(error, match="plan: memory"):
            flight.plan(memory)
    with pytest.raises(ValueError, match=r"plan: the judging record is of 'flight record'"):
        flight.plan(100, on=random_flight(experts=7))
    with pytest.raises(TypeError, match="plan: on must be a Flight, not int"):
        flight.plan(100, on=3)


# ---- records ---------------------------------------------------------------------------------


def test_an_empty_record_answers_with_nan_and_zeros():
    flight = Flight(np.empty(0, RECORD), LAYERS, np.full((3, 6), 50))
    assert flight.steps == flight.tokens == 0 and flight.bytes_read().shape == (0, 3)
    assert not flight.load().counts.any()
    for policy in POLICIES:
        for shared in (False, True):
            run = flight.replay(policy, [0, 1], shared=shared)
            assert np.isnan(run.hit_rate).all() and np.isnan(run.bytes_per_token).all()
            assert not run.hits.any() and "-" in str(run)
    plan = flight.plan(100)
    assert not plan.resident.any() and np.isnan(plan.hit_rate)
    assert len(flight.by_token().array) == len(flight.select(slice(0)).array) == 0
    for thing in (flight, flight.load(), run, plan):
        assert "<table>" in thing._repr_html_() and "nan" not in str(thing)


def test_tokens_become_steps():
    flight = random_flight()
    apart = flight.by_token()
    assert apart.steps == apart.tokens == flight.tokens == sum(1 + s % 3 for s in range(25))
    names = ["sequence", "position", "token", "layer", "expert", "gate", "nbytes"]
    assert sorted(apart.array[names].tolist()) == sorted(flight.array[names].tolist())
    rows = apart.array[["step", "layer", "expert"]].tolist()
    assert rows == sorted(rows) and len(set(rows)) == len(rows)
    for step in range(apart.steps):
        here = apart.array[apart.array["step"] == step]
        assert len(set(here[["sequence", "position"]].tolist())) == 1 and len(here) == 3 * TOP
    assert (apart.bytes_read().sum(axis=0) >= flight.bytes_read().sum(axis=0)).all()


def test_some_rows_are_a_record_too():
    flight = random_flight()
    part = flight.select(flight.array["layer"] == 2)
    assert part.layers == LAYERS and part.steps == 25 and not part.bytes_read()[:, [0, 2]].any()
    np.testing.assert_array_equal(part.bytes_read()[:, 1], flight.bytes_read()[:, 1])
    assert flight.select(3).array[0] == flight.array[3]
    assert not flight.array.flags.writeable and not part.array.flags.writeable


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"array": np.zeros(3)}, TypeError, r"array is float64 \[3\]"),
        ({"array": np.zeros((2, 2), RECORD)}, TypeError, r"\[2, 2\]"),
        ({"array": [1, 2]}, TypeError, "array must be an array, not list"),
        ({"nbytes": np.ones((2, 4))}, TypeError, "expert_bytes is float64"),
        ({"nbytes": np.zeros((2, 4), int)}, ValueError, "expert_bytes has 0; legal: 1 and more"),
        ({"nbytes": np.ones((2, 0), int)}, TypeError, r"int64 \[2, 0\]"),
        ({"layers": (1,)}, ValueError, r"layers are \[1\]; legal: 2"),
        ({"layers": (2, 1)}, ValueError, "ascending"),
        ({"row": {"layer": 5}}, ValueError, "of none of the layers"),
        ({"row": {"expert": 4}}, ValueError, "expert is not in 0 to 3"),
        ({"row": {"step": -1}}, ValueError, "step is not in"),
    ],
)
def test_records_are_checked(change, error, says):
    array = np.zeros(3, RECORD)
    for name, value in ({"layer": 1} | change.get("row", {})).items():
        array[name] = value
    nbytes = change.get("nbytes", np.ones((2, 4), int))
    with pytest.raises(error, match=says):
        Flight(change.get("array", array), change.get("layers", (1, 3)), nbytes)
