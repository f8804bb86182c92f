"""tiktoken in plain Python: cutting by Kimi's pattern, merging by rank, and a trainer of ranks.

Written from the meaning of the eight alternatives and of a rank, with no regular expression and no
tokenizer library. It is slow and looks only at `unicodedata`, whose version may be older or newer
than a library's: ask it about characters that every version knows (`stable`).
"""

import base64
import unicodedata
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

Ranks = dict[bytes, int]

# Scripts.txt, the ranges of Han; White_Space of PropList.txt.
HAN = (
    (0x2E80, 0x2E99), (0x2E9B, 0x2EF3), (0x2F00, 0x2FD5), (0x3005, 0x3005), (0x3007, 0x3007),
    (0x3021, 0x3029), (0x3038, 0x303B), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFA6D),
    (0xFA70, 0xFAD9), (0x16FE2, 0x16FE3), (0x16FF0, 0x16FF1), (0x20000, 0x2A6DF),
    (0x2A700, 0x2EBE0), (0x2F800, 0x2FA1D), (0x30000, 0x323AF),
)  # fmt: skip
SPACES = {*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F,
          0x205F, 0x3000}  # fmt: skip
ENDINGS = ("s", "t", "re", "ve", "m", "ll", "d")


def stable() -> Iterator[str]:
    """Yield the characters whose category has not changed since Unicode 3.2."""
    old = unicodedata.ucd_3_2_0
    for c in map(chr, range(0x110000)):
        if old.category(c) not in ("Cn", "Cs") and old.category(c) == unicodedata.category(c):
            yield c


def _kinds(c: str) -> set[str]:
    category, code = unicodedata.category(c), ord(c)
    han = any(a <= code <= b for a, b in HAN)
    found = {"han"} if han else set()
    if category in ("Lu", "Lt", "Lm", "Lo", "Mn", "Mc", "Me") and not han:
        found.add("upper")
    if category in ("Ll", "Lm", "Lo", "Mn", "Mc", "Me") and not han:
        found.add("lower")
    if category[0] == "N":
        found.add("number")
    if code in SPACES:
        found.add("space")
    elif category[0] not in "LN":
        found.add("sign")
    if c in "\r\n":
        found.add("newline")
    elif category[0] not in "LN":
        found.add("lead")
    return found


def cut(text: str) -> list[str]:
    """Cut a text into the words that merging never crosses."""
    kinds = [_kinds(c) for c in text]
    out, at = [], 0
    while at < len(text):
        end = next(e for rule in _RULES if (e := rule(text, kinds, at)) > at)
        out.append(text[at:end])
        at = end
    return out


def _run(kinds: list[set[str]], at: int, kind: str) -> int:
    while at < len(kinds) and kind in kinds[at]:
        at += 1
    return at


def _ending(text: str, at: int) -> int:
    """Skip 's, 't and their kin, in any case; the long s is a case of s."""
    if text[at : at + 1] == "'":
        for ending in ENDINGS:
            part = text[at + 1 : at + 1 + len(ending)].replace("ſ", "s")
            if part.isascii() and part.lower() == ending:
                return at + 1 + len(ending)
    return at


def _starts(kinds: list[set[str]], at: int) -> list[int]:
    """Where the letters of a word may begin: after one leading sign if there is one, or at once."""
    return [at + 1, at] if "lead" in kinds[at] else [at]


def _ends_lower(text: str, kinds: list[set[str]], at: int) -> int:
    for start in _starts(kinds, at):
        # As many capitals as leave one small letter.
        for k in range(_run(kinds, start, "upper"), start - 1, -1):
            if (end := _run(kinds, k, "lower")) > k:
                return _ending(text, end)
    return at


def _begins_upper(text: str, kinds: list[set[str]], at: int) -> int:
    for start in _starts(kinds, at):
        if (end := _run(kinds, start, "upper")) > start:
            return _ending(text, _run(kinds, end, "lower"))
    return at


def _signs(text: str, kinds: list[set[str]], at: int) -> int:
    start = at + (text[at] == " ")
    end = _run(kinds, start, "sign")
    return _run(kinds, end, "newline") if end > start else at


def _lines(text: str, kinds: list[set[str]], at: int) -> int:
    end = _run(kinds, at, "space")
    return next((k + 1 for k in range(end - 1, at - 1, -1) if "newline" in kinds[k]), at)


def _spaces_before(text: str, kinds: list[set[str]], at: int) -> int:
    end = _run(kinds, at, "space")
    return end if end == len(text) else max(at, end - 1)


_RULES = (
    lambda text, kinds, at: _run(kinds, at, "han"),
    _ends_lower,
    _begins_upper,
    lambda text, kinds, at: min(at + 3, _run(kinds, at, "number")),
    _signs,
    _lines,
    _spaces_before,
    lambda text, kinds, at: _run(kinds, at, "space"),
)


def merge(word: bytes, ranks: Ranks) -> list[bytes]:
    """Merge the adjacent pair of lowest rank, leftmost first, until none is a token."""
    if word in ranks:
        return [word]
    parts = [bytes([b]) for b in word]
    while True:
        pairs = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
        if not pairs:
            return parts
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def encode(text: str, ranks: Ranks) -> list[int]:
    """Return the ids of a text without special tokens."""
    return [ranks[part] for word in cut(text) for part in merge(word.encode(), ranks)]


def train(text: str, count: int) -> Ranks:
    """Learn `count` merges: the most frequent pair, ties to the larger bytes."""
    ranks = {bytes([b]): b for b in range(256)}
    words = Counter(cut(text))
    split = {word: [bytes([b]) for b in word.encode()] for word in words}
    for _ in range(count):
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, parts in split.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        ranks.setdefault(best[0] + best[1], len(ranks))
        for word, parts in split.items():
            split[word] = _joined(parts, best)
    return ranks


def _joined(parts: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    out: list[bytes] = []
    for part in parts:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return out


def lines(ranks: Ranks) -> bytes:
    """Return the text of a ``tiktoken.model`` file."""
    entries = sorted(ranks.items(), key=lambda item: item[1])
    return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in entries)


def save(folder: Path, ranks: Ranks) -> None:
    """Write ``tiktoken.model``."""
    (folder / "tiktoken.model").write_bytes(lines(ranks))
