"""One page as NumPy sees it: codes, scales, zeros, and what attention reads.

A sealed page is viewed without a copy, read-only, and stays pinned while a view of it lives. Rows
of an open page move with every step, so they are only decoded, as copies.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

from octavo.errors import ClosedError, StaleHandleError, UnsupportedError

from .pool import Pool

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


class Holder(Protocol):
    """A sequence, of a model or of the user's arrays: its handle changes when it grows by steps."""

    _pool: Pool
    _handle: int
    _cuts: int  # how often it was truncated

    @property
    def closed(self) -> bool: ...


class Segment:
    """Keys or values (or the latent, or its rotated key) of one page of one layer.

    It keeps the sequence alive, but pins no page (views do): one that was truncated, edited or
    sealed since raises `StaleHandleError`, and one of a closed sequence `ClosedError`.

    Attributes
    ----------
    format : str
        Page format; of an open page the type of its rows.
    transform : str or None
        Basis of the stored rows (``"had"``), undone by ``dequantize("model")``.
    """

    def __init__(self, sequence: Holder, layer: int, index: int, side: str, core: Any):
        self._sequence, self._at = sequence, (layer, index, side)
        self._core, self._cuts = core, sequence._cuts
        pool = sequence._pool
        scheme = pool.scheme.of_layer(layer, len(pool.shapes))
        self.format: str = core.format
        transforms = {"k": scheme.k_transform, "v": scheme.v_transform,
                      "latent": scheme.k_transform}  # fmt: skip
        self.transform = transforms.get(side)

    def _page(self) -> Any:
        return self._core

    @property
    def sealed(self) -> bool:
        """Whether its bytes are final and can be viewed."""
        return self._page().sealed

    @property
    def tokens(self) -> int:
        """Rows that it holds."""
        return self._page().tokens

    @property
    def nbytes(self) -> int:
        """Stored bytes of all heads."""
        return self._page().nbytes

    def layout_of(self, name: str) -> Layout:
        """Return the layout of part ``"codes"``, ``"scales"``, ``"zeros"`` or ``"exponents"``."""
        parts = {p["name"]: p for p in self._page().parts()} if self.sealed else {}
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
        return self._page().array(name).view(_VIEWS[layout.dtype])

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
            Row ``t`` is the token at position ``64 * index + t``. Of an open page, the rows that it
            holds now, as far as it held them when it was asked for.

        Raises
        ------
        StaleHandleError
            If the sequence has another page in this place by now, or has sealed it.
        ClosedError
            If the sequence was closed.
        """
        if basis not in ("stored", "model"):
            raise ValueError(f"dequantize: basis is {basis!r:.40}; legal: 'stored', 'model'")
        tokens, s = self._rows_now(), self._sequence
        rows = s._pool.core.decode(s._handle, *self._at, basis == "model")
        return rows if rows.shape[1] == tokens else rows[:, :tokens].copy()

    def _rows_now(self) -> int:
        """Return how many rows to decode, or raise if its sequence has another page by now."""
        s, then = self._sequence, self._core
        if s.closed:
            raise ClosedError("dequantize: the sequence was closed; views of its pages stay good")
        try:
            now = s._pool.core.page(s._handle, *self._at)
            same = (now.sealed, now.page, now.generation) == (
                then.sealed, then.page, then.generation
            )  # fmt: skip
            if not then.sealed:  # it has no number, but every cut takes rows of it
                same = same and s._cuts == self._cuts
        except ClosedError:
            raise
        except ValueError:  # it has fewer pages
            same = False
        if not same:
            layer, index, side = self._at
            raise StaleHandleError(
                f"dequantize: {side} of page {index} of layer {layer} was truncated, edited or "
                "sealed since; ask the sequence for the page again"
            )
        return then.tokens

    def __repr__(self) -> str:
        state = "sealed" if self.sealed else "open"
        basis = f", {self.transform}" if self.transform else ""
        return f"<{state} {self._at[2]} of {self.tokens} tokens in {self.format}{basis}>"


class Segments:
    """What a page of a layer holds: `k` and `v`, or `latent` and `rope` where attention is MLA.

    Attributes
    ----------
    segments : dict of str to Segment
        Both, by name.
    """

    segments: "dict[str, Segment]"

    @property
    def k(self) -> Segment:
        """Keys."""
        return self._named("k")

    @property
    def v(self) -> Segment:
        """Values."""
        return self._named("v")

    @property
    def latent(self) -> Segment:
        """What is keys and values both (MLA), one for all heads."""
        return self._named("latent")

    @property
    def rope(self) -> Segment:
        """The rotated key beside the latent (MLA), one for all heads."""
        return self._named("rope")

    def _named(self, name: str) -> Segment:
        if name not in self.segments:
            have = " and ".join(map(repr, self.segments))
            raise AttributeError(f"this layer's pages have no {name!r}; they have {have}")
        return self.segments[name]


class PageView(Segments):
    """One page of one layer."""

    def __init__(self, layer: int, index: int, segments: dict[str, Segment]) -> None:
        self.layer, self.index, self.segments = layer, index, segments

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {s!r}" for name, s in self.segments.items())
        return f"<page {self.index} of layer {self.layer}: {parts}>"

    def _repr_html_(self) -> str:
        from .repr import page_html

        return page_html(self)


def open_page(sequence: Holder, layer: int, index: int) -> PageView:
    """Make the view of one page."""
    core = sequence._pool.core
    segments = {
        side: Segment(sequence, layer, index, side, core.page(sequence._handle, layer, index, side))
        for side in sequence._pool.shapes[layer].segments
    }
    return PageView(layer, index, segments)
