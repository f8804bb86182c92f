"""What `generate` returns, with vLLM's names, so that code and eyes find what they know."""

from dataclasses import dataclass, field
from typing import NamedTuple

from octavo.errors import NumericalError

from .cost import RequestMetrics


class Logprob(NamedTuple):
    """Log-probability of one candidate; `rank` is 1 for the most probable."""

    logprob: float
    rank: int
    decoded_token: str


@dataclass
class CompletionOutput:
    """One completion of a prompt.

    Attributes
    ----------
    index : int
        Which of the request's `n` it is.
    text : str
    token_ids : list of int
        Generated ids; an id that ended the generation is the last one.
    cumulative_logprob : float or None
        Sum of the sampled tokens' log-probabilities, where `logprobs` was asked for.
    logprobs : list of dict of int to Logprob, or None
        Per token: the most probable ones and the sampled one, from the model's own logits, before
        temperature, penalties and processors.
    finish_reason : str or None
        "stop", "length", or "error"; None while it runs.
    stop_reason : int, str or None
        The stop id or string that ended it (None for an end-of-text id).
    error : NumericalError or None
        Why it failed, where `finish_reason` is "error".
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    error: NumericalError | None = None

    def finished(self) -> bool:
        """Tell whether it ended."""
        return self.finish_reason is not None


@dataclass
class RequestOutput:
    """A prompt and its completions.

    Attributes
    ----------
    request_id : str
    prompt : str or None
        The text, where the prompt was one.
    prompt_token_ids : list of int
    prompt_logprobs : list of (dict of int to Logprob, or None), or None
        Per prompt token; the first is None, since nothing precedes it.
    outputs : list of CompletionOutput
    finished : bool
    num_cached_tokens : int
        Prompt tokens whose pages came from the prefix index.
    num_preemptions : int
        How often its pages were given back and computed again.
    metrics : RequestMetrics
        When its first token came, and time, bytes and operations of its prefill and decode.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    outputs: list[CompletionOutput] = field(default_factory=list)
    finished: bool = False
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    metrics: RequestMetrics = field(default_factory=RequestMetrics)

    def _repr_html_(self) -> str:
        from .repr import request_html

        return request_html(self)
