"""A two-layer random Llama built straight on `octavo._core`, small enough for the sanitizers.

Every weight format can be asked for; the values are random but fixed by the seed, so two models of
one seed are the same model in two formats' rounding.
"""

from __future__ import annotations

import numpy as np

from octavo import _core

HIDDEN, HEADS, KV_HEADS, DIM, INNER, LAYERS, VOCAB = 64, 4, 2, 32, 96, 2, 131
SCHEMES = {
    "f32": ("f32", "f32", None),
    "f16": ("f16", "f16", None),
    "bf16": ("bf16", "bf16", None),
    "fp8": ("fp8", "fp8", None),
    "int8": ("int8", "int8", None),
    "k8v4": ("int8", "int4", None),
    "int4": ("int4", "int4", None),
    "int4-had": ("int4", "int4", "had"),
}


# Latent attention: widths of latent and rotated key, and of a head without position and its value.
RANK, ROPE, NOPE, V = 64, 16, 32, 48
EXPERTS, TOP = 4, 2


def latent_layers(scheme: str, n: int = LAYERS, *, form=None, rank: int = RANK, rope: int = ROPE):
    k, _, transform = SCHEMES[scheme]
    one = {"latent": True, "kv_heads": 1, "k_width": rank, "v_width": rope, "k_format": k}
    return [one | {"k_transform": transform, "form": form}] * n


def layers(scheme: str, n: int = LAYERS, *, kv_heads: int = KV_HEADS, dim: int = DIM, form=None):
    k, v, transform = SCHEMES[scheme]
    one = {"kv_heads": kv_heads, "k_width": dim, "v_width": dim, "k_format": k, "v_format": v}
    return [one | {"k_transform": transform, "v_transform": transform, "form": form}] * n


