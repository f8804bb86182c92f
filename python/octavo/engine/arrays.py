"""The same pages and kernels on the user's own arrays, without a model: `Cache`.

Inputs are float32, C-contiguous, and borrowed for the call without a copy; another layout is an
error that says what was passed.
"""

import threading
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo import _core
from octavo.errors import ClosedError
from octavo.model import LayerShape
from octavo.plan.amounts import parse_bytes
from octavo.scheme import KVScheme

from .checks import MOST_THREADS, check_count
from .ends import close_at_exit
from .kv import EditView, Ledger, checked_place, edit_page
from .pages import PageView, open_page
from .pool import PAGE_TOKENS, Pool

F32 = npt.NDArray[np.float32]
_runtime_lock = threading.Lock()
_runtime: Any = None
_DEFAULT_MEMORY = 256 << 20
_REALS = (int, float, np.integer, np.floating)
_WIDEST = 1 << 16
_F32_MOST = float(np.finfo(np.float32).max)


def default_runtime(threads: int | None = None) -> Any:
    """Return the process's shared runtime, or a new one with so many threads (1 to 256)."""
    global _runtime
    if threads is not None:
        check_count("threads", threads, MOST_THREADS)
        return _core.Runtime(threads)
    with _runtime_lock:
        if _runtime is None:
            _runtime = _core.Runtime(0)
        return _runtime


