"""Calls of octavo._probe's weight functions: places arrays at chosen offsets between canaries,
keeps them alive during the call, and checks the canaries afterwards."""

from dataclasses import dataclass

import numpy as np
import weight_oracle as oracle

from octavo import _probe

ACTS = ("a32", "a8", "a8g32", "a8x2")
KINDS = {"bytes": 0, "halves": 1, "pairs": 2, "values": 3}
TYPES = {"f32": 0, "f16": 1, "bf16": 2}
TRAITS = {t["name"]: t for t in _probe.weight_formats()}
GROUPED = [name for name, t in TRAITS.items() if t["code_bits"]]  # w8: one group of all inputs
FLOATS = [name for name, t in TRAITS.items() if not t["code_bits"]]
ISAS = ("scalar", "avx2", "avx512", "amx")
GUARD = 192
FILL = 0xA5


def columns(name, act):
    """The columns that really have this slot and run here."""
    index = ACTS.index(act)
    return [
        isa
        for isa in ISAS
        if _probe.weight_column(name, isa, index) == isa and _probe.runs_here(isa)
    ]


def at(array):
    return 0 if array is None else array.ctypes.data


class Guarded:
    """An array of `shape`, 64-byte aligned plus `offset`, between canaries that `check` reads."""

    def __init__(self, shape, dtype, offset=0, fill=FILL):
        dtype = np.dtype(dtype)
        self.nbytes = int(np.prod(shape)) * dtype.itemsize
        self.raw = np.full(self.nbytes + 2 * GUARD + 64, FILL, np.uint8)
        self.start = GUARD + (-(self.raw.ctypes.data + GUARD)) % 64 + offset % 64
        body = self.raw[self.start : self.start + self.nbytes]
        body[:] = fill
        self.array = body.view(dtype).reshape(shape)

    def check(self):
        outside = np.ones(self.raw.size, bool)
        outside[self.start : self.start + self.nbytes] = False
        assert (self.raw[outside] == FILL).all(), "written outside the array"


def aligned(array, offset=0):
    out = Guarded(array.shape, array.dtype, offset)
    out.array[...] = array
    return out.array


@dataclass
class Matrix:
    """A packed matrix beside its logical arrays (raw bits)."""

    name: str
    data: np.ndarray
    n: int
    k: int
    scale_type: int = 1
    codes: np.ndarray = None
    scales: np.ndarray = None
    zeros: np.ndarray = None
    mins: np.ndarray = None
    values: np.ndarray = None

    @property
    def tuple(self):
        return at(self.data), self.n, self.k, self.scale_type

    @property
    def logical(self):
        """codes, scales, zeros, mins as the oracle's linears take them."""
        mins = None if self.mins is None else oracle.widen(self.mins, self.scale_type)
        scales = self.scales
        if self.name != "w8":
            scales = oracle.widen(scales, self.scale_type)
        return self.codes, scales, self.zeros, mins


