"""Tensors that a file stores in parts and a model reads as one: the base of quantized safetensors.

A `Logical` tensor stands in `Checkpoint.tensors` in the place of its parts. It holds descriptors
alone; values are decoded when they are asked for, a bounded number of rows at a time.
"""

import math

import numpy as np

from .tensors import row_range

# About 64 k elements at a time: temporaries stay in cache and in bounded memory.
_CHUNK_ELEMENTS = 1 << 16


class Logical:
    """One tensor made of several; subclasses say how.

    Attributes
    ----------
    name : str
        As a model asks for it: ``X.weight`` or ``X.bias``.
    type : str
        ``"INT4_G32"``, ``"FP8_BLOCK"``, ``"MXFP4"``, or a bias's own dtype.
    shape : tuple of int
        ``[n, k]``, or ``[n]``.
    nbytes : int
        Stored bytes of the parts, or of what it has of them.
    offset : int
        Where its codes begin in their file.
    """

    __slots__ = ("name", "nbytes", "offset", "shape")
    type = ""

    def __init__(self, name, shape, nbytes, offset):
        self.name, self.shape, self.nbytes, self.offset = name, shape, nbytes, offset

    def __repr__(self):
        return f"Logical({self.name!r}, {self.type}, {list(self.shape)}, {self.nbytes} bytes)"

    @property
    def size(self):
        """Number of elements."""
        return math.prod(self.shape)

    def dequantize(self, rows=None):
        """Return the values as float32, a copy.

        Parameters
        ----------
        rows : slice, optional
            Contiguous rows (step 1) of a matrix.

        Raises
        ------
        CheckpointError
            If a value is stored that the format has no number for.
        """
        first, count = (0, self.shape[0]) if rows is None else row_range(self, rows)
        out = np.empty((count, *self.shape[1:]), np.float32)
        step = max(1, _CHUNK_ELEMENTS // math.prod(self.shape[1:]))
        decode = self._decoder()
        # A hostile file may hold Inf or NaN scales; they decode like any other value.
        with np.errstate(invalid="ignore", over="ignore"):
            for at in range(0, count, step):
                part = out[at : at + step]
                part[...] = decode(first + at, first + at + len(part))
        return out

    def _decoder(self):
        """Return a function of (lo, hi) that gives the values of rows [lo, hi)."""
        raise NotImplementedError


def pair_table(values):
    """Return float32 [256, 2]: what the low and the high nibble of each byte stand for."""
    byte, values = np.arange(256), np.asarray(values, np.float32)
    return np.stack([values[byte & 15], values[byte >> 4]], axis=1)
