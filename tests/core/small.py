"""The least model that has every part: one layer, one KV head of 16, so that thousands of steps
take seconds. Its last token embeds as NaN: whoever reads it fails alone. Head and embedding are two
matrices, so that nobody else sees the NaN.
"""

from __future__ import annotations

import contextlib
import os

import numpy as np
import tiny

from octavo import _core

HIDDEN, HEADS, DIM, INNER, VOCAB, POISON = 32, 2, 16, 32, 41, 40
FAULTS = hasattr(_core, "fault")
SANITIZED = "OCTAVO_SANITIZER" in os.environ or "san." in os.environ.get("LD_PRELOAD", "")
TSAN = "tsan" in os.environ.get("OCTAVO_SANITIZER", "") + os.environ.get("LD_PRELOAD", "")


def model(runtime: _core.Runtime, max_rows: int = 512, seed: int = 0):
    """The weights, and a function that opens a program over them."""
    rng = np.random.default_rng(seed)
    weights = _core.Weights(runtime)

    def matrix(n, k, poison=False):
        values = (rng.standard_normal((n, k)) / np.sqrt(k)).astype(np.float32)
        if poison:
            values[POISON] = np.nan
        return tiny.matrix(weights, "f32", values)

    norm = weights.vector(np.ones(HIDDEN, np.float32))
    ops = [{"kind": "embed", "out": [0], "w": [matrix(VOCAB, HIDDEN, poison=True)]}]
    ops.append(
        {"kind": "norm_linear", "in": 0, "out": [1, 2, 3], "n_out": 3, "norm": norm, "eps": 1e-5}
        | {"w": [matrix(HEADS * DIM, HIDDEN), matrix(DIM, HIDDEN), matrix(DIM, HIDDEN)]}
    )
    ops.append(
        {"kind": "attend", "in": 1, "in2": 2, "in3": 3, "out": [4], "layer": 0}
        | {"heads": HEADS, "rope": 0, "scale": DIM**-0.5}
    )
    ops.append({"kind": "linear_add", "in": 4, "out": [0], "w": [matrix(HIDDEN, HEADS * DIM)]})
    mlp = [matrix(INNER, HIDDEN), matrix(INNER, HIDDEN), matrix(HIDDEN, INNER)]
    ops.append({"kind": "gated_mlp", "in": 0, "out": [0], "norm": norm, "eps": 1e-5, "w": mlp})
    ops.append({"kind": "head", "in": 0, "w": [matrix(VOCAB, HIDDEN)]})
    rope = {"freq": 100.0 ** (-np.arange(DIM // 2) / 8), "dim": DIM, "mscale": 1.0}
    return weights, lambda: _core.Program(
        weights,
        widths=[HIDDEN, HEADS * DIM, DIM, DIM, HEADS * DIM],
        ops=ops,
        ropes=[rope | {"half_split": True}],
        act="a32",
        max_rows=max_rows,
    )


def program(runtime: _core.Runtime, max_rows: int = 512, seed: int = 0) -> _core.Program:
    return model(runtime, max_rows, seed)[1]()


def layers(scheme: str, n: int = 1):
    return tiny.layers(scheme, n, kv_heads=1, dim=DIM)


def cache(runtime, scheme="int8", budget=1 << 20, n=1, **kw) -> _core.Cache:
    return _core.Cache(runtime, layers(scheme, n), budget=budget, **kw)


def rows(n: int, seed: int, n_layers: int = 1):
    """k, v, q of n appended rows, flat, as Cache.append takes them."""
    rng = np.random.default_rng(seed)
    shape = n_layers * n * DIM
    draw = (rng.standard_normal(s, dtype=np.float32) for s in (shape, shape, shape * HEADS))
    return tuple(draw)


def bits(x: np.ndarray) -> bytes:
    return np.ascontiguousarray(x).tobytes()


def live(*tags: str) -> dict:
    """Live bytes and allocations by tag of the seam."""
    memory = _core.memory()
    return {tag: memory[tag] for tag in tags or memory}


def page_bytes(cache, seq, n_layers=1):
    return tiny.sealed_bytes(cache, seq, n_layers)


def digest(cache, seqs, n_layers=1):
    """What a failed call must not change. Tables may have grown: capacity is not state."""
    ledger = cache.ledger()
    del ledger["tables"]
    return [(cache.length(s), page_bytes(cache, s, n_layers)) for s in seqs], ledger


@contextlib.contextmanager
def fault(nth: int, mode: str = "once"):
    _core.fault(nth, mode)
    try:
        yield
    finally:
        _core.fault(0)
