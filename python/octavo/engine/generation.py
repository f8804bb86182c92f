"""Text in, text out: `generate`, `stream` and `chat`, with vLLM's names and results."""

from collections.abc import Iterator
from collections.abc import Sequence as SequenceABC
from typing import TYPE_CHECKING, Any

from octavo.errors import NumericalError
from octavo.progress import Bar

from .batch import Batch
from .outputs import RequestOutput
from .params import SamplingParams
from .prompts import chat_prompts, checked_params, prompt_list
from .request import Request

if TYPE_CHECKING:
    from .pool import Pool
    from .stepper import Stepper


class Generation:
    """The part of `LLM` that completes prompts."""

    if TYPE_CHECKING:
        _stepper: Stepper
        _pools: dict[Any, Pool]
        _pool: Pool
        context: int
        spec: Any
        tokenizer: Any

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
            with Bar(len(requests), "generate", "request", shown=use_tqdm) as bar:
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


def _raise_failures(outputs: list[RequestOutput]) -> None:
    """Raise the first request's error, with all results, once everything has finished."""
    failed = [c.error for r in outputs for c in r.outputs if c.error is not None]
    if failed:
        error = NumericalError(
            f"{failed[0]} ({len(failed)} completions failed, the others are in .outputs)"
        )
        error.outputs = outputs  # type: ignore[attr-defined]
        raise error from failed[0]
