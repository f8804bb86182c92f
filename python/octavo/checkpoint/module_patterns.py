"""The `ignore` list of a quantization config: names and `re:` patterns, in time linear in a name.

Python's own matcher takes exponential time on patterns like `(a+)+$`, and this list comes from
strangers. So its patterns become one automaton whose states are sets of places in them (Glushkov),
each an int of bits, and whose steps are remembered. What the automaton does not know is refused.
"""

import re

from .source import fail, unsupported

MAX_PLACES = 1 << 10
MAX_DEPTH = 32
MAX_WORK = 1 << 19  # places looked at in steps that are not remembered yet

# Configs of multi-modal checkpoints speak of the text model's modules without this prefix too.
TEXT_PREFIX = "language_model."
_END = "\0"  # stands behind every name, and in none
_ESCAPES = set("dDsSwW")
_READ = r"literals, . \d \w \s [...] (...) (?:...) | * + ?, ^ at the start, $"


class ModulePatterns:
    """What an ignore list covers.

    Parameters
    ----------
    path : path-like
        For messages.
    entries : list of str
        Names of modules, and ``re:`` with what `re.match` would take.

    Raises
    ------
    CheckpointError
        If an entry is no text or a malformed pattern, or all of them are too much work.
    UnsupportedError
        If a pattern uses what this module does not know.
    """

    def __init__(self, path, entries):
        if not isinstance(entries, list) or not all(isinstance(e, str) for e in entries):
            raise fail(path, "ignore", entries, "a list of names and re: patterns")
        self._path = path
        self._tokens, self._follow, self._masks = [], [], {}
        self._names = {e for e in entries if not e.startswith("re:")}
        first = self._last = self._work = 0
        self._all = False
        for pattern in (e[3:] for e in entries if e.startswith("re:")):
            empty, starts, ends = _Parser(path, pattern, self._tokens, self._follow).whole()
            self._all |= empty
            first, self._last = first | starts, self._last | ends
        self._rows = {}
        self._no, self._yes = {None: 0}, {None: 0}
        self._start = self._row(first)

    def __contains__(self, name):
        """Tell whether the list covers a module of this name."""
        if self._all or name in self._names or name.removeprefix(TEXT_PREFIX) in self._names:
            return True
        row, yes, no = self._start, self._yes, self._no
        for char in name + _END:
            row = row.get(char) or self._step(row, char)
            if row is yes:
                return True
            if row is no:
                return False
        return False

    def _row(self, reach):
        """The remembered steps of a state, which is known by the places it leads to."""
        return self._rows.setdefault(reach, {None: reach}) if reach else self._no

    def _step(self, row, char):
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

    def _mask(self, char):
        """The places that a character may stand at."""
        if char not in self._masks:
            self._spend(len(self._tokens))
            fits = (i for i, token in enumerate(self._tokens) if _fits(token, char))
            self._masks[char] = sum(1 << i for i in fits)
        return self._masks[char]

    def _spend(self, work):
        self._work += work
        if self._work > MAX_WORK:
            value = f"patterns of {len(self._tokens)} places with too many states"
            raise fail(self._path, "ignore", value, "patterns that are matched with little work")


def _fits(token, char):
    return token is None if char == _END else token is not None and bool(token.fullmatch(char))


class _Parser:
    """One pattern into places: their tokens, and which place may follow which.

    A part of a pattern is (may be empty, places it starts with, places it ends with).
    """

    def __init__(self, path, text, tokens, follow):
        self._path, self._text, self._at, self._depth = path, text, 0, 0
        self._tokens, self._follow = tokens, follow

    def whole(self):
        """Return the whole pattern as a part, with the text model's prefix before it or not."""
        prefix = (True, 0, 0)
        for char in TEXT_PREFIX:
            prefix = self._chain(prefix, self._place(re.compile(re.escape(char))))
        _, starts, ends = prefix
        if self._peek() == "^":
            self._at += 1
        body = self._either()
        if self._at < len(self._text):
            raise self._malformed("a ) without (")
        return self._chain((True, starts, ends), body)

    def _either(self):
        out = self._sequence()
        while self._peek() == "|":
            self._at += 1
            other = self._sequence()
            out = tuple(a | b for a, b in zip(out, other, strict=True))
        return out

    def _sequence(self):
        out = (True, 0, 0)
        while self._peek() not in ("", "|", ")"):
            out = self._chain(out, self._repeated())
        return out

    def _repeated(self):
        empty, starts, ends = self._atom()
        sign = self._peek()
        if sign in ("*", "+", "?"):
            self._at += 1
            if sign != "?":
                self._link(ends, starts)
            empty = empty or sign != "+"
            if self._peek() == "?":  # lazy: other text taken, the same texts matched
                self._at += 1
            if self._peek() in ("*", "+", "?"):
                raise self._unknown(self._text[self._at - 1 : self._at + 1])
        if self._peek() == "{":
            raise self._unknown("{")
        return empty, starts, ends

    def _atom(self):
        char, start = self._text[self._at], self._at
        self._at += 1
        if char == "(":
            return self._group()
        if char == "[":
            return self._place(self._compiled(start, self._class_end()))
        if char == "$":
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

    def _group(self):
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

    def _class_end(self):
        at = self._at + (self._peek() == "^")
        at += self._text.startswith("]", at)  # the first ] of a class is one of its characters
        while at < len(self._text) and self._text[at] != "]":
            at += 2 if self._text[at] == "\\" else 1
        self._at = at + 1
        return self._at

    def _compiled(self, start, end):
        try:
            return re.compile(self._text[start:end])
        except re.error as error:
            raise self._malformed(str(error)) from None

    def _place(self, token):
        if len(self._tokens) == MAX_PLACES:
            legal = f"patterns of at most {MAX_PLACES} characters together"
            raise fail(self._path, "ignore", "longer", legal)
        self._tokens.append(token)
        self._follow.append(0)
        bit = 1 << (len(self._tokens) - 1)
        return False, bit, bit

    def _chain(self, a, b):
        self._link(a[2], b[1])
        return a[0] and b[0], a[1] | (b[1] if a[0] else 0), b[2] | (a[2] if b[0] else 0)

    def _link(self, ends, starts):
        while ends:
            low = ends & -ends
            self._follow[low.bit_length() - 1] |= starts
            ends ^= low

    def _peek(self, ahead=0):
        at = self._at + ahead
        return self._text[at : at + 1]

    def _malformed(self, what):
        return fail(self._path, "ignore", f"'re:{self._text:.60}' with {what}", "a pattern of re")

    def _unknown(self, what):
        return unsupported(self._path, "ignore", f"'re:{self._text:.60}' with {what}", _READ)