def matrix(weights: _core.Weights, fmt: str, values: np.ndarray) -> int:
    """Pack float32 values [n, k]; grouped formats by plain rounding (any codes do for a test)."""
    n, k = values.shape
    values = np.ascontiguousarray(values, dtype=np.float32)
    if fmt in {"f32", "f16", "bf16"}:
        return weights.matrix(
            fmt, n, k, values, source="values", values_type="f32", row_stride=4 * k
        )
    if fmt == "w8":
        rows = (np.abs(values).max(-1, keepdims=True) / 127).astype(np.float32)
        codes = np.rint(values / rows).clip(-127, 127).astype(np.int8)
        return weights.matrix(
            fmt, n, k, codes, row_stride=k, group_stride=32, scales=rows, scale_type="f32",
            scale_row_stride=4,
        )  # fmt: skip
    groups = values.reshape(n, k // 32, 32)
    lo, hi = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
    if fmt == "w8g32":
        scale = (np.abs(groups).max(-1, keepdims=True) / 127).astype(np.float16)
        codes = np.rint(groups / scale.astype(np.float32)).clip(-127, 127).astype(np.int8)
    else:
        scale = ((hi - lo) / 15).astype(np.float16)
        codes = np.rint((groups - lo) / scale.astype(np.float32)).clip(0, 15).astype(np.uint8)
    extra = {}
    if fmt == "q4g32m":
        extra["mins"] = np.ascontiguousarray(lo[..., 0].astype(np.float16))
    if fmt == "q4g32z":
        zeros = np.rint(-lo / scale.astype(np.float32)).clip(0, 15).astype(np.uint8)
        extra |= {"zeros": np.ascontiguousarray(zeros[..., 0]), "zero_row_stride": k // 32}
    return weights.matrix(
        fmt,
        n,
        k,
        np.ascontiguousarray(codes.reshape(n, k)),
        row_stride=k,
        group_stride=32,
        scales=np.ascontiguousarray(scale[..., 0]),
        scale_type="f16",
        scale_row_stride=2 * (k // 32),
        scale_group_stride=2,
        **extra,
    )


def program(
    runtime: _core.Runtime, fmt: str = "f32", act: str = "a8x2", seed: int = 0, max_rows: int = 128,
    window: int | None = None,
) -> _core.Program:  # fmt: skip
    """With a window, layer 0 has it and layer 1 sees everything, and both have sinks."""
    rng = np.random.default_rng(seed)
    weights = _core.Weights(runtime)
    extra = [{}, {}]
    if window is not None:
        sinks = [weights.vector(np.linspace(lo, 2, HEADS, dtype=np.float32)) for lo in (-2, 1)]
        extra = [{"window": window, "sinks": sinks[0]}, {"sinks": sinks[1]}]

    def random(n, k):
        return (rng.standard_normal((n, k)) / np.sqrt(k)).astype(np.float32)

    def norm(n):
        return weights.vector((1 + 0.1 * rng.standard_normal(n)).astype(np.float32))

    embed = matrix(weights, fmt, random(VOCAB, HIDDEN) * 4)
    ops = [{"kind": "embed", "out": [0], "w": [embed]}]
    for layer in range(LAYERS):
        q, kv = HEADS * DIM, KV_HEADS * DIM
        mats = [matrix(weights, fmt, random(n, HIDDEN)) for n in (q, kv, kv)]
        ops.append(
            {"kind": "norm_linear", "in": 0, "out": [1, 2, 3], "n_out": 3, "w": mats}
            | {"norm": norm(HIDDEN), "eps": 1e-5}
        )
        ops.append(
            {"kind": "attend", "in": 1, "in2": 2, "in3": 3, "out": [4], "layer": layer}
            | {"heads": HEADS, "rope": 0, "scale": DIM**-0.5, "q_norm": norm(DIM), "eps": 1e-6}
            | {"k_norm": norm(DIM)}
            | extra[layer]
        )
        ops.append(
            {
                "kind": "linear_add",
                "in": 4,
                "out": [0],
                "w": [matrix(weights, fmt, random(HIDDEN, q))],
            }
        )
        mlp = [(INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)]
        ops.append(
            {"kind": "gated_mlp", "in": 0, "out": [0], "norm": norm(HIDDEN), "eps": 1e-5}
            | {"w": [matrix(weights, fmt, random(*shape)) for shape in mlp]}
        )
    ops.append({"kind": "norm", "in": 0, "out": [5], "norm": norm(HIDDEN), "eps": 1e-5})
    ops.append({"kind": "head", "in": 5, "w": [embed]})
    freq = 10000.0 ** (-2.0 * np.arange(DIM // 2) / DIM)
    ropes = [{"freq": freq, "dim": DIM, "mscale": 1.0, "half_split": True}]
    widths = [HIDDEN, HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM, HEADS * DIM, HIDDEN]
    return _core.Program(weights, widths=widths, ops=ops, ropes=ropes, act=act, max_rows=max_rows)


def latent_program(
    runtime: _core.Runtime, fmt: str = "f32", act: str = "a8x2", seed: int = 0, max_rows: int = 128
) -> _core.Program:
    """The same with latent attention, and a mixture of experts in the second layer."""
    rng = np.random.default_rng(seed)
    weights = _core.Weights(runtime)

    def w(n, k, how=fmt):
        return matrix(weights, how, rng.standard_normal((n, k)) / np.sqrt(k))

    def norm(n):
        return weights.vector((1 + 0.1 * rng.standard_normal(n)).astype(np.float32))

    def heads(n, k):
        return np.array([[w(n, k)] for _ in range(HEADS)], np.int32)

    embed = matrix(weights, fmt, rng.standard_normal((VOCAB, HIDDEN)) / 2)
    names = ("x", "q", "kv", "ql", "ol", "a", "n", "router")
    x, q, kv, ql, ol, a, n, router = range(len(names))
    widths = [HIDDEN, HEADS * (NOPE + ROPE), RANK + ROPE, HEADS * (RANK + ROPE), HEADS * RANK,
              HEADS * V, HIDDEN, EXPERTS + 2 * TOP]  # fmt: skip
    ops = [{"kind": "embed", "out": [x], "w": [embed]}]
    for layer in range(LAYERS):
        ops += [
            {"kind": "norm_linear", "in": x, "out": [q, kv], "norm": norm(HIDDEN), "eps": 1e-5,
             "w": [w(widths[q], HIDDEN), w(widths[kv], HIDDEN)]},
            {"kind": "head_linear", "in": q, "out": [ql], "heads": HEADS,
             "matrices": heads(RANK, NOPE)},
            {"kind": "attend", "in": ql, "in2": kv, "out": [ol], "layer": layer, "heads": HEADS,
             "rope": 0, "scale": (NOPE + ROPE) ** -0.5, "k_norm": norm(RANK), "eps": 1e-6},
            {"kind": "head_linear", "in": ol, "out": [a], "heads": HEADS,
             "matrices": heads(V, RANK)},
            {"kind": "linear_add", "in": a, "out": [x], "w": [w(HIDDEN, HEADS * V)]},
            {"kind": "norm", "in": x, "out": [n], "norm": norm(HIDDEN), "eps": 1e-5},
        ]  # fmt: skip
        shapes = [(INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)]
        if layer:
            ops.append(
                {"kind": "moe", "in": n, "out": [x, router], "experts": EXPERTS, "top": TOP,
                 "w": [w(EXPERTS, HIDDEN, "bf16")], "renorm": True, "scale": 2.0,
                 "matrices": np.array([[w(*s) for s in shapes] for _ in range(EXPERTS)], np.int32)}
            )  # fmt: skip
        ops.append({"kind": "gated_mlp", "in": n, "out": [x], "w": [w(*s) for s in shapes]})
    ops.append({"kind": "norm", "in": x, "out": [n], "norm": norm(HIDDEN), "eps": 1e-5})
    ops.append({"kind": "head", "in": n, "w": [embed]})
    freq = 10000.0 ** (-2.0 * np.arange(ROPE // 2) / ROPE)
    ropes = [{"freq": freq, "dim": ROPE, "mscale": 1.0, "half_split": False}]
    return _core.Program(weights, widths=widths, ops=ops, ropes=ropes, act=act, max_rows=max_rows)


# How the two models keep their history: program, layers of a scheme, names of a page's segments.
KINDS = {
    "heads": (program, layers, ("k", "v")),
    "latent": (latent_program, latent_layers, ("latent", "rope")),
}
# k8v4 is two formats, and a latent has one.
CASES = [(k, s) for k in KINDS for s in SCHEMES if (k, s) != ("latent", "k8v4")]


def tokens(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, n).astype(np.int32)


def feed(prog, cache, seq, ids, cuts) -> np.ndarray:
    """Logits [len(ids), vocab] of feeding `ids` in pieces that end at `cuts`."""
    out, at = [], 0
    for end in [*cuts, len(ids)]:
        if end > at:
            step = _core.step(prog, cache, [(seq, ids[at:end], 0)], logits=True)
            assert step["ok"] == [True]
            out.append(step["logits"][0])
        at = end
    return np.concatenate(out)


def sealed_bytes(cache, seq, n_layers: int = LAYERS, segments=("k", "v")) -> bytes:
    """Every stored byte of every sealed page of the sequence."""
    blob = []
    for index in range((cache.length(seq) + 63) // 64):
        for layer in range(n_layers):
            for segment in segments:
                page = cache.page(seq, layer, index, segment)
                if page.sealed:
                    blob += [page.array(part["name"]).tobytes() for part in page.parts()]
    return b"".join(blob)
