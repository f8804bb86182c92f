"""The pages of a sequence: to look at (`page`), to change (`edit`), to count (`bytes`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from octavo.errors import ClosedError

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

    The core lends one segment of a page for writing. Using the other one ends the first one's
    loan, with `BufferError` while views of it are left.
    """

    def __init__(self, pool: Pool, handle: int, layer: int, index: int) -> None:
        self.layer, self.index = layer, index
        self._place = (pool, handle, layer, index)
        self._side, self._core, self._ended = "", None, False
        self.k, self.v = EditSegment(self, "k"), EditSegment(self, "v")

    def lend(self, side: str) -> Any:
        """Return the core's writable page of this side."""
        if self._ended:
            raise ClosedError("edit: the block that allowed writing has ended")
        if self._core is None or self._side != side:
            self._give_back()
            pool, *place = self._place
            self._core, self._side = pool.core.edit(*place, side), side
        return self._core

    def close(self) -> None:
        """End the edit; `BufferError` while writable views are left."""
        self._ended = True
        self._give_back()

    def _give_back(self) -> None:
        if self._core is not None:
            self._core.close()
            self._core = None


class EditSegment(Segment):
    """Keys or values of a page under edit: its views may be written."""

    def __init__(self, owner: EditView, side: str) -> None:
        super().__init__(*owner._place, side, owner.lend(side))
        self._owner, self._core = owner, None

    def _page(self) -> Any:
        return self._owner.lend(self._at[3])

    def __repr__(self) -> str:
        return f"<{self._at[3]} of page {self._at[2]} of layer {self._at[1]}, writable>"


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

    Working memory belongs to the process, not to a sequence: ``octavo.memory()["scratch"]``.

    Attributes
    ----------
    sealed, open, tables : int
        Sealed pages (shared ones too), open rows, block tables.
    sealed_pages, open_units : int
        Counts: pages of 64 tokens, units of 16 open rows.
    page_bytes, unit_bytes : int
        One of each, over all layers.
    """

    sealed: int
    open: int
    tables: int
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
        """Sum of the three."""
        return self.sealed + self.open + self.tables

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
