"""Round to nearest: the scale of each group from its extremes, the codes from the stored scale.

The baseline of every other method. Grids as formats.md B5 names them. Scales are rounded to the
type that is stored before any code is computed, so codes are the nearest ones for what a kernel
will multiply.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt

GROUP = 32
_TYPES = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
_F16_NORMAL = 2.0**-14
_TINY = 2.0**-60


@dataclass(frozen=True)
class Quantized:
    """A matrix as numbers: codes, and a scale (zero point, minimum) per group of 32 inputs.

    Attributes
    ----------
    format : str
        Weight format whose value rule holds (formats.md B2).
    codes : numpy.ndarray of uint8 (``w8``, ``w8g32``: int8), shape (n, k)
    scales : numpy.ndarray of float16 or bfloat16, shape (n, k / 32); ``w8``: float32, (n, 1)
    zeros : numpy.ndarray of uint8, shape (n, k / 32), optional
    mins : numpy.ndarray of the type of `scales`, shape (n, k / 32), optional
    scale_type : str
        ``"f16"``, or ``"bf16"`` for a matrix with a group that f16 cannot scale; ``w8``:
        ``"f32"``.
    """

    format: str
    codes: npt.NDArray[np.uint8] | npt.NDArray[np.int8]
    scales: npt.NDArray[np.generic]
    zeros: npt.NDArray[np.uint8] | None
    mins: npt.NDArray[np.generic] | None
    scale_type: str

    def values(self) -> npt.NDArray[np.float32]:
        """Return the values that the codes stand for, float32 (n, k)."""
        codes = self.codes.reshape(*self.scales.shape, -1).astype(np.float32)
        scale = self.scales.astype(np.float32)[..., None]
        if self.mins is not None:
            out = codes * scale + self.mins.astype(np.float32)[..., None]
        elif self.zeros is not None:
            out = (codes - self.zeros.astype(np.float32)[..., None]) * scale
        else:
            out = (codes - (8.0 if self.format == "q4g32" else 0.0)) * scale
        return out.reshape(self.codes.shape)


def quantize(w: npt.NDArray[np.float32], format: str, grid: int | str | None = None) -> Quantized:
    """Round a matrix to the nearest codes of a format that has scales.

    Parameters
    ----------
    w : numpy.ndarray of float32, shape (n, k)
    format : str
        ``"w8"``, ``"w8g32"``: s = amax / 127, of a row or of a group. ``"q4g32"``:
        s = amax / 7.5, all 16 codes; ``grid=7``: s = amax / 7, codes -7..7; ``grid="ggml"``:
        d = signed amax / -8. ``"q4g32z"``:
        s = (max - min) / 15 with 0 inside, z = rne(-min / s). ``"q4g32m"``: s = (max - min) / 15,
        m = min.

    Returns
    -------
    Quantized

    Raises
    ------
    ValueError
        If `w` is not a matrix of finite values with whole groups, or the format is not one of
        these.
    """
    if w.ndim != 2 or not w.size:
        raise ValueError(f"rtn: w has shape {list(w.shape)}; legal: a matrix (n, k)")
    if not np.isfinite(w).all():
        row, column = np.argwhere(~np.isfinite(w))[0]
        raise ValueError(f"rtn: w[{row}, {column}] is {w[row, column]}; legal: finite values")
    if format not in _RULES:
        raise ValueError(f"rtn: format {format!r:.40}; legal: {', '.join(_RULES)}")
    n, k = w.shape
    width = k if format == "w8" else GROUP
    if k % width:
        raise ValueError(f"rtn: w has rows of {k}; legal: a multiple of {GROUP} for {format!r}")
    groups = np.ascontiguousarray(w, np.float32).reshape(n, -1, width)
    codes, scales, zeros, mins, kind = _RULES[format](groups, grid)
    return Quantized(format, codes.reshape(n, k), scales, zeros, mins, kind)


def _stored(*exact: npt.NDArray[np.float32]) -> tuple[list[npt.NDArray], str]:
    """Round scales (and minima) to float16, or to bfloat16 where one lies outside its range."""
    scale, rest = np.abs(exact[0]), np.abs(np.concatenate([np.abs(e).ravel() for e in exact]))
    small = (scale > 0) & (scale < _F16_NORMAL)
    kind = "bf16" if small.any() or rest.max(initial=0.0) > 65504.0 else "f16"
    return [e.astype(_TYPES[kind]) for e in exact], kind


def _codes(groups, scale, offset, least, most, dtype):
    """Return clamp(rne(x / scale) + offset): 0 + offset where the scale is 0."""
    s = scale.astype(np.float32)[..., None]
    q = np.rint(np.divide(groups, s, out=np.zeros_like(groups), where=s != 0))
    return np.clip(q + offset, least, most).astype(dtype)


def _amax(groups):
    amax = np.abs(groups).max(axis=2)
    return np.where(amax < _TINY, np.float32(0), amax)


def _w8(rows, _grid):
    scale = (_amax(rows) / np.float32(127)).astype(np.float32)
    return _codes(rows, scale, 0, -127, 127, np.int8), scale, None, None, "f32"


def _w8g(groups, _grid):
    (scale,), kind = _stored(_amax(groups) / np.float32(127))
    return _codes(groups, scale, 0, -127, 127, np.int8), scale, None, None, kind


def _q4(groups, grid):
    amax = _amax(groups)
    if grid == "ggml":
        signed = np.take_along_axis(groups, np.abs(groups).argmax(axis=2)[..., None], axis=2)
        exact, least, most = np.where(amax > 0, signed[..., 0], 0) / np.float32(-8) + 0, 0, 15
    elif grid == 7:
        exact, least, most = amax / np.float32(7), 1, 15
    else:
        exact, least, most = amax / np.float32(7.5), 0, 15
    (scale,), kind = _stored(exact.astype(np.float32))
    return _codes(groups, scale, 8, least, most, np.uint8), scale, None, None, kind


def _range(least, most):
    span = most - least
    return np.where(span < _TINY, np.float32(0), span / np.float32(15))


def _q4z(groups, _grid):
    least = np.minimum(groups.min(axis=2), np.float32(0))
    most = np.maximum(groups.max(axis=2), np.float32(0))
    (scale,), kind = _stored(_range(least, most))
    s = scale.astype(np.float32)
    zero = np.rint(np.divide(-least, s, out=np.zeros_like(s), where=s != 0))
    zero = np.clip(zero, 0, 15)
    codes = _codes(groups, scale, zero[..., None], 0, 15, np.uint8)
    return codes, scale, zero.astype(np.uint8), None, kind


def _q4m(groups, _grid):
    least = groups.min(axis=2)
    (scale, low), kind = _stored(_range(least, groups.max(axis=2)), least)
    shifted = groups - low.astype(np.float32)[..., None]
    return _codes(shifted, scale, 0, 0, 15, np.uint8), scale, None, low, kind


_RULES = {"w8": _w8, "w8g32": _w8g, "q4g32": _q4, "q4g32z": _q4z, "q4g32m": _q4m}
