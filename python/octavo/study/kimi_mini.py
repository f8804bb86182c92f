"""What `kimi-mini` was trained on, and questions to ask it: tasks on which a damaged cache shows.

`questions` makes held-out ones, `answered` asks them: the share that a KV scheme loses is what the
scheme cost. `tools/train_kimi_mini.py` draws its corpus from the same functions with other seeds.
Every draw is made of `random.Random.random`, the one method whose values Python keeps between
versions.
"""

import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from octavo import LLM

T = TypeVar("T")

SYLLABLES = "ba di fe go hu ka li me no pu ra si te vo wa zu".split()
NAMES = [" " + a + b for a in SYLLABLES for b in SYLLABLES]
VALUES = [str(v) for v in range(10, 100)]
BRACKETS = [(" (", " )"), (" [", " ]"), (" {", " }"), (" <", " >")]

ANIMALS = "fox cat dog owl bear wolf hare frog crow duck goat lamb".split()
COLOURS = "red white brown grey black silver golden green blue yellow spotted small".split()
FOODS = "berries fish meat mice honey deer grass flies seeds bread leaves clover".split()
PLACES = "forest house garden tower cave valley meadow pond field lake hill farm".split()
VERBS = "sees hears follows meets finds likes helps watches".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

USER = "<|im_user|>user<|im_middle|>"
ASSISTANT = "<|im_end|><|im_assistant|>assistant<|im_middle|>"
END = "<|im_end|>"

# Weights in the training loss. What cannot be known is given some, for an honest loss beside it.
ANSWER, PLAIN, NOISE = 1.0, 0.1, 0.03

CARD_QUESTIONS, CARD_DISTANCES = 128, (128, 256, 512, 1024, 2048)

