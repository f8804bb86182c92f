"""The pages of a sequence, as NumPy sees them: codes, scales, zeros, and what attention reads.

A sealed page is viewed without a copy, read-only, and stays pinned while a view of it lives. Rows
of an open page move with every step, so they are only decoded, as copies. `edit` gives one page's
codes for writing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from octavo.errors import UnsupportedError

from .pool import PAGE_TOKENS, Pool

if TYPE_CHECKING:
    from .sequence import Sequence

# How the core's element types look in NumPy.
_VIEWS = {
    "bf16": np.dtype(ml_dtypes.bfloat16), "f16": np.dtype(np.float16),
    "f32": np.dtype(np.float32), "e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "e8m0": np.dtype(getattr(ml_dtypes, "float8_e8m0fnu", np.uint8)),
    "u8": np.dtype(np.uint8), "i8": np.dtype(np.int8),
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """How stored bytes become the logical array [rows, cols] of one head.

    Memory holds `shape` elements in C order. With ``split > 1`` each byte holds that many codes,
    low bits first, and unpacking inserts an axis of that length at `split_axis`. Then `axes`
    permutes, neighbours merge into (rows, cols), and a logical code is stored + `bias`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    split: int
    split_axis: int
    axes: tuple[int, ...]
    rows: int
    cols: int
    bias: int

    @classmethod
    def of(cls, part: dict[str, Any]) -> "Layout":
        """Make it from the core's description of a part."""
        ndim = len(part["shape"]) + (part["split"] > 1)
        names = ("name", "dtype", "split", "split_axis", "rows", "cols", "bias")
        return cls(
            shape=tuple(part["shape"]), axes=tuple(part["axes"])[:ndim],
            **{name: part[name] for name in names},
        )  # fmt: skip

    def logical(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return [heads, rows, cols] of stored elements [heads, *shape]: a view where possible."""
        axes = (0, *(1 + a for a in self.axes))
        return stored.transpose(axes).reshape(len(stored), self.rows, self.cols)

    def unpack(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return logical codes [heads, rows, cols] of packed bytes [heads, *shape], a copy."""
        if self.split == 1:
            out = self.logical(stored)
            return out.copy() if not self.bias else _biased(out, self.bias)
        bits = 8 // self.split
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        at = 1 + self.split_axis
        fields = np.expand_dims(stored, at)
        shifts = shifts.reshape([-1] + [1] * (fields.ndim - at - 1))
        out = self.logical((fields >> shifts) & np.uint8((1 << bits) - 1))
        return _biased(out, self.bias) if self.bias else np.ascontiguousarray(out)

    def pack(self, codes: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return what `unpack` undoes: bytes [heads, *shape] of logical codes, a copy."""
        stored = np.asarray(codes).astype(np.int16) - self.bias
        most = (1 << (8 // self.split)) - 1
        if stored.min(initial=0) < 0 or stored.max(initial=0) > most:
            raise ValueError(f"pack: codes reach {stored.min()} to {stored.max()} stored; "
                             f"legal: 0 to {most} after taking {self.bias} off")  # fmt: skip
        full = list(self.shape)
        if self.split > 1:
            full.insert(self.split_axis, self.split)
        permuted = [full[a] for a in self.axes]
        axes = np.argsort((0, *(1 + a for a in self.axes)))
        out = stored.astype(np.uint8).reshape(len(stored), *permuted).transpose(axes)
        if self.split == 1:
            return np.ascontiguousarray(out)
        at, bits = 1 + self.split_axis, 8 // self.split
        shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape([-1] + [1] * (out.ndim - at - 1))
        return np.bitwise_or.reduce(out << shifts, axis=at)


def _biased(codes: npt.NDArray[Any], bias: int) -> npt.NDArray[np.int8]:
    return (codes.astype(np.int16) + bias).astype(np.int8)


class Segment:
    """Keys or values of one page of one layer.

    Attributes
    ----------
    format : str
        Page format; of an open page the type of its rows.
    transform : str or None
        Basis of the stored rows (``"had"``), undone by ``dequantize("model")``.
    """

    def __init__(self, pool: Pool, handle: int, layer: int, index: int, side: str, core: Any):
        self._pool, self._at = pool, (handle, layer, index, side)
        self._core = core
        scheme = pool.scheme.of_layer(layer, len(pool.shapes))
        self.format: str = core.format
        self.transform = scheme.k_transform if side == "k" else scheme.v_transform

    @property
    def sealed(self) -> bool:
        """Whether its bytes are final and can be viewed."""
        return self._core.sealed

    @property
    def tokens(self) -> int:
        """Rows that it holds."""
        return self._core.tokens

    @property
    def nbytes(self) -> int:
        """Stored bytes of all heads."""
        return self._core.nbytes

    def layout_of(self, name: str) -> Layout:
        """Return the layout of part ``"codes"``, ``"scales"``, ``"zeros"`` or ``"exponents"``."""
        parts = {p["name"]: p for p in self._core.parts()} if self.sealed else {}
        if name not in parts:
            have = ", ".join(parts) or "none: the page is open, its rows are given by dequantize()"
            raise UnsupportedError(f"page of format {self.format!r} has no {name!r}; it has {have}")
        return Layout.of(parts[name])

    @property
    def layout(self) -> Layout:
        """How `codes` are laid out."""
        return self.layout_of("codes")

    @property
    def codes(self) -> npt.NDArray[Any]:
        """The packed bytes that kernels read, [kv_heads, *layout.shape], a view that pins the page.

        uint8 for integer codes; the elements themselves for formats without scales (bfloat16) and
        float8_e4m3fn for fp8.
        """
        return self._view("codes")

    @property
    def scales(self) -> npt.NDArray[Any]:
        """Scales in logical order, bfloat16 [kv_heads, tokens, groups], a view."""
        return self.layout_of("scales").logical(self._view("scales"))

    @property
    def zeros(self) -> npt.NDArray[Any]:
        """Zero points in logical order, bfloat16 [kv_heads, tokens, groups], a view."""
        return self.layout_of("zeros").logical(self._view("zeros"))

    @property
    def exponents(self) -> npt.NDArray[Any]:
        """Shared exponents in logical order, a view."""
        return self.layout_of("exponents").logical(self._view("exponents"))

    def _view(self, name: str) -> npt.NDArray[Any]:
        layout = self.layout_of(name)
        return self._core.array(name).view(_VIEWS[layout.dtype])

    def unpack(self) -> npt.NDArray[Any]:
        """Return logical codes, int8 or uint8 [kv_heads, 64, width], a copy."""
        return self.layout.unpack(self.codes)

    def dequantize(self, basis: str = "stored") -> npt.NDArray[np.float32]:
        """Return the values that attention reads, as a copy.

        Parameters
        ----------
        basis : str
            ``"stored"``: as they lie in the page, rotated where there is a transform. ``"model"``:
            with the transform undone.

        Returns
        -------
        numpy.ndarray of float32, shape (kv_heads, tokens, width)
            Row ``t`` is the token at position ``64 * index + t``.
        """
        if basis not in ("stored", "model"):
            raise ValueError(f"dequantize: basis is {basis!r:.40}; legal: 'stored', 'model'")
        handle, layer, index, side = self._at
        return self._pool.core.decode(handle, layer, index, side, basis == "model")

    def close(self) -> None:
        """Let go of the core's handle (views keep their own)."""
        self._core.close()

    def __repr__(self) -> str:
        state = "sealed" if self.sealed else "open"
        basis = f", {self.transform}" if self.transform else ""
        return f"<{state} {self._at[3]} of {self.tokens} tokens in {self.format}{basis}>"


class PageView:
    """One page of one layer: `k` and `v`."""

    def __init__(self, layer: int, index: int, k: Segment, v: Segment) -> None:
        self.layer, self.index = layer, index
        self.k, self.v = k, v

    def __repr__(self) -> str:
        return f"<page {self.index} of layer {self.layer}: k {self.k!r}, v {self.v!r}>"

    def _repr_html_(self) -> str:
        from .repr import page_html

        return page_html(self)


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


def open_page(pool: Pool, handle: int, layer: int, index: int) -> PageView:
    """Make the view of one page."""
    k, v = (
        Segment(pool, handle, layer, index, side, pool.core.page(handle, layer, index, side))
        for side in "kv"
    )
    return PageView(layer, index, k, v)


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
