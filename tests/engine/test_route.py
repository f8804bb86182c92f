"""llm.route: what a function makes of the router's choice is what runs, and what a tap shows."""

import numpy as np
import pytest
from oracle import fixtures

import octavo


@pytest.fixture(scope="module")
def moe(tmp_path_factory):
    path = tmp_path_factory.mktemp("moe") / "qwen3_moe"
    fixtures.write_folder(path, fixtures.QWEN3_MOE)
    with octavo.LLM(path, kv="int8", progress=False) as llm:
        yield llm


IDS = list(range(3, 90))


def logits(llm):
    with llm.sequence() as seq:
        return seq.append(IDS, all_logits=True)


def test_the_identity_changes_no_bit_and_sees_every_token(moe):
    want, seen = logits(moe), []
    with moe.route(lambda layer, r: seen.append((layer, r.ids.shape, r.scores.shape))) as route:
        got = logits(moe)
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))
    assert route.layers == (0, 2)
    assert seen == [(0, (87, 3), (87, 8)), (2, (87, 3), (87, 8))]
    np.testing.assert_array_equal(logits(moe), want)
    assert len(seen) == 2


def test_new_ids_are_sorted_and_taps_show_what_ran(moe):
    want = logits(moe)

    def first_three(layer, r):
        return np.tile([4, 1, 2], (len(r.ids), 1)), np.tile([0.5, 0.25, 0.125], (len(r.ids), 1))

    with moe.route(first_three, layers=2), moe.capture("layers.*.router") as taps:
        got = logits(moe)
    assert (got != want).any()
    routing = taps["layers.2.router"]
    assert (routing.ids == [1, 2, 4]).all() and (routing.gates == [0.25, 0.125, 0.5]).all()
    assert (taps["layers.0.router"].ids != [1, 2, 4]).any()


def test_several_functions_see_each_other_s_choice(moe):
    def halve(layer, r):
        r.gates[...] /= 2

    with moe.route(halve), moe.capture("layers.0.router") as once:
        logits(moe)
    with moe.route(halve), moe.route(halve, layers=[0]), moe.capture("layers.0.router") as twice:
        logits(moe)
    np.testing.assert_array_equal(once["layers.0.router"].gates / 2,
                                  twice["layers.0.router"].gates)  # fmt: skip


@pytest.mark.parametrize(
    ("function", "error", "says"),
    [
        (lambda layer, r: (r.ids[:, :2], r.gates), ValueError, "layer 0: ids are int32"),
        (lambda layer, r: (r.ids * 1.0, r.gates), ValueError, "ids are float64"),
        (lambda layer, r: (r.ids, r.gates[0]), ValueError, "gates are float32"),
        (lambda layer, r: (r.ids,), ValueError, "shorter"),
        (lambda layer, r: (r.ids * 0, r.gates), ValueError, "distinct"),
        (lambda layer, r: (r.ids + 90, r.gates), ValueError, "0 to 7"),
        (lambda layer, r: (r.ids, r.gates * np.nan), ValueError, "not finite"),
        (lambda layer, r: moe_error(), KeyError, "mine"),
    ],
)  # fmt: skip
def test_bad_functions_leave_the_model_as_it_was(moe, function, error, says):
    want = logits(moe)
    with moe.sequence() as seq:
        seq.append(IDS[:10])
        with moe.route(function), pytest.raises(error, match=says):
            seq.append(IDS[10:])
        assert len(seq) == 10
        got = seq.append(IDS[10:], all_logits=True)
    np.testing.assert_array_equal(got, want[10:])


def moe_error():
    raise KeyError("mine")


def test_what_cannot_be_routed_is_refused(moe, tiny_llama):
    with pytest.raises(TypeError, match="a function is needed"):
        moe.route(5)
    for layers in (1, [0, 1], 9, ["0"]):
        with pytest.raises(ValueError, match="has no router; legal: \\[0, 2\\]"):
            moe.route(print, layers=layers)
    with octavo.LLM(tiny_llama, progress=False) as dense, pytest.raises(ValueError, match="no exp"):
        dense.route(print)


def test_routed_tokens_neither_enter_nor_read_the_prefix_index(moe):
    prompt = [7] * 70 + [9] * 70
    with moe.route(lambda layer, r: r.gates.fill(1.0)):
        moe.prefill(prompt).close()
    with moe.capture("layers.0.out") as taps:
        moe.prefill(prompt).close()
    assert len(taps["layers.0.out"]) == 140
    seen = []
    moe.prefill(prompt).close()
    with moe.route(lambda layer, r: seen.append(len(r.ids)), layers=0):
        moe.prefill(prompt).close()
    assert seen == [140]
