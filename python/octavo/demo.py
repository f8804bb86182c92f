"""`octavo demo`: one model, one prompt, several KV schemes, and what each cost, all measured here.

The prompt is long enough to fill pages, so that every scheme's generation reads what it sealed;
`kimi-mini`, which knows no language, is asked what it was trained on. Rates are of a single run on
the machine as it is; figures to quote come from `benchmarks/`.
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
RECALLS, RECALL_TOKENS = 48, 480


@dataclass(frozen=True)
class Sample:
    """One scheme's greedy answer and the rates at which it was made."""

    text: str
    prefill_rate: float
    decode_rate: float


@dataclass(frozen=True)
class Subject:
    """What a model is given: a prompt's ids and what it is, a text to score, and questions."""

    ids: Sequence[int]
    what: str
    text: str
    questions: Sequence[Any] = ()


def subject_of(llm: "LLM") -> Subject:
    """Return what this model can be asked."""
    if llm.name == "kimi-mini":
        return _recall(llm)
    passage = sample_text()[:PASSAGE_CHARS].rpartition(".")[0] + "."
    ids = chat_ids(llm, [{"role": "user", "content": passage + QUESTION}])
    what = f"the opening of Alice's Adventures in Wonderland, then '{QUESTION.strip()}'"
    return Subject(ids, what, sample_text())


def _recall(llm: "LLM") -> Subject:
    from octavo.study import kimi_mini

    asked = list(kimi_mini.questions(kimi_mini.recall_question, RECALLS, 1, RECALL_TOKENS))
    first, text = asked[0], "".join(q.prompt + q.answer for q in asked)
    what = f"names with values, then the first name, whose value is '{first.answer}'."
    return Subject(llm.tokenizer.encode(first.prompt, add_special=False), what, text, asked)


def schemes_of(llm: "LLM") -> tuple[str, ...]:
    """Return the model's schemes: a latent is keys and values at once, and has one format."""
    return tuple(kv for kv in SCHEMES if kv != "k8v4" or llm.spec.latent is None)


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
    model: str | None, console: Any, *, threads: int | None = None, tokens: int = SCORED_TOKENS
) -> int:
    """Run the demo and print to a `rich.console.Console`; returns the exit status."""
    import octavo
    from octavo.study import divergence

    with octavo.LLM(model, threads=threads) as llm:
        console.print(str(llm), highlight=False, markup=False)
        subject = subject_of(llm)
        prompt = f"Prompt ({len(subject.ids)} tokens): {subject.what}"
        console.print(f"\n{prompt} Greedy, {DECODE_TOKENS} tokens:\n", highlight=False)
        variants = {kv: llm if kv == "bf16" else llm.variant(kv=kv) for kv in schemes_of(llm)}
        samples = {}
        for kv, variant in variants.items():
            greedy(variant, subject.ids[:64], 1)  # threads, pages, caches are warm when it is timed
            samples[kv] = greedy(variant, subject.ids)
            console.print(f"[bold]{kv:>9}[/bold]  ", end="", highlight=False)
            console.print(samples[kv].text.replace("\n", " "), markup=False, highlight=False)
        scores = divergence(llm, list(variants), subject.text, tokens=tokens)
        console.print()
        _table(llm, subject, variants, samples, scores).show(console)
        for variant in variants.values():
            variant.close()
    return 0


def _table(llm: "LLM", subject: Subject, variants: dict[str, "LLM"],
           samples: dict[str, Sample], scores: Any) -> Any:  # fmt: skip
    """Return the table of what each scheme cost."""
    from octavo.study.kimi_mini import answered

    from .table import Table, figure

    first, asked = scores.rows[0], subject.questions
    heads = ["KV scheme", "B/token sealed", "B/token open", "x smaller", "prefill tok/s"]
    heads += ["decode tok/s", "same top-1 %", "mean KL, nats", *(["recalled %"] if asked else [])]
    table = Table("KV schemes, against bf16", heads)
    for kv, row in zip(variants, scores.rows, strict=True):
        cells = [kv, f"{row.sealed_bytes:,.0f}", f"{row.open_bytes:,.0f}"]
        cells += [f"{first.sealed_bytes / row.sealed_bytes:.2f}"]
        cells += [f"{samples[kv].prefill_rate:,.0f}", f"{samples[kv].decode_rate:,.1f}"]
        cells += [f"{100 * row.top1.value:.2f}", figure(row.mean.value, 2)]
        if asked:
            cells.append(f"{100 * answered(variants[kv], asked).mean():.1f}")
        table.add(*cells)
    text = "of the same kind" if asked else "of the shipped text"
    table.notes = [
        f"top-1 and KL(bf16 || scheme): {len(first.kld):,} tokens {text}, "
        f"{100 * first.sealed_fraction:.0f} % of positions read sealed; act {llm.act}",
        f"rates: one run, {llm.runtime.threads} threads, {llm.runtime.isa}, {llm.runtime.cpu}",
    ]
    if asked:
        table.notes.append(f"recalled: {len(asked)} questions of {RECALL_TOKENS} tokens, greedy")
    return table
