"""What a model's weights count and take, part by part, and what of them a token reads.

A token reads every part but the embedding (one row of it) and, of the routed experts, as many as a
router chooses. Bytes come from a config, from a file's tensors, from a weight scheme, or from an
open model; parameters always from the spec.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from octavo.model import ModelSpec, TensorUse
from octavo.model.fields import Fields
from octavo.scheme import CHECKPOINT, WeightScheme, is_grouped

from .machine import tables
from .quantization import Stored, quantization_of

Bytes = Callable[[TensorUse], Stored]

EXPERTS, EMBEDDING, HEAD = "routed experts", "embedding", "head"
_PARTS = {"attn": "attention", "mlp": "MLPs", "shared": "shared experts"}
_ORDER = (EXPERTS, "shared experts", "attention", "MLPs", "routers", "norms", EMBEDDING, HEAD)
_FLOATS = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Part:
    """Tensors of one purpose, over all layers.

    Attributes
    ----------
    name : str
    parameters : int
    nbytes : int
        Values, or codes with their scales and zero points.
    records : int
        Bytes that only a file has: the shapes beside packed matrices.
    """

    name: str
    parameters: int
    nbytes: int
    records: int = 0


@dataclass(frozen=True)
class Weights:
    """A model's weights under one scheme.

    Attributes
    ----------
    scheme : str
        ``"checkpoint"``: as a file stores them.
    parts : tuple of Part
    tied : bool
        The embedding is the head too.
    layers : int
        Layers that have experts.
    experts, top : int
        Experts of such a layer, and those that a token takes; 0 where there are none.
    products : int
        Weights of the matrices that a token is multiplied with.
    """

    scheme: str
    parts: tuple[Part, ...]
    tied: bool
    layers: int
    experts: int
    top: int
    products: int

    def part(self, name: str) -> Part:
        """Return a part by its name; one that the model does not have is empty."""
        return next((p for p in self.parts if p.name == name), Part(name, 0, 0))

    def read(self, part: Part) -> int:
        """Return the bytes of a part that a token reads."""
        if part.name == EXPERTS:
            return part.nbytes * self.top // max(1, self.experts)
        return 0 if part.name == EMBEDDING and not self.tied else part.nbytes

    @property
    def parameters(self) -> int:
        """All of them; a tied matrix counts once."""
        return sum(p.parameters for p in self.parts)

    @property
    def parameters_without_embedding(self) -> int:
        """All but the embedding."""
        return self.parameters - self.part(EMBEDDING).parameters

    @property
    def active_parameters(self) -> int:
        """Those that a token meets: no embedding but as a head, no expert that was not chosen."""
        idle = 0 if self.tied else self.part(EMBEDDING).parameters
        routed = self.part(EXPERTS).parameters
        return self.parameters - idle - routed + self.layers * self.top * self.expert_parameters

    @property
    def other_parameters(self) -> int:
        """All but the routed experts'."""
        return self.parameters - self.part(EXPERTS).parameters

    @property
    def expert_count(self) -> int:
        """Routed experts of all layers."""
        return self.layers * self.experts

    @property
    def expert_parameters(self) -> int:
        """Of one routed expert."""
        return self.part(EXPERTS).parameters // max(1, self.expert_count)

    @property
    def expert_bytes(self) -> int:
        """Of one routed expert (their mean, where a file stores some otherwise)."""
        return self.part(EXPERTS).nbytes // max(1, self.expert_count)

    @property
    def nbytes(self) -> int:
        """Bytes of all in memory."""
        return sum(p.nbytes for p in self.parts)

    @property
    def file_bytes(self) -> int:
        """Bytes of all in a file: with the shapes that packed matrices come with."""
        return self.nbytes + sum(p.records for p in self.parts)

    @property
    def other_bytes(self) -> int:
        """Bytes of all but the routed experts."""
        return self.nbytes - self.part(EXPERTS).nbytes

    @property
    def routed_read(self) -> int:
        """Bytes of routed experts that a token reads."""
        return self.read(self.part(EXPERTS))

    @property
    def other_read(self) -> int:
        """Bytes of everything else that a token reads; the head is, the embedding's row is not."""
        return sum(map(self.read, self.parts)) - self.routed_read

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        names = ("parameters", "parameters_without_embedding", "active_parameters",
                 "expert_parameters", "expert_bytes", "nbytes", "file_bytes", "routed_read",
                 "other_read")  # fmt: skip
        return asdict(self) | {name: getattr(self, name) for name in names}


# ---- where bytes come from -----------------------------------------------------------


