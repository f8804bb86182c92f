"""Weight schemes: in which format matrices are held, and how activations are read.

``"checkpoint"`` holds every tensor as the file stores it (types without kernels are decoded to
f32, or to bf16 where that is exact). Any other name is a weight format: float ones are cast, those
with scales re-quantized.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from octavo.plan.machine import tables

from .names import checked_name, not_built, unknown

CHECKPOINT = "checkpoint"
METHODS = ("rtn",)
# Of a quantized model the embedding and the head stay as stored, as is the custom of the field.
KEPT = ("embed", "head")
# A choice of experts is not a matter of rounding: routers are held as stored, in floats.
_ROUTERS = "*.moe.router"
DEFAULT_ACT = "a8x2"
_ALIASES = {
    "auto": CHECKPOINT, "bfloat16": "bf16", "float16": "f16", "half": "f16", "float32": "f32",
    "q8_0": "w8g32", "q4_0": "q4g32", "q4_1": "q4g32m",
}  # fmt: skip
_PLANNED = {
    "w8a8": "w8", "w4a16": "q4g32", "w4a16-g128": "q4g32", "w4a8": "q4g32", "w4a8-g32": "q4g32",
    "w4a8-g64": "q4g32", "w4a8-g128": "q4g32", "w4a8-lqq": "q4g32", "fp8": "w8g32",
    "fp8_dynamic": "w8g32", "fp8-block": "w8g32", "nvfp4": "q4g32", "mxfp4": "q4g32",
    "q4g64": "q4g32", "q4g128": "q4g32",
}  # fmt: skip


@dataclass(frozen=True)
class WeightScheme:
    """In which format a model's matrices are held.

    Parameters
    ----------
    format : str
        ``"checkpoint"``, or a weight format (`octavo.kernels` lists them).
    method : str
        How a grouped format's numbers are chosen: ``"rtn"``.
    grid : int or str, optional
        For symmetric 4-bit RTN: 7, or ``"ggml"`` (see `octavo.quant.rtn`).
    ignore : tuple of str
        Roles (with ``*``) that stay as the checkpoint stores them. By default ``embed`` and
        ``head`` for grouped formats, nothing for float ones. Routers always stay.
    """

    format: str = CHECKPOINT
    method: str = "rtn"
    grid: int | str | None = None
    ignore: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        name = checked_name("weight scheme", self.format)
        name = _ALIASES.get(name, name)
        known = tables().weights
        if name != CHECKPOINT and name not in known:
            if name in _PLANNED:
                raise not_built("weight scheme", name, "it has no kernels", _PLANNED[name])
            raise unknown("weight scheme", name, [CHECKPOINT, *known, *_ALIASES])
        if self.method not in METHODS:
            raise unknown("quantization method", str(self.method), METHODS)
        if self.grid is not None and (self.grid not in (7, "ggml") or name != "q4g32"):
            raise ValueError(f"grid is {self.grid!r:.40}; legal: None, and 7 or 'ggml' for q4g32")
        ignore = self.ignore
        if ignore is None:
            ignore = KEPT if is_grouped(name) else ()
        if isinstance(ignore, str) or not all(isinstance(r, str) for r in ignore):
            raise TypeError("ignore must be a sequence of roles (str), such as ('layers.0.*',)")
        object.__setattr__(self, "format", name)
        object.__setattr__(self, "ignore", tuple(ignore))

    @classmethod
    def parse(cls, scheme: "str | WeightScheme") -> "WeightScheme":
        """Return the scheme of a name; a `WeightScheme` is passed through."""
        return scheme if isinstance(scheme, WeightScheme) else cls(scheme)

    def format_of(self, role: str) -> str:
        """Return ``"checkpoint"`` or the format in which this role's matrix is held."""
        assert self.ignore is not None
        kept = any(fnmatchcase(role, rule) for rule in (*self.ignore, _ROUTERS))
        return CHECKPOINT if kept else self.format

    @property
    def name(self) -> str:
        """The format, and what differs from its defaults."""
        parts = [self.format]
        parts += [f"grid={self.grid}"] if self.grid is not None else []
        default = KEPT if is_grouped(self.format) else ()
        parts += [f"ignore={'|'.join(self.ignore or ())}"] if self.ignore != default else []
        return ",".join(parts)

    def __str__(self) -> str:
        return self.name


def is_grouped(name: str) -> bool:
    """Tell whether a weight format has codes and scales (it takes 8-bit activations)."""
    return "a8" in tables().acts.get(name, ())


def parse_act(act: Any) -> str:
    """Return the activation form of this name."""
    name = checked_name("activation form", act)
    known = sorted({a for forms in tables().acts.values() for a in forms})
    if name in known:
        return name
    if name in ("a16", "a8g128", "f8", "f8g128"):
        raise not_built("activation form", name, "it has no kernels", DEFAULT_ACT)
    raise unknown("activation form", name, known)
