"""How a `quantization_config` lays matrices out in a file: codes, scales, and who is left alone.

Three methods are read, those of the published models of the families here: compressed-tensors
(packed integers and bytes), DeepSeek's blocks of fp8, and gpt-oss's experts in MXFP4. Shapes alone
decide; no tensor is opened.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from octavo.errors import CheckpointError, UnsupportedError
from octavo.model.fields import Fields
from octavo.module_patterns import ModulePatterns
from octavo.quantization_config import groups_in, quantization_in

_WORD = 4  # bytes that several codes are packed into
_SHAPE = 8  # of the int32 pair beside a packed matrix
_MOST_GROUP = 1 << 20


class Stored(NamedTuple):
    """Bytes of a tensor: values or codes, scales with zero points, and records of files alone."""

    codes: int
    scales: int = 0
    records: int = 0


@dataclass(frozen=True, slots=True)
class Grid:
    """Codes of a matrix, with a scale for each block of rows and columns.

    Attributes
    ----------
    bits : int
        Of a code.
    block : tuple of int
        Rows and columns that share a scale; 0 is all of them.
    scale_bytes : int
    packed : bool
        Codes lie in words along a row, zero points in words along a column; otherwise in bytes.
    zeros : bool
        There is a zero point beside each scale.
    record : int
        Bytes beside each packed matrix that say its shape.
    """

    bits: int
    block: tuple[int, int]
    scale_bytes: int
    packed: bool = False
    zeros: bool = False
    record: int = _SHAPE

    def stored(self, n: int, k: int) -> Stored:
        """Return the bytes of a matrix [n, k]."""
        rows, cols = (-(-m // (each or m)) for m, each in zip((n, k), self.block, strict=True))
        scales = self.scale_bytes * rows * cols
        if not self.packed:
            return Stored(n * k, scales + (rows * cols if self.zeros else 0))
        each = 8 * _WORD // self.bits
        zeros = _WORD * -(-rows // each) * cols if self.zeros else 0
        return Stored(_WORD * n * -(-k // each), scales + zeros, self.record)


@dataclass(frozen=True)
class Quantization:
    """Which grid each module has.

    Attributes
    ----------
    groups : tuple of (ModulePatterns, Grid or None)
        Modules by target; None where a group leaves its weights as they are.
    ignored : ModulePatterns
    source : str
    """

    groups: tuple[tuple[ModulePatterns, Grid | None], ...]
    ignored: ModulePatterns
    source: str

    def grid(self, name: str, linear: bool) -> Grid | None:
        """Return the grid of a module, None if its weights are plain.

        Parameters
        ----------
        name : str
            What the file calls it.
        linear : bool
            It is of the class Linear (embeddings and routers are not).

        Raises
        ------
        CheckpointError
            If two groups claim it differently, or the lists' patterns are too much work.
        """
        if self.ignored.covers(name, linear):
            return None
        grids = {grid for targets, grid in self.groups if targets.covers(name, linear)}
        if len(grids) > 1:
            raise CheckpointError(
                f"{self.source}: module {name!r} is a target of two groups that differ; "
                "legal: one grid for each module"
            )
        return grids.pop() if grids else None


def quantization_of(
    config: Mapping[str, Any], source: str, scale_bytes: int
) -> Quantization | None:
    """Read a config's ``quantization_config``, of the file or of the text model inside it.

    Parameters
    ----------
    config : Mapping
        A whole ``config.json``.
    source : str
        What error texts call it.
    scale_bytes : int
        Of the model's float type, in which compressed-tensors stores scales.

    Raises
    ------
    UnsupportedError
        For a method, a format or a grid that is not read; those that are, are named.
    CheckpointError
        For values out of range.
    """
    found = quantization_in(config, source)
    if found is None:
        return None
    where = f"{source}: quantization_config"
    fields = Fields(found, where)
    method = fields.text("quant_method")
    if method == "compressed-tensors":
        return _compressed_tensors(fields, groups_in(found, source), scale_bytes)
    if method == "fp8":
        return _fp8(fields)
    if method == "mxfp4":
        return _mxfp4(fields)
    raise UnsupportedError(
        f"{where}: quant_method is {method!r:.40}, which is not read; "
        "supported: 'compressed-tensors', 'fp8', 'mxfp4'"
    )


def _mxfp4(config: Fields) -> Quantization:
    """Experts alone, whatever the list of others says: so `checkpoint.mxfp4` finds them."""
    experts = ModulePatterns(config.source, [r"re:.*\.mlp\.experts\.\d+\.\w+_proj$"])
    grid = Grid(4, (1, 32), 1, packed=True, record=0)
    return Quantization(((experts, grid),), ModulePatterns(config.source, []), config.source)


def _fp8(config: Fields) -> Quantization:
    """DeepSeek's blocks, each with a float32 factor; heads are kept though no list says so."""
    block = _pair(config, "weight_block_size", (0, 0))
    kept = _modules(config, "modules_to_not_convert", also=("lm_head",))
    every = ModulePatterns(config.source, ["Linear"])
    return Quantization(((every, Grid(8, block, 4)),), kept, config.source)