def config_bytes(config: Mapping[str, Any], source: str) -> Bytes:
    """Return what a checkpoint of this ``config.json`` stores of each tensor.

    Raises
    ------
    CheckpointError, UnsupportedError
        If the config has no float type, or quantizes in a way that is not read.
    """
    text = config.get("text_config")
    fields = Fields({**config, **(text if isinstance(text, dict) else {})}, source)
    name = fields.text("torch_dtype", fields.text("dtype"))
    if name not in _FLOATS:
        raise fields.bad("torch_dtype", name, ", ".join(_FLOATS))
    each = _FLOATS[name]
    quantized = quantization_of(config, source, each)

    def stored(use: TensorUse) -> Stored:
        shape = use.stored_shape
        # The bias that only selects is float32 in every release.
        plain = Stored((4 if use.role.endswith("moe.router.bias") else each) * math.prod(shape))
        if quantized is None or len(shape) != 2:
            return plain
        module = use.tensor.removesuffix(".weight")
        linear = use.role != "embed" and not use.role.endswith("moe.router")
        grid = quantized.grid(module, linear)
        return plain if grid is None else grid.stored(*shape)

    return _once(stored)


def file_bytes(tensors: Mapping[str, Any]) -> Bytes:
    """Return what an open checkpoint stores of each tensor."""
    return _once(lambda use: Stored(tensors[use.tensor].nbytes))


def _once(stored: Bytes) -> Bytes:
    """Count a tensor once of which several uses are pieces."""
    seen: set[str] = set()

    def each(use: TensorUse) -> Stored:
        if use.cut is None:
            return stored(use)
        if use.tensor in seen:
            return Stored(0)
        seen.add(use.tensor)
        return stored(use)

    return each


def scheme_bytes(scheme: WeightScheme, stored: Bytes) -> Bytes:
    """Return what each tensor takes under a scheme; what it keeps takes what is `stored`.

    Rows count as they are: that packing fills the last block of 32 is left out.
    """
    if scheme.format == CHECKPOINT:
        return stored
    bits = tables().weights

    def held(use: TensorUse) -> Stored:
        if len(use.shape) == 1:
            return Stored(4 * use.shape[0])  # vectors are held in float32
        name, (n, k) = scheme.format_of(use.role), use.shape
        if name == CHECKPOINT:
            return stored(use)
        # Codes without a group in their name have a float32 scale per row, on top of their bits.
        per_row = is_grouped(name) and not re.search(r"g\d", name)
        return Stored(math.ceil(bits[name] * n * k / 8), 4 * n if per_row else 0)

    return held


# ---- parts ---------------------------------------------------------------------------


def part_of(role: str) -> str:
    """Return the part that a role belongs to; ``*`` may stand for a number in it."""
    if role in ("embed", "head", "norm"):
        return {"embed": EMBEDDING, "head": HEAD, "norm": "norms"}[role]
    tail = role.split(".", 2)[2]
    if tail in ("attn.norm", "mlp.norm", "attn.out_norm", "mlp.out_norm"):
        return "norms"
    if tail.startswith("moe."):
        return "routers" if tail.startswith("moe.router") else EXPERTS
    return _PARTS[tail.partition(".")[0]]


def weights_of(spec: ModelSpec, scheme: str, nbytes: Bytes) -> Weights:
    """Count a model's weights, each tensor's bytes as `nbytes` says."""
    sums = {name: [0, 0] for name in _ORDER}
    for use in spec.uses:
        codes, scales, records = nbytes(use)
        sum_of = sums[part_of(use.role)]
        sum_of[0] += codes + scales
        sum_of[1] += records
    return _weights(spec, scheme, sums)


def held_weights(spec: ModelSpec, scheme: str, rows: Iterable[Any]) -> Weights:
    """Count an open model's weights, bytes as the rows of its load report say."""
    sums = {name: [0] for name in _ORDER}
    for row in rows:
        sums[part_of(row.kind)][0] += row.nbytes
    return _weights(spec, scheme, sums)


def _weights(spec: ModelSpec, scheme: str, sums: Mapping[str, list[int]]) -> Weights:
    counts, matrices = dict.fromkeys(_ORDER, 0), dict.fromkeys(_ORDER, 0)
    moe, layers = spec.moe, sum(map(spec.is_moe, range(spec.layers)))
    for use in spec.uses:
        part, size = part_of(use.role), math.prod(use.shape)
        counts[part] += size
        if len(use.shape) == 2 and (part != EMBEDDING or spec.tied):
            matrices[part] += size
    if moe is not None:
        matrices[EXPERTS] = matrices[EXPERTS] // moe.experts * moe.top
    parts = tuple(Part(name, counts[name], *sums[name]) for name in _ORDER if counts[name])
    experts, top = (moe.experts, moe.top) if moe and layers else (0, 0)
    return Weights(scheme, parts, spec.tied, layers, experts, top, sum(matrices.values()))
