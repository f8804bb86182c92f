"""What a validated checkpoint looks like to the rest of Octavo: named tensors and metadata.

Both file formats end here, in the same two classes. Everything below is a descriptor whose sizes
were proven when the file was opened; nothing here reads a number from the file again.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np

from octavo.errors import ClosedError, UnsupportedError

from .dequant import decode_into, require_decodable
from .source import File

_PLAIN = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}
_SAMPLES, _SAMPLE_BYTES = 64, 4096


@dataclass(frozen=True, slots=True, repr=False)
class Tensor:
    """One tensor of a checkpoint: a proven byte range with a name, a type and a shape.

    Attributes
    ----------
    name : str
        As the file writes it.
    type : str
        ``"F32"``, ``"F16"``, ``"BF16"``, ``"Q8_0"``, ``"Q4_1"``, ...; for safetensors its dtype.
    shape : tuple of int
        Row major, as torch prints it (for GGUF the reverse of ``ne``).
    nbytes : int
        Stored bytes.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int = field(compare=False)
    _file: File = field(compare=False)

    def __repr__(self):
        return f"Tensor({self.name!r}, {self.type}, {list(self.shape)}, {self.nbytes} bytes)"

    @property
    def size(self):
        """Number of elements."""
        return math.prod(self.shape)

    def raw(self):
        """Return the stored bytes.

        Returns
        -------
        numpy.ndarray of uint8, shape (nbytes,), read-only
            A view of the mapped file, or a copy when it was opened with ``mmap=False``. A view
            outlives `Checkpoint.close`; reading it after the file was truncated is fatal.

        Raises
        ------
        ClosedError, CheckpointError
            If the checkpoint was closed, or the file became too short since it was opened.
        """
        return self._file.view(self.offset, self.nbytes)

    @property
    def path(self):
        """The file that holds the bytes."""
        return self._file.path

    def copy(self):
        """Return the stored bytes as `raw` does, but read anew and never as a view.

        A few bytes of a large mapped file cost one small read so, not a page fault that reads far
        ahead.
        """
        return self._file.copy(self.offset, self.nbytes)

    def at(self, index):
        """Return entry `index` of the first axis as a tensor of its own; no byte is read."""
        count = self.shape[0] if self.shape else 0
        if not 0 <= index < count:
            raise IndexError(f"tensor {self.name!r}: entry {index}; legal: 0 to {count - 1}")
        nbytes = self.nbytes // count
        offset = self.offset + index * nbytes
        return Tensor(self.name, self.type, self.shape[1:], nbytes, offset, self._file)

    def array(self):
        """Return an F32, F16 or BF16 tensor as an array of its own dtype.

        Returns
        -------
        numpy.ndarray of float32, float16 or ml_dtypes.bfloat16, read-only
            A view of the file where its offset is aligned, else a copy.

        Raises
        ------
        UnsupportedError
            For any other type: see `dequantize` and `raw`.
        """
        dtype = _PLAIN.get(self.type)
        if dtype is None:
            raise UnsupportedError(
                f"tensor {self.name!r}: array() reads F32, F16 and BF16, and this is {self.type}; "
                "use dequantize() for block formats, raw() for the bytes"
            )
        out = self.raw().view(dtype)
        if not out.flags.aligned:  # safetensors aligns nothing
            out = out.copy()
            out.setflags(write=False)
        return out.reshape(self.shape)

    def dequantize(self, rows=None):
        """Return the values as float32, a copy.

        Parameters
        ----------
        rows : slice, optional
            Contiguous part of the first axis (step 1), for tensors of rank 2 and more.

        Returns
        -------
        numpy.ndarray of float32
            Of the tensor's shape, with the first axis cut to `rows`. Temporary memory is bounded.

        Raises
        ------
        UnsupportedError
            If the type has no decoder.
        """
        require_decodable(self.type, f"tensor {self.name!r}")
        shape, offset, nbytes = self._cut(rows)
        out = np.empty(math.prod(shape), np.float32)
        if out.size:
            decode_into(out, self._file.view(offset, nbytes), self.type)
        return out.reshape(shape)

    def _cut(self, rows):
        if rows is None:
            return self.shape, self.offset, self.nbytes
        start, count = row_range(self, rows)
        row_bytes = self.nbytes // self.shape[0] if self.shape[0] else 0
        return (count, *self.shape[1:]), self.offset + start * row_bytes, count * row_bytes