def blocks(n):
    return -(-n // 32)


def pack(name, isa, n, k, source, scale_type=1, spans=None):
    """Pack through `source` (a dict of oct_source's fields, arrays for pointers)."""
    data = Guarded(blocks(n) * _probe.weight_block_bytes(name, k), np.uint8, fill=0xEE)
    get = source.get
    fields = (
        KINDS[source["kind"]],
        TYPES[get("values_type", "f32")],
        at(get("codes")) + get("codes_at", 0),
        get("row_stride", 0),
        get("group_stride", 0),
        at(get("scales")) + get("scales_at", 0) if get("scales") is not None else 0,
        at(get("mins")) + get("mins_at", 0) if get("mins") is not None else 0,
        get("scale_row_stride", 0),
        get("scale_group_stride", 0),
        at(get("zeros")),
        get("zero_row_stride", 0),
        at(get("row_map")),
    )
    for lo, hi in spans or [(0, blocks(n))]:
        status = _probe.weight_pack(name, isa, at(data.array), n, k, scale_type, fields, lo, hi)
        assert status == 0
    data.check()
    return data.array


def plain_source(codes, scales, zeros=None, mins=None):
    return {
        "kind": "bytes",
        "codes": codes,
        "row_stride": codes.shape[1],
        "group_stride": 32,
        "scales": scales,
        "mins": mins,
        "scale_row_stride": scales.itemsize * scales.shape[1],
        "scale_group_stride": scales.itemsize,
        "zeros": zeros,
        "zero_row_stride": scales.shape[1],
    }


def half_bits(x, scale_type):
    return x.astype(oracle.SCALE_TYPES[scale_type]).view(np.uint16)


def random_matrix(name, n, k, rng, scale_type=1, isa="scalar"):
    """Random codes with extremes, scales of both signs with zeros among them."""
    if name in FLOATS:
        values = rng.standard_normal((n, k)).astype(oracle.ELEMENT[name])
        values[rng.random((n, k)) < 0.02] = 0
        source = {"kind": "values", "values_type": name, "codes": values}
        source["row_stride"] = values.strides[0]
        return Matrix(name, pack(name, isa, n, k, source), n, k, values=values)
    wide = TRAITS[name]["code_bits"] == 8
    codes = rng.integers(0, 256 if wide else 16, (n, k), dtype=np.uint8)
    codes[::5] = 0x80 if wide else 15
    codes[1::7] = 0x7F if wide else 0
    shape = (n, oracle.scales_in(name, k))
    scales = rng.standard_normal(shape) * 2.0 ** rng.integers(-8, 3, shape)
    scales[rng.random(shape) < 0.1] = 0
    scales = scales.astype(np.float32) if name == "w8" else half_bits(scales, scale_type)
    zeros = rng.integers(0, 16, shape, dtype=np.uint8) if name == "q4g32z" else None
    mins = half_bits(rng.standard_normal(shape), scale_type) if name == "q4g32m" else None
    data = pack(name, isa, n, k, plain_source(codes, scales, zeros, mins), scale_type)
    return Matrix(name, data, n, k, scale_type, codes, scales, zeros, mins)


@dataclass
class Rows:
    act: str
    x: np.ndarray  # [m][ldx], columns past k poisoned
    k: int
    hi: np.ndarray = None
    lo: np.ndarray = None
    scale: np.ndarray = None
    sum: np.ndarray = None
    apart: int = 0  # codes between a row's last group and the next row

    @property
    def tuple(self):
        kp = oracle.groups(self.k) * 32 + self.apart
        ldx = self.x.strides[0] // 4
        arrays = (at(self.x), ldx, at(self.hi), at(self.lo), at(self.scale), at(self.sum))
        return ACTS.index(self.act), self.x.shape[0], self.k, kp, *arrays


def poisoned(x, extra=5, offset=4):
    """x with NaN past every row's end, misaligned."""
    wide = np.full((x.shape[0], x.shape[1] + extra), np.nan, np.float32)
    wide[:, : x.shape[1]] = x
    return aligned(wide, offset)


def oracle_rows(x, act, apart=0):
    """Rows as the oracle quantizes them, `apart` zero codes (a multiple of 32) behind each."""
    k = x.shape[1]
    if act == "a32":
        return Rows(act, poisoned(x), k)
    q, scale, total, _ = oracle.quantize(x, act)
    q, total = (np.pad(a, ((0, 0), (0, more))) for a, more in ((q, apart), (total, apart // 32)))
    if act == "a8g32":
        scale = np.pad(scale, ((0, 0), (0, apart // 32)))
    if act != "a8x2":
        codes = aligned(q.astype(np.int8)), None
    else:
        hi = (q + 64) >> 7
        codes = (aligned(p.astype(np.int8)) for p in (hi, q - 128 * hi))
    return Rows(act, poisoned(x), k, *codes, scale, total, apart)


def linear(matrix, isa, rows, y, bias=None, add=False, span=None):
    """In place on y, a float32 array of [m][ldy]."""
    tiles = -(-rows.x.shape[0] // 128) * blocks(matrix.n)
    lo, hi = span or (0, tiles)
    return _probe.weight_linear(
        matrix.name, isa, matrix.tuple, rows.tuple, at(y), y.strides[0] // 4, at(bias), add, lo, hi
    )


def unpack(matrix, isa, span=None):
    """codes, scales, zeros, mins, values; None where the format has none."""
    t, shape = TRAITS[matrix.name], (matrix.n, oracle.scales_in(matrix.name, matrix.k))
    full = (matrix.n, matrix.k)
    grouped = t["code_bits"] > 0
    out = [
        Guarded(full, np.uint8) if grouped else None,
        Guarded(shape, np.float32 if matrix.name == "w8" else np.uint16) if grouped else None,
        Guarded(shape, np.uint8) if t["has_zero"] else None,
        Guarded(shape, np.uint16) if t["has_min"] else None,
        None if grouped else Guarded(full, oracle.ELEMENT[matrix.name]),
    ]
    pointers = [0 if o is None else at(o.array) for o in out]
    lo, hi = span or (0, blocks(matrix.n))
    assert _probe.weight_unpack(matrix.name, isa, matrix.tuple, *pointers, lo, hi) == 0
    for o in out:
        if o is not None:
            o.check()
    return [None if o is None else o.array for o in out]
