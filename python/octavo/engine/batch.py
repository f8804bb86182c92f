"""Continuous batching: which rows go into the next step, and who waits when pages are short.

Completions join when their pages are free and leave when they are done. Every step mixes one row of
each decoding completion with chunks of prompts, up to `max_rows`. Laws one and two make each output
equal to its solo run bit for bit, so everything here is free to choose.

Progress: the oldest running completion always fits, since all younger ones can be preempted and a
request that cannot fit alone was refused at the door. A preempted completion comes back only when
its whole history fits, at most one such at a time, and goes first until it advanced: so it is not
preempted again before.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from octavo.errors import NumericalError, OutOfPages

from .pool import PAGE_TOKENS, Pool
from .request import Completion, Request
from .stepper import Stepper

SCORE_ROWS = 32  # rows of one step whose logits are kept for prompt_logprobs

Rows = tuple[Completion, np.ndarray, int]  # who, tokens, first wanted row


class Batch:
    """Runs requests to their end.

    Parameters
    ----------
    stepper : Stepper
    pool : Pool
    requests : list of Request
    """

    def __init__(self, stepper: Stepper, pool: Pool, requests: list[Request]) -> None:
        self.stepper, self.pool, self.core = stepper, pool, pool.core
        self._cap = stepper.max_rows
        self.running: list[Completion] = []
        # A request enters by its first completion; the others fork from it after its prefill.
        self.waiting: deque[Completion] = deque(r.completions[0] for r in requests)
        for r in requests:
            self._refuse_hopeless(r)

    def _refuse_hopeless(self, r: Request) -> None:
        """Refuse what can never fit; a completion without `max_tokens` goes as far as pages do."""
        available = self.core.needs([], [])[1]
        if r.params.max_tokens is None:
            sizes = range(len(r.ids), len(r.ids) + r.limit + 1)
            fitting = bisect_right(sizes, available, key=self.core.bytes_for)
            r.limit = max(1, fitting - 1)
        total = len(r.ids) + r.limit
        needed = self.core.bytes_for(total)
        if needed > available:
            page = self.pool.page_bytes
            raise OutOfPages(
                f"generate: request {r.output.request_id} may grow to {total} tokens "
                f"({len(r.ids)} of prompt + max_tokens), which need {needed:,} bytes = "
                f"{-(-needed // page)} pages in KV scheme {str(self.pool.scheme)!r}; "
                f"{available:,} bytes = {available // page} pages are available. Use a smaller "
                "max_tokens, a smaller scheme (kv=), or more memory=. Nothing was changed.",
                needed, available, 0,
            )  # fmt: skip

    # ---- the loop ------------------------------------------------------------------------

    def run(self) -> Iterator[list[Completion]]:
        """Step until all is done; yields the completions that advanced after each step."""
        try:
            while self.running or self.waiting:
                yield self._step()
        finally:
            self.close()

    def close(self) -> None:
        """Give back the pages of everything that still runs."""
        for c in self.running:
            self._let_go(c)
        self.running.clear()
        self.waiting.clear()

    def _step(self) -> list[Completion]:
        self._admit()
        self._cap = self.stepper.max_rows
        while True:
            rows = self._rows()
            try:
                out = self._run(rows)
                break
            except OutOfPages as error:
                self._make_way(rows, error)
        return self._harvest(rows, out)

    # ---- choosing rows -------------------------------------------------------------------

    def _rows(self) -> list[Rows]:
        """Pick the rows of a step: first the head's, then one per decoding completion, then chunks.

        The head is who came back after a preemption, else the oldest.
        """
        order = sorted(self.running, key=lambda c: (c.advanced, c.age))
        left, rows = self._cap, []
        # Decoding rows before chunks: they cost one row each and keep everybody's stream alive.
        for c in sorted(order, key=lambda c: (c is not order[0], c.target - c.length > 1)):
            if not left:
                break
            most = min(left, SCORE_ROWS) if c.request.scoring else left
            chunk = c.rest(most)
            ends = c.length + len(chunk) == c.target
            first = 0 if c.request.scoring else len(chunk) - ends
            rows.append((c, chunk, first))
            left -= len(chunk)
        return rows

    def _run(self, rows: list[Rows]) -> dict[str, Any]:
        plain = all(c.request.params.plain and not c.request.scoring for c, _, _ in rows)
        items = [(c.handle, chunk, first) for c, chunk, first in rows]
        quiet = any(c.request.params.prompt_logprobs is not None for c, _, _ in rows)
        numbers = [c.number for c, _, _ in rows]
        return self.stepper.step(
            self.pool, items, numbers, logits=not plain, argmax=plain, quiet=quiet
        )

    def _account(self, rows: list[Rows], out: dict[str, Any]) -> None:
        """Note the step's cost on each request once, however many completions took part."""
        fed: dict[Request, int] = {}
        for c, chunk, _ in rows:
            fed[c.request] = fed.get(c.request, 0) + len(chunk)
        for request, tokens in fed.items():
            metrics = request.output.metrics
            metrics.add_step(out, tokens, metrics.first_token_time is not None)

    def _harvest(self, rows: list[Rows], out: dict[str, Any]) -> list[Completion]:
        moved = []
        self._account(rows, out)
        for i, (c, chunk, first) in enumerate(rows):
            if not out["ok"][i]:
                self._fail(c)
                moved.append(c)
                continue
            start, c.length = c.length, c.length + len(chunk)
            if c.request.scoring:
                c.request.score(out["logits"][i], start)
                if c.length < c.target:
                    continue
            elif first == len(chunk):
                continue
            if "logits" in out:
                moved += self._advance(c, out["logits"][i][-1], None)
            else:
                moved += self._advance(c, None, int(out["argmax"][i][-1]))
        return moved

    def _advance(self, c: Completion, logits: Any, token: int | None) -> list[Completion]:
        """Give a completion its next token, and its siblings their first from the same logits."""
        moved = [c]
        if c.index == 0 and not c.output.token_ids:
            moved += self._fork_siblings(c)
        for one in moved:
            try:
                one.take(logits, token)
            except NumericalError as error:
                self._fail(one, error)
            if one.done:
                self._retire(one)
        return moved

    def _fork_siblings(self, c: Completion) -> list[Completion]:
        siblings = c.request.completions[1:]
        for sibling in siblings:
            try:
                sibling.handle = self.core.fork(c.handle)
            except OutOfPages:  # it prefills by itself when there is room
                sibling.preempted = True
                self._enqueue(sibling)
                continue
            sibling.length = c.length
            self.running.append(sibling)
        return siblings

    # ---- ends ----------------------------------------------------------------------------

    def _fail(self, c: Completion, error: NumericalError | None = None) -> None:
        if error is None:
            error = NumericalError(
                f"generate: request {c.request.output.request_id}: keys, values or logits are not "
                f"finite at token {c.length} or after"
            )
        everyone = c.request.completions if not c.output.token_ids and c.index == 0 else [c]
        for one in everyone:
            if not one.done:
                one.output.finish_reason, one.output.error = "error", error
                self._retire(one)

    def _retire(self, c: Completion) -> None:
        self._let_go(c)
        if c in self.running:
            self.running.remove(c)
        if c in self.waiting:
            self.waiting.remove(c)
        c.request.close()

    def _let_go(self, c: Completion) -> None:
        if c.handle is not None:
            self.pool.discard(c.handle)
            c.handle, c.length = None, 0

    # ---- admission and preemption --------------------------------------------------------

    def _admit(self) -> None:
        """Open sequences for waiting completions while pages, and rows of a step, are free."""
        while self.waiting and len(self.running) < self.stepper.max_rows:
            c = self.waiting[0]
            returning = any(not r.advanced for r in self.running)
            if self.running and ((c.preempted and returning) or not self._has_room(c)):
                return
            self.waiting.popleft()
            self._open(c)

    def _has_room(self, c: Completion) -> bool:
        """Whether its whole history fits beside one more page for everybody who runs."""
        counts = [max(r.target - r.length, 0) + PAGE_TOKENS for r in self.running]
        needed, available = self.core.needs([r.handle for r in self.running], counts)
        own = min(c.target + PAGE_TOKENS, len(c.request.ids) + c.request.limit)
        return needed + self.core.bytes_for(own) <= available

    def _open(self, c: Completion) -> None:
        c.handle = self.core.open()
        self.running.append(c)
        c.advanced = not c.preempted
        if self.pool.prefix and not c.request.scoring and not self.stepper.watched:
            c.length = self.core.match(c.handle, c.rest(c.target))
            c.request.output.num_cached_tokens = max(
                c.request.output.num_cached_tokens, min(c.length, len(c.request.ids))
            )

    def _make_way(self, rows: list[Rows], error: OutOfPages) -> None:
        """Free pages for the head of `rows`, or ask for fewer rows at once."""
        head, chunk, _ = rows[0]
        victims = [c for c in self.running if c is not head]
        if victims:
            self._preempt(max(victims, key=lambda c: c.age))
        elif len(chunk) > 1:  # a chunk holds its rows twice, open and sealed, until its step ends
            self._cap = len(chunk) // 2
        else:
            raise error

    def _preempt(self, c: Completion) -> None:
        """Give a completion's pages back; it is recomputed when there is room."""
        self.running.remove(c)
        self._let_go(c)
        c.preempted = True
        c.request.output.num_preemptions += 1
        self._enqueue(c)

    def _enqueue(self, c: Completion) -> None:
        """Put a completion back into the queue, by age."""
        self.waiting.append(c)
        self.waiting = deque(sorted(self.waiting, key=lambda c: c.age))
