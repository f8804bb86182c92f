"""`LLM`: a model on a paged, quantized cache, from Python.

Builds what the other modules run: file and tokenizer (shared by variants), packed weights (shared
by variants of one scheme), a program, and one page pool per KV scheme. Completing prompts is in
`generation`, watching and steering steps in `watching`, sequences are in `sequence`.
"""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.errors import BusyError
from octavo.plan.amounts import parse_bytes
from octavo.scheme import DEFAULT_ACT, KVScheme, WeightScheme, parse_act

from .checks import MOST_THREADS, check_count
from .generation import Generation
from .ids import token_ids
from .memory import default_budget
from .pool import Pool
from .sequence import Sequence
from .shared import Shared
from .stepper import Stepper, new_number
from .watching import Watching

DEFAULT_ROWS = 512
_ROWS_MOST = 1 << 16


class LLM(Generation, Watching):
    """A language model.

    Parameters
    ----------
    model : str or path-like, optional
        A known name (``"smollm2-135m"``, pulled at first use; ``"kimi-mini"``, which ships with the
        package), a ``.gguf`` file, or a folder of safetensors. By default the first, or with a
        warning the second where there is no network.
    kv : str or KVScheme
        How keys and values are stored: ``"bf16"``, ``"int4-had"``, ``"int8:int4"``, ...
    weights : str or WeightScheme
        ``"checkpoint"``: as stored, without loss. Else a weight format.
    act : str
        How grouped weight formats read activations: ``"a8x2"``, ``"a8g32"``, ``"a8"`` or the exact
        ``"a32"``.
    threads : int, optional
        By default ``OCTAVO_THREADS``, else what affinity, cgroup quota and physical cores allow.
    memory : int or str, optional
        Budget of each scheme's pages in bytes (``"2 GiB"``). By default four contexts in bf16, at
        most half of the memory that is free.
    max_rows : int
        Most tokens of one step; longer prompts are cut in chunks.
    context : int, optional
        Longest history; by default (and at most) what the model was made for.
    tokenizer : octavo.engine.tokenizer.Tokenizer or path, optional
        In place of the checkpoint's own.
    prefix : bool
        Share the pages of equal prompt beginnings between requests.
    progress : bool
        Show bars while long work runs.

    Attributes
    ----------
    name : str
    kv, weights, act
        The schemes.
    spec : ModelSpec
    tokenizer : Tokenizer
    runtime : _core.Runtime
        Kernels and threads.
    context : int
    report : LoadReport
        How each kind of tensor is held.

    Raises
    ------
    CheckpointError, UnsupportedError
        If the file is malformed, or asks for something that is not built.
    ValueError, TypeError
        For arguments out of range; known names are listed.
    """

    def __init__(
        self,
        model: Any = None,
        kv: str | KVScheme = "bf16",
        weights: str | WeightScheme = "checkpoint",
        act: str = DEFAULT_ACT,
        threads: int | None = None,
        memory: int | str | None = None,
        max_rows: int = DEFAULT_ROWS,
        *,
        context: int | None = None,
        tokenizer: Any = None,
        prefix: bool = True,
        progress: bool = True,
    ) -> None:
        self._closed = True
        schemes = (KVScheme.parse(kv), WeightScheme.parse(weights), parse_act(act))
        check_count("LLM: max_rows", max_rows, _ROWS_MOST)
        budget = None if memory is None else parse_bytes(memory)
        if isinstance(model, Shared):
            shared = model
        else:
            check_count("LLM: threads", 1 if threads is None else threads, MOST_THREADS)
            shared = Shared(model, threads or 0, tokenizer)
        try:
            self._build(shared, schemes, budget, max_rows, context, prefix, progress)
        except BaseException:
            shared.close_if_idle()
            raise

    def _build(self, shared: Shared, schemes: Any, budget: int | None, max_rows: int,
               context: int | None, prefix: bool, progress: bool) -> None:  # fmt: skip
        self.kv, self.weights, self.act = schemes
        self.spec, self.tokenizer, self.runtime = shared.spec, shared.tokenizer, shared.runtime
        self.name, self.eos_ids = shared.name, shared.eos_ids
        self.context = self.spec.context if context is None else context
        check_count("LLM: context", self.context, self.spec.context)
        self.progress = progress
        self.memory = budget or default_budget(self.spec, self.context, self.kv)
        self._prefix = prefix
        self._shared, self._max_rows = shared, max_rows
        packed = shared.weights(self.weights, progress)
        self.report = packed.report
        try:
            self._pools = {self.kv: self._new_pool(self.kv)}
            self._stepper = Stepper(shared.program, packed, self.act, max_rows)
        except BaseException:
            shared.drop(self.weights)
            raise
        shared.users += 1
        self._closed = False

    # ---- sequences and scores ------------------------------------------------------------

    def sequence(self, *, prefix: bool = True) -> Sequence:
        """Return an empty `Sequence`, which reads no prefix index.

        Parameters
        ----------
        prefix : bool
            Feed the index: later prompts of the same beginning find its pages, which stay for them
            when it is closed. Measurements take False.
        """
        with self._stepper.use("sequence", self._pool):
            return Sequence(self, self._pool, self._pool.core.open(), prefix=prefix)

    def prefill(self, prompt: Any) -> Sequence:
        """Run the model over a text or token ids and return the `Sequence` that holds them.

        Raises
        ------
        ValueError
            If it is longer than the context.
        OutOfPages, NumericalError
            As `Sequence.append`.
        """
        ids = self._ids("prefill", prompt)
        self.check_length("prefill", len(ids))
        out = self.sequence()
        try:
            with self._stepper.use("prefill", self._pool):
                out._attach_prefix(ids)
            out.append(ids[len(out) :])
        except BaseException:
            self._pool.discard(out._handle)
            out._closed = True
            raise
        return out

    def score(self, prompt: Any) -> npt.NDArray[np.float32]:
        """Return the log-probability of each next token, float32 [n-1], in nats.

        Parameters
        ----------
        prompt : str or sequence of int

        Notes
        -----
        The prefix index is neither read nor fed, and no row of the vocabulary leaves the core.
        """
        ids = self._ids("score", prompt)
        self.check_length("score", len(ids))
        if len(ids) < 2:
            return np.empty(0, np.float32)
        pool, last = self._pool, len(ids) - 1
        with self._stepper.use("score", pool):
            handle = pool.core.open()
            try:
                steps = self._stepper.feed(
                    pool, handle, new_number(), ids[:last], 0, "score",
                    shown=self.progress, targets=ids[1:], quiet=True,
                )  # fmt: skip
                return np.concatenate([out["logprob"][0] for _, out in steps])
            finally:
                pool.discard(handle)

    def _ids(self, what: str, prompt: Any) -> npt.NDArray[np.int32]:
        if isinstance(prompt, str):
            prompt = self.tokenizer.encode(prompt, limit=self.context)
        return token_ids(what, prompt, self.spec.vocab)

    def check_length(self, what: str, tokens: int) -> None:
        """Raise `ValueError` if so many tokens are beyond the context."""
        if tokens > self.context:
            raise ValueError(
                f"{what}: {tokens} tokens, and the context of {self.name!r} is {self.context}; "
                "legal: a shorter history. Nothing was changed."
            )

    # ---- looking in ----------------------------------------------------------------------

    def kernels(self) -> Any:
        """Return which column serves every slot on this machine (a list with a table's repr)."""
        from .repr import kernel_table

        return kernel_table(self.runtime)

    def bytes(self) -> Any:
        """Return the ledger of this scheme's whole cache."""
        from .kv import Ledger

        return Ledger.of(self._pool)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights."""
        return self._shared.packed[self.weights].core.nbytes

    # ---- other quantizations of the same model -------------------------------------------

    def variant(
        self,
        kv: str | KVScheme | None = None,
        weights: str | WeightScheme | None = None,
        act: str | None = None,
        memory: int | str | None = None,
        max_rows: int | None = None,
    ) -> "LLM":
        """Return another quantization of the same checkpoint.

        File, tokenizer and threads are shared, and the packed weights where their scheme is the
        same. Each variant has a cache of its own, and is closed on its own.
        """
        self._stepper.check_open("variant")
        return LLM(
            self._shared,
            kv=self.kv if kv is None else kv,
            weights=self.weights if weights is None else weights,
            act=self.act if act is None else act,
            memory=self.memory if memory is None else memory,
            max_rows=self._max_rows if max_rows is None else max_rows,
            context=self.context,
            prefix=self._prefix,
            progress=self.progress,
        )

    @property
    def _pool(self) -> Pool:
        return self._pools[self.kv]

    def _new_pool(self, scheme: KVScheme) -> Pool:
        shapes = self.spec.cache_layers
        return Pool(self.runtime, shapes, scheme, self.memory, prefix=self._prefix)

    def _pool_of(self, scheme: KVScheme) -> Pool:
        """The pool of another scheme, made when it is first wanted."""
        self._stepper.check_open("fork")
        if scheme not in self._pools:
            self._pools[scheme] = self._new_pool(scheme)
        return self._pools[scheme]

    # ---- ends ----------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Free pages, scratch and (with the last variant) weights at once; idempotent.

        Raises
        ------
        BufferError
            While NumPy views hold pages. Nothing is changed.
        BusyError
            While another call runs, or a page is under edit. Nothing is changed.
        """
        if self._closed:
            return
        with self._stepper.use("close"):
            first, *others = pools = list(self._pools.values())
            for pool in pools:
                pool.check_idle("close")
            first.close()
            self._closed = True
            _close_pools(others)
        self._leave()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, kind: Any, *exc: Any) -> None:
        from .ends import close_at_exit

        close_at_exit(self, kind)

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self._closed = True
            _close_pools(self._pools.values())
            self._leave()

    def _leave(self) -> None:
        self._stepper.close()
        self._shared.drop(self.weights)
        self._shared.leave()

    def __reduce__(self) -> Any:
        raise TypeError("an LLM holds memory of this process and cannot be pickled or copied")

    def __repr__(self) -> str:
        from .repr import llm_text

        return llm_text(self)

    def _repr_html_(self) -> str:
        from .repr import llm_html

        return llm_html(self)


def _close_pools(pools: Iterable[Pool]) -> None:
    """Close them; one of which a view is taken just now, by another thread, goes with that view."""
    for pool in pools:
        with suppress(BufferError, BusyError):
            pool.core.close()
