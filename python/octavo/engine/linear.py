"""One matrix of the user's own in a weight format, without a model: `Linear`.

Inputs are C-contiguous and borrowed for the call without a copy, as in `arrays`.
"""

from collections.abc import Sequence as SequenceABC
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo import _core
from octavo.quant import rtn
from octavo.scheme import CHECKPOINT, DEFAULT_ACT, WeightScheme, is_grouped, parse_act

from .arrays import F32, default_runtime
from .packing import add_quantized, add_values, cast_values

_FLOATS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


class Linear:
    """One matrix in a weight format: ``y = x W^T``.

    Parameters
    ----------
    w : numpy.ndarray of float32, float16 or bfloat16, shape (n, k), C-contiguous
    weights : str or WeightScheme
        ``"checkpoint"`` holds `w` as it is; grouped formats are rounded to nearest.
    act : str
        How grouped formats read `x`; float formats read it as it is.
    threads : int, optional
        By default the process's shared threads.

    Attributes
    ----------
    format : str
    shape : (n, k)
    """

    def __init__(self, w: npt.NDArray[Any], weights: str | WeightScheme = CHECKPOINT,
                 act: str = DEFAULT_ACT, threads: int | None = None) -> None:  # fmt: skip
        scheme, own = WeightScheme.parse(weights), _float_type(w)
        self.format = own if scheme.format == CHECKPOINT else scheme.format
        self.act = parse_act(act) if is_grouped(self.format) else "a32"
        self.shape = w.shape
        self.runtime = default_runtime(threads)
        self._core = _core.Weights(self.runtime)
        if self.format == own:
            self._id = add_values(self._core, own, w)
        elif is_grouped(self.format):
            quantized = rtn.quantize(w.astype(np.float32), self.format, scheme.grid)
            self._id = add_quantized(self._core, quantized)
        else:
            cast = cast_values(w.astype(np.float32), self.format, "Linear")
            self._id = add_values(self._core, self.format, cast)

    def __call__(self, x: F32, out: F32 | None = None) -> F32:
        """Return ``x W^T``.

        Parameters
        ----------
        x : numpy.ndarray of float32, shape (m, k) or (k,)
        out : numpy.ndarray of float32, shape (m, n) or (n,) as `x` has it, optional
            Filled, and returned.

        Returns
        -------
        numpy.ndarray of float32, shape (m, n) or (n,)
            Each row depends on its own row of `x` alone, bit for bit.
        """
        if not isinstance(x, np.ndarray) or x.ndim != 1:
            return self._core.linear(self._id, x, act=self.act, out=out)
        if out is None:
            return self._core.linear(self._id, x[None], act=self.act)[0]
        if not isinstance(out, np.ndarray) or out.ndim != 1:
            what = f"{out.ndim}-dimensional" if isinstance(out, np.ndarray) else type(out).__name__
            raise TypeError(f"Linear: x has one dimension and out is {what}; legal: float32 (n,)")
        self._core.linear(self._id, x[None], act=self.act, out=out[None])
        return out

    def dequantize(self, rows: SequenceABC[int] | None = None) -> F32:
        """Return the values that the kernels multiply, as a copy.

        Parameters
        ----------
        rows : sequence of int, optional
            Rows of `w`, from 0, in any order; by default all.

        Returns
        -------
        numpy.ndarray of float32, shape (len(rows), k)

        Raises
        ------
        IndexError
            If there is no such row.
        """
        return self._core.rows(self._id, _row_ids(rows, self.shape[0]))

    def unpack(self) -> dict[str, npt.NDArray[Any]]:
        """Return logical codes, scales, zeros, minima (or values) as copies."""
        return self._core.unpack(self._id)

    @property
    def nbytes(self) -> int:
        """Packed bytes."""
        return self._core.nbytes

    def close(self) -> None:
        """Free the packed matrix; idempotent."""
        self._core.close()

    def __repr__(self) -> str:
        n, k = self.shape
        return f"<Linear {n} x {k} in {self.format}, act {self.act}, {self.nbytes:,} bytes>"


def _float_type(w: Any) -> str:
    if not isinstance(w, np.ndarray) or w.ndim != 2 or not w.size:
        what = f"shape {list(w.shape)}" if isinstance(w, np.ndarray) else type(w).__name__
        raise TypeError(f"Linear: w is {what}; legal: an array (n, k)")
    if w.dtype.name not in _FLOATS or not w.dtype.isnative:
        legal = f"{', '.join(_FLOATS)} in the machine's byte order"
        raise TypeError(f"Linear: w has dtype {w.dtype}; legal: {legal}")
    if not w.flags.c_contiguous:
        raise TypeError("Linear: w is not contiguous; legal: numpy.ascontiguousarray(w)")
    return _FLOATS[w.dtype.name]


def _row_ids(rows: Any, n: int) -> npt.NDArray[np.int32]:
    """Check indices of rows, all of them for None."""
    if rows is None:
        return np.arange(n, dtype=np.int32)
    for row in (items := list(rows)):
        if isinstance(row, bool | np.bool_) or not isinstance(row, int | np.integer):
            raise TypeError(f"dequantize: row {row!r:.40} must be an int, not {type(row).__name__}")
        if not 0 <= row < n:
            raise IndexError(f"dequantize: there is no row {row}; legal: 0 to {n - 1}")
    return np.array(items, dtype=np.int32)
