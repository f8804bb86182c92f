"""The pages of a sequence: to look at (`page`), to change (`edit`), to count (`bytes`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from octavo.errors import ClosedError

from .ends import close_at_exit
from .pages import Holder, PageView, Segment, Segments, open_page
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
            return open_page(s, *self._checked(layer, index))

    def _checked(self, layer: int, index: int) -> tuple[int, int]:
        return checked_place(layer, index, self.layers, len(self))

    @contextmanager
    def edit(self, layer: int, index: int) -> "Iterator[EditView]":
        """Open one sealed page for writing; a context manager.

        Inside, ``page.k.codes`` and the other views may be written, of one segment at a time.
        If other sequences share the page it is copied first. Drop the views before the block ends.
        From then on the sequence is marked as edited, and its pages never enter the prefix index.

        Until the edit ends, every call that reaches the pages of this sequence raises `BusyError`,
        looking at another page included, and so does `LLM.close`. All else goes on: other
        sequences, `generate`, `stream`. (Where another thread runs a step just then, asking
        ``page`` for a view raises `BusyError` too, and may be tried again; writing through a view
        does not.) The edit ends with the block, or, if views are still held there, with the last.

        Raises
        ------
        ValueError
            If the page is still open.
        BufferError
            If views of the page exist already, or at the end of the block, if views are still held
            (a `ResourceWarning` where another exception leaves the block).
        """
        s = self._sequence
        with s._use("kv.edit"):
            s._settle("kv.edit")
            view = EditView(s, *self._checked(layer, index))
            s.edited = True
            s._logits = None
        with lent(view):
            yield view

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


class Loan:
    """The core's writable page while a block may write it: one segment of it at a time.

    What lends and what uses the loan refer to it, and it to neither, so that all of them go with
    their last name and nothing waits for the garbage collector.
    """

    def __init__(self, sequence: Holder, layer: int, index: int) -> None:
        self.place = (sequence, layer, index)
        self._side, self._core, self._ended = "", None, False
        sequence._pool.loans.add(self)

    @property
    def out(self) -> bool:
        """Whether it keeps the page under edit (views may do so without it)."""
        return self._core is not None

    def check_open(self) -> None:
        """Raise `ClosedError` once the block has ended."""
        if self._ended:
            raise ClosedError("edit: the block that allowed writing has ended")

    def page(self, side: str) -> Any:
        """Return the core's writable page of this side."""
        self.check_open()
        if self._core is None or self._side != side:
            if self._core is not None:
                self._core.close()
                self._core = None
            s, *place = self.place
            self._core, self._side = s._pool.core.edit(s._handle, *place, side), side
        return self._core

    def end(self) -> None:
        """End the edit; `BufferError` while writable views are left, whose last one then ends it.

        No name but theirs holds the core's page after this, in no frame of a traceback either.
        """
        self._ended = True
        try:
            if self._core is not None:
                self._core.close()
        except BufferError:
            raise BufferError(
                "edit: views are still held at the end of the block; the sequence is busy until "
                "the last of them is deleted"
            ) from None
        finally:
            self._core = None


class EditView(Segments):
    """One sealed page, writable, one segment at a time.

    The core lends one segment of a page for writing. Using the other one ends the first one's
    loan, with `BufferError` while views of it are left.
    """

    def __init__(self, sequence: Holder, layer: int, index: int) -> None:
        self.layer, self.index = layer, index
        self._loan = Loan(sequence, layer, index)
        names = sequence._pool.shapes[layer].segments
        self.segments = {name: EditSegment(self._loan, name) for name in names}

    def close(self) -> None:
        """End the edit; `BufferError` while writable views are left: it ends with the last."""
        self._loan.end()


class EditSegment(Segment):
    """A segment of a page under edit: its views may be written."""

    def __init__(self, loan: Loan, side: str) -> None:
        super().__init__(*loan.place, side, loan.page(side))
        self._loan, self._core = loan, None

    def _page(self) -> Any:
        return self._loan.page(self._at[2])

    def _rows_now(self) -> int:
        self._loan.check_open()
        return PAGE_TOKENS

    def __repr__(self) -> str:
        return f"<{self._at[2]} of page {self._at[1]} of layer {self._at[0]}, writable>"


@contextmanager
def lent(view: EditView) -> Iterator[None]:
    """End an edit with the block; the block's own exception goes before a `BufferError`."""
    try:
        yield
    except BaseException as error:
        close_at_exit(view, type(error))
        raise
    view.close()


@contextmanager
def edit_page(sequence: Holder, layer: int, index: int) -> Iterator[EditView]:
    """Hold one page for writing."""
    view = EditView(sequence, layer, index)
    with lent(view):
        yield view


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
