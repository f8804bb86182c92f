"""From checkpoint tensors to packed weights: which format each matrix gets, and how it is read.

Stored codes and scales are handed to the core as they lie in the file (strides and offsets), so
what a kernel multiplies is the checkpoint's own. Types without kernels are decoded to f32, or to
bf16 where that is exact, and the load report says so.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from octavo import _core
from octavo.errors import CheckpointError
from octavo.model import ModelSpec, TensorUse
from octavo.progress import Bar
from octavo.quant import rtn
from octavo.scheme import CHECKPOINT, WeightScheme, is_grouped

_PASS_BYTES = 256 << 20  # of a file in one pass: a fraction of a second, between looks at Ctrl-C

_VALUES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_DTYPES = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16),
           "bf16": np.dtype(ml_dtypes.bfloat16)}  # fmt: skip


@dataclass(frozen=True)
class _Block:
    """A GGUF block of 32 weights: our format, its bytes, and where its fields lie."""

    format: str
    nbytes: int
    source: str
    codes: int
    mins: int | None = None


_BLOCKS = {
    "Q8_0": _Block("w8g32", 34, "bytes", codes=2),
    "Q4_0": _Block("q4g32", 18, "halves", codes=2),
    "Q4_1": _Block("q4g32m", 20, "halves", codes=4, mins=2),
}
# The other types that a format holds without loss: as stored, and as values exact in it.
_PACKED_INT4 = "INT4_G32"
_LOSSLESS = {_PACKED_INT4: "q4g32", "MXFP4": "bf16"}


@dataclass(frozen=True)
class LoadRow:
    """Tensors of one kind: how they were stored, how they are held."""

    kind: str
    stored: str
    format: str
    count: int
    nbytes: int


@dataclass
class LoadReport:
    """What loading did, one row per kind of tensor, stored type and format.

    Attributes
    ----------
    rows : list of LoadRow
    skipped : dict of str to str
        Tensors that a rule left alone, and why.
    """

    rows: list[LoadRow] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def add(self, role: str, stored: str, held: str, nbytes: int) -> None:
        """Count one tensor."""
        kind = re.sub(r"\.\d+\.", ".*.", role)
        for i, row in enumerate(self.rows):
            if (row.kind, row.stored, row.format) == (kind, stored, held):
                self.rows[i] = LoadRow(kind, stored, held, row.count + 1, row.nbytes + nbytes)
                return
        self.rows.append(LoadRow(kind, stored, held, 1, nbytes))

    @property
    def decoded(self) -> list[str]:
        """Stored types that have no kernels and are held as f32."""
        known = {*_VALUES, *_BLOCKS, *_LOSSLESS}
        return sorted({r.stored for r in self.rows} - known)

    def __repr__(self) -> str:
        from .repr import text_table

        head = ("tensor", "stored", "held as", "count", "bytes")
        body = [(r.kind, r.stored, r.format, str(r.count), f"{r.nbytes:,}") for r in self.rows]
        return text_table(head, body)


class Packed:
    """The weights of one scheme, shared by every LLM that asks for the same.

    Attributes
    ----------
    core : _core.Weights
    ids : dict of str to int
        Handle of every matrix and vector by role.
    report : LoadReport
    """

    def __init__(self, runtime: Any, checkpoint: Any, spec: ModelSpec, scheme: WeightScheme,
                 progress: bool = True) -> None:  # fmt: skip
        self.core = _core.Weights(runtime)
        self.ids: dict[str, int] = {}
        self.report = LoadReport()
        self.users = 0
        loader = _Loader(self.core, checkpoint.tensors, scheme)
        try:
            count, options = len(spec.uses), {"delay": 1.0, "leave": False}
            with Bar(count, "load", "tensor", shown=progress, **options) as bar:
                for use in spec.uses:
                    bar.update(loader.add(use))
                bar.update(loader.flush())
        except BaseException:
            self.core.close()
            raise
        for use in spec.uses:
            self.ids[use.role], stored, held, nbytes = loader.done[use.role]
            self.report.add(use.role, stored, held, nbytes)


class _Loader:
    """Packs tensors as they come; those held as they are stored, in passes over many.

    A pass reads the file's own bytes, so however many matrices wait for it hold no memory.

    Attributes
    ----------
    done : dict of str to (int, str, str, int)
        By role: handle, stored type, format, packed bytes.
    """

    def __init__(self, core: Any, tensors: Any, scheme: WeightScheme) -> None:
        self._core, self._tensors, self._scheme = core, tensors, scheme
        self._waiting: list[tuple[TensorUse, str, dict[str, Any]]] = []
        self._bytes = 0
        self._whole: tuple[str, Any] = ("", None)
        self.done: dict[str, tuple[int, str, str, int]] = {}

    def add(self, use: TensorUse) -> int:
        """Take one tensor; return how many were packed now."""
        tensor = self._tensors[use.tensor]
        if len(use.shape) == 1:
            values = tensor.dequantize()
            values = values if use.row_map is None else values[use.row_map]
            values = values + np.float32(use.offset) if use.offset else values
            handle = self._core.vector(np.ascontiguousarray(values))
            self.done[use.role] = (handle, tensor.type, "f32", values.nbytes)
            return 1
        held = self._scheme.format_of(use.role)
        held = _stored_format(tensor.type) if held == CHECKPOINT else held
        source = None if use.cut else stored_source(tensor, held, use)
        if source is None:
            before = self._core.nbytes
            values = self._piece(tensor, use) if use.cut else tensor.dequantize()
            handle = _add_converted(self._core, values, held, use, self._scheme.grid)
            self.done[use.role] = (handle, tensor.type, held, self._core.nbytes - before)
            return 1
        self._waiting.append((use, tensor.type, source))
        self._bytes += tensor.nbytes
        return self.flush() if self._bytes >= _PASS_BYTES else 0

    def _piece(self, tensor: Any, use: TensorUse) -> npt.NDArray[np.float32]:
        """Return the part of a tensor that a use is; its pieces come one after the other."""
        if self._whole[0] != use.tensor:
            self._whole = ("", None)  # the one before goes first
            self._whole = (use.tensor, tensor.dequantize())
        piece = self._whole[1][use.cut.first : use.cut.end]
        return piece.T if use.cut.transposed else piece

    def flush(self) -> int:
        """Pack what waits; return how many that were."""
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        if not waiting:
            return 0
        handles = self._core.matrices([source for _, _, source in waiting])
        for handle, (use, stored, source) in zip(handles, waiting, strict=True):
            nbytes = self._core.info(handle)["nbytes"]
            self.done[use.role] = (handle, stored, source["format"], nbytes)
        return len(waiting)


def _stored_format(kind: str) -> str:
    """The format that holds a stored type without loss."""
    if kind in _BLOCKS:
        return _BLOCKS[kind].format
    return _LOSSLESS.get(kind) or _VALUES.get(kind, "f32")


def stored_source(tensor: Any, held: str, use: TensorUse) -> dict[str, Any] | None:
    """Where `_core.Weights.matrix` finds a tensor held as it is stored, or None."""
    block = _BLOCKS.get(tensor.type)
    if block and block.format == held:
        return _block_source(tensor, block, use)
    if tensor.type == _PACKED_INT4 and held == _LOSSLESS[_PACKED_INT4]:
        return _pairs_source(tensor, held, use)
    if _VALUES.get(tensor.type) == held:
        return _values_source(held, *use.shape, tensor.raw(), held, use.row_map)
    return None


def _add_converted(
    core: Any, values: npt.NDArray[np.float32], held: str, use: TensorUse, grid: int | str | None
) -> int:
    """Pack one matrix that does not lie in the file as it is held, and return its handle."""
    if is_grouped(held):
        if use.row_map is not None:
            values = values[use.row_map]
        try:
            return add_quantized(core, rtn.quantize(values, held, grid))
        except ValueError as error:
            raise CheckpointError(f"tensor {use.tensor!r} ({use.role}): {error}") from error
    return add_values(core, held, cast_values(values, held, use.role), use.row_map)


def cast_values(values: npt.NDArray[np.float32], held: str, what: str) -> npt.NDArray[np.generic]:
    """Round float32 values to the elements of a float format; overflow is an error."""
    with np.errstate(over="ignore"):
        out = values.astype(_DTYPES[held])
    if (
        held != "f32"
        and not np.isfinite(out.astype(np.float32)).all()
        and np.isfinite(values).all()
    ):
        top = float(np.abs(values).max())
        raise ValueError(f"{what}: a weight of magnitude {top:g} does not fit {held}; use 'f32'")
    return out


def _block_source(tensor: Any, block: _Block, use: TensorUse) -> dict[str, Any]:
    n, k = use.shape
    raw = tensor.raw()
    row = k // 32 * block.nbytes
    mins = {} if block.mins is None else {"mins": raw, "min_offset": block.mins}
    return dict(
        format=block.format, n=n, k=k, codes=raw, source=block.source, code_offset=block.codes,
        row_stride=row, group_stride=block.nbytes,
        scales=raw, scale_type="f16", scale_row_stride=row, scale_group_stride=block.nbytes,
        row_map=use.row_map, **mins,
    )  # fmt: skip


def _pairs_source(tensor: Any, held: str, use: TensorUse) -> dict[str, Any]:
    n, k = use.shape
    return dict(
        format=held, n=n, k=k, codes=tensor.packed.raw(), source="pairs",
        row_stride=k // 2, group_stride=16,
        scales=tensor.scale.raw(), scale_type=_VALUES[tensor.scale.type],
        scale_row_stride=k // 32 * 2, scale_group_stride=2, row_map=use.row_map,
    )  # fmt: skip


def _values_source(
    held: str, n: int, k: int, raw: npt.NDArray[np.uint8], kind: str,
    row_map: npt.NDArray[np.int32] | None,
) -> dict[str, Any]:  # fmt: skip
    return dict(
        format=held, n=n, k=k, codes=raw, source="values", values_type=kind,
        row_stride=k * _DTYPES[kind].itemsize, row_map=row_map,
    )  # fmt: skip


def add_values(
    core: Any, held: str, values: npt.NDArray[Any], row_map: npt.NDArray[np.int32] | None = None
) -> int:
    """Pack a float matrix; its elements are of the format's type, or of one that is widened."""
    kind = next(name for name, dtype in _DTYPES.items() if dtype == values.dtype)
    raw = np.ascontiguousarray(values).view(np.uint8)
    return core.matrix(**_values_source(held, *values.shape, raw, kind, row_map))


def add_quantized(core: Any, q: rtn.Quantized) -> int:
    """Pack codes and scales that a method chose."""
    n, k = q.codes.shape
    groups, scale = q.scales.shape[1], q.scales.dtype.itemsize
    extra: dict[str, Any] = {}
    if q.mins is not None:
        extra["mins"] = _bytes(q.mins)
    if q.zeros is not None:
        extra |= {"zeros": _bytes(q.zeros), "zero_row_stride": groups}
    return core.matrix(
        q.format, n, k, _bytes(q.codes), source="bytes", row_stride=k, group_stride=32,
        scales=_bytes(q.scales), scale_type=q.scale_type,
        scale_row_stride=scale * groups, scale_group_stride=scale if groups > 1 else 0, **extra,
    )  # fmt: skip


def _bytes(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(array).view(np.uint8)
