"""Caches of experts by replay: how often experts would have been found in fast memory.

One pass over a trace gives the hits of caches of every size: LRU, LFU and Belady's optimum are
stack algorithms (Mattson et al., 1970), so the cache of any size is the top of one stack, and an
access hits in every size above the place where it finds its key.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from octavo.table import Shown, Table, percent
from octavo.table import size as bytes_text

Ints = npt.NDArray[np.int64]

POLICIES = ("lru", "lfu", "belady")
NEVER = np.iinfo(np.int64).max  # place of what is on no stack: a first touch
_MOST_SIZES = 65  # of a curve whose sizes nobody gave
_LARGEST = 1 << 31


class Accesses(NamedTuple):
    """Experts read, each once per step and layer, in the order of reading.

    Attributes
    ----------
    step, slot, expert, nbytes : numpy.ndarray of int64, shape (n,)
        `slot` counts the layers of `layers`.
    layers : tuple of int
    expert_bytes : numpy.ndarray of int64, shape (layers, experts)
    tokens : int
        Tokens that they were read for.
    """

    step: Ints
    slot: Ints
    expert: Ints
    nbytes: Ints
    layers: tuple[int, ...]
    expert_bytes: Ints
    tokens: int


# ---- stacks --------------------------------------------------------------------------------


def places(keys: Ints, policy: str) -> Ints:
    """Return where each access finds its key on the policy's stack: it hits in sizes above that.

    Parameters
    ----------
    keys : numpy.ndarray of int64, shape (n,)
        What is accessed, in order of time.
    policy : {"lru", "lfu", "belady"}
        What a full cache gives up: what was used longest ago; what was used least often since the
        beginning, of equals what was used longest ago; what is used again last. Every access brings
        its key into the cache.

    Returns
    -------
    numpy.ndarray of int64, shape (n,)
        `NEVER` for first touches.
    """
    before, after = _priorities(keys, policy)
    out = np.full(len(keys), NEVER)
    stack = np.empty(np.count_nonzero(before == NEVER), np.int64)
    depth = 0
    for t, (was, now) in enumerate(zip(before.tolist(), after.tolist(), strict=True)):
        at = depth
        if was == NEVER:
            depth += 1
        else:
            out[t] = at = int((stack[:depth] == was).argmax())
        if at:  # the top sinks to the gap; whatever it meets that is worth less sinks in its place
            sinking = np.minimum.accumulate(stack[:at])
            np.maximum(sinking[:-1], stack[1:at], out=stack[1:at])
            stack[at] = sinking[-1]
        stack[0] = now
    return out


def _priorities(keys: Ints, policy: str) -> tuple[Ints, Ints]:
    """Return what each access's key is worth before it (`NEVER` if it is new) and after it.

    A key's worth stays between its accesses, and no two have the same, so it stands for the key.
    """
    n = len(keys)
    time, order = np.arange(n), np.argsort(keys, kind="stable")
    new = np.ones(n, bool)
    new[1:] = keys[order][1:] != keys[order][:-1]
    again = np.flatnonzero(~new)
    earlier, later = order[again - 1], order[again]
    after = time
    if policy == "lfu":
        uses = np.empty(n, np.int64)
        uses[order] = time - np.maximum.accumulate(np.where(new, time, 0))
        after = uses * n + time
    elif policy == "belady":  # among those never used again the order changes no hit
        after = -(n + time)
        after[earlier] = -later
    before = np.full(n, NEVER)
    before[later] = after[earlier]
    return before, after


# ---- replays -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Replay(Shown):
    """What caches of experts would have done on a flight record.

    Shapes begin with that of `size`.

    Attributes
    ----------
    policy : str
    shared : bool
        One cache serves all layers; otherwise each has its own.
    size : numpy.ndarray of int64
        Experts that a cache holds.
    memory : numpy.ndarray of int64
        Most bytes that the caches hold together.
    layers : tuple of int
    accesses : numpy.ndarray of int64, shape (layers,)
        Experts read, each once a step.
    hits : numpy.ndarray of int64, shape (..., layers)
    missed_bytes : numpy.ndarray of int64, shape (..., layers)
        Bytes of the accesses that missed: what slow memory has to deliver.
    tokens : int
    """

    policy: str
    shared: bool
    size: Ints
    memory: Ints = field(repr=False)
    layers: tuple[int, ...]
    accesses: Ints = field(repr=False)
    hits: Ints = field(repr=False)
    missed_bytes: Ints = field(repr=False)
    tokens: int

    @property
    def hit_rate(self) -> npt.NDArray[np.float64]:
        """Share of all accesses that hit, of the shape of `size`; nan where there are none."""
        return ratio(self.hits.sum(axis=-1), self.accesses.sum())

    @property
    def layer_hit_rate(self) -> npt.NDArray[np.float64]:
        """Share of each layer's accesses that hit, shape (..., layers)."""
        return ratio(self.hits, self.accesses)

    @property
    def bytes_per_token(self) -> npt.NDArray[np.float64]:
        """Bytes from slow memory per token, of the shape of `size`."""
        return ratio(self.missed_bytes.sum(axis=-1), self.tokens)

    def table(self) -> Table:
        """Return a table with a row per size."""
        where = "one cache for all layers" if self.shared else "a cache per layer"
        out = Table(
            f"{self.policy}, {where}: {self.accesses.sum():,} reads of experts, "
            f"{self.tokens:,} tokens",
            ["experts", "memory", "hits", "missed per token"],
            notes=["caches start empty: first touches miss"],
        )
        columns = (self.size, self.memory, self.hit_rate, self.bytes_per_token)
        for n, memory, rate, missed in zip(*map(np.atleast_1d, columns), strict=True):
            out.add(n, bytes_text(memory), percent(rate), bytes_text(missed))
        return out


