"""How far one cache is from another of the same history: per layer, page and segment."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .pages import open_page

if TYPE_CHECKING:
    from .sequence import Sequence


@dataclass(frozen=True)
class CacheDiff:
    """Errors of `other` against `base`, in the model's basis.

    Attributes
    ----------
    base, other : str
        Schemes.
    sealed : numpy.ndarray of bool, shape (pages,)
        Pages that are sealed in `other` (open rows are not quantized).
    segments : tuple of str
        What `k_` and `v_` below are of: keys and values, or latent and rotated key.
    k_snr, v_snr : numpy.ndarray of float64, shape (layers, pages)
        Signal-to-noise in dB, 10 log10(sum x^2 / sum (x - y)^2); inf where nothing differs.
    k_max, v_max : numpy.ndarray of float64, shape (layers, pages)
        Largest absolute difference.
    """

    base: str
    other: str
    segments: tuple[str, str]
    sealed: npt.NDArray[np.bool_]
    k_snr: npt.NDArray[np.float64]
    v_snr: npt.NDArray[np.float64]
    k_max: npt.NDArray[np.float64]
    v_max: npt.NDArray[np.float64]

    def __repr__(self) -> str:
        from .repr import diff_text

        return diff_text(self)

    def _repr_html_(self) -> str:
        from .repr import diff_html

        return diff_html(self)


def diff(base: "Sequence", other: "Sequence") -> CacheDiff:
    """Compare two sequences of equal tokens (`Sequence.diff`).

    Raises
    ------
    ValueError
        If their tokens or the shapes of their layers differ.
    """
    if base._tokens != other._tokens:
        raise ValueError(
            f"diff: the histories differ ({len(base)} and {len(other)} tokens); "
            "legal: two sequences of the same tokens"
        )
    if base._pool.shapes != other._pool.shapes:
        raise ValueError("diff: the two models have layers of different shapes")
    layers, pages = base.kv.layers, len(base.kv)
    sealed = np.zeros(pages, np.bool_)
    snr, most = np.full((2, 2, layers, pages), np.nan)
    for s in (base, other):
        with s._use("diff"):
            s._settle("diff")
    for layer in range(layers):
        for page in range(pages):
            x_page, y_page = (open_page(s, layer, page) for s in (base, other))
            for side, name in enumerate(y_page.segments):
                sealed[page] = y_page.segments[name].sealed
                x, y = (_values(p.segments[name]) for p in (x_page, y_page))
                snr[side, layer, page] = _snr(x, y)
                most[side, layer, page] = np.abs(x - y).max(initial=0.0)
    names = base._pool.shapes[0].segments
    return CacheDiff(str(base.scheme), str(other.scheme), names, sealed, *snr, *most)


def _values(segment):
    return segment.dequantize("model").astype(np.float64)


def _snr(x, y):
    noise, signal = np.sum((x - y) ** 2), np.sum(x**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.inf if noise == 0 else 10 * np.log10(signal / noise)
