"""A prompt on its way through the scheduler, and each of its completions.

`Completion` is what the scheduler moves: the tokens it must have in the cache, the sequence that
holds them, and what came out so far. What happened to text (stop strings, detokenizing) is decided
here; which step a row goes into is not.
"""

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from .outputs import CompletionOutput, RequestOutput
from .params import SamplingParams
from .sampler import Sampler, seed_of, top_logprobs
from .stepper import new_number

Row = npt.NDArray[np.float32]


class Request:
    """One prompt with its parameters and its completions.

    Attributes
    ----------
    limit : int
        Most tokens that a completion may add.
    scored : int
        Prompt tokens whose log-probabilities are known (`prompt_logprobs`).
    """

    def __init__(self, llm: Any, number: int, text: str | None, ids: npt.NDArray[np.int32],
                 params: SamplingParams) -> None:  # fmt: skip
        self.llm, self.params, self.ids = llm, params, ids
        room = llm.context - len(ids)
        self.limit = room if params.max_tokens is None else min(params.max_tokens, room)
        self.output = RequestOutput(str(number), text, ids.tolist())
        self.output.metrics.arrival_time = time.perf_counter()
        seed, stops = seed_of(params), self._stop_ids()
        self.completions = [Completion(self, i, seed, stops) for i in range(params.n)]
        self.output.outputs = [c.output for c in self.completions]
        if params.prompt_logprobs is not None:
            self.output.prompt_logprobs = [None]

    def _stop_ids(self) -> frozenset[int]:
        eos = () if self.params.ignore_eos else self.llm.eos_ids
        return frozenset(eos) | frozenset(self.params.stop_token_ids or ())

    @property
    def scoring(self) -> bool:
        """Whether prompt tokens still wait for their log-probabilities."""
        known = self.output.prompt_logprobs
        return known is not None and len(known) < len(self.ids)

    def score(self, logits: Row, at: int) -> None:
        """Take the logits after prompt tokens `at`, `at` + 1, ..."""
        count = self.params.prompt_logprobs
        known = self.output.prompt_logprobs
        assert known is not None and count is not None
        for i, row in enumerate(logits, at + 1):
            if i == len(known) and i < len(self.ids):  # not again after a preemption
                chosen = int(self.ids[i])
                known.append(top_logprobs(self.llm.runtime, self.llm.tokenizer, row, chosen, count))

    def close(self) -> None:
        """Mark the request as finished if all its completions are."""
        self.output.finished = all(c.done for c in self.completions)
        if self.output.finished:
            self.output.metrics.finished_time = time.perf_counter()


class Completion:
    """One completion: a state machine between waiting, prefilling, decoding and done.

    Attributes
    ----------
    handle : int or None
        Its sequence while it holds pages.
    length : int
        Tokens that `handle` holds.
    preempted : bool
        Whether its pages were ever taken from it.
    advanced : bool
        Whether it gained a token since it came back.
    age : tuple
        Order of arrival.
    number : int
        Of its sequence, kept when it is preempted and comes back.
    """

    def __init__(self, request: Request, index: int, seed: int, stops: frozenset[int]) -> None:
        self.request, self.index, self.stops = request, index, stops
        self.output = CompletionOutput(index)
        p = request.params
        if p.logprobs is not None:
            self.output.logprobs, self.output.cumulative_logprob = [], 0.0
        self.handle: int | None = None
        self.length = 0
        self.advanced, self.preempted = True, False
        self.age = (int(request.output.request_id), index)
        self.number = new_number()
        llm = request.llm
        self.sampler = Sampler(p, llm.runtime, request.ids, index, seed, sorted(stops))
        self._stream = llm.tokenizer and llm.tokenizer.decode_stream(p.skip_special_tokens)
        self._shown = 0

    @property
    def done(self) -> bool:
        """Whether it ended."""
        return self.output.finish_reason is not None

    @property
    def target(self) -> int:
        """Tokens that its sequence must hold: of the prompt, and all generated ones."""
        return len(self.request.ids) + len(self.output.token_ids)

    def rest(self, most: int) -> npt.NDArray[np.int32]:
        """Return the next `most` of them that it does not hold yet."""
        ids, end = self.request.ids, self.length + most
        made = self.output.token_ids[max(0, self.length - len(ids)) : max(0, end - len(ids))]
        return np.concatenate([ids[self.length : end], np.array(made, np.int32)])

    def take(self, logits: Row | None, token: int | None = None) -> None:
        """Choose the next token from a row of logits (or take the core's argmax) and note it."""
        if token is None:
            assert logits is not None
            token = self.sampler.choose(logits, self.output.token_ids)
        p, out = self.request.params, self.output
        if out.logprobs is not None and p.logprobs is not None:
            assert logits is not None
            tokenizer = self.request.llm.tokenizer
            found = top_logprobs(self.sampler.runtime, tokenizer, logits, token, p.logprobs)
            out.logprobs.append(found)
            out.cumulative_logprob += found[token].logprob
        metrics = self.request.output.metrics
        if metrics.first_token_time is None:
            metrics.first_token_time = time.perf_counter()
        out.token_ids.append(token)
        self.advanced = True
        self._finish(token)

    def _finish(self, token: int) -> None:
        out, count = self.output, len(self.output.token_ids)
        if token in self.stops and count >= self.request.params.min_tokens:
            explicit = token in (self.request.params.stop_token_ids or ())
            out.finish_reason, out.stop_reason = "stop", token if explicit else None
        else:
            self._show(token)
        if out.finish_reason is None and count >= self.request.limit:
            out.finish_reason = "length"
        if out.finish_reason is not None and self._stream and out.stop_reason is None:
            self._extend(self._stream.finish())

    def _show(self, token: int) -> None:
        """Turn a token into text, and end at a stop string."""
        if not self._stream:
            return
        known = token < self.request.llm.tokenizer.vocab_size
        self._extend(self._stream.push(token) if known else "")

    def _extend(self, text: str) -> None:
        out, p = self.output, self.request.params
        before = len(out.text)
        out.text += text
        if not text or len(out.token_ids) < p.min_tokens:
            return
        hits = []
        for stop in p.stops:
            at = out.text.find(stop, max(0, before - len(stop) + 1))
            if at >= 0:
                hits.append((at, stop))
        if hits:
            at, stop = min(hits, key=lambda hit: hit[0])
            out.text = out.text[: at + len(stop) * p.include_stop_str_in_output]
            out.finish_reason, out.stop_reason = "stop", stop

    def fresh_text(self) -> str:
        """Return text that no later stop string can take back, once."""
        out = self.output
        hold = 0 if self.done else _held_back(out.text, self.request.params.stops)
        end = max(self._shown, len(out.text) - hold)
        piece, self._shown = out.text[self._shown : end], end
        return piece


def _held_back(text: str, stops: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that begins some stop string."""
    longest = 0
    for stop in stops:
        for size in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:size]):
                longest = size
                break
    return longest
