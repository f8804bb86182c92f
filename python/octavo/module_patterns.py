"""Lists of modules in a quantization config: names and `re:` patterns, in time linear in a name.

Python's own matcher takes exponential time on patterns like `(a+)+$`, and these lists come from
strangers. So their patterns become one automaton whose states are sets of places in them
(Glushkov), each an int of bits, and whose steps are remembered. What it does not know is refused.
"""

import re
from collections.abc import Iterable
from typing import Any

from octavo.errors import CheckpointError, UnsupportedError

MAX_PLACES = 1 << 10
MAX_DEPTH = 32
MAX_WORK = 1 << 19  # places looked at in steps that are not remembered yet

# Before the name of every tensor of a text model that is a part of a larger one.
TEXT_PREFIX = "language_model."
_LINEAR = "Linear"
_END = "\0"  # stands behind every name, once for each $, and in none
_ESCAPES = set("dDsSwW")
_READ = r"literals, . \d \w \s [...] (...) (?:...) | * + ?, ^ at the start, $"

_Part = tuple[bool, int, int]
_Token = re.Pattern[str] | None


def text_name(name: str) -> str:
    """Return a module's name inside of the text model, by which configs may call it too."""
    return name.removeprefix(TEXT_PREFIX)


class ModulePatterns:
    """Which modules a list covers.

    Parameters
    ----------
    where : str
        What error texts call the list: the file, and the field in it.
    entries : list of str, optional
        Names of modules, ``"Linear"`` for all of this class, and ``re:`` with what `re.match`
        would take. Of a name, both the whole and `text_name` count.
    also : iterable of str
        Names beside those listed.

    Raises
    ------
    CheckpointError
        If an entry is no text or a malformed pattern, or all of them are too much work (which may
        show when a name is looked up).
    UnsupportedError
        If a pattern uses what this module does not know.
    """

    def __init__(self, where: str, entries: Any, also: Iterable[str] = ()) -> None:
        listed = [] if entries is None else entries
        if not isinstance(listed, list) or not all(isinstance(e, str) for e in listed):
            raise _fail(where, f"{listed!r:.80}", "a list of names and re: patterns")
        self._where = where
        self._names = {e for e in listed if not e.startswith("re:")}.union(also)
        self._tokens: list[_Token] = []
        self._follow: list[int] = []
        self._masks: dict[str, int] = {}
        self._work = 0
        first = self._read([e[3:] for e in listed if e.startswith("re:")])
        self._ends = _END * self._tokens.count(None)
        self._rows: dict[int, dict[Any, Any]] = {}
        self._no: dict[Any, Any] = {None: 0}
        self._yes: dict[Any, Any] = {None: 0}
        self._start = self._row(first)

    def covers(self, name: str, linear: bool) -> bool:
        """Tell whether a module is meant; `linear` says that it is of the class Linear."""
        return (linear and _LINEAR in self._names) or name in self

    def __contains__(self, name: str) -> bool:
        """Tell whether a module of this name is meant."""
        if self._all or name in self._names or text_name(name) in self._names:
            return True
        row, yes, no = self._start, self._yes, self._no
        for char in name + self._ends:
            row = row.get(char) or self._step(row, char)
            if row is yes:
                return True
            if row is no:
                return False
        return False

    def _read(self, patterns: list[str]) -> int:
        """Turn patterns into places, each behind the prefix or not; return the first places."""
        places = self._where, self._tokens, self._follow
        _, first, prefix_ends = _Parser(re.escape(TEXT_PREFIX), *places).whole()
        self._all, self._last = False, 0
        for pattern in patterns:
            empty, starts, ends = _Parser(pattern, *places).whole()
            _link(self._follow, prefix_ends, starts)
            self._all |= empty
            first, self._last = first | starts, self._last | ends
        return first

    def _row(self, reach: int) -> dict[Any, Any]:
        """The remembered steps of a state, which is known by the places it leads to."""
        return self._rows.setdefault(reach, {None: reach}) if reach else self._no

    def _step(self, row: dict[Any, Any], char: str) -> dict[Any, Any]:
        here, after = row[None] & self._mask(char), 0
        if here & self._last:
            row[char] = self._yes
            return self._yes
        while here:
            low = here & -here
            after |= self._follow[low.bit_length() - 1]
            here ^= low
            self._spend(1)
        row[char] = self._row(after)
        self._spend(1)
        return row[char]

    def _mask(self, char: str) -> int:
        """The places that a character may stand at."""
        if char not in self._masks:
            self._spend(len(self._tokens))
            fits = (i for i, token in enumerate(self._tokens) if _fits(token, char))
            self._masks[char] = sum(1 << i for i in fits)
        return self._masks[char]

    def _spend(self, work: int) -> None:
        self._work += work
        if self._work > MAX_WORK:
            value = f"patterns of {len(self._tokens)} places with too many states"
            raise _fail(self._where, value, "patterns that are matched with little work")


