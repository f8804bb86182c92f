"""Flight records: what the routers' taps show, and the bytes that the core counts."""

from dataclasses import replace

import numpy as np
import pytest
from oracle import fixtures, latent

import octavo
from octavo.engine.flight import RECORD
from octavo.errors import ClosedError, UnsupportedError

MODELS = {
    "qwen3_moe": (fixtures.write_folder, fixtures.QWEN3_MOE, (0, 2)),
    "mixtral": (fixtures.write_folder, fixtures.MIXTRAL, (0, 1)),
    "dsv3": (latent.write_folder, replace(latent.DSV3, q_rank=64), (1, 2)),
    "kimi": (latent.write_folder, replace(latent.KIMI, q_rank=64), (1, 2)),
    "one layer": (fixtures.write_folder, fixtures.varied(fixtures.QWEN3_MOE, dense=(0, 1)), (2,)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            write, shape, _ = MODELS[name]
            made[name] = tmp_path_factory.mktemp("moe") / name.replace(" ", "_")
            write(made[name], shape)
        return made[name]

    return get


@pytest.fixture(scope="module")
def moe(folder):
    """Small steps: prompts take several."""
    with octavo.LLM(folder("qwen3_moe"), kv="int8", max_rows=24, progress=False) as llm:
        yield llm


def params(n, **more):
    more = {"temperature": 0, "ignore_eos": True} | more
    return octavo.SamplingParams(max_tokens=n, **more)


def row_of_tap(taps, layers, i):
    """(layer, expert, gate) of one token, by layer and expert, from the taps."""
    routing = [(layer, taps[f"layers.{layer}.router"]) for layer in layers]
    return [
        (layer, int(e), float(g))
        for layer, r in routing
        for e, g in zip(r.ids[i], r.gates[i], strict=True)
    ]


def tokens_of(flight):
    """(step, sequence, position, token) as they ran, each with its (layer, expert, gate)."""
    out = {}
    for r in flight.array:
        key = tuple(int(r[n]) for n in ("step", "sequence", "position", "token"))
        out.setdefault(key, []).append((int(r["layer"]), int(r["expert"]), float(r["gate"])))
    return out


@pytest.mark.parametrize("name", MODELS)
def test_a_record_is_what_the_taps_show(folder, ids, name):
    layers, shape = MODELS[name][2], MODELS[name][1]
    with (
        octavo.LLM(folder(name), max_rows=24, progress=False) as llm,
        llm.capture("layers.*.router") as taps,
        llm.routing() as flight,
    ):
        llm.generate([ids[:50], ids[60:90], ids[7:9]], params(5))
    assert flight.layers == layers and flight.array.dtype == RECORD
    assert flight.expert_bytes.shape == (len(layers), shape.experts)
    found = tokens_of(flight)
    assert list(found) == sorted(found, key=lambda k: k[0]), "ascending by step"
    assert len(found) == len(taps.token) == flight.tokens == 82 + 3 * 4
    numbers = {}
    for i, (key, chosen) in enumerate(found.items()):
        number = numbers.setdefault(int(taps.sequence[i]), len(numbers))
        assert key[1:] == (number, taps.position[i], taps.token[i])
        assert chosen == row_of_tap(taps, layers, i)
    rows = flight.array[["step", "layer"]].tolist()
    assert rows == sorted(rows)
    nbytes = flight.expert_bytes[np.searchsorted(layers, flight.array["layer"]),
                                 flight.array["expert"]]  # fmt: skip
    assert (flight.array["nbytes"] == nbytes).all()
    assert f"{len(found)} tokens in {flight.steps} steps" in repr(flight)
    assert "Recorder" in repr(flight) and "<table>" in flight._repr_html_()


@pytest.mark.parametrize("weights", ["checkpoint", "bf16", "q4g32"])
@pytest.mark.parametrize("name", MODELS)
def test_bytes_read_are_those_that_the_core_counts(folder, ids, name, weights):
    with octavo.LLM(folder(name), weights=weights, progress=False) as llm:
        seen = []
        with llm.sequence() as seq, llm.routing() as flight:
            for lo, hi in ((0, 40), (40, 41), (41, 43), (43, 100)):
                with llm.profile() as p:
                    seq.append(ids[lo:hi])
                seen.append(p.kinds["expert"].bytes)
        read = flight.bytes_read()
        assert read.shape == (4, len(flight.layers)) and read.dtype == np.int64
        assert read.sum(axis=1).tolist() == seen
        with llm.routing() as flight, llm.profile() as p:
            llm.generate([ids[:30], ids[9:20]], params(6))
        assert flight.bytes_read().sum() == p.kinds["expert"].bytes
        assert flight.expert_bytes.min() > 0
        assert flight.bytes_read().max() <= flight.expert_bytes.sum(axis=1).max()


def test_one_prefill_is_the_record_of_decoding(moe, ids):
    """By law two a router does not see which tokens share a step."""
    whole = moe.routing(ids[:70])
    assert whole.steps == 3 and whole.tokens == 70
    with moe.variant(max_rows=1) as single:
        apart = single.routing(ids[:70])
    assert apart.steps == 70
    np.testing.assert_array_equal(whole.by_token().array, apart.array)
    np.testing.assert_array_equal(whole.by_token().bytes_read(), apart.bytes_read())


def test_a_text_alone_and_what_else_runs(moe):
    text = fixtures.text()[:200]
    direct = moe.routing(text)
    count = len(moe.tokenizer.encode(text))
    assert direct.tokens == count and set(direct.array["sequence"]) == {0}
    with moe.routing() as block:
        moe.prefill(text).close()
    np.testing.assert_array_equal(block.array, direct.array)
    assert moe.bytes().sealed == 0, "its pages are given back"
    with moe.routing() as scored:
        moe.score(text)
    assert scored.tokens == count - 1
    with moe.routing() as streamed:
        list(moe.stream(text, params(4)))
    assert streamed.tokens == count + 3
    assert block.tokens == count, "nothing is recorded outside the block"
    with block:
        moe.score([5, 6, 7])
    assert block.tokens == count + 2 and block.array["sequence"][-1] == 1
    assert len(moe.routing([]).array) == 0
    block.clear()
    assert len(block.array) == 0
    with block:
        moe.score([5, 6, 7])
    assert set(block.array["sequence"]) == {0} and set(block.array["step"]) == {0}


def test_completions_that_stop_have_their_tokens(moe, ids):
    free = moe.generate(ids[:30], params(20))[0].outputs[0].token_ids
    stop = free[7]
    with moe.routing() as flight:
        out = moe.generate([ids[:30], ids[40:50]], params(20, stop_token_ids=[stop]))
    for number, request in enumerate(out):
        rows = flight.select(flight.array["sequence"] == number)
        made = request.outputs[0].token_ids
        fed = list(dict.fromkeys(rows.array[["position", "token"]].tolist()))
        want = [*request.prompt_token_ids, *made[:-1]]  # the last one is never run
        assert fed == list(enumerate(want))
    assert len(out[0].outputs[0].token_ids) <= 8


def test_a_sequence_keeps_its_number(moe, ids):
    """Its handle changes with every call of several steps; a fork is another one."""
    with moe.sequence() as seq, moe.routing() as flight:
        for lo in (0, 60, 120):
            seq.append(ids[lo : lo + 60])
        with seq.fork() as twin:
            twin.append(ids[180:200])
            seq.append(ids[180:190])
    assert list(dict.fromkeys(flight.array["sequence"].tolist())) == [0, 1]
    for number, end in ((0, 190), (1, 200)):
        rows = flight.array[flight.array["sequence"] == number]
        assert sorted(set(rows["position"].tolist())) == list(range(180 * number, end))


def test_preempted_completions_keep_their_number(folder, ids):
    asked = [ids[i : i + 40] for i in range(6)]
    preempted = 0
    with octavo.LLM(folder("qwen3_moe"), progress=False) as llm:
        least = llm._pool.core.bytes_for(240)
        for factor in (1.8, 2.4):
            with llm.variant(memory=int(least * factor), max_rows=16) as tight:
                with tight.routing() as flight:
                    out = tight.generate(asked, params(200))
                preempted += sum(r.num_preemptions for r in out)
            assert set(flight.array["sequence"]) == set(range(6))
            assert flight.tokens >= 6 * 239
            for number in range(6):
                rows = flight.array[flight.array["sequence"] == number]
                assert set(rows["position"].tolist()) == set(range(239))
    assert preempted > 0


def test_what_route_makes_is_what_is_recorded(moe, ids):
    def last_three(layer, r):
        return np.tile([7, 5, 6], (len(r.ids), 1)), np.tile([0.5, 0.25, 0.125], (len(r.ids), 1))

    with moe.route(last_three, layers=2):
        flight = moe.routing(ids[:40])
    steered = flight.array[flight.array["layer"] == 2]
    assert steered["expert"].reshape(-1, 3).tolist() == [[5, 6, 7]] * 40
    assert steered["gate"].reshape(-1, 3).tolist() == [[0.25, 0.125, 0.5]] * 40
    assert flight.load().counts[1].tolist() == [0] * 5 + [40] * 3
    assert flight.load().counts[0].max() < 40


def test_recorded_tokens_neither_enter_nor_read_the_prefix_index(moe):
    prompt = [7] * 70 + [9] * 70

    def held(**how):
        out = moe.generate(prompt, params(1), **how)[0]
        return out.num_cached_tokens

    with moe.routing() as flight:
        assert held() == 0
    assert flight.tokens == 140
    assert held() == 0, "nothing was in the index"
    assert held() > 0
    with moe.routing() as flight:
        assert held() == 0
    assert flight.tokens == 140


def test_a_step_that_fails_leaves_no_row(moe, ids):
    def mine(layer, r):
        raise KeyError("mine")

    with moe.sequence() as seq, moe.routing() as flight:
        seq.append(ids[:10])
        with moe.route(mine), pytest.raises(KeyError):
            seq.append(ids[10:20])
        seq.append(ids[10:12])
    assert flight.array["position"][flight.array["layer"] == 0].tolist() == [
        p for p in range(12) for _ in range(3)
    ]
    assert flight.steps == 2


def test_records_grow_while_they_are_looked_at(moe, ids):
    with moe.routing() as flight, moe.sequence() as seq:
        sizes = []
        for i in range(4):
            seq.append(ids[i : i + 1])
            sizes.append(len(flight.array))
            assert flight.array is flight.array and not flight.array.flags.writeable
    assert sizes == [6, 12, 18, 24]


def test_what_cannot_be_recorded_is_refused(moe, tiny_llama):
    with octavo.LLM(tiny_llama, progress=False) as dense:
        with pytest.raises(UnsupportedError, match=r"routing: model 'tiny-llama' has no experts"):
            dense.routing()
    with pytest.raises(ValueError, match="routing: 3000 tokens"):
        moe.routing([3] * 3000)
    with pytest.raises(ValueError, match="routing: "):
        moe.routing([300])
    with moe.routing() as flight, pytest.raises(RuntimeError, match="Recorder: it is in force"):
        flight.__enter__()
    other = moe.variant()
    other.close()
    with pytest.raises(ClosedError, match="routing: the LLM was closed"):
        other.routing()
