"""Perplexity under the two protocols that published tables use, each exactly as its authors run it.

Perplexity is a protocol, not a number: `gptq-2048` and `llama.cpp-512` differ by ten per cent on
one model and one file, so a result carries its protocol and never compares across them. Windows
are scored one after another, so memory does not grow with the text.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from octavo.errors import NumericalError
from octavo.table import Table, figure

from .run import describe, progress
from .stats import Interval, block_ids, mean_interval

if TYPE_CHECKING:
    from octavo import LLM

PROTOCOLS = {"gptq-2048": 2048, "llama.cpp-512": 512}


def gptq_text(text: str) -> str:
    """Return the text as GPTQ's scripts see WikiText-2: the data set's rows joined by blank lines.

    A line that is blank becomes the empty row, any other keeps its newline.
    """
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    rows = ["" if not line.strip() else f"{line}\n" for line in lines]
    return "\n\n".join(rows)


@dataclass
class Perplexity:
    """Negative log-likelihoods of scored tokens, and what follows from them.

    Attributes
    ----------
    protocol : str
    run : dict
        Model, schemes, ISA, version: what the figures belong to.
    windows : int
        Windows scored; `available` is how many the text has.
    nll : ndarray of float64
        Of each scored token, in nats; `window` and `position` say where it stands.
    """

    protocol: str
    run: dict[str, Any]
    available: int
    nll: npt.NDArray[np.float64] = field(repr=False)
    window: npt.NDArray[np.int32] = field(repr=False)
    position: npt.NDArray[np.int32] = field(repr=False)

    @property
    def windows(self) -> int:
        return len(np.unique(self.window))

    @property
    def value(self) -> float:
        """The perplexity: exp of the mean over windows (of equal size) of their mean NLL."""
        return math.exp(float(np.mean(self.nll)))

    @property
    def ci(self) -> Interval:
        """95 % interval by resampling windows (or blocks of 256 tokens, below 30 windows)."""
        mean = mean_interval(self.nll, block_ids(self.window, self.position))
        return Interval(*(math.exp(x) if x == x else x for x in (mean.value, mean.low, mean.high)))

    @property
    def ci_iid(self) -> float:
        """llama.cpp's plus-minus: as if tokens were independent, so too narrow."""
        n = len(self.nll)
        return self.value * math.sqrt(float(np.var(self.nll)) / max(1, n - 1))

    def table(self) -> Table:
        ci, r = self.ci, self.run
        out = Table(
            f"perplexity, {self.protocol}: {r['model']}",
            ["KV scheme", "act", "windows", "tokens", "PPL", "95 % interval", "i.i.d. ±"],
        )
        bounds = f"[{ci.low:.4f}, {ci.high:.4f}]" if ci.low == ci.low else "-"
        windows = f"{self.windows} of {self.available}"
        cells = [r["kv"], r["act"], windows, len(self.nll), f"{self.value:.4f}"]
        out.add(*cells, bounds, figure(self.ci_iid))
        out.notes.append(f"octavo {r['version']}, {r['isa']}, weights {r['weights']}")
        return out

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain values."""
        ci = self.ci
        return {
            "protocol": self.protocol,
            "ppl": self.value,
            "ci": [ci.low, ci.high],
            "ci_iid": self.ci_iid,
            "windows": self.windows,
            "available": self.available,
            "tokens": len(self.nll),
            **self.run,
        }

    def to_json(self) -> str:
        """Return the summary as one JSON object."""
        return json.dumps(self.to_dict())

    def to_pandas(self) -> Any:
        """Return one row per scored token (needs pandas)."""
        import pandas

        columns = {"window": self.window, "position": self.position, "nll": self.nll}
        return pandas.DataFrame(columns)


def perplexity(
    llm: "LLM",
    text: str,
    protocol: str = "gptq-2048",
    *,
    chunks: int | None = None,
    on_window: Callable[[int, int, float], None] | None = None,
    quiet: bool = False,
) -> Perplexity:
    """Score a text window by window.

    Parameters
    ----------
    llm : LLM
    text : str
        The file as it is; `gptq-2048` rejoins its lines itself.
    protocol : {"gptq-2048", "llama.cpp-512"}
        `gptq-2048`: windows of 2,048 tokens, tail dropped, all 2,047 shifted positions scored.
        `llama.cpp-512`: chunks of 512; where the tokenizer adds BOS the first token is replaced by
        it; the second half of each chunk (255 tokens) is scored.
    chunks : int, optional
        Score only so many windows from the start.
    on_window : callable, optional
        Called with (windows done, windows in all, perplexity so far).
    quiet : bool
        No progress bar.

    Raises
    ------
    ValueError
        Unknown protocol, `chunks` below 1, or a text shorter than one window.
    NumericalError
        A log-probability is not finite; no window is ever skipped.
    """
    if protocol not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise ValueError(f"perplexity: protocol={protocol!r} is not known; known: {known}")
    if chunks is not None and chunks < 1:
        raise ValueError(f"perplexity: chunks={chunks} is below 1")
    size = PROTOCOLS[protocol]
    gptq = protocol == "gptq-2048"
    ids = list(llm.tokenizer.encode(gptq_text(text) if gptq else text))
    available = len(ids) // size
    if available == 0:
        raise ValueError(f"perplexity: the text has {len(ids)} tokens, {protocol} needs {size}")
    count = available if chunks is None else min(chunks, available)
    first = 0 if gptq else size // 2
    bos = None if gptq else _added_bos(llm)
    scored: list[npt.NDArray[np.float64]] = []
    total = 0.0
    for w in progress(range(count), "perplexity", quiet):
        window = ids[w * size : (w + 1) * size]
        if bos is not None:
            window[0] = bos
        nll = -np.asarray(llm.score(window), dtype=np.float64)[first:]
        if not np.isfinite(nll).all():
            bad = int(np.flatnonzero(~np.isfinite(nll))[0]) + first
            raise NumericalError(f"perplexity: window {w}, position {bad} is not finite")
        scored.append(nll)
        total += float(np.mean(nll))
        if on_window is not None:
            on_window(w + 1, count, math.exp(total / (w + 1)))
    each = size - 1 - first
    return Perplexity(
        protocol=protocol,
        run=describe(llm),
        available=available,
        nll=np.concatenate(scored),
        window=np.repeat(np.arange(count, dtype=np.int32), each),
        position=np.tile(np.arange(first, size - 1, dtype=np.int32), count),
    )


def _added_bos(llm: "LLM") -> int | None:
    """Return the BOS id if this model's tokenizer puts one in front of a text by itself."""
    bos = getattr(llm.tokenizer, "bos_id", None)
    start = list(llm.tokenizer.encode("a"))
    return bos if bos is not None and start and start[0] == bos else None
