"""From one row of logits to one token: bias, penalties, processors, then the core's sampler.

All on float32 logits in a fixed order, so a completion is a function of (logits, parameters, seed,
index, position) alone, whatever batch it ran in. Log-probabilities are of the untouched logits.
"""

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo import _core
from octavo.errors import NumericalError

from .outputs import Logprob
from .params import SamplingParams

Row = npt.NDArray[np.float32]


class Sampler:
    """Chooses the tokens of one completion.

    Parameters
    ----------
    params : SamplingParams
    runtime : _core.Runtime
    prompt : numpy.ndarray of int32
        For the repetition penalty.
    index : int
        Which completion of the request; numbers its stream of uniforms.
    seed : int
        See `seed_of`.
    banned_early : array of int
        Ids that may not come before `min_tokens`.
    """

    def __init__(self, params: SamplingParams, runtime: Any, prompt: npt.NDArray[np.int32],
                 index: int, seed: int, banned_early: list[int]) -> None:  # fmt: skip
        self.params, self.runtime = params, runtime
        self.index, self.seed = index, seed
        self.banned = np.array(sorted(banned_early), dtype=np.int64)
        self.prompt = prompt
        bias = params.logit_bias or {}
        self.bias_ids = np.fromiter(bias.keys(), np.int64, len(bias))
        self.bias = np.fromiter(bias.values(), np.float32, len(bias))
        self._counts: npt.NDArray[np.int32] | None = None
        self._seen: npt.NDArray[np.bool_] | None = None

    def choose(self, logits: Row, generated: list[int]) -> int:
        """Return the next id.

        Parameters
        ----------
        logits : numpy.ndarray of float32, shape (vocab,)
            Not changed.
        generated : list of int
            Ids chosen so far.

        Raises
        ------
        NumericalError
            If no finite logit is left to choose from.
        """
        p = self.params
        row = self._adjusted(logits, generated)
        if p.greedy:
            token = int(self.runtime.argmax(row[None])[0])
        else:
            u = np.array([_core.uniform(self.seed, self.index, len(generated))])
            token = int(self.runtime.sample(
                row[None], u, temperature=p.temperature, top_k=max(0, min(p.top_k, len(row))),
                top_p=p.top_p, min_p=p.min_p,
            )[0])  # fmt: skip
        if token < 0 or np.isneginf(row[token]):
            raise NumericalError(
                f"sampling token {len(generated)}: no finite logit is left to choose from"
            )
        return token

    def _adjusted(self, logits: Row, generated: list[int]) -> Row:
        p = self.params
        row = logits.copy()
        if len(self.bias_ids):
            row[self.bias_ids] += self.bias
        if len(generated) < p.min_tokens:
            row[self.banned] = -np.inf
        self._penalize(row, generated)
        for f in p.logits_processors or ():
            row = _checked_row(f(list(generated), row), len(logits))
        return row

    def _penalize(self, row: Row, generated: list[int]) -> None:
        p = self.params
        if p.repetition_penalty == 1.0 and p.presence_penalty == p.frequency_penalty == 0.0:
            return
        counts, seen = self._history(len(row), generated)
        if p.repetition_penalty != 1.0:
            factor = np.float32(p.repetition_penalty)
            hit = row[seen]
            row[seen] = np.where(hit > 0, hit / factor, hit * factor)
        row -= np.float32(p.frequency_penalty) * counts
        row -= np.float32(p.presence_penalty) * (counts > 0)

    def _history(self, vocab: int, generated: list[int]) -> Any:
        """Counts of generated ids, and which ids were seen at all; kept from call to call."""
        if self._counts is None or self._seen is None:
            self._counts = np.zeros(vocab, np.int32)
            self._seen = np.zeros(vocab, np.bool_)
            self._seen[self.prompt] = True
            self._done = 0
        for token in generated[self._done :]:
            self._counts[token] += 1
            self._seen[token] = True
        self._done = len(generated)
        return self._counts, self._seen


def _checked_row(row: Any, vocab: int) -> Row:
    if not isinstance(row, np.ndarray) or row.shape != (vocab,):
        what = f"shape {list(row.shape)}" if isinstance(row, np.ndarray) else type(row).__name__
        raise TypeError(f"a logits processor returned {what}; legal: a float array of [{vocab}]")
    if row.dtype.kind != "f":
        raise TypeError(f"a logits processor returned dtype {row.dtype}; legal: float32")
    return np.ascontiguousarray(row, dtype=np.float32)


def seed_of(params: SamplingParams) -> int:
    """Return the request's seed, drawing a fresh one where none was given."""
    return int.from_bytes(os.urandom(8), "little") if params.seed is None else params.seed


def top_logprobs(
    runtime: Any, tokenizer: Any, logits: Row, chosen: int, count: int
) -> dict[int, Logprob]:
    """Return the `count` most probable ids of a row and the chosen one, most probable first.

    Parameters
    ----------
    logits : numpy.ndarray of float32, shape (vocab,)
    count : int
        -1: the whole vocabulary.
    """
    count = len(logits) if count < 0 else min(count, len(logits))
    lse = float(runtime.lse(logits[None])[0])
    ids: list[int] = []
    if count:
        ids = runtime.topk(logits[None], count)[0][0].tolist()
    values = {i: float(logits[i]) - lse for i in ids}
    return ranked(tokenizer, values, chosen, float(logits[chosen]) - lse, _rank(logits, chosen))


def _rank(logits: Row, chosen: int) -> int:
    return int(np.count_nonzero(logits > logits[chosen])) + 1


def ranked(
    tokenizer: Any, values: dict[int, float], chosen: int, logprob: float, rank: int
) -> dict[int, Logprob]:
    """Make the dict that outputs hold from the top ids' log-probabilities, in order."""
    out = {
        i: Logprob(value, at, piece(tokenizer, i))
        for at, (i, value) in enumerate(values.items(), 1)
    }
    out[chosen] = Logprob(logprob, rank, piece(tokenizer, chosen))
    return out


def piece(tokenizer: Any, token: int) -> str:
    """Return one token as text; ids that the tokenizer does not know are empty."""
    if tokenizer is None or token >= tokenizer.vocab_size:
        return ""
    return tokenizer.decode([token], continuation=True)
