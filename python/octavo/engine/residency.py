"""Loads of experts, and which of them to keep in fast memory, from the accesses of a record."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from octavo.table import Shown, Table, figure, percent
from octavo.table import size as bytes_text

from .replay import Accesses, Ints, ratio, replay


@dataclass(frozen=True)
class Load(Shown):
    """How often experts were chosen.

    Attributes
    ----------
    layers : tuple of int
    counts : numpy.ndarray of int64, shape (layers, experts)
        Tokens that chose each.
    gates : numpy.ndarray of float64, shape (layers, experts)
        Sum of the gates they gave it.
    """

    layers: tuple[int, ...]
    counts: Ints = field(repr=False)
    gates: npt.NDArray[np.float64] = field(repr=False)

    @property
    def share(self) -> npt.NDArray[np.float64]:
        """Share of its layer's choices, shape (layers, experts); nan where there were none."""
        return ratio(self.counts, self.counts.sum(axis=1, keepdims=True))

    @property
    def entropy(self) -> npt.NDArray[np.float64]:
        """Entropy of each layer's shares in nats; the logarithm of `experts` if all are equal."""
        share = self.share
        return -np.sum(share * np.log(np.where(share > 0, share, 1.0)), axis=1)

    @property
    def effective(self) -> npt.NDArray[np.float64]:
        """How many equally loaded experts have that entropy, of each layer."""
        return np.exp(self.entropy)

    @property
    def imbalance(self) -> npt.NDArray[np.float64]:
        """Load of each layer's most used expert over the mean load: 1 if all are equal."""
        return ratio(self.counts.max(axis=1), self.counts.mean(axis=1))

    def table(self) -> Table:
        """Return a table with a row per layer."""
        out = Table(
            f"load of {self.counts.shape[1]} experts",
            ["layer", "choices", "used", "most used", "its share", "effective", "imbalance"],
            notes=["effective: exp of the entropy; imbalance: most used over mean"],
        )
        most, figures = self.counts.argmax(axis=1), zip(self.effective, self.imbalance, strict=True)
        for i, (effective, imbalance) in enumerate(figures):
            counts = self.counts[i]
            out.add(
                self.layers[i], f"{counts.sum():,}", np.count_nonzero(counts), most[i],
                percent(self.share[i, most[i]]), figure(effective), figure(imbalance),
            )  # fmt: skip
        return out


class Way(NamedTuple):
    """One way to use a fast memory: share of accesses that hit, bytes from slow memory a token."""

    name: str
    hit_rate: float
    bytes_per_token: float


@dataclass(frozen=True)
class Residency(Shown):
    """Which experts stay in a fast memory, beside what caches would do in the same bytes.

    Attributes
    ----------
    memory : int
        The budget in bytes.
    layers : tuple of int
    resident : numpy.ndarray of bool, shape (layers, experts)
        The experts that stay.
    nbytes : int
        Their bytes.
    slots : int
        Experts that a cache in this memory holds, a slot being as large as the largest of them.
    ways : tuple of Way
        All from slow memory; the residents; LRU with a cache per layer, of equal shares; LRU and
        Belady with one cache for all. Residents are there from the start, caches start empty.
    """

    memory: int
    layers: tuple[int, ...]
    resident: npt.NDArray[np.bool_] = field(repr=False)
    nbytes: int
    slots: int
    ways: tuple[Way, ...] = field(repr=False)

    @property
    def hit_rate(self) -> float:
        """Share of accesses that the residents serve."""
        return self.ways[1].hit_rate

    @property
    def bytes_per_token(self) -> float:
        """Bytes from slow memory per token, with the residents."""
        return self.ways[1].bytes_per_token

    def table(self) -> Table:
        """Return a table with a row per way."""
        out = Table(
            f"experts in {bytes_text(self.memory)}: {np.count_nonzero(self.resident):,} of "
            f"{self.resident.size:,} stay, {bytes_text(self.nbytes)}",
            ["way", "hits", "from slow memory per token"],
            notes=[f"caches hold {self.slots:,} experts and start empty"],
        )
        for way in self.ways:
            out.add(way.name, percent(way.hit_rate), bytes_text(way.bytes_per_token))
        return out


def residency(made_from: Accesses, judged_by: Accesses, memory: int) -> Residency:
    """Choose residents from one record, and judge them by another; see `Flight.plan`."""
    a, resident = judged_by, _chosen(made_from, memory)
    slots = min(memory // int(a.expert_bytes.max()), resident.size)
    hit = resident[a.slot, a.expert]
    ways = [
        Way("all from slow memory", *_outcome(a, np.zeros_like(hit))),
        Way("most used stay", *_outcome(a, hit)),
    ]
    for name, policy, size, shared in (
        ("LRU, a cache per layer", "lru", slots // len(a.layers), False),
        ("LRU, one cache", "lru", slots, True),
        ("Belady, one cache", "belady", slots, True),
    ):
        run = replay(a, policy, size, shared)
        ways.append(Way(name, float(run.hit_rate), float(run.bytes_per_token)))
    nbytes = int(a.expert_bytes[resident].sum())
    return Residency(memory, a.layers, resident, nbytes, slots, tuple(ways))


def _outcome(a: Accesses, hit: npt.NDArray[np.bool_]) -> tuple[float, float]:
    return (
        float(ratio(np.count_nonzero(hit), len(hit))),
        float(ratio(int(a.nbytes[~hit].sum()), a.tokens)),
    )


def _chosen(a: Accesses, memory: int) -> npt.NDArray[np.bool_]:
    """The experts read in most steps, of equals the first, as far as each still fits."""
    nbytes = a.expert_bytes.reshape(-1)
    reads = np.bincount(a.slot * a.expert_bytes.shape[1] + a.expert, minlength=nbytes.size)
    out, left = np.zeros(nbytes.size, bool), memory
    for i in np.argsort(-reads, kind="stable"):
        if reads[i] and nbytes[i] <= left:
            out[i] = True
            left -= int(nbytes[i])
    return out.reshape(a.expert_bytes.shape)
