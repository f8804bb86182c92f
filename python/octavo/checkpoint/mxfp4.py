"""MXFP4 experts as gpt-oss stores them: all of a layer in one tensor, rows of gate and up in turn.

`P.gate_up_proj_blocks` U8 [E, 2*inner, k/32, 16] holds 32 e2m1 codes in 16 bytes, the even one in
the low nibble; `_scales` U8 [E, 2*inner, k/32] is their power of two; `P.down_proj_*` alike. A
model sees `P.{e}.gate_proj`, `up_proj` and `down_proj`, each a `.weight` and a `.bias` of its own.
"""

import numpy as np

from .logical import Logical, pair_table
from .quantization import FLOATS, MAX_LOGICAL, expect, part, stray
from .source import fail

GROUP = 32

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # floats, for there is a -0 too
_PAIRS = pair_table([*_E2M1, *(-v for v in _E2M1)])
_NAN = 255  # of E8M0
_FIELDS = ("blocks", "scales", "bias")
_SUFFIXES = tuple(f".{m}_{f}" for m in ("gate_up_proj", "down_proj") for f in _FIELDS)
# What a model sees of a stored matrix: its first row, and the distance to the next.
_ROWS = {"gate_up_proj": {"gate_proj": (0, 2), "up_proj": (1, 2)},
         "down_proj": {"down_proj": (0, 1)}}  # fmt: skip


class Mxfp4Expert(Logical):
    """One matrix of one expert: every `step`-th row from `first` of its blocks.

    Every value is exact in bfloat16: e2m1 has two significant bits, and the least product, 2^-128,
    is a subnormal bfloat16. What is too large for it (2^128) is beyond float32 too, and an error.

    Attributes
    ----------
    blocks, scales : Tensor
        Of all experts.
    expert, first, step : int
    """

    __slots__ = ("blocks", "expert", "first", "scales", "step")
    type = "MXFP4"

    def __init__(self, name, blocks, scales, expert, first, step):
        rows, groups = blocks.shape[1] // step, blocks.shape[2]
        offset = blocks.at(expert).offset
        super().__init__(name, (rows, groups * GROUP), rows * groups * (GROUP // 2 + 1), offset)
        self.blocks, self.scales = blocks, scales
        self.expert, self.first, self.step = expert, first, step

    def _decoder(self):
        (n, k), mine = self.shape, slice(self.first, None, self.step)
        blocks, scales = self.blocks.at(self.expert), self.scales.at(self.expert)
        codes = blocks.raw().reshape(blocks.shape)[mine].reshape(n, k // 2)
        powers = scales.raw().reshape(scales.shape)[mine].astype(np.int32)

        def decode(lo, hi):
            scale = np.ldexp(np.float32(1), powers[lo:hi] - 127)[..., None]
            out = _PAIRS[codes[lo:hi]].reshape(hi - lo, -1, GROUP) * scale
            bad = (powers[lo:hi] == _NAN) | ~np.isfinite(out).all(axis=2)
            if bad.any():
                raise self._beyond(int(powers[lo:hi][bad][0]))
            return out.reshape(hi - lo, k)

        return decode

    def _beyond(self, scale):
        value = f"{scale}, beyond float32 with its code" if scale < _NAN else f"{scale} (NaN)"
        legal = "0 to 254, and values within float32"
        return fail(self.scales.path, f"a scale of tensor {self.name!r}", value, legal)


class ExpertBias(Logical):
    """The bias of one matrix of one expert.

    Attributes
    ----------
    bias : Tensor
        Of all experts.
    expert, first, step : int
    """

    __slots__ = ("bias", "expert", "first", "step")

    def __init__(self, name, bias, expert, first, step):
        rows, one = bias.shape[1] // step, bias.at(expert)
        super().__init__(name, (rows,), one.nbytes // step, one.offset)
        self.bias, self.expert, self.first, self.step = bias, expert, first, step

    @property
    def type(self):
        """The stored dtype."""
        return self.bias.type

    def _decoder(self):
        values = self.bias.at(self.expert).dequantize()[self.first :: self.step]
        return lambda lo, hi: values[lo:hi]


def reader_of(path, config):
    """Return the reader of this format; see `quantization.reader_of`. The config has no numbers."""
    return lambda tensors: _logical(path, tensors)


def _logical(path, tensors):
    out, stems = {}, set()
    for name, tensor in tensors.items():
        suffix = next((s for s in _SUFFIXES if name.endswith(s)), None)
        if suffix is None:
            out[name] = tensor
        elif name.removesuffix(suffix) not in stems:
            stems.add(stem := name.removesuffix(suffix))
            _add_experts(path, out, tensors, stem)
    return out


def _add_experts(path, out, tensors, stem):
    whole = f"{stem}.gate_up_proj_blocks"
    if whole not in tensors:
        odd = next(stem + s for s in _SUFFIXES if stem + s in tensors)
        raise stray(tensors[odd], f"a part beside {whole!r}, which is missing")
    parts = {s: part(tensors, whole, stem + s) for s in _SUFFIXES}
    experts = _check_shapes(tensors[whole], parts)
    if len(out) + experts * len(_SUFFIXES) > MAX_LOGICAL:
        raise fail(path, "experts", f"more than {MAX_LOGICAL} tensors", f"at most {MAX_LOGICAL}")
    for e in range(experts):
        for stored, seen in _ROWS.items():
            blocks, scales, bias = (parts[f".{stored}_{f}"] for f in _FIELDS)
            for module, rows in seen.items():
                weight, vector = (f"{stem}.{e}.{module}.{what}" for what in ("weight", "bias"))
                if odd := next((n for n in (weight, vector) if n in tensors), None):
                    raise stray(tensors[odd], f"no second form of what {whole!r} holds")
                out[weight] = Mxfp4Expert(weight, blocks, scales, e, *rows)
                out[vector] = ExpertBias(vector, bias, e, *rows)


def _check_shapes(gate_up, parts):
    """Return the number of experts."""
    good = len(gate_up.shape) == 4 and 0 not in gate_up.shape
    if not good or gate_up.shape[1] % (2 * GROUP) or gate_up.shape[3] != GROUP // 2:
        value = f"of shape {list(gate_up.shape)}"
        legal = "[experts, 2 * inner, hidden/32, 16], inner a multiple of 32"
        raise fail(gate_up.path, f"tensor {gate_up.name!r}", value, legal)
    experts, double, groups, _ = gate_up.shape
    for matrix, rows, k in (("gate_up", double, groups), ("down", groups * GROUP, double // 64)):
        blocks, scales, bias = (parts[f".{matrix}_proj_{f}"] for f in _FIELDS)
        expect(blocks, ("U8",), (experts, rows, k, GROUP // 2))
        expect(scales, ("U8",), (experts, rows, k))
        expect(bias, FLOATS, (experts, rows))
    return experts
