"""`LLM`: a model on a paged, quantized cache, from Python.

Builds what the other modules run: file and tokenizer (shared by variants), packed weights (shared
by variants of one scheme), a program, and one page pool per KV scheme. The scheduling of `generate`
is in `batch`, sequences are in `sequence`.
"""

from collections.abc import Iterator
from collections.abc import Sequence as SequenceABC
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.errors import BusyError, NumericalError
from octavo.scheme import DEFAULT_ACT, KVScheme, WeightScheme, parse_act

from .batch import Batch
from .capture import Taps
from .ids import token_ids
from .memory import default_budget, parse_bytes
from .outputs import RequestOutput
from .params import SamplingParams
from .pool import Pool
from .prompts import chat_prompts, checked_params, prompt_list
from .request import Request
from .sequence import Sequence
from .shared import Shared
from .stepper import Stepper

DEFAULT_ROWS = 512
_ROWS_MOST = 1 << 16


class LLM:
    """A language model.

    Parameters
    ----------
    model : str or path-like
        A known name (``"smollm2-135m"``, pulled at first use), a ``.gguf`` file, or a folder of
        safetensors.
    kv : str or KVScheme
        How keys and values are stored: ``"bf16"``, ``"int4-had"``, ``"int8:int4"``, ...
    weights : str or WeightScheme
        ``"checkpoint"``: as stored, without loss. Else a weight format.
    act : str
        How grouped weight formats read activations: ``"a8x2"``, ``"a8g32"``, ``"a8"`` or the exact
        ``"a32"``.
    threads : int, optional
        By default what affinity, cgroup quota and physical cores allow.
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
        model: Any,
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
        _check_count("max_rows", max_rows, 1, _ROWS_MOST)
        budget = None if memory is None else parse_bytes(memory)
        if isinstance(model, Shared):
            shared = model
        else:
            _check_count("threads", 1 if threads is None else threads, 1, 4096)
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
        _check_count("context", context or self.spec.context, 1, self.spec.context)
        self.context = context or self.spec.context
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

    # ---- text in, text out ---------------------------------------------------------------

    def generate(
        self,
        prompts: Any,
        sampling_params: SamplingParams | SequenceABC[SamplingParams] | None = None,
        *,
        use_tqdm: bool = False,
    ) -> list[RequestOutput]:
        """Complete prompts.

        Parameters
        ----------
        prompts : str, list of str, list of int, list of lists of int
            Or vLLM's dicts with "prompt" or "prompt_token_ids".
        sampling_params : SamplingParams or a list of one per prompt, optional
        use_tqdm : bool
            Show a bar over requests.

        Returns
        -------
        list of RequestOutput
            In the order of the prompts; each equals what the prompt gives alone, bit for bit.

        Raises
        ------
        ValueError
            For a prompt that is empty or leaves no room in the context.
        OutOfPages
            For a request that can never fit, before any work.
        NumericalError
            After all others have finished, if a request's numbers were not finite; ``outputs`` of
            the exception holds all results.
        """
        with self._stepper.use("generate", *self._pools.values()):
            requests = self._requests(prompts, sampling_params)
            batch = Batch(self._stepper, self._pool, requests)
            with _bar(len(requests), not use_tqdm) as bar:
                for _ in batch.run():
                    bar.update(sum(r.output.finished for r in requests) - bar.n)
        outputs = [r.output for r in requests]
        _raise_failures(outputs)
        return outputs

    def stream(self, prompt: Any, sampling_params: SamplingParams | None = None) -> Iterator[str]:
        """Yield a completion's text piece by piece, whole characters only.

        The model may be used for other things between two pieces. Dropping the iterator gives its
        pages back.
        """
        params = sampling_params or SamplingParams(max_tokens=None)
        if isinstance(params, SamplingParams) and params.n != 1:
            raise ValueError(f"stream: n is {params.n}; legal: 1")
        with self._stepper.use("stream", *self._pools.values()):
            requests = self._requests(prompt, params)
            if len(requests) != 1:
                raise ValueError(f"stream: {len(requests)} prompts; legal: one")
            batch = Batch(self._stepper, self._pool, requests)
        return self._pieces(batch, requests[0])

    def _pieces(self, batch: Batch, request: Request) -> Iterator[str]:
        steps, only = batch.run(), request.completions[0]
        try:
            while not only.done:
                with self._stepper.use("stream", *self._pools.values()):
                    next(steps, None)
                if piece := only.fresh_text():
                    yield piece
        finally:
            batch.close()
        _raise_failures([request.output])

    def chat(
        self,
        messages: Any,
        sampling_params: SamplingParams | None = None,
        *,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> list[RequestOutput]:
        """Complete a conversation (or a list of them) in the checkpoint's own chat template.

        Parameters
        ----------
        messages : list of dict
            With "role" and "content".
        sampling_params : SamplingParams, optional
        add_generation_prompt : bool
            End the prompt with the header of the assistant's turn.
        **variables
            More names for the template.
        """
        variables["add_generation_prompt"] = add_generation_prompt
        return self.generate(chat_prompts(self.tokenizer, messages, variables), sampling_params)

    def _requests(self, prompts: Any, params: Any) -> list[Request]:
        found = prompt_list(self, prompts)
        out = []
        for i, ((text, ids), p) in enumerate(
            zip(found, checked_params(params, len(found)), strict=True)
        ):
            if not len(ids):
                raise ValueError(f"generate: prompt {i} is empty; legal: one token or more")
            if len(ids) >= self.context:
                raise ValueError(
                    f"generate: prompt {i} has {len(ids)} tokens and the context is "
                    f"{self.context}; legal: at most {self.context - 1}"
                )
            self._check_vocab(p)
            out.append(Request(self, i, text, ids, p))
        return out

    def _check_vocab(self, p: SamplingParams) -> None:
        for name in ("logit_bias", "stop_token_ids"):
            for i in getattr(p, name) or ():
                if i >= self.spec.vocab:
                    raise ValueError(
                        f"generate: {name} has id {i}; legal: 0 to {self.spec.vocab - 1}"
                    )

    # ---- sequences and scores ------------------------------------------------------------

    def sequence(self) -> Sequence:
        """Return an empty `Sequence`."""
        with self._stepper.use("sequence", self._pool):
            return Sequence(self, self._pool, self._pool.core.open())

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
        target = np.append(ids[1:], np.int32(-1))
        pool = self._pool
        with self._stepper.use("score", pool):
            handle = pool.core.open()
            try:
                parts = [self._score_chunk(pool, handle, ids, target, at)
                         for at in range(0, len(ids) - 1, self._max_rows)]  # fmt: skip
            finally:
                pool.discard(handle)
        return np.concatenate(parts)[: len(ids) - 1]

    def _score_chunk(self, pool: Pool, handle: int, ids: Any, target: Any, at: int) -> Any:
        chunk, want = ids[at : at + self._max_rows], target[at : at + self._max_rows]
        out = self._stepper.step(pool, [(handle, chunk, 0)], targets=[want], quiet=True)
        if not out["ok"][0]:
            raise NumericalError(
                f"score: keys, values or logits of tokens {at} to {at + len(chunk) - 1} are not "
                "finite"
            )
        return out["logprob"][0]

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

    def capture(self, *names: str) -> Taps:
        """Return a context manager that collects activations by name.

        Parameters
        ----------
        *names : str
            With ``*``: ``"layers.*.attn.out"``, ``"layers.3.out"``, ``"norm"``, ``"embed"``.

        Examples
        --------
        ``with llm.capture("layers.*.out") as taps: llm.prefill(text)`` and then
        ``taps["layers.3.out"]``.
        """
        return Taps(self._shared.program, names, self._stepper.taps)

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
            While another call runs.
        """
        if self._closed:
            return
        with self._stepper.use("close"):
            for pool in list(self._pools.values()):
                pool.core.close()
            self._closed = True
        self._leave()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, kind: Any, *exc: Any) -> None:
        from .ends import close_at_exit

        close_at_exit(self, kind)

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self._closed = True
            for pool in self._pools.values():
                with suppress(BufferError, BusyError):  # then it goes with its last view
                    pool.core.close()
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


def _check_count(name: str, value: Any, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"LLM: {name} must be an int, not {type(value).__name__}")
    if not least <= value <= most:
        raise ValueError(f"LLM: {name} is {value}; legal: {least} to {most}")


def _bar(total: int, hidden: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="generate", unit="request", disable=hidden)


def _raise_failures(outputs: list[RequestOutput]) -> None:
    """Raise the first request's error, with all results, once everything has finished."""
    failed = [c.error for r in outputs for c in r.outputs if c.error is not None]
    if failed:
        error = NumericalError(
            f"{failed[0]} ({len(failed)} completions failed, the others are in .outputs)"
        )
        error.outputs = outputs  # type: ignore[attr-defined]
        raise error from failed[0]
