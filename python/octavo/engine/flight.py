"""Flight records of a mixture of experts: which token chose which experts, with what gate, and the
bytes that took; and what follows from a record: load, bytes read, caches by replay, a memory plan.

`Flight` is a record, whoever made it; `Recorder` is the one that `LLM.routing` returns, which grows
while steps run inside its block.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.errors import UnsupportedError
from octavo.model import Program
from octavo.plan.amounts import parse_bytes
from octavo.table import Shown, Table, size

from .replay import Accesses, Replay, ratio, replay
from .residency import Load, Residency, residency
from .scope import Scope

RECORD = np.dtype([
    ("step", np.int32), ("sequence", np.int32), ("position", np.int64), ("token", np.int32),
    ("layer", np.int32), ("expert", np.int32), ("gate", np.float32), ("nbytes", np.int64),
])  # fmt: skip


class Flight(Shown):
    """A flight record.

    Parameters
    ----------
    array : numpy.ndarray of RECORD, shape (n,)
    layers : sequence of int
        Layers that have experts, ascending.
    expert_bytes : numpy.ndarray of int64, shape (layers, experts)
        Stored bytes of each expert's three matrices.
    title : str
        The model, as tables show it.

    Attributes
    ----------
    array : numpy.ndarray, shape (n,), read-only
        A row per token, layer and chosen expert, ascending by step, layer, token, expert:
        ``step`` (int32) of the record; ``sequence`` (int32), numbered from 0 as they appear;
        ``position`` (int64) of the token in its sequence; ``token`` (int32), its id; ``layer`` and
        ``expert`` (int32); ``gate`` (float32); ``nbytes`` (int64), the stored bytes of that expert,
        which a step reads once however many tokens chose it.
    layers, expert_bytes, title
        As given.

    Raises
    ------
    TypeError, ValueError
        If the parts do not fit each other.
    """

    def __init__(
        self, array: npt.NDArray[Any], layers: Sequence[int], expert_bytes: npt.NDArray[np.int64],
        title: str = "flight record",
    ) -> None:  # fmt: skip
        self.layers = tuple(layers)
        self.expert_bytes = np.array(expert_bytes)
        self.title = title
        self._check(array)
        self._array = array.view()
        self._array.setflags(write=False)

    def _check(self, array: npt.NDArray[Any]) -> None:
        if not isinstance(array, np.ndarray):
            raise TypeError(f"Flight: array must be an array, not {type(array).__name__}")
        if array.dtype != RECORD or array.ndim != 1:
            raise TypeError(
                f"Flight: array is {array.dtype} {list(array.shape)}; legal: {RECORD}, one row each"
            )
        table, layers = self.expert_bytes, self.layers
        if table.dtype.kind not in "iu" or table.ndim != 2 or not table.size:
            raise TypeError(
                f"Flight: expert_bytes is {table.dtype} {list(table.shape)}; "
                "legal: int64 [layers, experts]"
            )
        if (table < 1).any():
            raise ValueError(f"Flight: expert_bytes has {table.min()}; legal: 1 and more")
        if len(layers) != len(table) or sorted({*layers}) != [*layers]:
            raise ValueError(
                f"Flight: layers are {list(layers)}; legal: {len(table)} of them, ascending"
            )
        if not np.isin(array["layer"], layers).all():
            raise ValueError(f"Flight: a row is of none of the layers {list(layers)}")
        for name, most in (("expert", table.shape[1]), ("step", 1 << 31)):
            if ((array[name] < 0) | (array[name] >= most)).any():
                raise ValueError(f"Flight: a row's {name} is not in 0 to {most - 1}")

    @property
    def array(self) -> npt.NDArray[Any]:
        """The record, read-only; see above."""
        return self._array

    @property
    def experts(self) -> int:
        """Experts of a layer."""
        return self.expert_bytes.shape[1]

    @property
    def steps(self) -> int:
        """Steps of the record."""
        return int(self.array["step"].max(initial=-1)) + 1

    @property
    def tokens(self) -> int:
        """Tokens of the record, each as often as it was computed."""
        return int(self._token_numbers().max(initial=-1)) + 1

    # ---- other views of it -----------------------------------------------------------------

    def select(self, which: Any) -> "Flight":
        """Return the record of some rows only, steps numbered as before.

        Parameters
        ----------
        which : mask, slice or indices
            Of `array`: ``flight.select(flight.array["sequence"] == 0)``.
        """
        return Flight(np.atleast_1d(self.array[which]), self.layers, self.expert_bytes, self.title)

    def by_token(self) -> "Flight":
        """Return the record as if every token had run in a step of its own.

        Tokens are in order of step, sequence and position.

        A router's choice does not depend on how tokens share steps, bit for bit. So the record of a
        prefill or of a batch is also that of decoding the same tokens one at a time, where caches
        matter most.
        """
        out = self.array.copy()
        out["step"] = self._token_numbers()
        order = np.lexsort((out["expert"], out["layer"], out["step"]))
        return Flight(out[order], self.layers, self.expert_bytes, self.title)

    def _token_numbers(self) -> npt.NDArray[np.int64]:
        """Number of each row's token, by step, sequence and position."""
        keys = [self.array[name] for name in ("position", "sequence", "step")]
        order = np.lexsort(keys)
        new = np.zeros(len(order), bool)
        for key in keys:
            new[1:] |= key[order][1:] != key[order][:-1]
        out = np.empty(len(order), np.int64)
        out[order] = np.cumsum(new)
        return out

    # ---- what follows from it --------------------------------------------------------------

    def load(self) -> Load:
        """Return how often each expert of each layer was chosen."""
        shape, at = self.expert_bytes.shape, self._slots() * self.experts + self.array["expert"]
        counts = np.bincount(at, minlength=self.expert_bytes.size).reshape(shape)
        gates = np.bincount(at, self.array["gate"], minlength=self.expert_bytes.size)
        return Load(self.layers, counts, gates.reshape(shape))

    def bytes_read(self) -> npt.NDArray[np.int64]:
        """Return the bytes of experts that each step read in each layer, int64 [steps, layers].

        An expert counts once a step. The sum over layers is what `LLM.profile` counts as "expert".
        """
        out = np.zeros((self.steps, len(self.layers)), np.int64)
        accesses = self.accesses()
        np.add.at(out, (accesses.step, accesses.slot), accesses.nbytes)
        return out

    def accesses(self) -> Accesses:
        """Return the experts read, by step, layer and expert ascending, each once."""
        layers, experts = self.expert_bytes.shape
        keys = (self.array["step"].astype(np.int64) * layers + self._slots()) * experts
        rest, expert = np.divmod(np.unique(keys + self.array["expert"]), experts)
        step, slot = np.divmod(rest, layers)
        nbytes = self.expert_bytes[slot, expert]
        return Accesses(step, slot, expert, nbytes, self.layers, self.expert_bytes, self.tokens)

    def replay(
        self, policy: str = "lru", size: int | Sequence[int] | None = None, *, shared: bool = False
    ) -> Replay:
        """Return what caches of experts would have hit.

        Each expert is accessed once per step and layer, by step, layer and expert ascending. Caches
        start empty, so the first access of an expert misses, and every access brings its expert
        into the cache.

        Parameters
        ----------
        policy : {"lru", "lfu", "belady"}
            What a full cache gives up: the expert used longest ago; the one used least often since
            the record began, of equals the one used longest ago; the one that is needed again last,
            which no other policy can beat.
        size : int or ints, optional
            Experts that a cache holds; several give a curve. By default from none to all, at most
            65 of them. One replay serves all sizes.
        shared : bool
            One cache for all layers instead of one for each.

        Raises
        ------
        ValueError, TypeError
            For a policy that is not known, or a size that is not a number of experts.
        """
        return replay(self.accesses(), policy, size, shared)

    def plan(self, memory: int | str, on: "Flight | None" = None) -> Residency:
        """Return which experts to keep in a fast memory of so many bytes, and what that saves.

        Those read in most steps come first, as far as each still fits. To plan for decoding from
        the record of a prefill or a batch, ask its `by_token`.

        Parameters
        ----------
        memory : int or str
            Bytes, or ``"24 GiB"``.
        on : Flight, optional
            A record of the same model that judges the choice. By default it is judged by the record
            that it was made from, which flatters it.

        Raises
        ------
        ValueError, TypeError
            For a budget that is none, or a record of another model.
        """
        budget, judge = parse_bytes(memory, "plan: memory"), self if on is None else on
        if not isinstance(judge, Flight):
            raise TypeError(f"plan: on must be a Flight, not {type(judge).__name__}")
        same = np.array_equal(judge.expert_bytes, self.expert_bytes)
        if judge.layers != self.layers or not same:
            raise ValueError(
                f"plan: the judging record is of {judge.title!r:.60} with {len(judge.layers)} "
                f"layers of {judge.experts} experts, not of the same experts as {self.title!r:.60}"
            )
        return residency(self.accesses(), judge.accesses(), budget)

    def _slots(self) -> npt.NDArray[np.int64]:
        """Place of each row's layer among those that have experts."""
        return np.searchsorted(self.layers, self.array["layer"])

    # ---- how it shows ----------------------------------------------------------------------

    def table(self) -> Table:
        """Return a table with a row per layer."""
        out = self.load().table()
        read = int(self.bytes_read().sum())
        out.title = f"{self.title}: {self._summary()}"
        out.notes.append(
            f"{size(read)} of experts read, {size(float(ratio(read, self.tokens)))} a token"
        )
        return out

    def _summary(self) -> str:
        return (
            f"{self.tokens:,} tokens in {self.steps:,} steps, {len(self.layers)} layers of "
            f"{self.experts} experts"
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._summary()}>"