def _fits(token: _Token, char: str) -> bool:
    return token is None if char == _END else token is not None and bool(token.fullmatch(char))


def _link(follow: list[int], ends: int, starts: int) -> None:
    while ends:
        low = ends & -ends
        follow[low.bit_length() - 1] |= starts
        ends ^= low


def _fail(where: str, value: str, legal: str) -> CheckpointError:
    return CheckpointError(f"{where} is {value}; legal: {legal}")


class _Parser:
    """One pattern into places: their tokens, and which place may follow which.

    A part of a pattern is (may be empty, places it starts with, places it ends with).
    """

    def __init__(self, text: str, where: str, tokens: list[_Token], follow: list[int]) -> None:
        self._text, self._where, self._at, self._depth = text, where, 0, 0
        self._tokens, self._follow = tokens, follow

    def whole(self) -> _Part:
        """Return the whole pattern as a part."""
        if self._peek() == "^":
            self._at += 1
        body = self._either()
        if self._at < len(self._text):
            raise self._malformed("a ) without (")
        return body

    def _either(self) -> _Part:
        empty, starts, ends = self._sequence()
        while self._peek() == "|":
            self._at += 1
            other = self._sequence()
            empty, starts, ends = empty or other[0], starts | other[1], ends | other[2]
        return empty, starts, ends

    def _sequence(self) -> _Part:
        out: _Part = (True, 0, 0)
        while self._peek() not in ("", "|", ")"):
            out = self._chain(out, self._repeated())
        return out

    def _repeated(self) -> _Part:
        empty, starts, ends = self._atom()
        sign = self._peek()
        if sign in ("*", "+", "?"):
            self._at += 1
            if sign != "?":
                _link(self._follow, ends, starts)
            empty = empty or sign != "+"
            if self._peek() == "?":  # lazy: other text taken, the same texts matched
                self._at += 1
            if self._peek() in ("*", "+", "?"):
                raise self._unknown(self._text[self._at - 1 : self._at + 1])
        if self._peek() == "{":
            raise self._unknown("{")
        return empty, starts, ends

    def _atom(self) -> _Part:
        char, start = self._text[self._at], self._at
        self._at += 1
        if char == "(":
            return self._group()
        if char == "[":
            return self._place(self._compiled(start, self._class_end()))
        if char == "$":
            if self._peek() in ("*", "+", "?"):
                raise self._malformed(f"{self._peek()} after $")
            return self._place(None)
        if char == "\\":
            self._at += 1
            if self._peek(-1).isalnum() and self._peek(-1) not in _ESCAPES:
                raise self._unknown(self._text[start : self._at])
            return self._place(self._compiled(start, self._at))
        if char in "*+?":
            raise self._malformed(f"nothing before {char}")
        if char in "^{":
            raise self._unknown(f"{char} in the middle")
        return self._place(re.compile(char if char == "." else re.escape(char)))

    def _group(self) -> _Part:
        if self._text.startswith("?", self._at):
            if not self._text.startswith("?:", self._at):
                raise self._unknown(self._text[self._at - 1 : self._at + 2])
            self._at += 2
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._unknown(f"more than {MAX_DEPTH} levels of groups")
        part = self._either()
        self._depth -= 1
        if self._peek() != ")":
            raise self._malformed("a ( without )")
        self._at += 1
        return part

    def _class_end(self) -> int:
        at = self._at + (self._peek() == "^")
        at += self._text.startswith("]", at)  # the first ] of a class is one of its characters
        while at < len(self._text) and self._text[at] != "]":
            at += 2 if self._text[at] == "\\" else 1
        self._at = at + 1
        return self._at

    def _compiled(self, start: int, end: int) -> re.Pattern[str]:
        try:
            return re.compile(self._text[start:end])
        except re.error as error:
            raise self._malformed(str(error)) from None

    def _place(self, token: _Token) -> _Part:
        if len(self._tokens) == len(TEXT_PREFIX) + MAX_PLACES:
            legal = f"patterns of at most {MAX_PLACES} characters together"
            raise _fail(self._where, "longer", legal)
        self._tokens.append(token)
        self._follow.append(0)
        bit = 1 << (len(self._tokens) - 1)
        return False, bit, bit

    def _chain(self, a: _Part, b: _Part) -> _Part:
        _link(self._follow, a[2], b[1])
        return a[0] and b[0], a[1] | (b[1] if a[0] else 0), b[2] | (a[2] if b[0] else 0)

    def _peek(self, ahead: int = 0) -> str:
        at = self._at + ahead
        return self._text[at : at + 1]

    def _malformed(self, what: str) -> CheckpointError:
        return _fail(self._where, f"'re:{self._text:.60}' with {what}", "a pattern of re")

    def _unknown(self, what: str) -> UnsupportedError:
        value = f"'re:{self._text:.60}' with {what}"
        return UnsupportedError(f"{self._where} is {value}, which is not read; read: {_READ}")
