"""Every question of `kimi-mini`'s card: activations in float32, as the card's, and the default."""

import json
import os

import pytest

import octavo
from octavo import hub
from octavo.study import kimi_mini

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not os.environ.get("OCTAVO_LONG"), reason="needs OCTAVO_LONG=1"),
]


@pytest.mark.parametrize("act", ["a32", "a8x2"])
def test_the_whole_card(act):
    card = json.loads((hub.resolve("kimi-mini") / "card.json").read_text())["figures"]["right"]
    with octavo.LLM("kimi-mini", act=act, progress=False) as llm:
        for name, asked in kimi_mini.card_questions():
            share = kimi_mini.answered(llm, asked).mean()
            print(f"{act} {name}: {share:.4f}, card {card[name]:.4f}")
            assert abs(share - card[name]) <= 4 / kimi_mini.CARD_QUESTIONS, name
