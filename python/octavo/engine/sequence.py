"""`Sequence`: a history of tokens and the pages that hold its keys and values.

The list of tokens is the truth. The cache may lag behind it (truncating inside a sealed page takes
up to 63 tokens back): whatever is missing is fed again before anything is read, which gives the
same bits. A call of several steps works on a fork that takes the sequence's place when the call
succeeds, so after any failure the sequence is as it was.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from octavo.errors import ClosedError
from octavo.scheme import KVScheme

from .cost import Phases
from .ids import token_ids
from .pool import Pool
from .stepper import Stepper, new_number

if TYPE_CHECKING:
    from .kv import CacheDiff, KVView
    from .llm import LLM


class Sequence:
    """Tokens and their pages. Made by `LLM.prefill`, `LLM.sequence` and `fork`.

    Attributes
    ----------
    reencoded_from : KVScheme or None
        The scheme whose pages this history was encoded from; its pages differ from those that
        running under its own scheme would have given.
    edited : bool
        Whether codes were changed by hand.
    phases : Phases
        Time, bytes and operations of the steps that this object ran: ``phases.prefill`` those of
        several tokens, ``phases.decode`` those of one after others.
    """

    def __init__(self, llm: "LLM", pool: Pool, handle: int, *, prefix: bool = True) -> None:
        self._llm = llm
        self._pool = pool
        self._handle = handle
        self._number = new_number()
        self._tokens: list[int] = []
        self._logits: npt.NDArray[np.float32] | None = None
        self._closed = False
        self._cuts = 0
        self.reencoded_from: KVScheme | None = None
        self.edited = False
        self._prefix = prefix
        self.phases = Phases()

    # ---- what it is ----------------------------------------------------------------------

    @property
    def tokens(self) -> npt.NDArray[np.int32]:
        """The history, a read-only int32 array."""
        out = np.array(self._tokens, dtype=np.int32)
        out.setflags(write=False)
        return out

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def scheme(self) -> KVScheme:
        """The scheme of its pages."""
        return self._pool.scheme

    @property
    def text(self) -> str:
        """The history as text."""
        return self._llm.tokenizer.decode(self._tokens)

    @property
    def closed(self) -> bool:
        """Whether it was closed, or its LLM was."""
        return self._closed or self._pool.core.closed

    @property
    def kv(self) -> "KVView":
        """Its pages, to be looked at and edited."""
        from .kv import KVView

        return KVView(self)

    # ---- growing -------------------------------------------------------------------------

    def append(self, ids: Any, *, all_logits: bool = False) -> npt.NDArray[np.float32] | None:
        """Run the model over more tokens.

        Parameters
        ----------
        ids : sequence of int
        all_logits : bool
            Return the logits after each of these tokens, not only keep the last.

        Returns
        -------
        numpy.ndarray of float32, shape (len(ids), vocab), or None

        Raises
        ------
        ValueError, TypeError
            For ids outside the vocabulary, or a history longer than the context.
        OutOfPages
            If the memory budget cannot hold it.
        NumericalError
            If keys, values or logits are not finite.

        After any exception, `KeyboardInterrupt` included, the sequence is as it was.
        """
        new = token_ids("append", ids, self._llm.spec.vocab)
        with self._use("append"):
            return self._feed(new, "append", all_logits)

    def _feed(
        self, new: npt.NDArray[np.int32], what: str, all_logits: bool = False
    ) -> npt.NDArray[np.float32] | None:
        self._llm.check_length(what, len(self) + len(new))
        start = self._pool.core.length(self._handle)
        pending = self._tokens[start:]
        feed = np.concatenate([np.array(pending, np.int32), new])
        if not len(feed):
            return self._no_rows() if all_logits else None
        many = len(feed) > self._stepper.max_rows or self._tight(len(feed))
        work = self._pool.core.fork(self._handle) if many else self._handle
        try:
            skip = len(pending) if all_logits else len(feed) - 1
            rows = self._run(work, feed, skip, what)
        except BaseException:
            self._undo(work)
            raise
        # In this order an interrupt at any point leaves a state that `_use` or `logits` mends.
        self._logits = None
        old, self._handle = self._handle, work
        self._tokens += new.tolist()
        self._keep_logits(rows[-1] if len(rows) else None)
        if many:
            self._pool.discard(old)
        return rows if all_logits else None

    def _tight(self, count: int) -> bool:
        """Whether pages are so short that one step may have to be cut in several."""
        needed, available = self._pool.core.needs([self._handle], [count])
        return needed > available

    def _attach_prefix(self, ids: npt.NDArray[np.int32]) -> None:
        """Take the pages of the longest indexed beginning of `ids`; the sequence is empty."""
        if self._pool.prefix and not self._stepper.watched:
            kept = self._pool.core.match(self._handle, ids)
            self._tokens = ids[:kept].tolist()

    def _run(
        self, handle: int, feed: npt.NDArray[np.int32], skip: int, what: str
    ) -> npt.NDArray[np.float32]:
        """Feed tokens in steps; return the logits after those from `skip` on."""
        steps = self._stepper.feed(
            self._pool, handle, self._number, feed, skip, what,
            shown=self._llm.progress, logits=True, quiet=self.edited or not self._prefix,
        )  # fmt: skip
        parts = []
        for at, out in steps:
            alone = out["tokens"] == 1 and at + self._pool.core.length(handle) > 1
            self.phases.add_step(out, out["tokens"], alone)
            parts.append(out["logits"][0])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _undo(self, work: int) -> None:
        """Give back a failed call's fork, or what a step added before an interrupt came."""
        if work != self._handle:
            self._pool.discard(work)
        else:
            self._mend()

    def _no_rows(self) -> npt.NDArray[np.float32]:
        return np.empty((0, self._llm.spec.vocab), np.float32)

    # ---- logits --------------------------------------------------------------------------

    @property
    def logits(self) -> npt.NDArray[np.float32]:
        """Logits after the last token, float32 [vocab], read-only.

        Computed again where they are not known (after `truncate`, `kv.edit`, or a fork into
        another scheme), without touching the pages.

        Raises
        ------
        ValueError
            If the sequence is empty.
        ClosedError
            If it was closed.
        """
        self._check_open("logits")
        if not self._tokens:
            raise ValueError("logits: the sequence is empty; append tokens first")
        if self._logits is None:
            with self._use("logits"):
                self._settle("logits")
                if self._logits is None:
                    self._recompute_logits()
        assert self._logits is not None
        return self._logits

    def _recompute_logits(self) -> None:
        core, last = self._pool.core, len(self._tokens) - 1
        work = core.fork(self._handle)
        try:
            kept = core.truncate(work, last)
            feed = np.array(self._tokens[kept:], np.int32)
            self._keep_logits(self._run(work, feed, len(feed) - 1, "logits")[-1])
        finally:
            self._pool.discard(work)

    def _keep_logits(self, row: npt.NDArray[np.float32] | None) -> None:
        if row is not None:
            row = row.copy()
            row.setflags(write=False)
            self._logits = row

    def _settle(self, what: str) -> None:
        """Feed again what truncating took out of the cache."""
        if self._pool.core.length(self._handle) < len(self._tokens):
            self._feed(np.empty(0, np.int32), what)

    # ---- branching -----------------------------------------------------------------------

    def fork(self, kv: "str | KVScheme | None" = None) -> "Sequence":
        """Return an independent sequence of the same history.

        Parameters
        ----------
        kv : str or KVScheme, optional
            Another scheme: the pages are re-encoded into it (formats.md A1), in a cache with a
            budget of its own. By default sealed pages are shared and open rows copied.

        Raises
        ------
        OutOfPages
            If there is no room. Nothing is changed.
        """
        pool = self._pool if kv is None else self._llm._pool_of(KVScheme.parse(kv))
        with self._use("fork", pool):
            same = pool is self._pool
            if not same:
                self._settle("fork")
            core = self._pool.core
            handle = core.fork(self._handle) if same else core.reencode(self._handle, pool.core)
            twin = Sequence(self._llm, pool, handle, prefix=self._prefix)
            twin._tokens = list(self._tokens)
            twin.edited, twin.reencoded_from = self.edited, self.reencoded_from
            if same:
                twin._logits = self._logits
            else:
                twin.reencoded_from = self.scheme
        return twin

    def truncate(self, n: int) -> None:
        """Forget the tokens at and past `n`.

        Raises
        ------
        ValueError
            If `n` is not within the history.
        BufferError
            If views hold a page that would go. Nothing is changed.
        """
        if isinstance(n, bool) or not isinstance(n, int | np.integer):
            raise TypeError(f"truncate: n must be an int, not {type(n).__name__}")
        if not 0 <= n <= len(self):
            raise ValueError(f"truncate: n is {n}; legal: 0 to {len(self)}, the tokens there are")
        with self._use("truncate"):
            if n == len(self):
                return
            if n < self._pool.core.length(self._handle):
                self._pool.core.truncate(self._handle, int(n))
            self._cuts += 1
            self._logits = None
            del self._tokens[n:]

    def diff(self, other: "Sequence") -> "CacheDiff":
        """Compare the two caches page by page (see `octavo.engine.diff.diff`)."""
        from .diff import diff

        return diff(self, other)

    # ---- ends ----------------------------------------------------------------------------

    @property
    def _stepper(self) -> Stepper:
        return self._llm._stepper

    def _check_open(self, what: str) -> None:
        if self._closed:
            raise ClosedError(f"{what}: the sequence was closed; nothing was done")

    @contextmanager
    def _use(self, what: str, *pools: Pool) -> Iterator[None]:
        self._check_open(what)
        with self._stepper.use(what, self._pool, *pools):
            self._mend()
            yield

    def _mend(self) -> None:
        """Take back what a step added just before an interrupt kept us from noting it."""
        if self._pool.core.length(self._handle) > len(self._tokens):
            self._pool.core.truncate(self._handle, len(self._tokens))

    def close(self) -> None:
        """Give its pages back; idempotent.

        Raises
        ------
        BufferError
            While NumPy views hold one of its pages. Nothing is changed.
        """
        if self.closed:
            self._closed = True
            return
        self._pool.core.release(self._handle)
        self._closed = True

    def __enter__(self) -> "Sequence":
        return self

    def __exit__(self, kind: Any, *exc: Any) -> None:
        from .ends import close_at_exit

        close_at_exit(self, kind)

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self._closed = True
            self._pool.discard(self._handle)

    def __reduce__(self) -> Any:
        raise TypeError("a Sequence holds pages of this process and cannot be pickled or copied")

    def __repr__(self) -> str:
        if self.closed:
            return "<closed Sequence>"
        marks = f", re-encoded from {self.reencoded_from}" if self.reencoded_from else ""
        marks += ", edited" if self.edited else ""
        return f"<Sequence: {len(self)} tokens in {self.scheme}{marks}>"
