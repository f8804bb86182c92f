"""The plan of a model: its counts, and what they mean for memories and bandwidths.

Everything is exact but the ceilings, which divide by a bandwidth that somebody gave or measured.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from octavo.table import Table, figure, size

from .kv import KVCost
from .weights import EXPERTS, Weights


class Roofs(NamedTuple):
    """Bytes and (where measured) operations per second, and whose they are."""

    read_bytes: float
    ops: float | None
    source: str


@dataclass(frozen=True)
class Fit:
    """What fits into one memory.

    Attributes
    ----------
    memory : int
        Bytes.
    weights, weights_and_context : bool
        All weights fit; so do they with the cache of one full context.
    contexts, tokens : int
        Full contexts, and tokens of one history (in whole pages), that fit beside all weights.
    others, others_and_context : bool
        All weights but the routed experts fit; so do they with one full context.
    experts, experts_and_context : int
        Routed experts of all layers that fit beside those.
    """

    memory: int
    weights: bool
    weights_and_context: bool
    contexts: int
    tokens: int
    others: bool
    others_and_context: bool
    experts: int
    experts_and_context: int


def fit(memory: int, weights: Weights, kv: KVCost, context: int) -> Fit:
    """Return what fits into so many bytes."""
    need = kv.needed(context)
    left, beside = memory - weights.nbytes, memory - weights.other_bytes

    def experts(room: int) -> int:
        return min(weights.expert_count, max(0, room) // max(1, weights.expert_bytes))

    return Fit(
        memory=memory,
        weights=left >= 0,
        weights_and_context=left >= need,
        contexts=max(0, left) // need,
        tokens=kv.tokens_in(max(0, left)),
        others=beside >= 0,
        others_and_context=beside >= need,
        experts=experts(beside),
        experts_and_context=experts(beside - need),
    )


@dataclass(frozen=True)
class Ceiling:
    """The most tokens per second that one sequence can decode at, after so many tokens.

    Attributes
    ----------
    context : int
    read_bytes, ops : int
        Bytes that a token reads, of weights and of the cache, and the operations it takes.
    tokens_per_s : float
    bound : str
        What holds it: "reading", or "computing" where the rate of operations was measured.
    """

    context: int
    read_bytes: int
    ops: int
    tokens_per_s: float
    bound: str


def ceiling(
    context: int, weights: Weights, kv: KVCost, attention_ops: int, roofs: Roofs
) -> Ceiling:
    """Return the ceiling under these roofs, `attention_ops` being of the whole context."""
    read = weights.routed_read + weights.other_read + kv.read(context)
    ops = 2 * weights.products + attention_ops
    reading, computing = read / roofs.read_bytes, ops / roofs.ops if roofs.ops else 0.0
    bound = "computing" if computing > reading else "reading"
    return Ceiling(context, read, ops, 1.0 / max(reading, computing), bound)


@dataclass(frozen=True, repr=False)
class Plan:
    """What a model takes and reads; see `octavo.plan`. Its text is tables of it.

    Attributes
    ----------
    model : str
    context : int
        Tokens that the cache is planned for.
    weights : Weights
    kv : KVCost
        Of the scheme asked for.
    formats : tuple of KVCost
        Of every page format that there is, to compare with.
    full_token_bytes : int
        Per token, were every query head's key and value cached in bf16.
    attention_ops : int
        Operations of a token's attention for each token that it sees in every layer.
    fits : tuple of Fit
    ceilings : tuple of Ceiling
        For an empty context and for the full one.
    notes : tuple of str
    """

    model: str
    context: int
    weights: Weights
    kv: KVCost
    formats: tuple[KVCost, ...]
    full_token_bytes: int
    attention_ops: int
    fits: tuple[Fit, ...] = ()
    ceilings: tuple[Ceiling, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def kv_bytes(self) -> int:
        """Bytes of the cache of one full context."""
        return self.kv.nbytes(self.context)

    @property
    def read_bytes(self) -> int:
        """Bytes that a token at the end of the context reads: weights and cache."""
        return self.weights.routed_read + self.weights.other_read + self.kv.read(self.context)

    def tables(self) -> list[Table]:
        """Return its tables: weights, cache, and what was asked of memories and bandwidth."""
        out = [_weights_table(self), _kv_table(self)]
        out += [_fit_table(self)] if self.fits else []
        out += [_ceiling_table(self)] if self.ceilings else []
        out[-1].notes += self.notes
        return out

    def __repr__(self) -> str:
        return "\n\n".join(map(str, self.tables()))

    def _repr_html_(self) -> str:
        return "".join(table._repr_html_() for table in self.tables())

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values."""

        def cost(kv: KVCost) -> dict[str, Any]:
            return asdict(kv) | {"token_bytes": kv.token_bytes, "nbytes": kv.nbytes(self.context)}

        return asdict(self) | {
            "weights": self.weights.to_dict(),
            "kv": cost(self.kv),
            "formats": [cost(kv) for kv in self.formats],
            "read_bytes": self.read_bytes,
        }

    def to_json(self) -> str:
        """Return the figures as one JSON object."""
        return json.dumps(self.to_dict())


