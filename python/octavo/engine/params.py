"""`SamplingParams`: vLLM's names, defaults and limits, every value checked when it is made."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

GREEDY_BELOW = 1e-5  # vLLM's threshold: smaller temperatures are greedy
MAX_LOGPROBS = 1 << 17
MAX_STOP = 1 << 17


def _integer(name: str, value: Any, least: int, most: int, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"SamplingParams: {name} must be an int, not {type(value).__name__}")
    if not least <= value <= most:
        raise ValueError(f"SamplingParams: {name} is {value}; legal: {least} to {most}")


def _number(name: str, value: Any, least: float, most: float, open_low: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"SamplingParams: {name} must be a number, not {type(value).__name__}")
    good = math.isfinite(value) and (least < value if open_low else least <= value)
    if not (good and value <= most):
        above = "above " if open_low else ""
        raise ValueError(f"SamplingParams: {name} is {value}; legal: {above}{least:g} to {most:g}")


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen.

    Parameters
    ----------
    n : int
        Completions per prompt; they share the prompt's pages. Greedy sampling allows 1.
    temperature : float
        0 (or below 1e-5) takes the most probable token.
    top_p, top_k, min_p
        Cut-offs in the order top_k, top_p, min_p. Off: 1.0, 0 (or -1), 0.0. ``top_p=0`` is greedy.
    presence_penalty, frequency_penalty : float
        -2 to 2; over generated tokens.
    repetition_penalty : float
        Above 0; over prompt and generated tokens.
    seed : int, optional
        The uniforms are a function of (seed, index of the completion, position) alone. None: a
        fresh seed per request.
    stop : str or list of str, optional
        Text that ends a completion; left out unless `include_stop_str_in_output`.
    stop_token_ids : list of int, optional
    ignore_eos : bool
        Go on after an end-of-text id.
    max_tokens : int or None
        None: up to the context's end.
    min_tokens : int
        No end-of-text or stop id before so many tokens.
    logprobs, prompt_logprobs : int, optional
        Most probable tokens to report per position; -1: the whole vocabulary.
    logit_bias : Mapping of int to float, optional
        Added to logits, -100 to 100.
    logits_processors : list of callables, optional
        ``f(token_ids, logits)`` with the generated ids (list of int) and float32 logits [vocab]
        after bias and penalties; returns logits. An exception ends the call, the model stays
        usable.
    skip_special_tokens, include_stop_str_in_output : bool
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: Mapping[int, float] | None = None
    logits_processors: list[Callable[..., Any]] | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    stops: tuple[str, ...] = field(init=False, repr=False, default=())

    def __post_init__(self) -> None:
        _number("temperature", self.temperature, 0.0, 1e6)
        _number("top_p", self.top_p, 0.0, 1.0)
        _number("min_p", self.min_p, 0.0, 1.0)
        _integer("top_k", self.top_k, -1, 1 << 31)
        for name in ("presence_penalty", "frequency_penalty"):
            _number(name, getattr(self, name), -2.0, 2.0)
        _number("repetition_penalty", self.repetition_penalty, 0.0, 1e6, open_low=True)
        _integer("seed", self.seed, 0, (1 << 64) - 1, optional=True)
        _integer("n", self.n, 1, 1 << 16)
        _integer("max_tokens", self.max_tokens, 1, 1 << 63, optional=True)
        _integer("min_tokens", self.min_tokens, 0, 1 << 63)
        for name in ("logprobs", "prompt_logprobs"):
            _integer(name, getattr(self, name), -1, MAX_LOGPROBS, optional=True)
        for name in ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output"):
            if not isinstance(getattr(self, name), bool):
                kind = type(getattr(self, name)).__name__
                raise TypeError(f"SamplingParams: {name} must be True or False, not {kind}")
        self._check_together()
        object.__setattr__(self, "stops", _stop_strings(self.stop))
        _check_ids("stop_token_ids", self.stop_token_ids)
        _check_bias(self.logit_bias)
        for f in self.logits_processors or ():
            if not callable(f):
                kind = type(f).__name__
                raise TypeError(f"SamplingParams: a logits processor must be callable, not {kind}")

    def _check_together(self) -> None:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(
                f"SamplingParams: min_tokens is {self.min_tokens}; legal: at most max_tokens = "
                f"{self.max_tokens}"
            )
        if self.greedy and self.n > 1:
            raise ValueError(
                f"SamplingParams: n is {self.n}; legal: 1 with greedy sampling, where all "
                "completions are the same (raise the temperature)"
            )

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is taken, whatever the uniform."""
        return self.temperature < GREEDY_BELOW or self.top_p == 0 or self.top_k == 1

    @property
    def plain(self) -> bool:
        """Whether the model's own argmax decides, so that no logits need to leave the core."""
        untouched = self.presence_penalty == self.frequency_penalty == 0.0
        untouched = untouched and self.repetition_penalty == 1.0 and not self.min_tokens
        return (
            self.greedy
            and untouched
            and self.logprobs is None
            and not (self.logit_bias or self.logits_processors)
        )

    def __repr__(self) -> str:
        shown = [f for f in fields(self) if f.init and getattr(self, f.name) != f.default]
        return f"SamplingParams({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in shown)})"


def _stop_strings(stop: Any) -> tuple[str, ...]:
    if stop is None:
        return ()
    texts = [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list | tuple) or not all(isinstance(s, str) for s in texts):
        raise TypeError("SamplingParams: stop must be a str or a list of str")
    if not all(texts):
        raise ValueError("SamplingParams: stop holds an empty string; legal: one character or more")
    if len(texts) > MAX_STOP:
        raise ValueError(f"SamplingParams: {len(texts)} stop strings; legal: at most {MAX_STOP}")
    return tuple(dict.fromkeys(texts))


def _check_ids(name: str, ids: Any) -> None:
    if ids is None:
        return
    if not isinstance(ids, list | tuple | set | frozenset):
        raise TypeError(f"SamplingParams: {name} must be a list of int, not {type(ids).__name__}")
    for i in ids:
        _integer(f"{name} entry", i, 0, (1 << 31) - 1)


def _check_bias(bias: Any) -> None:
    if bias is None:
        return
    if not isinstance(bias, Mapping):
        kind = type(bias).__name__
        raise TypeError(f"SamplingParams: logit_bias must map id to number, not {kind}")
    for key, value in bias.items():
        _integer("logit_bias id", key, 0, (1 << 31) - 1)
        _number(f"logit_bias of id {key}", value, -100.0, 100.0)
