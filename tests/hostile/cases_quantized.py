"""Hostile quantized safetensors, groups Q1 to Q4: configs, patterns, parts and sizes that lie."""

import json
import math
import os
import struct
from itertools import product

from cases_safetensors import raw
from harness import Case, open_and_touch

BYTES = {"I32": 4, "BF16": 2, "F32": 4, "U8": 1, "F8_E4M3": 1}
WEIGHTS = {"num_bits": 4, "group_size": 32}
ODD = (None, [], {}, "x", 10**30, -1, 1.5, True, [[]], "x" * 100_000)
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
MXFP4 = {"quant_method": "mxfp4"}


def int4(weights=WEIGHTS, group=(), **changed):
    """A compressed-tensors config with fields changed."""
    groups = {"g": {"targets": ["Linear"], "weights": weights} | dict(group)}
    scheme = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    return scheme | {"config_groups": groups} | changed


def triple(name, n=2, k=32):
    """The three entries of a packed module, and the bytes of its shape."""
    parts = {"weight_packed": ("I32", [n, k // 8]), "weight_scale": ("BF16", [n, k // 32]),
             "weight_shape": ("I32", [2])}  # fmt: skip
    entries = {f"{name}.{part}": entry for part, entry in parts.items()}
    return entries, {f"{name}.weight_shape": struct.pack("<2i", n, k)}


def header(entries):
    """The header of entries {name: (dtype, shape)}, and the bytes of their data."""
    out, end = {}, 0
    for name, (dtype, shape) in entries.items():
        begin, end = end, end + BYTES[dtype] * math.prod(shape)
        out[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    return out, end


def laid_out(entries, values=()):
    """A safetensors file whose data are values {name: bytes} and zeros."""
    described, end = header(entries)
    data = bytearray(end)
    for name, value in dict(values).items():
        if name in described:
            begin, _ = described[name]["data_offsets"]
            data[begin : begin + len(value)] = value
    return raw(described, bytes(data))


def case(d, name, data, config, *, hole=0, **options):
    """A folder with this file, `hole` bytes longer without holding them."""
    path = d / f"{len(os.listdir(d))} {''.join(c if c.isalnum() else '_' for c in name[:60])}"
    path.mkdir()
    text = json.dumps({"quantization_config": config})
    (path / "config.json").write_text(text)
    (path / "model.safetensors").write_bytes(data)
    os.truncate(path / "model.safetensors", len(data) + hole)

    def run():
        open_and_touch(path, mmap=False)
        open_and_touch(path)

    return Case(name, run, len(data) + len(text), **options)


def Q1(d):
    entries, shape = triple("a")
    good = laid_out(entries, shape)
    yield case(d, "good int4", good, int4(), legal=True)
    for field, value in product(("format", "kv_cache_scheme", "config_groups", "ignore"), ODD):
        legal = {"kv_cache_scheme": (None,), "ignore": (None, [])}.get(field, ())
        yield case(d, f"{field} {str(value)[:9]}", good, int4(**{field: value}),
                   legal=value in legal)  # fmt: skip
    for field, value in product(("targets", "weights"), ODD):
        yield case(d, f"{field} {str(value)[:9]}", good, int4(group={field: value}))
    for field, value in product(("num_bits", "group_size"), ODD):
        yield case(d, f"{field} {str(value)[:9]}", good, int4(WEIGHTS | {field: value}))
    for value in ODD:
        yield case(d, f"block size {str(value)[:9]}", good, FP8 | {"weight_block_size": value})


def Q2(d):
    entries, values = {}, {}
    for i in range(500):
        more, shape = triple("a" * 500 + f".{i}")
        entries, values = entries | more, values | shape
    data = laid_out(entries, values)
    yield case(d, "nothing ignored", data, int4(), legal=True)
    for pattern in ("(a+)+$", "(a|a)*$", "((a*)*)*$", "(.*a)(.*a)(.*a)(.*a)(.*a)(.*a)b",
                    "a?" * 300 + "a" * 300 + "$"):  # fmt: skip
        yield case(d, pattern[:30], data, int4(ignore=[f"re:{pattern}"]), legal=True)
    for name, ignore in {
        "10^5 patterns": [f"re:x{i}$" for i in range(100_000)],
        "a long pattern": ["re:" + "a" * 1_000_000],
        "deep groups": ["re:" + "(" * 100_000 + ")" * 100_000],
        "many states": ["re:.*[.0-4]" + "." * 300 + "b$", "re:(.*0.*1.*2.*)+(.....)+x"],
    }.items():
        options = {"legal": True} if name == "many states" else {}
        yield case(d, name, data, int4(ignore=ignore), **options)
    names = [f"x{i}" for i in range(100_000)]
    yield case(d, "10^5 names", data, int4(ignore=names), legal=True)


def Q3(d):
    for n, k in ((-1, 32), (2, 33), (1 << 30, 1 << 30), (0, 0), (3, 32), (2, 64)):
        entries, _ = triple("a")
        shape = {"a.weight_shape": struct.pack("<2i", n, k)}
        yield case(d, f"shape [{n}, {k}]", laid_out(entries, shape), int4())
    entries, shape = triple("a")
    for gone in entries:
        less = {name: e for name, e in entries.items() if name != gone}
        yield case(d, f"no {gone}", laid_out(less, shape), int4())
    for extent in (0, 1, 2, 129):
        entries = {"a.weight": ("F8_E4M3", [extent, 1]), "a.weight_scale_inv": ("F32", [1, 1])}
        yield case(d, f"fp8 of {extent} rows", laid_out(entries), FP8, legal=0 < extent < 129)
    experts = mxfp4(2)
    yield case(d, "good mxfp4", laid_out(experts), MXFP4, legal=True)
    yield case(d, "mxfp4, scales of NaN",
               laid_out(experts, {"e.down_proj_scales": b"\xff" * 64}), MXFP4)  # fmt: skip
    for gone in experts:
        less = {name: e for name, e in experts.items() if name != gone}
        yield case(d, f"no {gone}", laid_out(less), MXFP4)


def mxfp4(experts, inner=32):
    """Entries of one layer whose hidden width is its inner one."""
    shapes = {"blocks": [1, 16], "scales": [1]}
    out = {}
    for name, rows in (("gate_up", 2 * inner), ("down", inner)):
        for field, rest in shapes.items():
            out[f"e.{name}_proj_{field}"] = ("U8", [experts, rows, *rest])
        out[f"e.{name}_proj_bias"] = ("BF16", [experts, rows])
    return out


def Q4(d):
    for experts, inner in ((1 << 40, 0), (1 << 62, 0), (0, 32)):
        yield case(d, f"{experts} empty experts", laid_out(mxfp4(experts, inner)), MXFP4)
    described, end = header(mxfp4(50_000))
    yield case(d, "50,000 experts in a hole", raw(described, b""), MXFP4, hole=end)
    entries, values = {}, {}
    for i in range(12_000):
        more, shape = triple(f"model.layers.{i % 61}.mlp.experts.{i}.gate_proj", n=1)
        entries |= more
        values |= shape
    kimi = [r"re:.*self_attn.*", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"]
    *_, last = values
    yield case(d, "36,000 parts, the last shape lies",
               laid_out(entries, values | {last: struct.pack("<2i", 1, 64)}),
               int4(ignore=kimi))  # fmt: skip
    del entries[last]
    yield case(d, "36,000 parts, the last is missing", laid_out(entries, values), int4(ignore=kimi))