def _weights_table(plan: Plan) -> Table:
    w = plan.weights
    out = Table(
        f"{plan.model}: {w.parameters:,} parameters, {w.active_parameters:,} active per token",
        [f"weights, {w.scheme}", "parameters", "bytes", "size", "bytes read per token"],
    )
    for part in w.parts:
        cells = (f"{part.nbytes:,}", size(part.nbytes), f"{w.read(part):,}")
        out.add(part.name, f"{part.parameters:,}", *cells)
    read = w.routed_read + w.other_read
    out.add("all", f"{w.parameters:,}", f"{w.nbytes:,}", size(w.nbytes), f"{read:,}")
    out.notes.append(f"without the embedding {w.parameters_without_embedding:,} parameters")
    if w.expert_count:
        out.notes.append(
            f"{w.layers} layers of {w.experts} experts, {w.top} chosen; one: "
            f"{w.expert_parameters:,} parameters, {w.expert_bytes:,} bytes"
        )
    return out


def _kv_table(plan: Plan) -> Table:
    out = Table(
        f"cache of {plan.context:,} tokens, KV {plan.kv.scheme}: {size(plan.kv_bytes)}",
        ["KV scheme", "bytes/token", "bytes", "size", "all heads' / it"],
    )
    others = [kv for kv in plan.formats if kv.scheme != plan.kv.scheme]
    for kv in [plan.kv, *others]:
        total = kv.nbytes(plan.context)
        ratio = f"{plan.full_token_bytes / kv.token_bytes:.1f}"
        out.add(kv.scheme, f"{kv.token_bytes:,}", f"{total:,}", size(total), ratio)
    full = plan.full_token_bytes
    out.notes.append(
        f"keys and values of every query head in bf16: {full:,} bytes/token, "
        f"{size(full * plan.context)}"
    )
    return out


def _yes(good: bool) -> str:
    return "yes" if good else "no"


def _fit_table(plan: Plan) -> Table:
    w, fits = plan.weights, plan.fits
    out = Table(
        f"what fits, with KV {plan.kv.scheme} and contexts of {plan.context:,}",
        ["in", *(size(f.memory) for f in fits)],
    )
    out.add("all weights", *(_yes(f.weights) for f in fits))
    out.add("all weights and a context", *(_yes(f.weights_and_context) for f in fits))
    out.add("contexts beside all weights", *(f"{f.contexts:,}" for f in fits))
    out.add("tokens beside all weights", *(f"{f.tokens:,}" for f in fits))
    if w.expert_count:
        out.add("all but the experts", *(_yes(f.others) for f in fits))
        out.add("all but the experts, and a context", *(_yes(f.others_and_context) for f in fits))
        out.add("experts beside those weights", *(_share(f.experts, w) for f in fits))
        out.add("experts beside them and a context",
                *(_share(f.experts_and_context, w) for f in fits))  # fmt: skip
        out.notes.append(f"experts: of {w.expert_count:,} in all, {w.experts} in a layer")
    return out


def _share(experts: int, w: Weights) -> str:
    return f"{experts:,} ({experts // w.layers} a layer)"


def _ceiling_table(plan: Plan) -> Table:
    out = Table(
        "ceilings of decoding one sequence",
        ["after tokens", "bytes read per token", "operations per token", "tokens/s", "held by"],
    )
    for c in plan.ceilings:
        cells = (f"{c.read_bytes:,}", f"{c.ops:,}", figure(c.tokens_per_s), c.bound)
        out.add(f"{c.context:,}", *cells)
    w = plan.weights
    out.notes.append(
        f"read of weights: {w.routed_read:,} bytes of {EXPERTS}, {w.other_read:,} of the rest"
    )
    return out
