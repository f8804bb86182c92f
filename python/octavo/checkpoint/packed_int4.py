"""compressed-tensors, `pack-quantized`: symmetric 4-bit integers in groups of 32 (Kimi's experts).

`X.weight_packed` I32 [n, k/8] holds q + 8 of column 8c + i in nibble i of word c, so byte j holds
the codes of columns 2j (low nibble) and 2j + 1; `X.weight_scale` [n, k/32]; `X.weight_shape` says n
and k. w = q * scale. The file says which modules are packed; the config must not contradict it.
"""

import numpy as np

from octavo.module_patterns import ModulePatterns, text_name
from octavo.quantization_config import groups_in

from .logical import Logical, pair_table
from .quantization import FLOATS, expect, part, require, stray
from .source import fail, unsupported

GROUP = 32

_PACKED, _SCALE, _SHAPE = ".weight_packed", ".weight_scale", ".weight_shape"
_SCHEME = {"format": ("pack-quantized",), "kv_cache_scheme": (None,)}
_EMPTY = ("sparsity_config", "transform_config")
_GROUP = {"targets": (["Linear"],), "format": ("pack-quantized", None),
          "input_activations": (None,), "output_activations": (None,)}  # fmt: skip
_WEIGHTS = {
    "num_bits": (4,), "type": ("int", None), "symmetric": (True, None), "strategy": ("group", None),
    "group_size": (GROUP,), "actorder": (None, False), "dynamic": (False, None),
    "block_structure": (None,),
}  # fmt: skip
_PAIRS = pair_table(np.arange(16) - 8)


class PackedInt4(Logical):
    """A packed matrix.

    Attributes
    ----------
    packed : Tensor
        Codes; its bytes are [n, k/2].
    scale : Tensor
        [n, k/32], BF16 or F16.
    """

    __slots__ = ("packed", "scale")
    type = "INT4_G32"

    def __init__(self, name, shape, nbytes, packed, scale):
        super().__init__(name, shape, nbytes, packed.offset)
        self.packed, self.scale = packed, scale

    def _decoder(self):
        n, k = self.shape
        codes, scales = self.packed.raw().reshape(n, k // 2), self.scale.array()

        def decode(lo, hi):
            groups = _PAIRS[codes[lo:hi]].reshape(hi - lo, k // GROUP, GROUP)
            return (groups * scales[lo:hi, :, None].astype(np.float32)).reshape(hi - lo, k)

        return decode


def reader_of(path, config):
    """Return the reader of this format; see `quantization.reader_of`."""
    where = "quantization_config"
    require(path, where, config, _SCHEME)
    for field in _EMPTY:
        if config.get(field):
            raise unsupported(path, f"{where}.{field}", config[field], "an empty one")
    groups = groups_in(config, path)
    if len(groups) != 1:
        raise unsupported(path, f"{where}.config_groups", f"{len(groups)} groups", "one group")
    _check_group(path, *next(iter(groups.items())))
    ignored = ModulePatterns(f"{path}: ignore", config.get("ignore"))
    return lambda tensors: _checked(_logical(tensors), ignored)


def _check_group(path, name, group):
    where = f"quantization_config.config_groups.{name:.80}"
    require(path, where, group, _GROUP)
    weights = group.get("weights")
    if not isinstance(weights, dict):
        raise fail(path, f"{where}.weights", weights, "an object")
    require(path, f"{where}.weights", weights, _WEIGHTS)


def _logical(tensors):
    out = {}
    for name, tensor in tensors.items():
        stem, dot, last = name.rpartition(".")
        if dot + last == _PACKED:
            out[f"{stem}.weight"] = _matrix(tensors, stem)
        elif last in ("weight_zero_point", "weight_g_idx"):
            raise _not_symmetric(tensor)
        elif dot + last not in (_SCALE, _SHAPE):
            out[name] = tensor
        elif stem + _PACKED not in tensors:
            raise stray(tensor, f"a part beside {stem + _PACKED!r}, which is missing")
    return out


def _not_symmetric(tensor):
    if tensor.name.endswith("g_idx"):
        return unsupported(tensor.path, "tensor", repr(tensor.name), "columns in their own order")
    return stray(tensor, "no zero points, as the config says symmetric")


def _matrix(tensors, stem):
    whole = stem + _PACKED
    packed = tensors[whole]
    scale, shape = part(tensors, whole, stem + _SCALE), part(tensors, whole, stem + _SHAPE)
    if f"{stem}.weight" in tensors:
        raise stray(tensors[f"{stem}.weight"], f"no second form of {whole!r}")
    expect(shape, ("I32", "I64"), (2,))
    n, k = np.frombuffer(shape.copy(), "<i4" if shape.type == "I32" else "<i8").tolist()
    if n < 1 or k < 1 or k % GROUP:
        legal = f"[n, k] with n >= 1 and k a positive multiple of {GROUP}"
        raise fail(shape.path, f"value of tensor {shape.name!r}", [n, k], legal)
    if packed.shape != (n, k // 8):
        value, legal = [n, k], f"the rows of {whole!r} {list(packed.shape)}, and 8 times its words"
        raise fail(shape.path, f"value of tensor {shape.name!r}", value, legal)
    expect(packed, ("I32",), (n, k // 8))
    expect(scale, ("BF16", "F16"), (n, k // GROUP))
    nbytes = packed.nbytes + scale.nbytes + shape.nbytes
    return PackedInt4(f"{stem}.weight", (n, k), nbytes, packed, scale)


def _checked(tensors, ignored):
    """Refuse a packed module that is ignored, and a linear that is neither."""
    kinds = {_kind(n) for n, t in tensors.items() if isinstance(t, PackedInt4)}
    for name, tensor in tensors.items():
        module, _, last = name.rpartition(".")
        if isinstance(tensor, PackedInt4):
            if ignored.covers(module, linear=True):
                legal = "stored plainly, or not in the ignore list of quantization_config"
                raise fail(tensor.packed.path, f"module {module!r}", "packed", legal)
        elif last == "weight" and tensor.type in FLOATS and len(tensor.shape) == 2:
            if _is_linear(module, kinds) and not ignored.covers(module, linear=True):
                legal = "packed, or in the ignore list of quantization_config"
                raise fail(tensor.path, f"module {module!r}", f"stored as {tensor.type}", legal)
    return tensors


def _kind(name):
    return name.split(".")[-2]


def _is_linear(module, kinds):
    """Tell whether a plain matrix is one of the `Linear` modules that the config speaks of.

    A file does not say: embeddings and routers look alike. So those count that are named as linears
    are, or as a packed module of the same file.
    """
    last = module.rpartition(".")[2]
    known = last.endswith("_proj") or last in kinds
    return known or text_name(module) == "lm_head"
