"""Generation: equal to the solo run bit for bit in any batch, memory and order; sampling rules."""

import numpy as np
import pytest
from test_sequence import SCHEMES

import octavo
from octavo import SamplingParams
from octavo.engine.request import _held_back
from octavo.errors import BusyError, NumericalError, OutOfPages

GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)


def tokens(outputs):
    return [[c.token_ids for c in r.outputs] for r in outputs]


def prompts(ids, count=9):
    return [ids[i * 13 : i * 13 + 5 + 17 * (i % 5)] for i in range(count)]


def mixed(count=9):
    return [
        SamplingParams(
            temperature=0.9 * (i % 3),
            seed=i,
            max_tokens=3 + 7 * (i % 4),
            top_k=40 * (i % 2),
            top_p=0.9,
            n=1 + (i % 3 == 1),
            ignore_eos=True,
            logprobs=2 if i % 4 == 3 else None,
        )
        for i in range(count)
    ]


def test_greedy_equals_stepping_by_hand(llm, ids):
    out = llm.generate([ids[:30]], GREEDY)[0]
    seq, want = llm.prefill(ids[:30]), []
    for _ in range(20):
        want.append(int(seq.logits.argmax()))
        seq.append(want[-1:])
    assert out.outputs[0].token_ids == want
    assert out.outputs[0].finish_reason == "length" and out.finished
    assert out.prompt_token_ids == ids[:30]


@pytest.mark.core
@pytest.mark.parametrize("kv", ["bf16", "int4-had", "int8,sinks=1"])
def test_a_batch_equals_solo_runs(llm, ids, kv):
    with llm.variant(kv=kv) as model:
        together = model.generate(prompts(ids), mixed())
        alone = [model.generate([p], q)[0] for p, q in zip(prompts(ids), mixed(), strict=True)]
    assert tokens(together) == tokens(alone)
    for a, b in zip(together, alone, strict=True):
        assert [c.logprobs for c in a.outputs] == [c.logprobs for c in b.outputs]
        assert [c.text for c in a.outputs] == [c.text for c in b.outputs]


@pytest.mark.core
@pytest.mark.parametrize("kv", ["bf16", "int4"])
@pytest.mark.parametrize("factor", [1.05, 1.5, 2.5])
def test_a_small_pool_waits_or_recomputes(llm, ids, kv, factor):
    with llm.variant(kv=kv) as roomy:
        asked, params = prompts(ids), mixed()
        want = tokens(roomy.generate(asked, params))
        most = max(len(p) + q.max_tokens for p, q in zip(asked, params, strict=True))
        memory = int(roomy._pool.core.bytes_for(most) * factor)
    with llm.variant(kv=kv, memory=memory) as tight:
        out = tight.generate(asked, params)
        assert tokens(out) == want
        ledger = tight._pool.core.ledger()
        assert ledger["sequences"] == 0
        tight._pool.core.check()


@pytest.mark.parametrize("kv", SCHEMES)
def test_preemption_happens_and_user_sequences_stay(llm, ids, kv):
    asked = [ids[i : i + 40] for i in range(6)]
    params = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
    with llm.variant(kv=kv) as roomy:
        want = tokens(roomy.generate(asked, params))
        fresh = roomy.prefill(ids[:50]).logits.copy()
        least = roomy._pool.core.bytes_for(240)
    preempted = 0
    for factor in (1.8, 2.2, 2.4, 2.8, 3.2, 3.6):  # which of them runs short depends on the scheme
        with llm.variant(kv=kv, memory=int(least * factor), max_rows=16) as tight:
            mine = tight.prefill(ids[:60])
            before = mine.logits.copy()
            out = tight.generate(asked, params)
            assert tokens(out) == want
            preempted += sum(r.num_preemptions for r in out)
            assert len(mine) == 60 and (mine.logits == before).all()
            mine.truncate(50)
            assert (mine.logits == fresh).all()
    assert preempted > 0


def test_hopeless_requests_are_refused_before_any_work(llm, ids):
    with llm.variant(memory=200_000) as tight:
        seen = []
        params = SamplingParams(
            max_tokens=1900, logits_processors=[lambda t, x: seen.append(1) or x]
        )
        with pytest.raises(OutOfPages, match=r"request 1 .* pages are available") as caught:
            tight.generate([ids[:4], ids[:20]], [GREEDY, params])
        assert caught.value.needed > caught.value.available and not seen
        free = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
        out = tight.generate(ids[:20], free)[0].outputs[0]
        assert out.finish_reason == "length" and 20 < len(out.token_ids) < 1900


