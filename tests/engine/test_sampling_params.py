"""SamplingParams: vLLM's names and defaults, and hostile values refused by name."""

import pytest

from octavo import SamplingParams

NAN, INF = float("nan"), float("inf")


def test_defaults_are_vllms():
    p = SamplingParams()
    assert (p.n, p.temperature, p.top_p, p.top_k, p.min_p) == (1, 1.0, 1.0, 0, 0.0)
    assert (p.max_tokens, p.min_tokens, p.seed, p.logprobs) == (16, 0, None, None)
    assert (
        repr(SamplingParams(temperature=0, stop="x")) == "SamplingParams(temperature=0, stop='x')"
    )


@pytest.mark.parametrize(("name", "values"), [
    ("temperature", [-1, NAN, INF, -1e-9]), ("top_p", [-0.1, 1.1, NAN]), ("top_k", [-2, 1 << 40]),
    ("min_p", [-0.1, 1.5, NAN]), ("presence_penalty", [2.1, -2.1, NAN]),
    ("frequency_penalty", [3, INF]), ("repetition_penalty", [0, -1, NAN, INF]),
    ("n", [0, -1, 10**6]),
    ("max_tokens", [0, -1, 1 << 64]), ("min_tokens", [-1, 17]), ("seed", [-1, 1 << 64]),
    ("logprobs", [-2]), ("prompt_logprobs", [-2]), ("stop", ["", ["a", ""]]),
    ("stop_token_ids", [[-1], [1 << 40]]), ("logit_bias", [{-1: 0}, {1: 101}, {1: NAN}]),
])  # fmt: skip
def test_values_out_of_range(name, values):
    for value in values:
        with pytest.raises(ValueError, match=name):
            SamplingParams(**{name: value})


@pytest.mark.parametrize(("name", "values"), [
    ("temperature", ["1", None, True]), ("top_p", [None, [1]]), ("top_k", [1.0, True, None]),
    ("n", [1.0, True, None]), ("max_tokens", [1.5, "9"]), ("min_tokens", [None]), ("seed", [1.0]),
    ("logprobs", [True, 1.0]), ("stop", [1, [1], b"x"]),
    ("stop_token_ids", [1, "1", [True], [1.0]]),
    ("ignore_eos", [1, None]), ("logit_bias", [[1], {"1": 1}, {1: "1"}, {True: 1}]),
    ("logits_processors", [[1]]), ("skip_special_tokens", ["no"]),
])  # fmt: skip
def test_types(name, values):
    for value in values:
        with pytest.raises(TypeError, match="logits processor" if "processors" in name else name):
            SamplingParams(**{name: value})


def test_unknown_names_and_frozen():
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=1)
    with pytest.raises(AttributeError):
        SamplingParams().n = 2


def test_greedy():
    for p in ({"temperature": 0}, {"temperature": 1e-40}, {"top_p": 0}, {"top_k": 1}):
        assert SamplingParams(**p).greedy and SamplingParams(**p).plain
        with pytest.raises(ValueError, match="n is 2"):
            SamplingParams(n=2, **p)
    assert not SamplingParams(temperature=0, logprobs=1).plain
    assert not SamplingParams(temperature=0, min_tokens=1).plain


def test_extremes_that_are_legal(llm, ids):
    for p in (
        {"temperature": 1e-4}, {"temperature": 1e6}, {"top_k": 10**6}, {"top_k": -1},
        {"min_p": 1.0},
        {"max_tokens": (1 << 63) - 1, "stop_token_ids": list(range(300))},
        {"stop": [f"stop{i}" for i in range(20_000)], "max_tokens": 2},
        {"logit_bias": {i: -100.0 for i in range(300)}, "max_tokens": 2},
        {"logprobs": -1, "max_tokens": 2}, {"top_p": 1e-9, "max_tokens": 2},
    ):  # fmt: skip
        out = llm.generate(ids[:9], SamplingParams(seed=1, **p))[0].outputs[0]
        assert out.finish_reason in ("stop", "length")
