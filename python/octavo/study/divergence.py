"""Kullback-Leibler divergence of quantized variants from a base, in lockstep over one text.

All variants and the base are fed the same tokens, at most 128 at a time; their logits are compared
position by position over the whole vocabulary in float64 and forgotten. Nothing is sampled, no
logits are stored, and every variant sees the base once, so rows of one table are paired.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from octavo.table import Table, figure, interval

from .run import Lane, describe, progress, tokens_of
from .stats import Interval, block_ids, mean_interval, sealed_fraction

if TYPE_CHECKING:
    from octavo import LLM

WINDOW = 2048
ROWS = 128
LADDER = ("f32", "int8", "fp8", "k8v4", "int4-had", "int4")


@dataclass
class Divergence:
    """What one variant's next-token distributions differ from the base's by, per position.

    Attributes
    ----------
    name : str
        The variant, as tables show it.
    base, variant : dict
        Model, schemes, ISA and version of both sides.
    kld : ndarray of float64 [n]
        KL(base || variant) in nats.
    nll_base, nll : ndarray of float64 [n]
        Of the text's next token; NaN for the last token of the text.
    same : ndarray of bool [n]
        Both sides' argmax agree (ties to the lowest id).
    window, position : ndarray of int32 [n]
    sealed_fraction : float
        Mean share of positions that a query read in sealed form.
    sealed_bytes, open_bytes : float
        Bytes per token as stored, scales included; of the open page apart.
    """

    name: str
    base: dict[str, Any]
    variant: dict[str, Any]
    kld: npt.NDArray[np.float64] = field(repr=False)
    nll_base: npt.NDArray[np.float64] = field(repr=False)
    nll: npt.NDArray[np.float64] = field(repr=False)
    same: npt.NDArray[np.bool_] = field(repr=False)
    window: npt.NDArray[np.int32] = field(repr=False)
    position: npt.NDArray[np.int32] = field(repr=False)
    sealed_fraction: float
    sealed_bytes: float
    open_bytes: float

    @cached_property
    def blocks(self) -> npt.NDArray[np.int64]:
        return block_ids(self.window, self.position)

    @cached_property
    def mean(self) -> Interval:
        """Mean KLD with its 95 % block-bootstrap interval."""
        return mean_interval(self.kld, self.blocks)

    @cached_property
    def top1(self) -> Interval:
        """Share of positions with equal argmax."""
        return mean_interval(self.same, self.blocks)

    @cached_property
    def log_ppl_ratio(self) -> Interval:
        """ln(PPL of the variant / PPL of the base) on the text's own tokens."""
        return mean_interval(self.nll - self.nll_base, self.blocks)

    def percentile(self, q: float) -> float:
        """Return the q-th percentile of the KLD; 50 is the median, 100 the maximum."""
        return float(np.percentile(self.kld, q))

    def minus(self, other: "Divergence") -> Interval:
        """Return the paired difference of mean KLD between two variants of one study."""
        if not np.array_equal(self.blocks, other.blocks):
            raise ValueError(f"minus: {self.name} and {other.name} were not scored in lockstep")
        return mean_interval(self.kld - other.kld, self.blocks)

    def octaves(self) -> list[tuple[int, int, float]]:
        """Return (first position, end, mean KLD) per octave of the position in its window."""
        out, lo = [], 0
        while lo <= self.position.max():
            hi = max(64, 2 * lo)
            inside = (self.position >= lo) & (self.position < hi)
            if inside.any():
                out.append((lo, hi, float(self.kld[inside].mean())))
            lo = hi
        return out

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain values."""
        return {
            "name": self.name,
            "positions": len(self.kld),
            "kld_mean": self.mean.value,
            "kld_ci": [self.mean.low, self.mean.high],
            **{f"kld_p{q:g}": self.percentile(q) for q in (50, 95, 99, 99.9, 100)},
            "top1": self.top1.value,
            "top1_ci": [self.top1.low, self.top1.high],
            "log_ppl_ratio": self.log_ppl_ratio.value,
            "log_ppl_ratio_ci": [self.log_ppl_ratio.low, self.log_ppl_ratio.high],
            "octaves": self.octaves(),
            "sealed_fraction": self.sealed_fraction,
            "sealed_bytes_per_token": self.sealed_bytes,
            "open_bytes_per_token": self.open_bytes,
            "base": self.base,
            "variant": self.variant,
        }

    def to_json(self) -> str:
        """Return the summary as one JSON object."""
        return json.dumps(self.to_dict())

    def to_pandas(self) -> Any:
        """Return one row per scored position (needs pandas)."""
        import pandas

        names = ("window", "position", "kld", "nll_base", "nll", "same")
        return pandas.DataFrame({n: getattr(self, n) for n in names})

    def table(self) -> Table:
        return Ladder([self]).table()

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


@dataclass
class Ladder:
    """Several variants against one base; if `floor`, the first row is what nothing is below."""

    rows: list[Divergence]
    floor: bool = False

    def __getitem__(self, name: str) -> Divergence:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"{name!r}; rows: {', '.join(r.name for r in self.rows)}")

    def order(self) -> list[str]:
        """Return the variants by mean KLD, smallest first."""
        return [r.name for r in sorted(self.rows, key=lambda r: r.mean.value)]

    def table(self) -> Table:
        first = self.rows[0]
        b = first.base
        out = Table(
            f"KL(base || variant) in nats, base {b['model']} kv={b['kv']} act={b['act']}",
            [
                *("variant", "mean [95 %]", *self._if_floor("x floor"), "minus row above [95 %]"),
                *("median", "p95", "p99", "max", "top-1 % [95 %]", "ln PPL ratio [95 %]"),
                *("B/token", "sealed %"),
            ],
        )
        for i, r in enumerate(self.rows):
            step = r.minus(self.rows[i - 1]) if i else None
            top1, ratio = r.top1, r.log_ppl_ratio
            out.add(
                r.name,
                interval(r.mean.value, r.mean.low, r.mean.high),
                *self._if_floor(self._over_floor(r)),
                None if step is None else interval(step.value, step.low, step.high, 2),
                *(figure(r.percentile(q)) for q in (50, 95, 99, 100)),
                interval(100 * top1.value, 100 * top1.low, 100 * top1.high, 4),
                interval(ratio.value, ratio.low, ratio.high, 2),
                f"{r.sealed_bytes:,.0f}",
                f"{100 * r.sealed_fraction:.1f}",
            )
        windows = len(np.unique(first.window))
        out.notes = [
            f"{len(first.kld):,} positions in {windows} windows of at most {WINDOW}; 10,000 paired "
            "resamples of blocks of 256 tokens (of windows, from 30 on)",
            f"octavo {b['version']}, {b['isa']}, weights {b['weights']}; B/token is of sealed "
            "pages, scales included",
        ]
        return out

    def _if_floor(self, cell: str) -> list[str]:
        return [cell] if self.floor else []

    def _over_floor(self, row: Divergence) -> str:
        if row is self.rows[0]:
            return "floor"
        ratio = row.mean.value / max(self.rows[0].mean.value, 1e-300)
        return "<= floor" if ratio <= 1 else figure(ratio)

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def to_json(self) -> str:
        """Return the summaries as a JSON array."""
        return json.dumps([r.to_dict() for r in self.rows])

    def to_pandas(self) -> Any:
        """Return one row per variant (needs pandas)."""
        import pandas

        return pandas.DataFrame([r.to_dict() for r in self.rows]).set_index("name")


def divergence(
    base: "LLM",
    variants: "str | LLM | Sequence[str | LLM]",
    text: "str | Sequence[int]",
    *,
    tokens: int | None = None,
    window: int = WINDOW,
    quiet: bool = False,
) -> "Divergence | Ladder":
    """Measure variants against a base, in lockstep.

    The text is cut in independent windows (empty caches) of `window` tokens, the last one shorter;
    every position is scored.

    Parameters
    ----------
    base : LLM
    variants : KV scheme, LLM, or several
        A scheme name means ``base.variant(kv=name)``; an `LLM` is taken as it is, so that weights
        or activations may differ. Its vocabulary must be the base's.
    text : str or token ids
    tokens : int, optional
        Use only so many tokens from the start.

    Returns
    -------
    Divergence
        For one variant; a `Ladder` for a sequence of them.

    Raises
    ------
    ValueError
        No tokens, or no variants.
    NumericalError
        Some logits are not finite.
    """
    one = isinstance(variants, str) or not isinstance(variants, Sequence)
    given = [variants] if one else list(variants)
    ids = tokens_of(base, text)[:tokens]
    if not given or not len(ids):
        raise ValueError(f"divergence: {len(given)} variants on {len(ids)} tokens")
    if window < 1:
        raise ValueError(f"divergence: window={window} is below 1")
    made: list[Any] = []
    try:
        llms = []
        for v in given:
            if isinstance(v, str):
                made.append(base.variant(kv=v))
            llms.append(made[-1] if isinstance(v, str) else v)
        rows = _lockstep(base, llms, ids, window, quiet)
    finally:
        for llm in made:
            llm.close()
    for row, v in zip(rows, given, strict=True):
        row.name = v if isinstance(v, str) else _label(row)
    return rows[0] if one else Ladder(rows)


def ladder(
    base: "LLM",
    text: "str | Sequence[int]",
    schemes: Sequence[str] = LADDER,
    *,
    tokens: int | None = None,
    quiet: bool = False,
) -> Ladder:
    """Measure KV schemes against a base with bf16 KV; the first scheme is the floor.

    See `divergence`. The floor (f32 KV by default) is what two caches that ought to be equal
    differ by: a difference below it means nothing.
    """
    out = divergence(base, list(schemes), text, tokens=tokens, quiet=quiet)
    assert isinstance(out, Ladder)
    out.floor = True
    return out


def _label(row: Divergence) -> str:
    """Name a variant by what sets it apart from its base."""
    keys = [k for k in ("model", "weights", "kv", "act") if row.base[k] != row.variant[k]]
    return ", ".join(f"{row.variant[k]}" for k in keys) or "equal"


def _lockstep(
    base: "LLM", llms: "list[LLM]", ids: npt.NDArray[np.int32], window: int, quiet: bool
) -> list[Divergence]:
    lanes = [Lane(llm) for llm in (base, *llms)]
    parts: list[list[tuple[npt.NDArray, ...]]] = [[] for _ in llms]
    where: list[tuple[int, int, int]] = []
    following = np.append(ids[1:], np.int32(-1))
    try:
        chunks = [
            (lo // window, lo, min(lo + ROWS, lo - lo % window + window, len(ids)))
            for w in range(0, len(ids), window)
            for lo in range(w, min(w + window, len(ids)), ROWS)
        ]
        for w, lo, hi in progress(chunks, "divergence", quiet):
            if lo % window == 0:
                for lane in lanes:
                    lane.start()
            want = lanes[0].rows(ids[lo:hi])
            nll_base, top = lanes[0].nll(want, following[lo:hi]), lanes[0].argmax(want)
            for lane, part in zip(lanes[1:], parts, strict=True):
                got = lane.rows(ids[lo:hi])
                kld = lane.kl(want, got)
                part.append(
                    (kld, nll_base, lane.nll(got, following[lo:hi]), top == lane.argmax(got))
                )
            where.append((w, lo % window, hi - lo))
    finally:
        sizes = [lane.close() for lane in lanes]
    window_of = np.concatenate([np.full(n, w, np.int32) for w, _, n in where])
    position = np.concatenate([np.arange(p, p + n, dtype=np.int32) for _, p, n in where])
    out = []
    for llm, part, size in zip(llms, parts, sizes[1:], strict=True):
        columns = [np.concatenate(c) for c in zip(*part, strict=True)]
        law = {"sinks": llm.kv.sink_pages, "recent": llm.kv.recent_pages}
        lengths = np.bincount(window_of)
        share = [sealed_fraction(int(n), **law) for n in lengths]
        out.append(
            Divergence(
                "",
                describe(base),
                describe(llm),
                *columns,
                window_of,
                position,
                sealed_fraction=float(np.average(share, weights=lengths)),
                sealed_bytes=size.sealed_bytes,
                open_bytes=size.open_bytes,
            )
        )
    return out