def replay(accesses: Accesses, policy: str, size: Any, shared: bool) -> Replay:
    """Run accesses through caches; see `Flight.replay`."""
    if policy not in POLICIES:
        raise ValueError(f"replay: policy={policy!r:.40} is not known; known: {list(POLICIES)}")
    layers, experts = accesses.expert_bytes.shape
    sizes = _sizes(size, layers * experts if shared else experts)
    flat = sizes.reshape(-1)
    found = _places_of(accesses, policy, shared)
    hits, missed = np.empty((2, len(flat), layers), np.int64)
    for slot in range(layers):
        of = accesses.slot == slot
        order = np.argsort(found[of], kind="stable")
        cost = np.concatenate([[0], np.cumsum(accesses.nbytes[of][order])])
        hits[:, slot] = np.searchsorted(found[of][order], flat)
        missed[:, slot] = cost[-1] - cost[hits[:, slot]]
    shape = (*sizes.shape, layers)
    return Replay(
        policy, shared, sizes, _most_bytes(accesses.expert_bytes, sizes, shared), accesses.layers,
        np.bincount(accesses.slot, minlength=layers), hits.reshape(shape), missed.reshape(shape),
        accesses.tokens,
    )  # fmt: skip


def _places_of(accesses: Accesses, policy: str, shared: bool) -> Ints:
    if shared:
        return places(accesses.slot * accesses.expert_bytes.shape[1] + accesses.expert, policy)
    out = np.empty(len(accesses.slot), np.int64)
    for slot in range(len(accesses.layers)):
        of = accesses.slot == slot
        out[of] = places(accesses.expert[of], policy)
    return out


def _sizes(size: int | Sequence[int] | None, most: int) -> Ints:
    if size is None:
        return np.unique(np.linspace(0, most, min(most + 1, _MOST_SIZES)).round().astype(np.int64))
    out = np.asarray(size)
    if out.dtype.kind not in "iu":
        raise TypeError(f"replay: size must be an int or several, not {out.dtype}")
    for bad in out[(out < 0) | (out > _LARGEST)]:
        raise ValueError(f"replay: a size is {bad}; legal: 0 to {_LARGEST}")
    return out.astype(np.int64)


def _most_bytes(expert_bytes: Ints, sizes: Ints, shared: bool) -> Ints:
    """Bytes of the largest experts, so many of each cache's."""
    caches = expert_bytes.reshape(1, -1) if shared else expert_bytes
    largest = np.sort(caches, axis=1)[:, ::-1].cumsum(axis=1).sum(axis=0)
    return np.concatenate([[0], largest])[np.minimum(sizes, len(largest))]


def ratio(part: Any, whole: Any) -> npt.NDArray[np.float64]:
    """Return the quotient, nan where nothing was of nothing."""
    with np.errstate(invalid="ignore"):
        return np.true_divide(part, whole)