def _compressed_tensors(
    config: Fields, listed: Mapping[str, Mapping[str, Any]], scale_bytes: int
) -> Quantization:
    groups = []
    for name, values in listed.items():
        group = Fields(values, f"{config.source}: {name:.40}")
        layout = group.text("format", config.text("format", "dense"))
        groups.append((_modules(group, "targets"), _grid(group, layout, scale_bytes)))
    return Quantization(tuple(groups), _modules(config, "ignore"), config.source)


def _modules(config: Fields, key: str, also: tuple[str, ...] = ()) -> ModulePatterns:
    return ModulePatterns(f"{config.source}: {key}", config.get(key), also)


# format: (types of code, bits of code, packed)
_FORMATS = {
    "pack-quantized": (("int",), (4, 8), True),
    "int-quantized": (("int",), (8,), False),
    "naive-quantized": (("int", "float"), (8,), False),
    "float-quantized": (("float",), (8,), False),
}


def _grid(group: Fields, layout: str, scale_bytes: int) -> Grid | None:
    values = group.get("weights")
    if layout == "dense" or values is None:
        return None
    if not isinstance(values, dict):
        raise group.bad("weights", values, "an object or null")
    if layout not in _FORMATS:
        raise UnsupportedError(
            f"{group.source}: format is {layout!r:.40}, which is not read; "
            f"supported: 'dense', {', '.join(map(repr, _FORMATS))}"
        )
    types, bits, packed = _FORMATS[layout]
    weights = Fields(values, f"{group.source}: weights")
    weights.refuse("type", types, f"another type in format {layout!r}")
    weights.refuse("num_bits", bits, f"another width in format {layout!r}")
    weights.refuse("actorder", ("static", "weight", False), "an order of columns")
    return Grid(
        weights.integer("num_bits"), _block(weights), scale_bytes, packed,
        zeros=not weights.flag("symmetric", True),
    )  # fmt: skip


def _block(weights: Fields) -> tuple[int, int]:
    strategy = weights.text("strategy", "group")
    weights.refuse("strategy", ("tensor", "channel", "group", "block"), "another strategy")
    if strategy == "group":
        return 1, weights.integer("group_size", most=_MOST_GROUP)
    if strategy == "block":
        return _pair(weights, "block_structure")
    return (0, 0) if strategy == "tensor" else (1, 0)


def _pair(config: Fields, key: str, default: tuple[int, int] | None = None) -> tuple[int, int]:
    value = config.get(key)
    if value is None and default is not None:
        return default
    good = isinstance(value, list) and len(value) == 2
    if not good or not all(type(n) is int and 1 <= n <= _MOST_GROUP for n in value):
        raise config.bad(key, value, f"two integers from 1 to {_MOST_GROUP}")
    return value[0], value[1]