def test_prefix_pages_are_shared_and_change_nothing(llm, ids):
    with llm.variant(kv="int8") as model, llm.variant(kv="int8") as cold:
        cold._pool.prefix = False
        for cut in (63, 64, 65, 128, 200):
            asked = [ids[:200], [*ids[:cut], 5, 6, 7]]
            warm = model.generate(asked, GREEDY)
            assert tokens(warm) == tokens(cold.generate(asked, GREEDY))
        assert warm[0].num_cached_tokens == 192
        assert cold.generate([ids[:200]], GREEDY)[0].num_cached_tokens == 0
        with model.capture("norm") as taps:
            model.prefill(ids[:200])
        assert len(taps["norm"]) == 200, "captures do not read the index"


def test_n_shares_the_prefill(llm, ids):
    params = SamplingParams(n=5, temperature=1.0, seed=3, max_tokens=12, ignore_eos=True)
    with llm.capture("embed") as taps:
        out = llm.generate(ids[:90], params)[0]
    assert len(taps["embed"]) == 90 + 5 * 11
    assert len({tuple(c.token_ids) for c in out.outputs}) == 5
    assert [c.index for c in out.outputs] == list(range(5))


def test_seeds(llm, ids):
    def run(seed):
        params = SamplingParams(seed=seed, max_tokens=12, ignore_eos=True)
        return tokens(llm.generate(ids[:9], params))

    assert run(1) == run(1) != run(2)
    assert run(None) != run(None)


# ---- ends


def test_stop_ids_eos_and_min_tokens(llm, ids):
    first = tokens(llm.generate(ids[:9], GREEDY))[0][0]
    stop = first[4]
    at = first.index(stop)
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, stop_token_ids=[stop])
    out = llm.generate(ids[:9], params)[0].outputs[0]
    assert (out.finish_reason, out.stop_reason) == ("stop", stop)
    assert out.token_ids == first[: at + 1]
    later = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, stop_token_ids=[stop],
                           min_tokens=10)  # fmt: skip
    out = llm.generate(ids[:9], later)[0].outputs[0]
    assert len(out.token_ids) >= 10 and stop not in out.token_ids[:10]


def test_eos_ends_unless_ignored(llm, ids):
    eos = next(iter(llm.eos_ids))
    bias = {eos: 100.0}
    out = llm.generate(ids[:9], SamplingParams(temperature=0, logit_bias=bias))[0].outputs[0]
    assert (out.token_ids, out.finish_reason, out.stop_reason, out.text) == (
        [eos],
        "stop",
        None,
        "",
    )
    params = SamplingParams(temperature=0, logit_bias=bias, ignore_eos=True, max_tokens=3)
    assert tokens(llm.generate(ids[:9], params)) == [[[eos] * 3]]


def test_stop_strings(llm, ids):
    text = llm.generate(ids[:9], GREEDY)[0].outputs[0].text
    stop = text[6:9]
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, stop=["zzzz", stop])
    out = llm.generate(ids[:9], params)[0].outputs[0]
    assert out.text == text[: text.index(stop)]
    assert (out.finish_reason, out.stop_reason) == ("stop", stop)
    kept = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, stop=stop,
                          include_stop_str_in_output=True)  # fmt: skip
    assert llm.generate(ids[:9], kept)[0].outputs[0].text == text[: text.index(stop) + 3]
    pieces = list(llm.stream(ids[:9], params))
    assert "".join(pieces) == text[: text.index(stop)]


def test_streams_hold_back_what_a_stop_string_may_take():
    assert _held_back("abcx", ("xyz", "cxq")) == 2
    assert _held_back("abc", ("xyz",)) == 0
    assert _held_back("", ("a",)) == 0
    assert _held_back("aaa", ("aaaa",)) == 3


def test_streams_equal_generate_and_can_be_dropped(llm, ids):
    want = llm.generate(ids[:9], GREEDY)[0].outputs[0].text
    assert "".join(llm.stream(ids[:9], GREEDY)) == want
    sequences = llm._pool.core.ledger()["sequences"]
    stream = llm.stream(ids[:9], GREEDY)
    next(stream)
    assert tokens(llm.generate(ids[:9], GREEDY)), "the model is free between two pieces"
    stream.close()
    assert llm._pool.core.ledger()["sequences"] == sequences


