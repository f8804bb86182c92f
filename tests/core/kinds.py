"""The least models by kind of layer, and what tests of failures have to know of each: `heads` is
small's own; `latent` has Kimi's layers (latent attention, experts beside a shared one), `windows`
gpt-oss's (windows, sinks, experts with biases). Of the latter two both layers have a router.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import small
import tiny
from small import HEADS, HIDDEN, INNER, VOCAB

from octavo import _core

RANK, ROPE, NOPE, V = 32, 16, 32, 16
EXPERTS, TOP, WINDOW, EPS = 4, 2, 70, 1e-5
SINKS = np.array([-1, 1], np.float32)


@dataclass(frozen=True)
class Kind:
    """`model` is as small.model; `widths` are of a row of k and of v, and of a head's query;
    `attend` is what windows add to arguments.
    """

    model: Callable[..., tuple[_core.Weights, Callable[[], _core.Program]]]
    layers: Callable[[str], list[dict[str, Any]]]
    segments: tuple[str, str]
    widths: tuple[int, int, int]
    routers: tuple[int, ...] = ()
    attend: dict[str, Any] = field(default_factory=dict)

    def program(self, runtime, max_rows=512) -> _core.Program:
        return self.model(runtime, max_rows)[1]()

    def cache(self, runtime, scheme="int8", budget=1 << 19, **kw) -> _core.Cache:
        return _core.Cache(runtime, self.layers(scheme), budget=budget, **kw)

    def rows(self, n: int, seed: int):
        """k, v, q of n appended rows, flat, as Cache.append takes them."""
        rng, count = np.random.default_rng(seed), len(self.layers("bf16")) * n
        k, v, q = self.widths
        return tuple(rng.standard_normal(count * w, dtype=np.float32) for w in (k, v, q * HEADS))

    def route(self, function) -> dict[str, Any]:
        """`function(op, scores, ids, gates)` at every router, as an argument of a step."""
        if function is None:
            return {}
        return {"route": {op: lambda *what, op=op: function(op, *what) for op in self.routers}}

    def page_bytes(self, cache, seq) -> bytes:
        return tiny.sealed_bytes(cache, seq, len(self.layers("bf16")), self.segments)

    def open_bytes(self, cache, seq) -> bytes:
        """The rows of pages that are open."""
        places = itertools.product(
            range(-(-cache.length(seq) // 64)), range(len(self.layers("bf16"))), self.segments
        )
        return b"".join(
            cache.decode(seq, layer, index, segment).tobytes()
            for index, layer, segment in places
            if not cache.page(seq, layer, index, segment).sealed
        )

    def digest(self, cache, seqs):
        """What a failed call must not change. Tables may have grown: capacity is not state."""
        ledger = cache.ledger()
        del ledger["tables"]
        parts = (cache.length, lambda s: self.page_bytes(cache, s),
                 lambda s: self.open_bytes(cache, s))  # fmt: skip
        return [[part(s) for part in parts] for s in seqs], ledger


class Maker:
    """Random matrices in a coded format, and norms, of one seed."""

    def __init__(self, runtime, seed):
        self.rng, self.weights = np.random.default_rng(seed), _core.Weights(runtime)

    def matrix(self, n, k, fmt="q4g32m"):
        values = self.rng.standard_normal((n, k)) / np.sqrt(k)
        return tiny.matrix(self.weights, fmt, values)

    def vector(self, n, mean=0.0):
        values = (mean + self.rng.standard_normal(n) / 8).astype(np.float32)
        return self.weights.vector(values)

    def norm(self, n=HIDDEN):
        return {"norm": self.vector(n, 1.0), "eps": EPS}

    def gated(self):
        return [self.matrix(*s) for s in ((INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER))]

    def mixture(self, buffer, out, **how):
        experts = np.array([self.gated() for _ in range(EXPERTS)], np.int32)
        return {"kind": "moe", "in": buffer, "out": out, "experts": EXPERTS, "top": TOP,
                "w": [self.matrix(EXPERTS, HIDDEN, "bf16")], "matrices": experts} | how  # fmt: skip

    def model(self, widths, layers, rope, max_rows):
        embed, head = (self.matrix(VOCAB, HIDDEN, "f32") for _ in range(2))
        ops = [{"kind": "embed", "out": [0], "w": [embed]}]
        ops += [op for layer in range(2) for op in layers(layer)]
        ops.append({"kind": "head", "in": 0, "w": [head]})
        ropes = [{"freq": 100.0 ** (-np.arange(rope // 2) / 8), "dim": rope, "mscale": 1.0}]
        return self.weights, lambda: _core.Program(
            self.weights, widths=widths, ops=ops, ropes=ropes, act="a8x2", max_rows=max_rows
        )


def latent(runtime: _core.Runtime, max_rows: int = 512, seed: int = 0):
    x, q, kv, ql, ol, a, n, router = range(8)
    widths = [HIDDEN, HEADS * (NOPE + ROPE), RANK + ROPE, HEADS * (RANK + ROPE), HEADS * RANK,
              HEADS * V, HIDDEN, EXPERTS + 2 * TOP]  # fmt: skip
    make = Maker(runtime, seed)

    def heads(n, k):
        return np.array([[make.matrix(n, k)] for _ in range(HEADS)], np.int32)

    def layer(index):
        return [
            {"kind": "norm_linear", "in": x, "out": [q, kv], **make.norm(),
             "w": [make.matrix(widths[q], HIDDEN), make.matrix(widths[kv], HIDDEN)]},
            {"kind": "head_linear", "in": q, "out": [ql], "heads": HEADS,
             "matrices": heads(RANK, NOPE)},
            {"kind": "attend", "in": ql, "in2": kv, "out": [ol], "layer": index, "heads": HEADS,
             "rope": 0, "scale": (NOPE + ROPE) ** -0.5, "k_norm": make.vector(RANK, 1.0),
             "eps": EPS},
            {"kind": "head_linear", "in": ol, "out": [a], "heads": HEADS,
             "matrices": heads(V, RANK)},
            {"kind": "linear_add", "in": a, "out": [x], "w": [make.matrix(HIDDEN, HEADS * V)]},
            {"kind": "norm", "in": x, "out": [n], **make.norm()},
            make.mixture(n, [x, router], renorm=True, scale=2.0,
                         bias=[-1, make.vector(EXPERTS)]),
            {"kind": "gated_mlp", "in": n, "out": [x], "w": make.gated()},
        ]  # fmt: skip

    return make.model(widths, layer, ROPE, max_rows)


def windows(runtime: _core.Runtime, max_rows: int = 512, seed: int = 0):
    """Layer 0 has the window, layer 1 sees everything."""
    dim = small.DIM
    x, q, k, v, a, router = range(6)
    widths = [HIDDEN, HEADS * dim, dim, dim, HEADS * dim, EXPERTS + 2 * TOP]
    make = Maker(runtime, seed)

    def layer(index):
        biases = [[make.vector(w) for w in (INNER, INNER, HIDDEN)] for _ in range(EXPERTS)]
        return [
            {"kind": "norm_linear", "in": x, "out": [q, k, v], **make.norm(),
             "w": [make.matrix(widths[to], HIDDEN) for to in (q, k, v)],
             "bias": [make.vector(widths[to]) for to in (q, k, v)]},
            {"kind": "attend", "in": q, "in2": k, "in3": v, "out": [a], "layer": index,
             "heads": HEADS, "rope": 0, "scale": dim**-0.5, "window": 0 if index else WINDOW,
             "sinks": make.weights.vector(SINKS)},
            {"kind": "linear_add", "in": a, "out": [x], "w": [make.matrix(HIDDEN, HEADS * dim)],
             "bias": [make.vector(HIDDEN)]},
            make.mixture(x, [x, router], **make.norm(), score="top", scale=1.0,
                         bias=[make.vector(EXPERTS), -1], activation="clamped_silu",
                         biases=np.array(biases, np.int32)),
        ]  # fmt: skip

    return make.model(widths, layer, dim, max_rows)


def latent_layers(scheme: str):
    return tiny.latent_layers(scheme, 2, rank=RANK, rope=ROPE)


KINDS = {
    "heads": Kind(small.model, small.layers, ("k", "v"), (small.DIM,) * 3),
    "latent": Kind(latent, latent_layers, ("latent", "rope"), (RANK, ROPE, RANK + ROPE), (7, 15)),
    "windows": Kind(
        windows, lambda scheme: small.layers(scheme, 2), ("k", "v"), (small.DIM,) * 3, (4, 8),
        {"window": WINDOW, "sinks": SINKS},
    ),
}  # fmt: skip
MIXTURES = [name for name, kind in KINDS.items() if kind.routers]