class Recorder(Scope, Flight):
    """A flight record that grows with every step inside its `with` block; see `LLM.routing`.

    Only steps that came to an end are in it, with those whose tokens were given up afterwards (by a
    preemption, or because their numbers were not finite): their experts were read. A sequence keeps
    its number over calls; a fork gets its own.
    """

    def __init__(self, program: Program, packed: Any, title: str, owner: list[Any]) -> None:
        moe, routers = program.moe, program.routers
        if moe is None or not routers:
            raise UnsupportedError(
                f"routing: model {title!r:.60} has no experts; legal: a model with routers"
            )
        buffer = list(program.buffers).index("router")
        self.wanted = [(op, buffer) for op in routers.values()]
        self._first = moe.experts  # where a router's record has the ids, then the gates
        nbytes = [
            [sum(packed.core.info(packed.ids[w])["nbytes"] for w in expert)
             for expert in program.ops[op].matrices]
            for op in routers.values()
        ]  # fmt: skip
        Scope.__init__(self, owner)
        Flight.__init__(self, np.empty(0, RECORD), list(routers), np.array(nbytes), title)
        self.clear()

    def clear(self) -> None:
        """Forget what was recorded."""
        self._parts: list[npt.NDArray[Any]] = []
        self._numbers: dict[int, int] = {}
        self._steps = 0

    def record(
        self, arrays: list[npt.NDArray[np.float32]], rows: list[tuple[int, int, Any]]
    ) -> None:
        """Take one step's routers, and (sequence's number, first position, tokens) of its items."""
        chosen = np.stack([array[:, self._first :] for array in arrays])
        ids, gates = np.split(chosen, 2, axis=2)
        out = np.empty(ids.shape, RECORD)
        out["step"] = self._steps
        out["layer"] = np.reshape(self.layers, (-1, 1, 1))
        out["expert"], out["gate"] = ids, gates
        out["nbytes"] = self.expert_bytes[np.arange(len(ids))[:, None, None], out["expert"]]
        at = 0
        for number, start, tokens in rows:
            of = out[:, at : at + len(tokens)]
            of["sequence"] = self._numbers.setdefault(number, len(self._numbers))
            of["position"] = (start + np.arange(len(tokens)))[:, None]
            of["token"] = np.asarray(tokens)[:, None]
            at += len(tokens)
        self._parts.append(out.reshape(-1))
        self._steps += 1

    @property
    def array(self) -> npt.NDArray[Any]:
        """The record so far, read-only."""
        if len(self._parts) != 1:  # joined once, kept joined
            self._parts[:] = [np.concatenate([np.empty(0, RECORD), *self._parts])]
        self._parts[0].setflags(write=False)
        return self._parts[0]