def test_chat_renders_the_template(llm):
    messages = [{"role": "user", "content": "hello"}]
    out = llm.chat(messages, GREEDY)[0]
    assert out.prompt == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert out.prompt_token_ids[0] == 1, "control tokens are parsed"
    assert tokens(llm.chat([messages, messages], GREEDY)) == [[out.outputs[0].token_ids]] * 2
    with pytest.raises(TypeError, match="messages"):
        llm.chat("hello")


def test_prompt_forms(llm, ids):
    text = llm.tokenizer.decode(ids[:9])
    forms = [text, ids[:9], np.array(ids[:9]), {"prompt": text}, {"prompt_token_ids": ids[:9]}]
    want = tokens(llm.generate([ids[:9]], GREEDY))
    for form in forms:
        assert tokens(llm.generate(form, GREEDY)) == want
    assert tokens(llm.generate(forms, GREEDY)) == want * 5
    assert llm.generate([]) == []


@pytest.mark.parametrize(
    ("bad", "error", "text"),
    [([[]], ValueError, "prompt 0 is empty"), ("", ValueError, "empty"), (7, TypeError, "int"),
     ([1.5], TypeError, "float"), ([None], TypeError, "NoneType"), ({"p": 1}, ValueError, "legal"),
     ([1] * 2048, ValueError, "at most 2047"), ([[1], "a", [300]], ValueError, "0 to 299")],
)  # fmt: skip
def test_bad_prompts(llm, bad, error, text):
    with pytest.raises(error, match=text):
        llm.generate(bad)


def test_params_must_match_prompts(llm):
    with pytest.raises(ValueError, match="2 sampling_params for 1"):
        llm.generate([[1]], [GREEDY, GREEDY])
    with pytest.raises(TypeError, match="dict"):
        llm.generate([[1]], {"n": 1})
    with pytest.raises(ValueError, match="logit_bias has id 300"):
        llm.generate([[1]], SamplingParams(logit_bias={300: 1}))


# ---- log-probabilities


def log_softmax(logits):
    x = logits.astype(np.float64)
    x -= x.max()
    return x - np.log(np.exp(x).sum())


def test_logprobs(llm, ids):
    params = SamplingParams(temperature=0.7, seed=1, max_tokens=6, logprobs=3, ignore_eos=True)
    out = llm.generate(ids[:9], params)[0].outputs[0]
    seq, total = llm.prefill(ids[:9]), 0.0
    for token, found in zip(out.token_ids, out.logprobs, strict=True):
        want = log_softmax(seq.logits)
        order = np.argsort(-want, kind="stable")
        assert list(found)[:3] == order[:3].tolist() and token in found
        assert len(found) == 3 + (token not in order[:3])
        for i, entry in found.items():
            assert entry.logprob == pytest.approx(want[i], abs=1e-5)
            assert entry.rank == int(np.flatnonzero(order == i)[0]) + 1
            assert entry.decoded_token == llm.tokenizer.decode([i])
        total += found[token].logprob
        seq.append([token])
    assert out.cumulative_logprob == pytest.approx(total)
    params = SamplingParams(logprobs=0, max_tokens=2, ignore_eos=True)
    none = llm.generate(ids[:9], params)[0].outputs[0]
    assert [len(d) for d in none.logprobs] == [1, 1]


@pytest.mark.parametrize("count", [1, 40, 100])
def test_prompt_logprobs_equal_score(llm, ids, count):
    params = SamplingParams(temperature=0, max_tokens=3, prompt_logprobs=2, ignore_eos=True)
    out = llm.generate([ids[:count], ids[:60]], [params, GREEDY])
    found = out[0].prompt_logprobs
    assert len(found) == count and found[0] is None
    got = [d[i].logprob for d, i in zip(found[1:], ids[1:count], strict=True)]
    np.testing.assert_allclose(got, llm.score(ids[:count]), atol=1e-5)
    alone = tokens(llm.generate([ids[:count], ids[:60]], GREEDY))
    assert tokens(out) == [[alone[0][0][:3]], alone[1]]
    assert out[0].num_cached_tokens == 0, "scored prompts never read the index"


def test_score_equals_the_oracle_softmax(llm, ids):
    seq = llm.sequence()
    rows = seq.append(ids[:130], all_logits=True)
    want = [log_softmax(r)[i] for r, i in zip(rows, ids[1:130], strict=False)]
    got = llm.score(ids[:130])
    assert got.dtype == np.float32 and got.shape == (129,)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert llm.score(ids[:1]).shape == (0,)
    assert (got == llm.score(llm.tokenizer.decode(ids[:130]))).all()


# ---- what processors and penalties do