class Cache:
    """A paged, quantized KV cache for the user's own keys and values.

    Parameters
    ----------
    layers, kv_heads, head_dim : int
        Shape; all layers alike.
    kv : str or KVScheme
    v_dim : int, optional
        Width of a value head, if it differs from `head_dim`.
    rope_dim : int, optional
        Latent attention (MLA): each token has one latent of `head_dim`, keys and values both, and
        one rotated key of this width; `kv_heads` is 1. `k` and `v` of `append` are these two, a
        query is ``head_dim + rope_dim`` wide, an output `head_dim`, and `scale` has no default.
    memory : int or str
        Budget of pages in bytes.
    threads : int, optional
        By default the process's shared threads.

    Notes
    -----
    `append`, `attend`, `page`, `edit` and `truncate` work on the cache's first sequence; `sequence`
    gives more of them.

    Raises
    ------
    ValueError
        If the scheme cannot hold these widths.
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        kv: str | KVScheme = "bf16",
        *,
        v_dim: int | None = None,
        rope_dim: int | None = None,
        memory: int | str = _DEFAULT_MEMORY,
        threads: int | None = None,
    ) -> None:
        for name, value in (("layers", layers), ("kv_heads", kv_heads), ("head_dim", head_dim)):
            check_count(f"Cache: {name}", value, _WIDEST)
        shape = _shape(kv_heads, head_dim, v_dim, rope_dim)
        self.kv = KVScheme.parse(kv)
        self.runtime = default_runtime(threads)
        budget = parse_bytes(memory)
        self._pool = Pool(self.runtime, (shape,) * layers, self.kv, budget)
        self.first = CacheSequence(self._pool, self._pool.core.open())

    def sequence(self) -> "CacheSequence":
        """Return another, empty sequence on the same pages."""
        return CacheSequence(self._pool, self._pool.core.open())

    def append(
        self, k: F32, v: F32, q: F32 | None = None, scale: float | None = None
    ) -> F32 | None:
        """See `CacheSequence.append`."""
        return self.first.append(k, v, q, scale)

    def attend(self, q: F32, layer: int = 0, scale: float | None = None) -> F32:
        """See `CacheSequence.attend`."""
        return self.first.attend(q, layer, scale)

    def page(self, layer: int, index: int) -> PageView:
        """See `CacheSequence.page`."""
        return self.first.page(layer, index)

    def edit(self, layer: int, index: int) -> AbstractContextManager[EditView]:
        """See `CacheSequence.edit`."""
        return self.first.edit(layer, index)

    def truncate(self, n: int) -> int:
        """See `CacheSequence.truncate`."""
        return self.first.truncate(n)

    def __len__(self) -> int:
        return len(self.first)

    def bytes(self) -> Ledger:
        """Return the ledger of the whole cache."""
        return Ledger.of(self._pool)

    def check(self) -> None:
        """Hold every invariant of the page store; `AssertionError` names the one that fails."""
        self._pool.core.check()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._pool.core.closed

    def close(self) -> None:
        """Free the pages; idempotent.

        Raises
        ------
        BufferError
            While NumPy views hold pages. Nothing is changed.
        BusyError
            While another call runs, or a page is under edit. Nothing is changed.
        """
        self._pool.close()

    def __enter__(self) -> "Cache":
        return self

    def __exit__(self, kind: Any, *exc: Any) -> None:
        close_at_exit(self, kind)

    def __repr__(self) -> str:
        if self.closed:
            return "<closed Cache>"
        s = self._pool.shapes[0]
        shape = f"{len(self._pool.shapes)} layers x {s.kv_heads} heads x {s.k_width}"
        per_token = f"{self._pool.token_bytes:,.0f} bytes/token sealed"
        return f"<Cache of {shape} in {self.kv}: {len(self)} tokens, {per_token}>"


class CacheSequence:
    """One history of keys and values in a `Cache`."""

    def __init__(self, pool: Pool, handle: int) -> None:
        self._pool, self._handle, self._closed = pool, handle, False
        self._cuts = 0

    def append(
        self, k: F32, v: F32, q: F32 | None = None, scale: float | None = None
    ) -> F32 | None:
        """Append tokens to every layer, and attend causally where `q` is given.

        Parameters
        ----------
        k, v : numpy.ndarray of float32, shape (layers, n, kv_heads, width)
            In the model's basis. With one layer the first axis may be absent.
        q : numpy.ndarray of float32, shape (layers, n, heads, head_dim), optional
        scale : float, optional
            Factor of the scores, finite; by default head_dim ** -0.5.

        Returns
        -------
        numpy.ndarray of float32, shape (layers, n, heads, v_dim), or None

        Raises
        ------
        NumericalError
            If a row is not finite, or too large for the format.
        OutOfPages
            If the budget cannot hold them. The sequence is as it was in either case.
        """
        self._check_open("append")
        layers, shape = len(self._pool.shapes), self._pool.shapes[0]
        factor = 1.0 if q is None and scale is None else _factor(scale, shape)
        k = _rows("k", k, layers, shape.kv_heads, shape.k_width)
        n = k.shape[1]
        v = _rows("v", v, layers, shape.kv_heads, shape.v_width, n)
        if q is None:
            self._pool.core.append(self._handle, k.reshape(-1), v.reshape(-1), n)
            return None
        squeeze = layers == 1 and np.ndim(q) == 3
        q = _rows("q", q, layers, None, shape.q_width, n)
        heads = q.shape[2]
        out = self._pool.core.append(
            self._handle, k.reshape(-1), v.reshape(-1), n, q=q.reshape(-1), heads=heads,
            scale=factor,
        ).reshape(layers, n, heads, shape.out_width)  # fmt: skip
        return out[0] if squeeze else out

    def attend(self, q: F32, layer: int = 0, scale: float | None = None) -> F32:
        """Attend from queries that stand just after the last token.

        Parameters
        ----------
        q : numpy.ndarray of float32, shape (m, heads, head_dim)
        layer : int
        scale : float, optional
            As in `append`.

        Returns
        -------
        numpy.ndarray of float32, shape (m, heads, v_dim)
        """
        self._check_open("attend")
        shape = self._pool.shapes[0]
        q = _rows("q", q, 1, None, shape.q_width)[0]
        factor = _factor(scale, shape)
        return self._pool.core.attend(self._handle, layer, q, q.shape[1], factor)

    def page(self, layer: int, index: int) -> PageView:
        """Return one page (see `octavo.engine.kv.KVView.page`)."""
        self._check_open("page")
        return open_page(self, *self._place(layer, index))

    def edit(self, layer: int, index: int) -> AbstractContextManager[EditView]:
        """Open one sealed page for writing (see `octavo.engine.kv.KVView.edit`)."""
        self._check_open("edit")
        return edit_page(self, *self._place(layer, index))

    def _place(self, layer: int, index: int) -> tuple[int, int]:
        pages = -(-len(self) // PAGE_TOKENS)
        return checked_place(layer, index, len(self._pool.shapes), pages)

    def __len__(self) -> int:
        return self._pool.core.length(self._handle)

    def fork(self, into: Cache | None = None) -> "CacheSequence":
        """Return a copy: pages shared, or re-encoded into another cache of the same shapes."""
        self._check_open("fork")
        if into is None:
            return CacheSequence(self._pool, self._pool.core.fork(self._handle))
        return CacheSequence(into._pool, self._pool.core.reencode(self._handle, into._pool.core))

    def truncate(self, n: int) -> int:
        """Forget tokens at and past `n`, and return how many are left.

        Fewer than `n` are left where `n` lies inside a sealed page: its unquantized rows are gone,
        so they must be appended again.
        """
        self._check_open("truncate")
        before = len(self)
        kept = self._pool.core.truncate(self._handle, n)
        self._cuts += kept < before
        return kept

    def bytes(self) -> Ledger:
        """Return this sequence's ledger."""
        return Ledger.of(self._pool, self._handle)

    @property
    def closed(self) -> bool:
        """Whether it was closed, or its cache was."""
        return self._closed or self._pool.core.closed

    def close(self) -> None:
        """Give the pages back; idempotent. `BufferError` while views hold one."""
        if not self._closed and not self._pool.core.closed:
            self._pool.core.release(self._handle)
        self._closed = True

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self._closed = True
            self._pool.discard(self._handle)

    def _check_open(self, what: str) -> None:
        if self._closed:
            raise ClosedError(f"{what}: the sequence was closed; nothing was done")
        self._pool.sweep()


