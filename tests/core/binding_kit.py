"""A tiny model on octavo._core for the tests of the binding: one attention layer, f32 everywhere.

Token VOCAB - 1 has a NaN embedding, so that a sequence which reads it fails alone.
"""

from types import SimpleNamespace

import numpy as np

from octavo import _core

VOCAB, WIDTH, HEADS, HEAD_DIM, PAGE = 11, 32, 2, 16, 64
LAYER = {
    "kv_heads": HEADS,
    "k_width": HEAD_DIM,
    "v_width": HEAD_DIM,
    "k_format": "f32",
    "v_format": "f32",
}


def f32(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def ids(*values):
    return np.array(values, np.int32)


def add_f32(weights, w):
    return weights.matrix(
        "f32", *w.shape, w, source="values", values_type="f32", row_stride=w.strides[0]
    )


def ops(width=WIDTH, heads=HEADS):
    return [
        {"kind": "embed", "w": 0, "out": 0, "scale": 1.0},
        {"kind": "norm_linear", "in": 0, "norm": 0, "eps": 1e-5, "w": [1, 1, 1], "out": [1, 2, 3]},
        {
            "kind": "attend",
            "in": 1,
            "in2": 2,
            "in3": 3,
            "out": 4,
            "layer": 0,
            "heads": heads,
            "rope": 0,
            "scale": 0.25,
        },
        {"kind": "linear_add", "in": 4, "w": 2, "out": 0},
        {"kind": "head", "in": 0, "w": 3},
    ]


def rope(dim=HEAD_DIM):
    return {"dim": dim, "freq": 10000.0 ** -(np.arange(dim // 2) / (dim // 2)), "mscale": 1.0}


def make_weights(runtime, width=WIDTH):
    weights = _core.Weights(runtime)
    embedding = f32(VOCAB, width)
    embedding[VOCAB - 1] = np.nan
    head = f32(VOCAB, width, seed=3)
    for w in (embedding, f32(width, width, seed=1), f32(width, width, seed=2), head):
        add_f32(weights, w)
    weights.vector(np.ones(width, np.float32))
    return weights


def make_program(weights, width=WIDTH, **kwargs):
    kwargs = {"act": "a32", "max_rows": 256} | kwargs
    return _core.Program(weights, widths=[width] * 5, ops=ops(width), ropes=[rope()], **kwargs)


def make_cache(runtime, **kwargs):
    return _core.Cache(runtime, [LAYER], **({"budget": 1 << 22} | kwargs))


def make():
    runtime = _core.Runtime(threads=1)
    weights = make_weights(runtime)
    program = make_program(weights)
    cache = make_cache(runtime)
    return SimpleNamespace(runtime=runtime, weights=weights, program=program, cache=cache)


def rows(n, seed=0):
    """(k, v) of n tokens for Cache.append."""
    return f32(n * HEADS * HEAD_DIM, seed=seed), f32(n * HEADS * HEAD_DIM, seed=seed + 1)


def filled(cache, n=PAGE):
    """A sequence of n tokens."""
    seq = cache.open()
    cache.append(seq, *rows(n), n)
    return seq
