"""What may be passed as a prompt, and as its parameters: vLLM's forms, checked."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .ids import token_ids
from .params import SamplingParams

if TYPE_CHECKING:
    from .llm import LLM

Prompt = tuple[str | None, npt.NDArray[np.int32]]


def prompt_list(llm: "LLM", prompts: Any) -> list[Prompt]:
    """Return (text or None, ids) of each prompt.

    A str, a list of ints or a dict is one prompt; a list of those is several.
    """
    if isinstance(prompts, str | Mapping) or _is_ids(prompts):
        prompts = [prompts]
    if not isinstance(prompts, list | tuple):
        raise TypeError(
            f"generate: prompts must be str, token ids, or a list of them, "
            f"not {type(prompts).__name__}"
        )
    return [_prompt(llm, p) for p in prompts]


def _is_ids(prompts: Any) -> bool:
    if isinstance(prompts, np.ndarray):
        return True
    return isinstance(prompts, list | tuple) and any(
        isinstance(p, int | np.integer | float) for p in prompts
    )


def _prompt(llm: "LLM", prompt: Any) -> Prompt:
    text = None
    if isinstance(prompt, Mapping):
        known = {"prompt", "prompt_token_ids"} & set(prompt)
        if not known:
            keys = ", ".join(map(str, prompt))
            raise ValueError(
                f"generate: a prompt's keys are {keys:.80}; legal: 'prompt' or 'prompt_token_ids'"
            )
        text = prompt.get("prompt")
        prompt = prompt.get("prompt_token_ids", text)
    if isinstance(prompt, str):
        text = prompt
        prompt = llm.tokenizer.encode(prompt, limit=llm.context)
    return text, token_ids("generate", prompt, llm.spec.vocab)


def checked_params(params: Any, count: int) -> list[SamplingParams]:
    """Return one `SamplingParams` per prompt."""
    if params is None:
        params = SamplingParams()
    if isinstance(params, SamplingParams):
        return [params] * count
    if not isinstance(params, list | tuple):
        kind = type(params).__name__
        raise TypeError(f"generate: sampling_params must be SamplingParams or a list, not {kind}")
    if len(params) != count:
        raise ValueError(f"generate: {len(params)} sampling_params for {count} prompts")
    for p in params:
        if not isinstance(p, SamplingParams):
            raise TypeError(f"generate: sampling_params holds a {type(p).__name__}")
    return list(params)


def chat_prompts(tokenizer: Any, messages: Any, variables: dict[str, Any]) -> list[Any]:
    """Render conversations and return them as prompts (text beside ids)."""
    if not isinstance(messages, list | tuple) or not messages:
        raise TypeError("chat: messages must be a list of dicts with 'role' and 'content'")
    chats = [messages] if isinstance(messages[0], Mapping) else messages
    out = []
    for chat in chats:
        text = tokenizer.apply_chat_template(list(chat), **variables)
        ids = tokenizer.encode(text, add_special=False, parse_special=True)
        out.append({"prompt": text, "prompt_token_ids": ids})
    return out
