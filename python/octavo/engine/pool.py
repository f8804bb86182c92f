"""The core's cache under one scheme, with what Python must remember beside it.

Sequences that are garbage-collected while the cache is busy cannot be released then; their handles
wait here until the next call.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from octavo import _core
from octavo.errors import BusyError, ClosedError
from octavo.model import LayerShape
from octavo.scheme import KVScheme

if TYPE_CHECKING:
    from .kv import Loan

PAGE_TOKENS = 64


class Pool:
    """Pages of one KV scheme within a budget of bytes.

    Attributes
    ----------
    core : _core.Cache
    scheme : KVScheme
    shapes : tuple of LayerShape
    budget : int
    loans : WeakSet of Loan
        Edits that were begun on its pages.
    """

    def __init__(self, runtime: Any, shapes: Sequence[LayerShape], scheme: KVScheme, budget: int,
                 *, prefix: bool = True) -> None:  # fmt: skip
        self.scheme = scheme
        self.shapes = tuple(shapes)
        self.budget = budget
        # The index is only sound where every page before a query is read sealed.
        self.prefix = prefix and not scheme.sink_pages and not scheme.recent_pages
        self.loans: WeakSet[Loan] = WeakSet()
        self._discarded: list[int] = []
        self.core = _core.Cache(
            runtime, scheme.core_layers(self.shapes), budget=budget,
            sink_pages=scheme.sink_pages, recent_pages=scheme.recent_pages,
            prefix=self.prefix,
        )  # fmt: skip

    def check_idle(self, what: str) -> None:
        """Raise `BusyError` if a page is under edit, `BufferError` if views hold one."""
        if self.core.closed:
            return
        if any(loan.out for loan in self.loans):
            raise BusyError(f"{what}: a page is under edit; nothing was changed")
        if views := self.core.ledger()["pins"]:
            raise BufferError(
                f"{what}: {views} views of pages are alive; delete them first, nothing was changed"
            )

    def close(self) -> None:
        """Free the pages; idempotent. What `check_idle` raises changes nothing."""
        self.check_idle("close")
        self.core.close()

    def discard(self, handle: int) -> None:
        """Release a sequence whatever holds its pages; later, if the cache is busy now."""
        try:
            self.core.release(handle, force=True)
        except BusyError:
            self._discarded.append(handle)
        except ClosedError:
            pass  # the cache or the sequence is gone already

    def sweep(self) -> None:
        """Release what could not be released before."""
        waiting, self._discarded = self._discarded, []
        for handle in waiting:
            self.discard(handle)

    @property
    def page_bytes(self) -> int:
        """Bytes of one sealed page over all layers."""
        return self.core.ledger()["page_bytes"]

    @property
    def token_bytes(self) -> float:
        """Bytes per token of sealed pages, scales included."""
        return self.page_bytes / PAGE_TOKENS
