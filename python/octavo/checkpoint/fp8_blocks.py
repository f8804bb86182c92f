"""FP8 in blocks of 128 x 128, as DeepSeek-V3 and Kimi K2 store it.

`X.weight` F8_E4M3 [n, k] and `X.weight_scale_inv` [ceil(n/128), ceil(k/128)]; the last blocks may
be ragged. w = e4m3 * scale in float32, rounded once: a product, whatever the name says.
"""

import ml_dtypes
import numpy as np

from .logical import Logical
from .quantization import expect, part, require, stray
from .source import fail

BLOCK = 128

_SCALE = ".weight_scale_inv"
_LEGAL = {
    "weight_block_size": ([BLOCK, BLOCK],),
    "fmt": ("e4m3", None),
    "activation_scheme": ("dynamic", None),
}


class Fp8Blocks(Logical):
    """A matrix of e4m3 codes under scales of blocks.

    Attributes
    ----------
    codes, scale : Tensor
        [n, k] and [ceil(n/128), ceil(k/128)].
    """

    __slots__ = ("codes", "scale")
    type = "FP8_BLOCK"

    def __init__(self, codes, scale):
        super().__init__(codes.name, codes.shape, codes.nbytes + scale.nbytes, codes.offset)
        self.codes, self.scale = codes, scale

    def _decoder(self):
        codes = self.codes.raw().view(ml_dtypes.float8_e4m3fn).reshape(self.shape)
        scales = self.scale.dequantize()

        def decode(lo, hi):
            rows = scales[np.arange(lo, hi) // BLOCK]
            wide = np.repeat(rows, BLOCK, axis=1)[:, : self.shape[1]]
            return codes[lo:hi].astype(np.float32) * wide

        return decode


def reader_of(path, config):
    """Return the reader of this format; see `quantization.reader_of`."""
    require(path, "quantization_config", config, _LEGAL)
    return _logical


def _logical(tensors):
    out = {}
    for name, tensor in tensors.items():
        stem, dot, last = name.rpartition(".")
        if dot + last == _SCALE:
            if f"{stem}.weight" not in tensors:
                raise stray(tensor, f"a part beside {stem + '.weight'!r}, which is missing")
        elif last == "weight" and (tensor.type == "F8_E4M3" or stem + _SCALE in tensors):
            out[name] = _matrix(tensors, tensor, stem)
        else:
            out[name] = tensor
    return out


def _matrix(tensors, codes, stem):
    scale = part(tensors, codes.name, stem + _SCALE)
    if codes.type != "F8_E4M3" or len(codes.shape) != 2 or 0 in codes.shape:
        value = f"{codes.type} of shape {list(codes.shape)}"
        legal = f"F8_E4M3 of shape [n, k], beside {scale.name!r}"
        raise fail(codes.path, f"tensor {codes.name!r}", value, legal)
    n, k = codes.shape
    expect(scale, ("F32", "BF16"), (-(-n // BLOCK), -(-k // BLOCK)))
    return Fp8Blocks(codes, scale)