def _shape(kv_heads: int, head_dim: int, v_dim: int | None, rope_dim: int | None) -> LayerShape:
    if rope_dim is None:
        v_dim = head_dim if v_dim is None else v_dim
        check_count("Cache: v_dim", v_dim, _WIDEST)
        return LayerShape(kv_heads, head_dim, v_dim)
    check_count("Cache: rope_dim", rope_dim, _WIDEST)
    if kv_heads != 1 or v_dim is not None:
        raise ValueError(
            f"Cache: rope_dim={rope_dim} with kv_heads={kv_heads} and v_dim={v_dim}; legal: one "
            "latent for all heads (kv_heads=1), which is the values too (no v_dim)"
        )
    return LayerShape(1, head_dim, rope_dim, latent=True)


def _factor(scale: Any, shape: LayerShape) -> float:
    """Return the factor of the scores: `scale`, or head_dim ** -0.5 for None."""
    if scale is None and shape.latent:
        raise ValueError("scale is None; legal: a float, since a latent's width does not tell it")
    if scale is None:
        return shape.k_width**-0.5
    if isinstance(scale, bool | np.bool_) or not isinstance(scale, _REALS):
        raise TypeError(f"scale must be a float, not {type(scale).__name__}")
    if not abs(scale) <= _F32_MOST:
        raise ValueError(f"scale is {scale}; legal: a finite float32")
    return float(scale)


def _rows(
    name: str, x: Any, layers: int, heads: int | None, width: int, n: int | None = None
) -> F32:
    """Check an array of rows, and give it its first axis if it may be absent."""
    if not isinstance(x, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array, not {type(x).__name__}")
    if layers == 1 and x.ndim == 3:
        x = x[None]
    want = [layers, "n" if n is None else n, "heads" if heads is None else heads, width]
    good = x.ndim == 4 and all(
        not isinstance(w, int) or w == s for w, s in zip(want, x.shape, strict=True)
    )
    if not good or not x.size:
        raise ValueError(f"{name} has shape {list(x.shape)}; legal: {want}")
    if x.dtype != np.float32 or not x.dtype.isnative or not x.flags.c_contiguous:
        layout = "contiguous" if x.flags.c_contiguous else "not contiguous"
        raise TypeError(
            f"{name} has dtype {x.dtype} and is {layout}; legal: C-contiguous float32 "
            "(numpy.ascontiguousarray(x, dtype=numpy.float32))"
        )
    return x
