"""KV schemes: how a model's keys and values are stored and read.

A name such as ``"int4-had"`` or ``"int8:int4"`` says everything usual; `KVScheme` sets the rest.
`str(scheme)` is canonical: equal schemes have equal names, and parsing the name gives the scheme
back. Grammar: ``side[:side][,sinks=N][,recent=N][,attention=FORM][,layerN=side[:side]]...`` with
``side = format[-had|-had0[:block]]``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

from octavo.plan.machine import tables

from .names import checked_name, not_built, unknown

_SIDE = r"([a-z]\w*)(?:-(had0?(?::\d+)?))?"
_PAIR = re.compile(rf"{_SIDE}(?::{_SIDE})?")
_TRANSFORM = re.compile(r"had0?(?::(\d+))?")
_PRESETS = {"k8v4": "int8:int4"}
_ALIASES = {
    "auto": "bf16", "bfloat16": "bf16", "float16": "f16", "half": "f16", "fp16": "f16",
    "float32": "f32", "float": "f32", "fp8_e4m3": "fp8",
}  # fmt: skip
# Names of the plan whose kernels do not exist: what is missing, and what is nearest.
_PLANNED = {
    "nvfp4": "int4", "mxfp4": "int4", "kivi4": "int4-had", "kivi2": "int4-had",
    "turbo4": "int4-had", "turbo3": "int4-had", "turbo2": "int4-had", "int2-had": "int4-had",
    "int2": "int4", "int4g32": "int4", "int2g32": "int4", "ch4": "int4", "ch2": "int4",
    "fp8t": "fp8", "nvfp4t": "int4", "fp8_e5m2": "fp8",
}  # fmt: skip
MAX_PAGES = 1 << 20


@dataclass(frozen=True)
class KVScheme:
    """How keys and values are stored, page by page.

    Parameters
    ----------
    k, v : str
        Page formats of sealed pages (`octavo.kernels` lists them). `v` defaults to `k`.
    k_transform, v_transform : str, optional
        ``"had"`` (signed Hadamard) or ``"had0"``, ``":B"`` appended to force the block.
    sink_pages, recent_pages : int
        First pages, and pages just before a query's own, that are read as they were before
        sealing (architecture.md, law one). Either turns the prefix index off.
    attention : str, optional
        Dot form ``"f32"``, ``"q8"`` or ``"q8x2"``; by default each format's own.
    layers : Mapping of int to (str or KVScheme)
        Layers stored otherwise; negative counts from the last. Only formats and transforms differ.

    Raises
    ------
    ValueError
        For unknown formats, transforms or forms; the known ones are listed.
    UnsupportedError
        For names of the plan that are not built.
    """

    k: str
    v: str = ""
    k_transform: str | None = None
    v_transform: str | None = None
    sink_pages: int = 0
    recent_pages: int = 0
    attention: str | None = None
    layers: Mapping[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "k", _format(self.k))
        put(self, "v", _format(self.v) if self.v else self.k)
        for name in ("k_transform", "v_transform"):
            put(self, name, _transform(getattr(self, name)))
        for name in ("sink_pages", "recent_pages"):
            _count(name, getattr(self, name))
        put(self, "layers", MappingProxyType(_layer_overrides(self.layers)))
        _check_attention(self)

    @classmethod
    def parse(cls, scheme: "str | KVScheme") -> "KVScheme":
        """Return the scheme of a name; a `KVScheme` is passed through."""
        if isinstance(scheme, KVScheme):
            return scheme
        text = checked_name("KV scheme", scheme)
        head, *options = text.split(",")
        return replace(_parse_pair(head.strip()), **_parse_options(options))

    @cached_property
    def name(self) -> str:
        """The canonical name."""
        parts = [_pair_name(self)]
        parts += [f"sinks={self.sink_pages}"] if self.sink_pages else []
        parts += [f"recent={self.recent_pages}"] if self.recent_pages else []
        parts += [f"attention={self.attention}"] if self.attention else []
        parts += [f"layer{i}={_pair_name(s)}" for i, s in sorted(self.layers.items())]
        return ",".join(parts)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"KVScheme({self.name!r})"

    def __hash__(self) -> int:
        return hash(self.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KVScheme) and self.name == other.name

    def of_layer(self, layer: int, count: int) -> "KVScheme":
        """Return the scheme of one layer out of `count`."""
        for key, scheme in self.layers.items():
            if key % count == layer:
                return scheme
        return self

    def core_layers(self, shapes: Any) -> list[dict[str, Any]]:
        """Return the core's layer descriptions for these shapes.

        Parameters
        ----------
        shapes : sequence of LayerShape
            Widths of every layer.

        Raises
        ------
        ValueError
            If a key of `layers` names no layer, or two keys the same one; if K and V of a layer
            that keeps one latent for both (MLA) differ.
        """
        count = len(shapes)
        self._check_layer_keys(count)
        out = []
        for i, shape in enumerate(shapes):
            s = self.of_layer(i, count)
            if shape.latent and (s.k, s.k_transform) != (s.v, s.v_transform):
                raise ValueError(
                    f"KV scheme {self.name!r}: layer {i} keeps one latent that is K and V (MLA); "
                    f"legal: the same format and transform for both, such as {s.k!r}"
                )
            out.append({
                "latent": shape.latent,
                "kv_heads": shape.kv_heads, "k_width": shape.k_width, "v_width": shape.v_width,
                "k_format": s.k, "v_format": s.v,
                "k_transform": s.k_transform, "v_transform": s.v_transform,
                "form": _form_of(self.attention, s),
            })  # fmt: skip
        return out

    def _check_layer_keys(self, count: int) -> None:
        seen: dict[int, int] = {}
        for key in self.layers:
            if not -count <= key < count:
                legal = f"legal: {-count} to {count - 1}"
                raise ValueError(f"KV scheme {self.name!r}: there is no layer {key}; {legal}")
            if key % count in seen:
                raise ValueError(
                    f"KV scheme {self.name!r}: layers {seen[key % count]} and {key} are the same "
                    f"layer of {count}; give one of them"
                )
            seen[key % count] = key


def known_kv_names() -> list[str]:
    """Return the names that a user may type, presets and aliases last."""
    formats = list(tables().pages)
    rotated = [f"{f}-had" for f in formats if f.startswith("int")]
    return [*formats, *rotated, *_PRESETS, *_ALIASES]


def _format(name: object) -> str:
    text = checked_name("page format", name)
    text = _ALIASES.get(text, text)
    if text in tables().pages:
        return text
    if text in _PLANNED:
        raise not_built("page format", text, "it has no page kernels", _PLANNED[text])
    raise unknown("page format", text, tables().pages)


def _transform(name: object) -> str | None:
    if name is None or name == "none":
        return None
    text = checked_name("transform", name)
    match = _TRANSFORM.fullmatch(text)
    if not match:
        raise unknown("transform", text, ("had", "had0", "had:64", "none"))
    if match[1]:
        block = int(match[1])
        if not 2 <= block <= 512 or block & (block - 1):
            raise ValueError(f"transform {text!r}: block must be a power of two from 2 to 512")
    return text


def _count(name: str, value: object) -> None:
    if type(value) is not int:
        raise TypeError(f"KV scheme: {name} must be an int, not {type(value).__name__}")
    if not 0 <= value <= MAX_PAGES:
        raise ValueError(f"KV scheme: {name} is {value}; legal: 0 to {MAX_PAGES} pages")


def _layer_overrides(layers: object) -> dict[int, KVScheme]:
    if not isinstance(layers, Mapping):
        raise TypeError(f"KV scheme: layers must map int to a scheme, not {type(layers).__name__}")
    out = {}
    for key, value in layers.items():
        if type(key) is not int:
            raise TypeError(f"KV scheme: a layer must be an int, not {key!r:.40}")
        inner = KVScheme.parse(value)
        if inner.layers or inner.sink_pages or inner.recent_pages or inner.attention:
            raise ValueError(
                f"KV scheme: layer {key} sets {inner.name!r}; legal: formats and transforms only "
                "(sinks, recent pages and the dot form hold for all layers)"
            )
        out[key] = inner
    return out


def _check_attention(scheme: KVScheme) -> None:
    form = scheme.attention
    if form is None:
        return
    forms = tables().forms
    known = sorted({f for names in forms.values() for f in names})
    if form not in known:
        raise unknown("attention form", checked_name("attention form", form), known)
    used = {f for s in (scheme, *scheme.layers.values()) for f in (s.k, s.v)}
    if not any(form in forms[f] for f in used):
        missing = f"no format of {_pair_name(scheme)!r} has it"
        raise not_built("attention form", form, missing, forms[scheme.k][0])


def _form_of(form: str | None, scheme: KVScheme) -> str | None:
    """The form for one layer: only where one of its formats has it (bf16 layers stay exact)."""
    forms = tables().forms
    return form if form and any(form in forms[f] for f in (scheme.k, scheme.v)) else None


def _parse_pair(text: str) -> KVScheme:
    text = _PRESETS.get(text, text)
    if text in _PLANNED and text not in tables().pages:
        raise not_built("KV scheme", text, "it has no page kernels", _PLANNED[text])
    match = _PAIR.fullmatch(text)
    if not match:
        raise unknown("KV scheme", text, known_kv_names())
    k, k_transform, v, v_transform = match.groups()
    if v is None:
        v, v_transform = k, k_transform
    for side in (k, v):
        if _ALIASES.get(side, side) not in (*tables().pages, *_PLANNED):
            raise unknown("KV scheme", text, known_kv_names())
    return KVScheme(k=k, v=v, k_transform=k_transform, v_transform=v_transform)


def _parse_options(options: list[str]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    layers: dict[int, KVScheme] = {}
    for option in options:
        key, _, value = option.strip().partition("=")
        layer = re.fullmatch(r"layer(-?\d{1,6})", key)
        if layer and int(layer[1]) not in layers:
            layers[int(layer[1])] = _parse_pair(value)
        elif key in ("sinks", "recent") and value.isdigit() and len(value) < 8:
            out[{"sinks": "sink_pages", "recent": "recent_pages"}[key]] = int(value)
        elif key == "attention" and value:
            out["attention"] = value
        else:
            legal = "sinks=N, recent=N, attention=FORM, layerN=SCHEME (each layer once)"
            raise ValueError(f"KV scheme: option {option!r:.60} is not understood; legal: {legal}")
    return out | ({"layers": layers} if layers else {})


def _pair_name(scheme: KVScheme) -> str:
    def side(fmt: str, transform: str | None) -> str:
        return f"{fmt}-{transform}" if transform else fmt

    k, v = side(scheme.k, scheme.k_transform), side(scheme.v, scheme.v_transform)
    name = k if k == v else f"{k}:{v}"
    return next((short for short, full in _PRESETS.items() if full == name), name)
