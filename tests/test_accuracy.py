"""What activations and KV schemes cost on the real model: bounds and the order of the ladder.

Results are the same bits on every x86 machine, so these are not statistical tests: a failure means
that arithmetic changed. The full protocol (4,096 tokens of WikiText) is `octavo ladder` and
`octavo divergence`; its figures are in docs/measurements.md.
"""

import pytest
from oracle import fixtures

import octavo
from octavo import study


@pytest.fixture(scope="module")
def llm(smollm2):
    with octavo.LLM(smollm2) as llm:
        yield llm


@pytest.mark.model
def test_default_activations_are_close_to_exact_ones(llm):
    with llm.variant(act="a32", kv="f32") as base:  # f32 KV adds no rounding of its own
        acts = {act: base.variant(act=act) for act in ("a8x2", "a8g32")}
        rows = study.divergence(base, list(acts.values()), fixtures.text(), tokens=768, quiet=True)
        for variant in acts.values():
            variant.close()
    a8x2, a8g32 = rows.rows
    assert a8x2.mean.value <= 1e-4 and a8x2.top1.value >= 0.995
    assert a8g32.mean.value <= 4e-3 and a8g32.top1.value >= 0.955


@pytest.mark.model
def test_the_ladder_has_its_order(llm):
    out = study.ladder(llm, fixtures.text(), tokens=768, quiet=True)
    assert out.order() == list(study.LADDER)
    assert out.rows[0].mean.value <= 1e-4, "the floor"
    assert out.rows[1].minus(out.rows[0]).low > 0


@pytest.mark.model
@pytest.mark.wikitext
@pytest.mark.parametrize("act", ["a32", "a8x2"])
def test_perplexity_agrees_with_llama_cpp(llm, wikitext, act):
    """llama.cpp on F16-decoded weights: 12.9560, 21.3753, 22.5255, 22.7458 after 1 to 4 chunks."""
    with llm.variant(act=act) as variant:
        text = wikitext.encode()[:60_000].decode(errors="ignore")
        got = study.perplexity(variant, text, "llama.cpp-512", chunks=4, quiet=True)
    assert got.available == 29
    assert got.value == pytest.approx(22.7458, rel=2e-3)
