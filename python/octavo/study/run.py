"""The studies' one door to the engine: all logits of a chunk, reductions, and what was stored.

Everything else in `octavo.study` is arithmetic on arrays. What the engine must offer, all public:
`LLM.name, weights, kv, act, runtime, tokenizer`, `LLM.sequence(prefix=False)` (an empty one that
neither reads nor feeds the prefix index), `Sequence.append(ids, all_logits=True)` (float32
[n, vocab], the logits after each of these tokens), `Sequence.kv.bytes()` (the core's ledger of it)
and `close()`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from octavo.errors import NumericalError

if TYPE_CHECKING:
    from octavo import LLM

T = TypeVar("T")


@dataclass(frozen=True)
class Size:
    """Bytes per token of a sealed page, scales included, and of an open one, over all layers."""

    sealed_bytes: float
    open_bytes: float


class Lane:
    """One LLM that is fed window after window, chunk by chunk."""

    def __init__(self, llm: "LLM") -> None:
        self.llm = llm
        self.runtime = llm.runtime
        self._sequence: Any = None

    def start(self) -> None:
        """Begin a window with an empty cache."""
        if self._sequence is not None:
            self._sequence.close()
        self._sequence = self.llm.sequence(prefix=False)

    def rows(self, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """Append tokens and return the logits after each, [n, vocab]."""
        logits = self._sequence.append(ids, all_logits=True)
        if not np.isfinite(logits).all():
            row = int(np.flatnonzero(~np.isfinite(logits).all(axis=1))[0])
            raise NumericalError(f"logits of token {row} of a chunk are not finite")
        return logits

    def kl(self, base: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> npt.NDArray:
        """Return KL(base || other) per row in nats, float64 over the whole vocabulary."""
        return self.runtime.kl(base, other)

    def argmax(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
        return self.runtime.argmax(logits)

    def nll(self, logits: npt.NDArray[np.float32], target: npt.NDArray) -> npt.NDArray[np.float64]:
        """Return -log p(target) per row; NaN where the target is -1."""
        lse = self.runtime.lse(logits).astype(np.float64)
        out = lse - logits[np.arange(len(target)), np.maximum(target, 0)]
        return np.where(target < 0, np.nan, out)

    def close(self) -> Size:
        """Close the sequence and return what its tokens took, by the ledger."""
        if self._sequence is None:
            return Size(float("nan"), float("nan"))
        ledger = self._sequence.kv.bytes()
        self._sequence.close()
        self._sequence = None
        return Size(ledger.sealed_token_bytes, ledger.open_token_bytes)


def describe(llm: "LLM") -> dict[str, Any]:
    """Return what a figure belongs to: model, schemes, ISA, threads, version."""
    import octavo

    return {
        "model": llm.name,
        "weights": str(llm.weights),
        "kv": str(llm.kv),
        "act": llm.act,
        "isa": llm.runtime.isa,
        "cpu": llm.runtime.cpu,
        "threads": llm.runtime.threads,
        "version": octavo.__version__,
    }


def tokens_of(llm: "LLM", text: str | Sequence[int]) -> npt.NDArray[np.int32]:
    """Return a text's token ids; ids are passed through."""
    ids = llm.tokenizer.encode(text) if isinstance(text, str) else text
    return np.asarray(ids, dtype=np.int32)


def progress(items: Sequence[T], what: str, quiet: bool = False) -> Iterable[T]:
    """Return `items` under a progress bar, unless `quiet`."""
    from tqdm.auto import tqdm

    return tqdm(items, desc=what, disable=quiet, leave=False)