def row_range(tensor, rows):
    """Return start and count of the rows that `dequantize(rows)` of a tensor asks for."""
    if not isinstance(rows, slice) or len(tensor.shape) < 2:
        raise TypeError(
            f"tensor {tensor.name!r}: rows must be a slice of the first of >= 2 axes, "
            f"not {rows!r} of shape {tensor.shape}"
        )
    start, stop, step = rows.indices(tensor.shape[0])
    if step != 1:
        raise ValueError(f"tensor {tensor.name!r}: rows must have step 1, not {step}")
    return start, max(0, stop - start)


class Checkpoint:
    """An open checkpoint: metadata and tensors, over one or more files.

    Made by `octavo.checkpoint.open_checkpoint`; a context manager.

    Attributes
    ----------
    path : pathlib.Path
        The file or folder that was opened.
    kind : str
        ``"gguf"`` or ``"safetensors"``.
    metadata : Mapping
        GGUF: its key-values. safetensors: ``"config"``, ``"generation_config"``,
        ``"tokenizer_config"`` (parsed, where the files exist) and ``"format"``.
    tensors : Mapping of str to Tensor or Logical
        In the order of the file. What a quantized safetensors checkpoint stores in parts stands
        here once, as a `Logical` tensor in the place of its parts.
    """

    def __init__(self, path, kind, metadata, tensors, files):
        self.path = path
        self.kind = kind
        self.metadata: Mapping[str, Any] = MappingProxyType(metadata)
        self._tensors = tensors
        self._files = files
        self._identity = None

    @property
    def tensors(self) -> Mapping[str, Any]:
        """The tensors by name."""
        return MappingProxyType(self._tensors)

    @property
    def nbytes(self):
        """Stored bytes of all tensors."""
        return sum(t.nbytes for t in self._tensors.values())

    @property
    def closed(self):
        """Whether `close` was called."""
        return not self._files

    @property
    def identity(self):
        """A stable hash (64 hex digits) that tells this model from another, made in milliseconds.

        It covers every name, type, shape and file size, the metadata, and 64 windows of 4 KiB
        spread over each file's bytes; so two fine-tunes of one model differ, though a change of a
        single weight may go unseen. It depends on no path.
        """
        if self._identity is None:
            if self.closed:
                raise ClosedError(f"{self.path}: the checkpoint was closed before its identity")
            self._identity = self._hash()
        return self._identity

    def _hash(self):
        import hashlib

        digest = hashlib.sha256(f"octavo checkpoint 1 {self.kind}\n".encode())
        for t in self._tensors.values():
            digest.update(f"{t.name}\0{t.type}{t.shape}{t.offset}\n".encode())
        digest.update(repr(self.metadata.get("config", "")).encode())
        for file in self._files:
            digest.update(f"{file.size}\n".encode())
            for i in range(_SAMPLES):
                at = max(0, file.size - _SAMPLE_BYTES) * i // (_SAMPLES - 1)
                digest.update(file.copy(at, min(_SAMPLE_BYTES, file.size)))
        return digest.hexdigest()

    def close(self):
        """Close the files; idempotent. Views that `Tensor.raw` returned stay readable."""
        files, self._files = self._files, []
        for file in files:
            file.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def __repr__(self):
        counts = {}
        for t in self._tensors.values():
            counts[t.type] = counts.get(t.type, 0) + 1
        types = ", ".join(f"{n} {name}" for name, n in counts.items())
        state = "closed " if self.closed else ""
        return (
            f"<{state}{self.kind} checkpoint {self.path.name!r}: {len(self._tensors)} tensors "
            f"({types}), {self.nbytes / 1e6:.1f} MB>"
        )
