"""The engine's continuous batching with a clock: requests that arrive, and when their tokens came.

`octavo.LLM.generate` takes all its prompts at once; a trace needs requests that join later. This
drives the same scheduler step by step.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import octavo
from octavo.engine.batch import Batch


@dataclass
class Job:
    """A prompt, how many tokens it wants, and the times (seconds) of what happened to it."""

    ids: list[int]
    new: int
    arrival: float = 0.0
    tokens: list[float] = field(default_factory=list)

    @property
    def first(self) -> float:
        """Seconds from arrival to the first token."""
        return self.tokens[0] - self.arrival

    @property
    def each(self) -> float:
        """Mean seconds of the tokens after the first."""
        return (self.tokens[-1] - self.tokens[0]) / max(1, len(self.tokens) - 1)


class Server:
    """Runs jobs of one LLM; greedy, and to the length they ask for."""

    def __init__(self, llm: Any) -> None:
        self.llm, self._count = llm, 0
        self._batch = Batch(llm._stepper, llm._pool, [])
        self._jobs: dict[int, Job] = {}

    @property
    def busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self._batch.running or self._batch.waiting)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs, in this order."""
        for job in jobs:
            params = octavo.SamplingParams(max_tokens=job.new, temperature=0, ignore_eos=True)
            request = self.llm._requests([job.ids], params)[0]
            only = request.completions[0]
            only.age, self._count = (self._count, 0), self._count + 1
            self._jobs[id(only)] = job
            self._batch.waiting.append(only)

    def step(self, begin: float) -> None:
        """Run one step and note the new tokens' times since `begin`."""
        with self.llm._stepper.use("serve", self.llm._pool):
            moved = self._batch._step()
        now = time.perf_counter() - begin
        for one in moved:
            self._jobs[id(one)].tokens.append(now)


def run(llm: Any, jobs: list[Job], *, alone: bool = False) -> float:
    """Run jobs as they arrive, and return how long all took; `alone` takes one at a time."""
    server, waiting, begin = Server(llm), sorted(jobs, key=lambda j: j.arrival), time.perf_counter()
    while waiting or server.busy:
        now = time.perf_counter() - begin
        due = [j for j in waiting if j.arrival <= now]
        if alone:
            due = [] if server.busy else due[:1]
        waiting = waiting[len(due) :]
        server.submit(due)
        if server.busy:
            server.step(begin)
        else:
            time.sleep(max(0.0, min(0.01, waiting[0].arrival - now)))
    return time.perf_counter() - begin