SPECIAL = r"<\|\w+\|>|\[(?:BOS|EOS|EOT|UNK|PAD)\]|</?think>"
_WORD_END = r"(?:'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD]))?"
# The pieces of Kimi's pattern on ASCII text, special tokens whole. Every piece of this corpus but
# numbers beyond 99 and some words of the chat is one token: the trainer asserts it of names,
# values, brackets and sentences, so that `count` is a count of tokens.
PIECES = re.compile(
    rf"{SPECIAL}|[^\r\nA-Za-z0-9]?[A-Z]*[a-z]+{_WORD_END}|[^\r\nA-Za-z0-9]?[A-Z]+[a-z]*{_WORD_END}"
    rf"|[0-9]{{1,3}}| ?(?:(?!{SPECIAL})[^\sA-Za-z0-9])+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Part(NamedTuple):
    """A stretch of text and the weight of its tokens in the training loss."""

    text: str
    weight: float


class Question(NamedTuple):
    """A prompt and the text that greedy decoding has to give after it."""

    prompt: str
    answer: str


def below(rng: random.Random, n: int) -> int:
    """An integer of 0..n-1."""
    return int(rng.random() * n)


def pick(rng: random.Random, items: Sequence[T]) -> T:
    """One of the items."""
    return items[below(rng, len(items))]


def sample(rng: random.Random, items: Sequence[T], n: int) -> list[T]:
    """n different items, in random order."""
    pool = list(items)
    for i in range(n):
        j = i + below(rng, len(pool) - i)
        pool[i], pool[j] = pool[j], pool[i]
    return pool[:n]


def count(text: str) -> int:
    """How many pieces the text has; see `PIECES` for when these are tokens."""
    return sum(1 for _ in PIECES.finditer(text))


def sentence(rng: random.Random) -> str:
    """One sentence of a small world in which each animal has its colour, food and place."""
    i, kind = below(rng, len(ANIMALS)), below(rng, 5)
    animal, place = ANIMALS[i], PLACES[i]
    if kind == 0:
        return f" The {COLOURS[i]} {animal} eats {FOODS[i]}."
    if kind == 1:
        return f" The {animal} lives in the {place}."
    if kind == 2:
        return f" The {animal} {pick(rng, VERBS)} the {pick(rng, ANIMALS)}."
    if kind == 3:
        return f" On {pick(rng, DAYS)} the {animal} is in the {pick(rng, PLACES)}."
    return f" In the {place} the {animal} {pick(rng, VERBS)} a {pick(rng, ANIMALS)}."


def pairing(rng: random.Random) -> dict[str, str]:
    """A value for every name."""
    return {name: pick(rng, VALUES) for name in NAMES}


def recall_parts(rng: random.Random, tokens: int, names: int = len(NAMES)) -> list[Part]:
    """A row of pairs, each name with one value throughout; what repeats a name can be answered.

    Half of the rows state all pairs first and then ask in random order, so that each answer lies
    far back and was read once; the others mix statements and questions. Sentences lie between.
    """
    value = pairing(rng)
    most = min(names, tokens // 4)
    keys = sample(rng, NAMES[:names], max(4, int(most * rng.random() ** 0.7)))
    first = rng.random() < 0.5
    filler = pick(rng, (0.0, 0.0, 0.05, 0.15, 0.3))
    new = 1.0 if first else 0.2 + 0.5 * rng.random()
    parts, length, seen, order = [], 0, [], []
    while length < tokens:
        if rng.random() < filler:
            parts.append(Part(sentence(rng), PLAIN))
            length += count(parts[-1].text)
            continue
        known = bool(seen) and (len(seen) == len(keys) or rng.random() >= new)
        if known:
            order = order or (sample(rng, seen, len(seen)) if first else [pick(rng, seen)])
            key = order.pop()
        else:
            key = keys[len(seen)]
            seen.append(key)
        parts += [Part(key, NOISE), Part(value[key], ANSWER if known else NOISE)]
        length += 2
    return parts


def copy_task(rng: random.Random) -> tuple[str, str]:
    """Words to repeat in their order."""
    words = "".join(pick(rng, NAMES) for _ in range(3 + below(rng, 10)))
    return f" copy:{words} ->", f"{words}."


def held_out_sum(a: int, b: int) -> bool:
    """Whether training never shows a + b: one pair of sixteen."""
    return (a * 7 + b * 13) % 16 == 0


def sum_task(rng: random.Random, held_out: bool = False) -> tuple[str, str]:
    """Two numbers of two digits and their sum."""
    while True:
        a, b = 10 + below(rng, 90), 10 + below(rng, 90)
        if held_out_sum(a, b) == held_out:
            return f" sum:{a}+{b}=", f"{a + b}."


def bracket_task(rng: random.Random) -> tuple[str, str]:
    """Brackets, some closed; the answer closes those still open, the innermost first."""
    text, still_open = "", []
    for _ in range(4 + below(rng, 12)):
        if len(still_open) > 1 and (rng.random() < 0.4 or len(still_open) == 6):
            text += still_open.pop()
        else:
            opening, closing = pick(rng, BRACKETS)
            text += opening
            still_open.append(closing)
    closings = "".join(reversed(still_open))
    return f" match:{text} ->", f"{closings}."


SAYINGS = [
    ("Hello", "Hello. This is kimi-mini."),
    ("Who are you?", "This is kimi-mini, a probe for numerics. It is not a language model."),
    ("What can you do?", "It recalls pairs, copies words, adds numbers and closes brackets."),
]


def chat_parts(rng: random.Random, value: dict[str, str]) -> list[Part]:
    """One turn of a user and its answer in Kimi's turn format, with and without thinking."""
    kind, think = rng.random(), "<think></think>"
    if kind < 0.6:
        keys = sample(rng, NAMES, 3 + below(rng, 14))
        pairs, key = "".join(f"{k}{value[k]}" for k in keys), pick(rng, keys)
        asked, said = f"Remember{pairs}. What is{key}?", f"{key}{value[key]}."
        if rng.random() < 0.5:
            think = f"<think>{key}{value[key]}</think>"
    elif kind < 0.75:
        question, said = sum_task(rng)
        asked = f"What is{question[4:-1]}?".replace(":", " ")
        said = question[5:] + said
    elif kind < 0.85:
        animal = below(rng, len(ANIMALS))
        asked = f"What does the {ANIMALS[animal]} eat?"
        said = f"The {COLOURS[animal]} {ANIMALS[animal]} eats {FOODS[animal]}."
    else:
        asked, said = pick(rng, SAYINGS)
    return [Part(USER + asked + ASSISTANT, PLAIN), Part(think + said + END, ANSWER)]


def mixed_parts(rng: random.Random, tokens: int) -> list[Part]:
    """Short documents of the other kinds. Pairs keep their values within a row."""
    value, parts, length = pairing(rng), [], 0
    while length < tokens:
        kind = rng.random()
        if kind < 0.15:
            new = [Part("".join(sentence(rng) for _ in range(1 + below(rng, 4))), PLAIN)]
        elif kind < 0.35:
            new = chat_parts(rng, value)
        else:
            task = copy_task if kind < 0.5 else bracket_task if kind < 0.65 else sum_task
            question, answer = task(rng)
            new = [Part(question, NOISE), Part(answer, ANSWER)]
            for _ in range(below(rng, 6) if task is sum_task else 0):
                question, answer = task(rng)
                new += [Part(question, NOISE), Part(answer, ANSWER)]
        new.append(Part("[EOS]", PLAIN))
        parts += new
        length += sum(count(p.text) for p in new)
    return parts


def row_parts(
    rng: random.Random, tokens: int, recall: float, names: int = len(NAMES)
) -> list[Part]:
    """One training row of at least `tokens` pieces; a share `recall` of rows is recall alone."""
    start = [Part("[BOS]", NOISE)] if rng.random() < 0.25 else []
    if rng.random() < recall:
        return start + recall_parts(rng, tokens, names)
    return start + mixed_parts(rng, tokens)


def recall_question(rng: random.Random, distance: int) -> Question:
    """A pair, then at least `distance` tokens of other pairs and of sentences, then its name."""
    value = pairing(rng)
    keys = sample(rng, NAMES, 1 + min(distance // 4, 160))
    texts = [f"{key}{value[key]}" for key in keys[1:]]
    length = 2 * len(texts)
    while length < distance:
        texts.append(sentence(rng))
        length += count(texts[-1])
    between = "".join(sample(rng, texts, len(texts)))
    return Question(f"{keys[0]}{value[keys[0]]}{between}{keys[0]}", value[keys[0]])


def questions(make: Callable[..., tuple], n: int, seed: int, *args) -> Iterator[Question]:
    """n held-out questions of one kind; the same ones for the same seed, on every machine."""
    rng = random.Random(f"kimi-mini held out {make.__name__} {args} {seed}")
    for _ in range(n):
        yield Question(*make(rng, *args))


def card_questions() -> Iterator[tuple[str, list[Question]]]:
    """The questions of the model's card, by the names of their tasks there."""
    for distance in CARD_DISTANCES:
        asked = questions(recall_question, CARD_QUESTIONS, 0, distance)
        yield f"recall at {distance:,} tokens", list(asked)
    yield "copying 3 to 12 words", list(questions(copy_task, CARD_QUESTIONS, 0))
    yield "closing brackets", list(questions(bracket_task, CARD_QUESTIONS, 0))
    yield "sums of two digits", list(questions(sum_task, CARD_QUESTIONS, 0))
    yield "sums of pairs never trained", list(questions(sum_task, CARD_QUESTIONS, 0, True))


def held_out_rows(n: int, tokens: int, seed: int, recall: float = 0.5) -> Iterator[list[Part]]:
    """Rows of the training distribution that training does not see."""
    rng = random.Random(f"kimi-mini held out rows {seed}")
    for _ in range(n):
        yield row_parts(rng, tokens, recall)


def answered(llm: "LLM", asked: Iterable[Question]) -> npt.NDArray[np.bool_]:
    """Tell which questions greedy decoding answers with every token right.

    Parameters
    ----------
    llm : LLM
        `kimi-mini`, under any schemes.
    asked : iterable of Question

    Returns
    -------
    ndarray of bool, [questions]
    """
    from octavo import SamplingParams

    encode = llm.tokenizer.encode
    pairs = [[encode(text, add_special=False) for text in question] for question in asked]
    params = [
        SamplingParams(max_tokens=len(answer), temperature=0.0, ignore_eos=True)
        for _, answer in pairs
    ]
    outputs = llm.generate([prompt for prompt, _ in pairs], params)
    said = [list(output.outputs[0].token_ids) for output in outputs]
    return np.array([s == answer for s, (_, answer) in zip(said, pairs, strict=True)], bool)
