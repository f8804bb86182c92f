"""One model's program, ready to step: every call of `_core.step` goes through here.

Adds what the core does not know: captures, recorders and routes in force, and the rule that one LLM
is used by one call at a time (the program's scratch is shared by all its sequences).
"""

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo import _core
from octavo.errors import BusyError, ClosedError, NumericalError, OutOfPages
from octavo.model import Program
from octavo.progress import Bar

from .capture import Taps
from .cost import Profile
from .flight import Recorder
from .pool import Pool
from .routing import Route, functions

Item = tuple[int, npt.NDArray[np.int32], int]  # sequence, tokens, first wanted row

# Numbers of sequences: handles change where a call works on a fork, and two pools' may be equal.
_numbers = itertools.count()


def new_number() -> int:
    """Return a number for a sequence that no other one of this process has."""
    return next(_numbers)


class Stepper:
    """Runs a program over sequences of a pool.

    Parameters
    ----------
    program : Program
    weights : Packed
        Packed weights with handles by role.
    act : str
        Activation form of grouped formats.
    max_rows : int
        Most rows of one step.
    """

    def __init__(self, program: Program, weights: Any, act: str, max_rows: int) -> None:
        self.program = program
        self.act = act
        self.max_rows = max_rows
        self.taps: list[Taps | Recorder] = []
        self.profiles: list[Profile] = []
        self.routes: list[Route] = []
        self._lock = threading.Lock()
        self._closed = False
        self.core = _core.Program(
            weights.core, **program.lowered(weights.ids), act=act, max_rows=max_rows
        )

    @contextmanager
    def use(self, what: str, *pools: Pool) -> Iterator[None]:
        """Hold the model for one call; a second user gets `BusyError` at once."""
        if not self._lock.acquire(blocking=False):
            raise BusyError(
                f"{what}: this LLM is in use by another call; wait for it to return, or make a "
                "variant() for a second thread"
            )
        try:
            self.check_open(what)
            for pool in pools:
                pool.sweep()
            yield
        finally:
            self._lock.release()

    @property
    def watched(self) -> bool:
        """Whether somebody wants every token computed: the prefix index is neither read nor fed."""
        return bool(self.taps or self.routes)

    def check_open(self, what: str) -> None:
        """Raise `ClosedError` once `close` was called."""
        if self._closed:
            raise ClosedError(f"{what}: the LLM was closed; nothing was done")

    def step(
        self, pool: Pool, items: Sequence[Item], numbers: Sequence[int], *, quiet: bool = False,
        **wanted: Any,
    ) -> Any:  # fmt: skip
        """Run `_core.step`, adding ``seconds`` and ``tokens``. The caller holds `use`.

        `numbers` are those of the items' sequences, for who looks on.
        """
        asked = [t.wanted for t in self.taps]
        captures = [c for wants in asked for c in wants]
        starts = [pool.core.length(seq) for seq, _, _ in items] if asked else []
        begin = time.perf_counter()
        out = _core.step(
            self.core, pool.core, items, captures=captures, timed=bool(self.profiles),
            quiet=quiet or self.watched, route=functions(self.routes), **wanted,
        )  # fmt: skip
        out["seconds"] = time.perf_counter() - begin
        out["tokens"] = sum(len(ids) for _, ids, _ in items)
        for profile in self.profiles:
            profile.record(out)
        arrays = out.get("captures", [])
        rows = [
            (number, at, ids)
            for number, (_, ids, _), at in zip(numbers, items, starts, strict=False)
        ]
        for taps, wants in zip(self.taps, asked, strict=True):
            taps.record(arrays[: len(wants)], rows)
            arrays = arrays[len(wants) :]
        return out

    def feed(
        self,
        pool: Pool,
        handle: int,
        number: int,
        ids: npt.NDArray[np.int32],
        skip: int,
        what: str,
        *,
        shown: bool = False,
        **wanted: Any,
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Feed tokens to one sequence in as few steps as rows and pages allow.

        A step holds its own rows twice, open and sealed, until it ends; where that does not fit,
        smaller steps do, with the same bits.

        Parameters
        ----------
        number : int
            The sequence's, for who looks on.
        skip : int
            Results are wanted of tokens at and past this one.
        what : str
            Operation, for errors and the bar.

        Yields
        ------
        (int, dict)
            First token of the step, and what `_core.step` returned.

        Raises
        ------
        NumericalError
            If keys, values or logits are not finite.
        """
        at, rows = 0, self.max_rows
        slow = shown and len(ids) > 4 * rows
        with Bar(len(ids), what, "tok", shown=slow, delay=1.0, leave=False) as bar:
            while at < len(ids):
                chunk = ids[at : at + rows]
                first = min(len(chunk), max(0, skip - at))
                args = dict(wanted)
                if "targets" in wanted:
                    args["targets"] = [wanted["targets"][at + first : at + len(chunk)]]
                try:
                    out = self.step(pool, [(handle, chunk, first)], [number], **args)
                except OutOfPages:
                    if len(chunk) == 1:
                        raise
                    rows = len(chunk) // 2
                    continue
                if not out["ok"][0]:
                    raise NumericalError(
                        f"{what}: keys, values or logits of tokens {at} to {at + len(chunk) - 1} "
                        "of this call are not finite. Nothing was changed."
                    )
                yield at, out
                at += len(chunk)
                bar.update(len(chunk))

    def close(self) -> None:
        """Free the program's scratch; idempotent."""
        self._closed = True
        self.core.close()
