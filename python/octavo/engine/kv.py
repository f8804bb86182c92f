"""The pages of a sequence: to look at (`page`), to change (`edit`), to count (`bytes`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .pages import PageView, Segment, open_page
from .pool import PAGE_TOKENS, Pool

if TYPE_CHECKING:
    from .sequence import Sequence


class KVView:
    """The pages of one sequence (`Sequence.kv`)."""

    def __init__(self, sequence: "Sequence") -> None:
        self._sequence = sequence

    def __len__(self) -> int:
        """Pages per layer, the open one included."""
        return -(-len(self._sequence) // PAGE_TOKENS)

    @property
    def layers(self) -> int:
        """Layers that hold keys and values."""
        return len(self._sequence._pool.shapes)

    def page(self, layer: int, index: int) -> PageView:
        """Return one page.

        Parameters
        ----------
        layer, index : int
            Negative ones count from the last.

        Raises
        ------
        IndexError
            If there is no such layer or page.
        """
        s = self._sequence
        with s._use("kv.page"):
            s._settle("kv.page")
            return open_page(s._pool, s._handle, *self._checked(layer, index))

    def _checked(self, layer: int, index: int) -> tuple[int, int]:
        return checked_place(layer, index, self.layers, len(self))

    @contextmanager
    def edit(self, layer: int, index: int) -> "Iterator[EditView]":
        """Open one sealed page for writing; a context manager.

        Inside, ``page.k.codes`` and the other views may be written, of `k` and `v` one at a time;
        nothing else may use the LLM. If other sequences share the page it is copied first. Drop
        the views before the block ends. From then on the sequence is marked as edited, and its
        pages never enter the prefix index.

        Raises
        ------
        ValueError
            If the page is still open.
        BufferError
            If views of the page exist already, or at the end of the block, if views are still held.
        """
        s = self._sequence
        with s._use("kv.edit"):
            s._settle("kv.edit")
            layer, index = self._checked(layer, index)
            with edit_page(s._pool, s._handle, layer, index) as page:
                s.edited = True
                s._logits = None
                yield page

    def bytes(self) -> "Ledger":
        """Return what this sequence's pages take, in bytes."""
        s = self._sequence
        with s._use("kv.bytes"):
            return Ledger.of(s._pool, s._handle)

    def __repr__(self) -> str:
        return f"<{len(self)} pages x {self.layers} layers in {self._sequence.scheme}>"


def checked_place(layer: int, index: int, layers: int, pages: int) -> tuple[int, int]:
    """Return a layer and a page index counted from the front, or `IndexError`."""
    out = []
    for what, value, count in (("layer", layer, layers), ("page", index, pages)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise TypeError(f"{what} must be an int, not {type(value).__name__}")
        if not -count <= value < count:
            raise IndexError(f"there is no {what} {value}; legal: 0 to {count - 1} of {count}")
        out.append(int(value) % count)
    return out[0], out[1]


class EditView:
    """One sealed page, writable: `k` and `v`, one of them at a time.

    Looking at the other segment ends the first one's edit; `BufferError` if views of it are left.
    """

    def __init__(self, pool: Pool, handle: int, layer: int, index: int) -> None:
        self.layer, self.index = layer, index
        self._pool, self._handle = pool, handle
        self._side, self._open = "", None
        self._segment("k")

    @property
    def k(self) -> Segment:
        """Keys, writable."""
        return self._segment("k")

    @property
    def v(self) -> Segment:
        """Values, writable."""
        return self._segment("v")

    def _segment(self, side: str) -> Segment:
        if self._side != side:
            self.close()
            place = (self._handle, self.layer, self.index, side)
            self._open = Segment(self._pool, *place, self._pool.core.edit(*place))
            self._side = side
        assert self._open is not None
        return self._open

    def close(self) -> None:
        """End the edit; `BufferError` while writable views are left."""
        if self._open is not None:
            self._open.close()
            self._open, self._side = None, ""


@contextmanager
def edit_page(pool: Pool, handle: int, layer: int, index: int) -> Iterator[EditView]:
    """Hold one page for writing."""
    view = EditView(pool, handle, layer, index)
    try:
        yield view
    finally:
        view.close()


@dataclass(frozen=True)
class Ledger:
    """Bytes of a sequence, or of a whole cache.

    Attributes
    ----------
    sealed, open, tables, scratch : int
        Sealed pages (shared ones too), open rows, block tables, working memory.
    sealed_pages, open_units : int
        Counts: pages of 64 tokens, units of 16 open rows.
    page_bytes, unit_bytes : int
        One of each, over all layers.
    """

    sealed: int
    open: int
    tables: int
    scratch: int
    sealed_pages: int
    open_units: int
    page_bytes: int
    unit_bytes: int

    @classmethod
    def of(cls, pool: Pool, handle: int | None = None) -> "Ledger":
        """Read the core's ledger of a sequence, or of the whole cache."""
        found = pool.core.ledger(handle) if handle is not None else pool.core.ledger()
        return cls(**{name: int(found[name]) for name in cls.__dataclass_fields__})

    @property
    def total(self) -> int:
        """Sum of the four."""
        return self.sealed + self.open + self.tables + self.scratch

    @property
    def sealed_token_bytes(self) -> float:
        """Bytes per token of sealed pages, scales included."""
        return self.page_bytes / PAGE_TOKENS

    @property
    def open_token_bytes(self) -> float:
        """Bytes per token of open rows."""
        return self.unit_bytes / 16

    def _repr_html_(self) -> str:
        from .repr import ledger_html

        return ledger_html(self)
