"""`kimi-mini` as it ships: its card's figures in this engine, and the two laws on a model that has
learnt something, under every KV scheme that a latent can have."""

import json
import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

import octavo
from octavo import hub
from octavo.study import kimi_mini

FOLDER = hub.resolve("kimi-mini")
FIGURES = json.loads((FOLDER / "card.json").read_text())["figures"]
TASKS = dict(kimi_mini.card_questions())
SCHEMES = ("f32", "f16", "bf16", "fp8", "int8", "int8-had", "int4", "int4-had")
ASKED = 12  # of each task; the long test asks all


@pytest.fixture(scope="module")
def llm():
    with octavo.LLM("kimi-mini", progress=False) as llm:
        yield llm


def test_it_fits_into_a_wheel_and_its_readme_states_the_card():
    assert sum(f.stat().st_size for f in FOLDER.iterdir()) <= 8 << 20
    text = (FOLDER / "README.md").read_text()
    assert "not a language model" in text
    assert f"{FIGURES['held_out']['nats_per_token']} nats" in text
    for name, share in FIGURES["right"].items():
        assert f"| {name} | {share:.1%} |" in text


@pytest.mark.parametrize("name", TASKS)
def test_the_card_s_answers(llm, name):
    """The card's are of float32 activations: one that was close may come out otherwise here."""
    digits = FIGURES["answers"][name]
    assert FIGURES["right"][name] == digits.count("1") / len(digits) == digits.count("1") / 128
    right = kimi_mini.answered(llm, TASKS[name][:ASKED])
    assert np.sum(right != (np.array(list(digits[:ASKED])) == "1")) <= 1


def test_it_recalls_at_a_thousand_tokens():
    assert FIGURES["right"]["recall at 1,024 tokens"] >= 0.9


def test_the_card_s_loss(llm):
    rows = kimi_mini.held_out_rows(64, 513, 0)
    texts = ("".join(part.text for part in row) for row in rows)
    ids = [llm.tokenizer.encode(t, add_special=False, parse_special=True)[:513] for t in texts]
    card, counts = FIGURES["held_out"], Counter(i for row in ids for i in row[1:])
    assert counts.total() == card["tokens"]
    shares = np.array(list(counts.values())) / counts.total()
    assert -(shares * np.log(shares)).sum() == pytest.approx(card["unigram_entropy_nats"], abs=1e-4)
    nats = -np.mean(np.concatenate([llm.score(row) for row in ids]))
    assert nats == pytest.approx(card["nats_per_token"], rel=0.005)
    assert card["nats_per_token"] < card["unigram_entropy_nats"] / 2


def test_every_expert_has_learnt_its_share(llm):
    """No expert is idle, and the bias, which only selects, changes what is chosen."""
    text = "".join(p.text for p in next(kimi_mini.held_out_rows(1, 600, 1)))
    load = llm.routing(text).load()
    assert load.counts.min() > 0
    assert -(load.share * np.log2(load.share)).sum(-1).min() > 0.9 * math.log2(16)


# ---- the laws --------------------------------------------------------------------------------


def walk(llm, ids, cuts):
    """The logits after each piece of `ids`."""
    sequence = llm.sequence(prefix=False)
    try:
        out = []
        for start, end in pairwise((0, *cuts, len(ids))):
            sequence.append(ids[start:end])
            out.append(np.array(sequence.logits))
        return out
    finally:
        sequence.close()


@pytest.fixture(scope="module")
def prompts(llm):
    """Recall questions of several lengths: their tokens want the same experts."""
    asked = (next(kimi_mini.questions(kimi_mini.recall_question, 1, 7, d)) for d in (300, 210, 90))
    return [llm.tokenizer.encode(q.prompt, add_special=False) for q in asked]


@pytest.mark.parametrize("kv", SCHEMES)
def test_any_split_of_a_prompt_gives_the_same_bits(llm, prompts, kv):
    ids = prompts[0]
    with llm.variant(kv=kv) as variant:
        (whole,) = walk(variant, ids, ())
        for cuts in [(1, 64, 65, 191), (128, 256), tuple(range(len(ids) - 70, len(ids)))]:
            assert np.array_equal(walk(variant, ids, cuts)[-1], whole)


@pytest.mark.parametrize("kv", SCHEMES)
def test_a_batch_changes_no_bit(llm, prompts, kv):
    """Alone or together, and while the others prefill: the same tokens and log-probabilities."""
    params = octavo.SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True, logprobs=3)

    def said(variant, some):
        outputs = [o.outputs[0] for o in variant.generate(some, params)]
        return [(list(o.token_ids), [{t: p.logprob for t, p in at.items()} for at in o.logprobs])
                for o in outputs]  # fmt: skip

    with llm.variant(kv=kv) as variant:
        together = said(variant, prompts * 2)
    with octavo.LLM("kimi-mini", kv=kv, prefix=False, max_rows=48, progress=False) as other:
        alone = [said(other, [ids])[0] for ids in prompts]
        assert said(other, prompts * 2) == together == alone * 2
