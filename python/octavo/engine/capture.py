"""Activations as NumPy arrays: what ops wrote, copied at their boundary while a step runs.

`Taps` is both the context manager that `LLM.capture` returns and the mapping of what was seen.
"""

import fnmatch
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from octavo.model import Program

from .scope import Scope


class Routing(NamedTuple):
    """What a router decided, a row per token.

    Attributes
    ----------
    ids : numpy.ndarray of int32, shape (rows, top)
        The experts chosen, ascending.
    gates : numpy.ndarray of float32, shape (rows, top)
        Their weights.
    scores : numpy.ndarray of float32, shape (rows, experts)
        Scores of all experts, without the bias that only selects.
    """

    ids: npt.NDArray[np.int32]
    gates: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]


class Taps(Scope, Mapping[str, Any]):
    """Activations by name, float32 [rows, width], rows in the order in which they were computed;
    under ``"layers.*.router"`` a `Routing`.

    Attributes
    ----------
    position : numpy.ndarray of int64, shape (rows,)
        Position of each row's token in its sequence.
    sequence : numpy.ndarray of int64, shape (rows,)
        A number of each row's sequence: equal numbers, same sequence.
    token : numpy.ndarray of int32, shape (rows,)
        Id of each row's token.
    """

    def __init__(self, program: Program, patterns: tuple[str, ...], owner: list["Taps"]) -> None:
        super().__init__(owner)
        if not patterns:
            raise ValueError(f"capture: no names given; known: {_shorten(program.taps)}")
        names: dict[str, None] = {}
        for pattern in patterns:
            if not isinstance(pattern, str):
                raise TypeError(f"capture: a name must be str, not {type(pattern).__name__}")
            found = fnmatch.filter(program.taps, pattern)
            if not found:
                known = _shorten(program.taps)
                raise ValueError(f"capture: nothing is called {pattern!r:.80}; known: {known}")
            names |= dict.fromkeys(found)
        at = {name: i for i, name in enumerate(program.buffers)}
        self.wanted = [(program.taps[n][0], at[program.taps[n][1]]) for n in names]
        self._moe = program.moe
        self._routers = {n for n in names if program.taps[n][1] == "router"}
        self._parts: dict[str, list[npt.NDArray[np.float32]]] = {n: [] for n in names}
        self._rows: list[tuple[int, int, npt.NDArray[np.int32]]] = []

    def record(
        self, arrays: list[npt.NDArray[np.float32]], rows: list[tuple[int, int, Any]]
    ) -> None:
        """Take one step's arrays, and (sequence's number, first position, tokens) of its items."""
        for parts, array in zip(self._parts.values(), arrays, strict=True):
            parts.append(array)
        self._rows += rows

    def clear(self) -> None:
        """Forget what was captured."""
        for parts in self._parts.values():
            parts.clear()
        self._rows.clear()

    def __getitem__(self, name: str) -> Any:
        parts = self._parts[name]
        if len(parts) > 1:  # joined once, kept joined
            parts[:] = [np.concatenate(parts)]
        if name not in self._routers or self._moe is None:
            return parts[0] if parts else np.empty((0, 0), np.float32)
        record = parts[0] if parts else np.empty((0, self._moe.record), np.float32)
        ids = self._moe.experts + self._moe.top
        scores, chosen, gates = np.split(record, [self._moe.experts, ids], axis=1)
        return Routing(chosen.astype(np.int32), gates, scores)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def position(self) -> npt.NDArray[np.int64]:
        parts = [start + np.arange(len(ids)) for _, start, ids in self._rows]
        return np.concatenate([np.empty(0, np.int64), *parts])

    @property
    def sequence(self) -> npt.NDArray[np.int64]:
        parts = [np.full(len(ids), number, np.int64) for number, _, ids in self._rows]
        return np.concatenate([np.empty(0, np.int64), *parts])

    @property
    def token(self) -> npt.NDArray[np.int32]:
        return np.concatenate([np.empty(0, np.int32), *(ids for _, _, ids in self._rows)])

    def __repr__(self) -> str:
        rows = sum(len(ids) for _, _, ids in self._rows)
        return f"<Taps: {len(self)} names, {rows} rows>"


def _shorten(taps: Mapping[str, Any]) -> str:
    """Known names with the layers' numbers folded into one star."""
    short: dict[str, None] = {}
    for name in taps:
        part = name.split(".")
        short[".".join(["layers", "*", *part[2:]]) if part[0] == "layers" else name] = None
    return ", ".join(short)
