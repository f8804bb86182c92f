"""`octavo demo`: one model, one prompt, several KV schemes, and what each cost, all measured here.

The prompt is long enough to fill pages, so that every scheme's generation reads what it sealed.
Rates are of a single run on the machine as it is; figures to quote come from `benchmarks/`.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from octavo import LLM

SCHEMES = ("bf16", "fp8", "int8", "k8v4", "int4-had", "int4")
QUESTION = "\n\nWhat happens in this passage? Answer in two sentences."
PASSAGE_CHARS = 1900  # with the question and the template some 480 tokens: seven full pages
DECODE_TOKENS = 48
SCORED_TOKENS = 1024


@dataclass(frozen=True)
class Sample:
    """One scheme's greedy answer and the rates at which it was made."""

    text: str
    prefill_rate: float
    decode_rate: float


def sample_text() -> str:
    """Return the public-domain text that the package ships."""
    return (files("octavo") / "data" / "alice.txt").read_text(encoding="ascii")


def chat_ids(llm: "LLM", messages: Sequence[dict[str, str]]) -> list[int]:
    """Return a conversation's token ids in the checkpoint's own template, ready for an answer."""
    text = llm.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True)
    return llm.tokenizer.encode(text, add_special=False, parse_special=True)


def greedy(llm: "LLM", ids: Sequence[int], count: int = DECODE_TOKENS) -> Sample:
    """Prefill `ids` and decode `count` tokens greedily, timing both.

    The prefix index is neither read nor fed, so that every token of `ids` is run and timed.
    Decoding goes on after an end-of-sequence token, whose text is cut off, so that every scheme is
    timed over the same number of steps.
    """
    sequence = llm.sequence(prefix=False)
    try:
        begin = time.perf_counter()
        sequence.append(ids)
        prefilled = time.perf_counter()
        out = []
        for _ in range(count):
            out.append(int(np.argmax(sequence.logits)))
            sequence.append(out[-1:])
        end = time.perf_counter()
    finally:
        sequence.close()
    stop = [i for i, token in enumerate(out) if token in llm.tokenizer.eos_ids]
    text = llm.tokenizer.decode(out[: stop[0]] if stop else out)
    return Sample(text.strip(), len(ids) / (prefilled - begin), count / (end - prefilled))


def run(
    model: str, console: Any, *, threads: int | None = None, tokens: int = SCORED_TOKENS
) -> int:
    """Run the demo and print to a `rich.console.Console`; returns the exit status."""
    import octavo
    from octavo.study import divergence

    from .table import Table, figure

    with octavo.LLM(model, threads=threads) as llm:
        console.print(str(llm), highlight=False, markup=False)
        passage = sample_text()[:PASSAGE_CHARS].rpartition(".")[0] + "."
        ids = chat_ids(llm, [{"role": "user", "content": passage + QUESTION}])
        console.print(
            f"\nPrompt ({len(ids)} tokens): the opening of Alice's Adventures in Wonderland, then "
            f"'{QUESTION.strip()}' Greedy, {DECODE_TOKENS} tokens:\n",
            highlight=False,
        )
        variants = {kv: llm if kv == "bf16" else llm.variant(kv=kv) for kv in SCHEMES}
        samples = {}
        for kv, variant in variants.items():
            greedy(variant, ids[:64], 1)  # threads, pages and caches are warm before it is timed
            samples[kv] = greedy(variant, ids)
            console.print(f"[bold]{kv:>9}[/bold]  ", end="", highlight=False)
            console.print(samples[kv].text.replace("\n", " "), markup=False, highlight=False)
        scores = divergence(llm, ["bf16", *SCHEMES[1:]], sample_text(), tokens=tokens)
        table = Table(
            "KV schemes, against bf16",
            [
                *("KV scheme", "B/token sealed", "B/token open", "x smaller", "prefill tok/s"),
                *("decode tok/s", "same top-1 %", "mean KL, nats"),
            ],
        )
        for kv, row in zip(SCHEMES, scores.rows, strict=True):
            table.add(
                kv,
                f"{row.sealed_bytes:,.0f}",
                f"{row.open_bytes:,.0f}",
                f"{scores.rows[0].sealed_bytes / row.sealed_bytes:.2f}",
                f"{samples[kv].prefill_rate:,.0f}",
                f"{samples[kv].decode_rate:,.1f}",
                f"{100 * row.top1.value:.2f}",
                figure(row.mean.value, 2),
            )
        first = scores.rows[0]
        table.notes = [
            f"top-1 and KL(bf16 || scheme): {len(first.kld):,} tokens of the shipped text, "
            f"{100 * first.sealed_fraction:.0f} % of positions read sealed; act {llm.act}",
            f"rates: one run, {llm.runtime.threads} threads, {llm.runtime.isa}, {llm.runtime.cpu}",
        ]
        console.print()
        table.show(console)
        for variant in variants.values():
            variant.close()
    return 0