def test_penalties_bias_and_processors_equal_numpy(llm, ids):
    params = SamplingParams(
        temperature=0, max_tokens=15, ignore_eos=True, repetition_penalty=1.4, presence_penalty=0.6,
        frequency_penalty=0.3, logit_bias={7: 2.5, 9: -100.0},
        logits_processors=[lambda made, x: x + 0.01 * len(made) * (np.arange(len(x)) % 2)],
    )  # fmt: skip
    out = llm.generate(ids[:30], params)[0].outputs[0].token_ids
    seq, made = llm.prefill(ids[:30]), []
    for token in out:
        x = seq.logits.astype(np.float64)
        x[7] += 2.5
        x[9] -= 100
        seen = sorted({*ids[:30], *made})
        x[seen] = np.where(x[seen] > 0, x[seen] / 1.4, x[seen] * 1.4)
        counts = np.bincount(made, minlength=300)
        x = x - 0.3 * counts - 0.6 * (counts > 0) + 0.01 * len(made) * (np.arange(300) % 2)
        assert token == x.argmax()
        made.append(token)
        seq.append([token])


def test_processors_cannot_use_the_model_and_may_fail(llm, ids):
    caught = []

    def greedy_for_more(_made, logits):
        for call in (llm.close, lambda: llm.score([1, 2]), lambda: llm.prefill([1])):
            with pytest.raises(BusyError):
                call()
            caught.append(1)
        return logits

    llm.generate(ids[:9], SamplingParams(max_tokens=1, logits_processors=[greedy_for_more]))
    assert len(caught) == 3
    for bad, error in ((lambda t, x: 1 / 0, ZeroDivisionError), (lambda t, x: x[:5], TypeError),
                       (lambda t, x: None, TypeError),
                       (lambda t, x: x > 0, TypeError)):  # fmt: skip
        with pytest.raises(error):
            llm.generate(ids[:9], SamplingParams(max_tokens=1, logits_processors=[bad]))
        assert llm._pool.core.ledger()["sequences"] <= 40
    sequences = llm._pool.core.ledger()["sequences"]
    with pytest.raises(ZeroDivisionError):
        llm.generate(prompts(ids), SamplingParams(logits_processors=[lambda t, x: 1 / 0]))
    assert llm._pool.core.ledger()["sequences"] == sequences


def test_a_request_without_finite_logits_fails_alone(llm, ids):
    def nothing(_made, logits):
        return np.full_like(logits, -np.inf)

    bad = SamplingParams(max_tokens=4, logits_processors=[nothing])
    with pytest.raises(NumericalError, match="no finite logit") as caught:
        llm.generate([ids[:9], ids[:9], ids[:20]], [GREEDY, bad, GREEDY])
    good = tokens([*llm.generate(ids[:9], GREEDY), *llm.generate(ids[:20], GREEDY)])
    outputs = caught.value.outputs
    assert tokens([outputs[0], outputs[2]]) == good
    assert outputs[1].outputs[0].finish_reason == "error"


def test_an_infinite_embedding_fails_its_request_alone(tmp_path, ids):
    from oracle import fixtures
    from test_sequence import spoil

    shape = fixtures.varied(fixtures.LLAMA, tied=False)
    spoil(tmp_path, fixtures.write_folder(tmp_path, shape), ids[50])
    good = [i for i in ids if i != ids[50]]
    with octavo.LLM(tmp_path, act="a32", max_rows=32, progress=False) as llm:
        want = tokens(llm.generate([good[:50]], GREEDY))
        sampled = SamplingParams(n=2, temperature=1, max_tokens=5)
        with pytest.raises(NumericalError) as caught:
            llm.generate([good[:50], [*good[:40], ids[50]]], [GREEDY, sampled])
        assert tokens(caught.value.outputs)[0] == want[0]
        assert [c.finish_reason for c in caught.value.outputs[1].outputs] == ["error", "error"]
        assert llm._pool.core.ledger()["sequences"] == 0


@pytest.mark.parametrize("at", [1, 2, 5])
def test_interrupts_close_the_requests(llm, ids, at):
    from test_sequence import Interrupt

    sequences = llm._pool.core.ledger()["sequences"]
    with pytest.raises(KeyboardInterrupt), Interrupt(llm._stepper, at, True):
        llm.generate(prompts(ids), mixed())
    assert llm._pool.core.ledger()["sequences"] == sequences
    assert tokens(llm.generate(prompts(ids), mixed())) == tokens(
        llm.generate(prompts(ids), mixed())
    )
