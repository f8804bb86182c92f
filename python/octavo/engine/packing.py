"""From checkpoint tensors to packed weights: which format each matrix gets, and how it is read.

Stored block formats are handed to the core as they lie in the file (strides and offsets), so what
a kernel multiplies is the checkpoint's own codes and scales. Types without kernels are decoded to
f32, and the load report says so.
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
        kind = re.sub(r"^layers\.\d+\.", "layers.*.", role)
        for i, row in enumerate(self.rows):
            if (row.kind, row.stored, row.format) == (kind, stored, held):
                self.rows[i] = LoadRow(kind, stored, held, row.count + 1, row.nbytes + nbytes)
                return
        self.rows.append(LoadRow(kind, stored, held, 1, nbytes))

    @property
    def decoded(self) -> list[str]:
        """Stored types that have no kernels and are held as f32."""
        return sorted({r.stored for r in self.rows if r.stored not in (*_VALUES, *_BLOCKS)})

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
        try:
            uses, tensors = spec.uses, checkpoint.tensors
            with Bar(len(uses), "load", "tensor", shown=progress, delay=1.0, leave=False) as bar:
                for use in uses:
                    self._add(use, tensors[use.tensor], scheme)
                    bar.update(1)
        except BaseException:
            self.core.close()
            raise

    def _add(self, use: TensorUse, tensor: Any, scheme: WeightScheme) -> None:
        if len(use.shape) == 1:
            values = tensor.dequantize()
            values = values if use.row_map is None else values[use.row_map]
            self.ids[use.role] = self.core.vector(np.ascontiguousarray(values))
            self.report.add(use.role, tensor.type, "f32", values.nbytes)
            return
        before = self.core.nbytes
        held = scheme.format_of(use.role)
        if held == CHECKPOINT:
            held = _stored_format(tensor.type)
        self.ids[use.role] = add_tensor(self.core, tensor, held, use, scheme.grid)
        self.report.add(use.role, tensor.type, held, self.core.nbytes - before)


def _stored_format(kind: str) -> str:
    """The format that holds a stored type without loss."""
    if kind in _BLOCKS:
        return _BLOCKS[kind].format
    return _VALUES.get(kind, "f32")


def add_tensor(core: Any, tensor: Any, held: str, use: TensorUse, grid: int | str | None) -> int:
    """Pack one matrix of a checkpoint in format `held`, and return its handle."""
    block = _BLOCKS.get(tensor.type)
    if block and block.format == held:
        return _add_blocks(core, tensor, block, use)
    if _VALUES.get(tensor.type) == held:
        return add_values(core, held, tensor.array(), use.row_map)
    values = tensor.dequantize()
    if is_grouped(held):
        if use.row_map is not None:
            values = values[use.row_map]
        try:
            return add_quantized(core, rtn.quantize(values, held, grid))
        except ValueError as error:
            raise CheckpointError(f"tensor {tensor.name!r} ({use.role}): {error}") from error
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


def _add_blocks(core: Any, tensor: Any, block: _Block, use: TensorUse) -> int:
    n, k = use.shape
    raw = tensor.raw()
    row = k // 32 * block.nbytes
    mins = {} if block.mins is None else {"mins": raw, "min_offset": block.mins}
    return core.matrix(
        block.format, n, k, raw, source=block.source, code_offset=block.codes,
        row_stride=row, group_stride=block.nbytes,
        scales=raw, scale_type="f16", scale_row_stride=row, scale_group_stride=block.nbytes,
        row_map=use.row_map, **mins,
    )  # fmt: skip


def add_values(
    core: Any, held: str, values: npt.NDArray[Any], row_map: npt.NDArray[np.int32] | None = None
) -> int:
    """Pack a float matrix whose elements are already of the format's type."""
    n, k = values.shape
    kind = next(name for name, dtype in _DTYPES.items() if dtype == values.dtype)
    raw = np.ascontiguousarray(values).view(np.uint8)
    return core.matrix(
        held, n, k, raw, source="values", values_type=kind,
        row_stride=k * values.dtype.itemsize, row_map=row_map,
    )  # fmt: skip


def add_quantized(core: Any, q: rtn.Quantized) -> int:
    """Pack codes and scales that a method chose."""
    n, k = q.codes.shape
    groups = k // rtn.GROUP
    extra: dict[str, Any] = {}
    if q.mins is not None:
        extra["mins"] = _bytes(q.mins)
    if q.zeros is not None:
        extra |= {"zeros": _bytes(q.zeros), "zero_row_stride": groups}
    return core.matrix(
        q.format, n, k, _bytes(q.codes), source="bytes", row_stride=k, group_stride=32,
        scales=_bytes(q.scales), scale_type=q.scale_type,
        scale_row_stride=2 * groups, scale_group_stride=2, **extra,
    )  # fmt: skip


def _bytes(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(array).view(np.uint8)
