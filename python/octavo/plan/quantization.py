"""How a `quantization_config` lays matrices out in a file: codes, scales, and who is left alone.

Two methods are read, those of the published models of the families here: compressed-tensors (packed
integers and bytes) and DeepSeek's blocks of fp8. Shapes alone decide; no tensor is opened.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from octavo.errors import CheckpointError, UnsupportedError
from octavo.model.fields import Fields

_WORD = 4  # bytes that several codes are packed into
_SHAPE = 8  # of the int32 pair beside a packed matrix
_MOST_NAMES, _LONGEST_NAME = 1 << 16, 1024
_MOST_GROUP = 1 << 20
_MOST_REPEATS = 4


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
    """

    bits: int
    block: tuple[int, int]
    scale_bytes: int
    packed: bool = False
    zeros: bool = False

    def stored(self, n: int, k: int) -> Stored:
        """Return the bytes of a matrix [n, k]."""
        rows, cols = (-(-m // (each or m)) for m, each in zip((n, k), self.block, strict=True))
        scales = self.scale_bytes * rows * cols
        if not self.packed:
            return Stored(n * k, scales + (rows * cols if self.zeros else 0))
        each = 8 * _WORD // self.bits
        zeros = _WORD * -(-rows // each) * cols if self.zeros else 0
        return Stored(_WORD * n * -(-k // each), scales + zeros, _SHAPE)


class _Names:
    """A list of module names: exact ones, the class "Linear", and expressions after ``re:``."""

    def __init__(self, config: Fields, key: str) -> None:
        listed = config.get(key, [])
        legal = f"a list of at most {_MOST_NAMES} names, each of at most {_LONGEST_NAME} characters"
        if not isinstance(listed, list) or len(listed) > _MOST_NAMES:
            raise config.bad(key, listed, legal)
        for name in listed:
            if not isinstance(name, str) or len(name) > _LONGEST_NAME:
                raise config.bad(key, name, legal)
        self.exact = frozenset(name for name in listed if not name.startswith("re:"))
        self.patterns = [_expression(config, key, n) for n in listed if n.startswith("re:")]

    def has(self, names: tuple[str, ...], linear: bool) -> bool:
        """Tell whether a module is meant, which may be called by any of its names."""
        if not self.exact.isdisjoint(names) or (linear and "Linear" in self.exact):
            return True
        return any(p.match(name) for p in self.patterns for name in names)


def _expression(config: Fields, key: str, name: str) -> re.Pattern[str]:
    """Compile an expression that a stranger wrote, if matching it cannot take for ever."""
    text = name.removeprefix("re:")
    if re.search(r"\)[*+?{]", text) or len(re.findall(r"(?<!\\)[*+{]", text)) > _MOST_REPEATS:
        raise UnsupportedError(
            f"{config.source}: {key} has the expression {name!r:.80}; supported: no repeated "
            f"group, and at most {_MOST_REPEATS} repetitions"
        )
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise config.bad(key, name, f"a regular expression ({error})") from error


@dataclass(frozen=True)
class Quantization:
    """Which grid each module has.

    Attributes
    ----------
    groups : tuple of (_Names, Grid or None)
        Modules by target; None where a group leaves its weights as they are.
    ignored : _Names
    source : str
    """

    groups: tuple[tuple[_Names, Grid | None], ...]
    ignored: _Names
    source: str

    def grid(self, names: tuple[str, ...], linear: bool) -> Grid | None:
        """Return the grid of a module, None if its weights are plain.

        Parameters
        ----------
        names : tuple of str
            What it may be called: by the whole file, and by the text model inside it.
        linear : bool
            It is of the class Linear (embeddings and routers are not).

        Raises
        ------
        CheckpointError
            If two groups claim it differently.
        """
        if self.ignored.has(names, linear):
            return None
        grids = {grid for targets, grid in self.groups if targets.has(names, linear)}
        if len(grids) > 1:
            raise CheckpointError(
                f"{self.source}: module {names[0]!r} is a target of two groups that differ; "
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
    text = config.get("text_config")
    nested = text if isinstance(text, dict) else {}
    found = config.get("quantization_config") or nested.get("quantization_config")
    if not found:
        return None
    where = f"{source}: quantization_config"
    if not isinstance(found, dict):
        raise Fields(config, source).bad("quantization_config", found, "an object")
    fields = Fields(found, where)
    method = fields.text("quant_method")
    if method == "compressed-tensors":
        return _compressed_tensors(fields, scale_bytes)
    if method == "fp8":
        return _fp8(fields)
    raise UnsupportedError(
        f"{where}: quant_method is {method!r:.40}, which is not read; "
        "supported: 'compressed-tensors', 'fp8'"
    )


def _fp8(config: Fields) -> Quantization:
    """DeepSeek's blocks, each with a float32 factor; heads are kept though no list says so."""
    block = _pair(config, "weight_block_size", (0, 0))
    kept = _Names(config, "modules_to_not_convert")
    kept.exact |= {"lm_head"}
    every = _Names(Fields({"targets": ["Linear"]}, config.source), "targets")
    return Quantization(((every, Grid(8, block, 4)),), kept, config.source)


def _compressed_tensors(config: Fields, scale_bytes: int) -> Quantization:
    listed = config.get("config_groups")
    if not isinstance(listed, dict) or not listed:
        raise config.bad("config_groups", listed, "an object of one group or more")
    groups = []
    for name, values in listed.items():
        if not isinstance(values, dict):
            raise config.bad(f"config_groups.{name:.40}", values, "an object")
        group = Fields(values, f"{config.source}: {name:.40}")
        layout = group.text("format", config.text("format", "dense"))
        groups.append((_Names(group, "targets"), _grid(group, layout, scale_bytes)))
    return Quantization(tuple(groups), _Names(config, "ignore"), config.source)


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
