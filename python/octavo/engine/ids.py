"""Token ids at the door: whatever a caller passes becomes a checked int32 array, or an error."""

from typing import Any

import numpy as np
import numpy.typing as npt


def token_ids(what: str, ids: Any, vocab: int) -> npt.NDArray[np.int32]:
    """Return `ids` as a fresh, contiguous int32 array.

    Parameters
    ----------
    what : str
        Operation, for error texts.
    ids : sequence of int, or integer array of one dimension
    vocab : int
        Every id must lie in [0, vocab).

    Raises
    ------
    TypeError
        For anything but integers (bool and float included).
    ValueError
        For an id outside the vocabulary, or more than one dimension.
    """
    if isinstance(ids, str | bytes) or ids is None:
        raise TypeError(f"{what}: token ids must be integers, not {type(ids).__name__}")
    if isinstance(ids, np.ndarray):
        array = ids
    else:
        array = _from_items(what, ids)
    if array.ndim != 1:
        raise ValueError(f"{what}: token ids have shape {list(array.shape)}; legal: one dimension")
    if array.dtype.kind not in "iu":
        raise TypeError(f"{what}: token ids have dtype {array.dtype}; legal: integers")
    if array.size:
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= vocab:
            at = int(np.flatnonzero((array < 0) | (array >= vocab))[0])
            raise ValueError(
                f"{what}: token id {int(array[at])} at position {at} is outside the vocabulary; "
                f"legal: 0 to {vocab - 1}"
            )
    return np.array(array, dtype=np.int32, order="C")


def _from_items(what: str, ids: Any) -> npt.NDArray[Any]:
    try:
        items = list(ids)
    except TypeError:
        kind = type(ids).__name__
        raise TypeError(f"{what}: token ids must be a sequence of int, not {kind}") from None
    for at, item in enumerate(items):
        if isinstance(item, bool | np.bool_) or not isinstance(item, int | np.integer):
            kind = type(item).__name__
            raise TypeError(f"{what}: token id {item!r:.40} at position {at} is {kind}, not int")
        if not -(1 << 62) < int(item) < 1 << 62:
            raise ValueError(f"{what}: token id at position {at} is beyond any vocabulary")
    return np.array(items, dtype=np.int64)
