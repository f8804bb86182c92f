"""String arrays of a GGUF header: where each string starts, and their text when somebody looks.

A vocabulary has hundreds of thousands of short strings, so both questions have a fast answer in
whole arrays, which is given only where it is proven to be the answer of the plain loop beside it.
"""

import struct
from array import array
from collections.abc import Sequence

import numpy as np

from .source import fail

_U64 = struct.Struct("<Q")
_SLAB = 4096  # strings that are decoded at once
_SLAB_BYTES = 1 << 20
_WINDOW = 1 << 16  # bytes in which starts are sought at once
_FEW = 256  # strings found in a window, below which the plain loop is as fast


class Strings(Sequence):
    """A string array of a GGUF header, decoded when looked at. Read-only.

    Holds the header's bytes and one offset per element, so a vocabulary that nobody reads costs
    neither time nor objects.
    """

    __slots__ = ("_data", "_path", "_starts", "_what")

    def __init__(self, data, starts, path, what):
        self._data, self._starts, self._path, self._what = data, starts, path, what

    def __len__(self):
        return len(self._starts)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self._text(at) for at in self._starts[index].tolist()]
        return self._text(int(self._starts[index]))

    def __iter__(self):
        return map(self._text, self._starts.tolist())

    def __eq__(self, other):
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self):
        return f"<{len(self)} strings of {self._what}>"

    def _text(self, at):
        end = self._end(at)
        try:
            return str(self._data[at + 8 : end], "utf-8")
        except UnicodeDecodeError:
            raw = bytes(self._data[at + 8 : end])
            raise fail(self._path, self._what, raw, "UTF-8 text", at + 8) from None

    def _end(self, at):
        return at + 8 + _U64.unpack_from(self._data, at)[0]

    def tolist(self):
        """Return every string: the list of `iter`, many at a time."""
        out = []
        for first in range(0, len(self), _SLAB):
            starts = self._starts[first : first + _SLAB]
            out += self._at_once(starts) or map(self._text, starts.tolist())
        return out

    def _at_once(self, starts):
        """Decode neighbours as one text, or return None if that would not be each one's text.

        A NUL takes the place of each length. It is a character of its own in UTF-8, so the whole
        is valid exactly if every string is.
        """
        begin, end = int(starts[0]), self._end(int(starts[-1]))
        if end - begin > _SLAB_BYTES:
            return None
        data = np.frombuffer(self._data[begin:end], np.uint8)
        keep, at = np.ones(len(data), bool), (starts - begin).astype(np.intp)
        for byte in range(8):
            keep[at + byte] = False
        if not data[keep].all():
            return None
        data = data.copy()
        data[at] = 0
        keep[at[1:]] = True
        try:
            return str(data[keep], "utf-8").split("\0")
        except UnicodeDecodeError:
            return None


def find_starts(cursor, key, count):
    """Walk over `count` strings from the cursor on, and return where each starts, as uint64."""
    plain = array("Q", [0]) * count  # the plain loop fills this faster than an array of NumPy
    starts = np.frombuffer(plain, np.uint64)
    done = 0
    while done < count:
        found = _short_strings(cursor.buffer[cursor.at : min(cursor.have, cursor.at + _WINDOW)])
        whole = max(0, min(len(found) - 1, count - done))
        if whole:
            starts[done : done + whole] = found[:whole] + cursor.at
            done, cursor.at = done + whole, cursor.at + int(found[whole])
        if whole < _FEW:
            upto = min(count, done + _SLAB)
            _walk(cursor, key, plain, done, upto)
            done = upto
    return starts


def _walk(cursor, key, starts, lo, hi):
    """Fill `starts` from `lo` to `hi` by going from each string to the next one."""
    unpack, data, at, have = _U64.unpack_from, cursor.data, cursor.at, cursor.have
    for i in range(lo, hi):
        if at + 8 > have:
            have = _refill(cursor, at, 8, key)
        start = starts[i] = at
        at += 8 + unpack(data, at)[0]
        if at > have:
            have = _refill(cursor, start, at - start, key)
    cursor.at = at


def _refill(cursor, at, count, key):
    cursor.at = at
    cursor.need(count, f"string in {key!r}")
    return cursor.have


def _short_strings(window):
    """Return starts of the strings that a window begins with, as long as they are short.

    A start looks like this: a byte, not zero, and seven zeros. That is a guess; those returned are
    the first of them that a walk from 0 would visit, each ending where the next one starts.
    """
    if len(window) < 8:
        return np.empty(0, np.intp)
    zero = window == 0
    two = zero[:-1] & zero[1:]
    four = two[:-2] & two[2:]
    seven = four[:-3] & four[3:]
    guess = np.flatnonzero(~zero[:-7] & seven[1:])
    if not len(guess) or guess[0]:
        return guess[:0]
    last = guess[:-1]
    chained = last + 8 + window[last] == guess[1:]
    return guess if chained.all() else guess[: np.argmin(chained) + 1]
