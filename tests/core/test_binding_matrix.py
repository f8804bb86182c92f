"""Weights.matrix: every address that packing touches lies inside its buffer, or nothing happens.

The true extent of each layout is computed here with Python's integers; a buffer of exactly that
size is accepted and one byte less is refused.
"""

import itertools

import ml_dtypes
import numpy as np
import pytest
from binding_kit import f32

from octavo import _core

pytestmark = pytest.mark.core


@pytest.fixture(scope="module")
def weights():
    return _core.Weights(_core.Runtime(threads=1))


def grouped(n, k, source, pad, offset=0, last_row=None):
    """Arguments and exact sizes of a grouped matrix with `pad` spare bytes between everything."""
    groups, left = -(-k // 32), k - (-(-k // 32) - 1) * 32
    unit = 32 if source == "bytes" else 16
    tail = {"bytes": left, "halves": 16, "pairs": (left + 1) // 2}[source]
    stride, side = unit + pad, 2 + pad
    row, scale_row = groups * stride + pad, groups * side + pad
    last = n - 1 if last_row is None else last_row
    kwargs = {
        "source": source,
        "row_stride": row,
        "group_stride": stride,
        "scale_type": "f16",
        "scale_row_stride": scale_row,
        "scale_group_stride": side,
        "zero_row_stride": groups + pad,
        "code_offset": offset,
        "scale_offset": offset,
        "min_offset": offset,
    }
    last_codes = (groups - 1) * stride + tail
    full_codes = (groups - 2) * stride + unit if groups > 1 else 0
    codes = offset + last * row + max(last_codes, full_codes)
    scales = offset + last * scale_row + (groups - 1) * side + 2
    zeros = last * (groups + pad) + groups
    return kwargs, codes, scales, zeros


SIDES = {"q4g32": [], "q4g32z": ["zeros"], "q4g32m": ["mins"]}


@pytest.mark.parametrize("source", ["bytes", "halves", "pairs"])
@pytest.mark.parametrize(("n", "k"), [(1, 32), (3, 64), (5, 96), (2, 95), (3, 33), (33, 1)])
def test_exact_buffers_are_accepted_and_one_byte_less_is_not(weights, source, n, k):
    for (pad, offset), fmt in itertools.product(itertools.product((0, 3), (0, 5)), SIDES):
        kwargs, codes, scales, zeros = grouped(n, k, source, pad, offset)
        good = {"codes": bytes(codes), "scales": bytes(scales)}
        side = {"mins": bytes(scales), "zeros": bytes(zeros)}
        good |= {name: side[name] for name in SIDES[fmt]}
        if k % 32:  # legal addresses, but the core takes whole groups
            with pytest.raises(ValueError, match="multiple of 32"):
                weights.matrix(fmt, n, k, **good, **kwargs)
        else:
            weights.matrix(fmt, n, k, **good, **kwargs)
        for name in good:
            short = {**good, name: good[name][:-1]}
            with pytest.raises(ValueError, match=f"matrix: {name}: .*past the end"):
                weights.matrix(fmt, n, k, **short, **kwargs)


@pytest.mark.parametrize(("n", "k", "pad"), [(1, 32, 0), (3, 45, 5), (33, 1, 3)])
def test_one_scale_a_row(weights, n, k, pad):
    """w8: a float32 per row, whatever the group stride of the codes."""
    codes, scales = (n - 1) * (k + pad) + k, (n - 1) * (4 + pad) + 4
    kwargs = {"row_stride": k + pad, "group_stride": 32, "scale_row_stride": 4 + pad}
    good = {"codes": bytes(codes), "scales": bytes(scales)}
    id_ = weights.matrix("w8", n, k, **good, scale_type="f32", **kwargs)
    info = weights.info(id_)
    assert (info["format"], info["scale_type"], info["group"]) == ("w8", "f32", k)
    got = weights.unpack(id_)
    assert (got["codes"].shape, got["scales"].shape) == ((n, k), (n, 1))
    assert (got["codes"].dtype, got["scales"].dtype) == (np.int8, np.float32)
    for name in good:
        with pytest.raises(ValueError, match=f"matrix: {name}: .*past the end"):
            short = {**good, name: good[name][:-1]}
            weights.matrix("w8", n, k, **short, scale_type="f32", **kwargs)
    with pytest.raises(ValueError, match="'w8' takes f32"):
        weights.matrix("w8", n, k, **good, scale_type="f16", **kwargs)
    with pytest.raises(ValueError, match="'w8g32' takes f16 or bf16"):
        weights.matrix("w8g32", n, 32, bytes(64 * n), scales=bytes(64 * n), scale_type="f32",
                       row_stride=32, group_stride=32, scale_row_stride=4)  # fmt: skip


def test_row_map_decides_the_extent(weights):
    w = f32(6, 4)
    args = {"source": "values", "values_type": "f32", "row_stride": 16}
    rows = np.array([5, 0, 0], np.int32)
    weights.matrix("f32", 3, 4, w, row_map=rows, **args)
    with pytest.raises(ValueError, match="row 5"):
        weights.matrix("f32", 3, 4, w[:5], row_map=rows, **args)
    with pytest.raises(ValueError, match=r"row_map\[1\] is -1"):
        weights.matrix("f32", 3, 4, w, row_map=np.array([0, -1, 0], np.int32), **args)
    with pytest.raises(ValueError, match="row_map must have extent 3"):
        weights.matrix("f32", 3, 4, w, row_map=rows[:2], **args)
    with pytest.raises(TypeError, match="row_map"):
        weights.matrix("f32", 3, 4, w, row_map=rows.astype(np.int64), **args)


HUGE = [2**62, 2**63 - 1, 2**31]


@pytest.mark.parametrize("name", ["row_stride", "group_stride", "code_offset", "scale_offset"])
@pytest.mark.parametrize("huge", HUGE)
def test_products_that_wrap_are_refused(weights, name, huge):
    kwargs, codes, scales, _ = grouped(9, 64, "bytes", 0)
    kwargs[name] = huge
    with pytest.raises(ValueError, match="past the end"):
        weights.matrix("q4g32", 9, 64, bytes(codes), scales=bytes(scales), **kwargs)


def test_huge_shapes_are_refused(weights):
    for n, k in [(2**31 - 1, 4), (1, 2**31 - 1), (2**31 - 1, 2**31 - 1)]:
        with pytest.raises(ValueError):
            weights.matrix("f32", n, k, bytes(64), source="values", values_type="f32", row_stride=4)
    for n, k in [(0, 4), (4, 0), (2**31, 4)]:
        with pytest.raises(ValueError, match="must lie in"):
            weights.matrix("f32", n, k, bytes(64), row_stride=4)


def test_names(weights):
    ok = {"source": "values", "values_type": "f32", "row_stride": 16}
    for change, words in [
        ({"source": "nibbles"}, "source must be"),
        ({"values_type": "f64"}, "values_type must be"),
        ({"values_type": None}, "values_type must be"),
        ({"source": "bytes"}, "group_stride|past the end|needs|scales"),
    ]:
        with pytest.raises(ValueError, match=words):
            weights.matrix("q4g32", 4, 4, f32(4, 4), **{**ok, **change})
    with pytest.raises(ValueError):
        weights.matrix("q5", 4, 4, f32(4, 4), **ok)
    with pytest.raises(ValueError, match="group_stride must be given"):
        weights.matrix("q4g32", 1, 64, bytes(64), row_stride=64, scales=bytes(4))
    with pytest.raises(TypeError, match="row_stride"):
        weights.matrix("f32", 4, 4, f32(4, 4))
    with pytest.raises(TypeError):
        weights.matrix("f32", 4, 4, f32(4, 4), "values", row_stride=4)


def test_sources_have_the_buffer_protocol_and_are_held(weights):
    args = {"source": "values", "values_type": "bf16", "row_stride": 8}
    w = f32(4, 4).astype(ml_dtypes.bfloat16)
    for source in (w.view(np.uint8), w.tobytes(), bytearray(w.tobytes()), memoryview(w.tobytes())):
        weights.matrix("bf16", 4, 4, source, **args)
    for bad in (None, [1], 3, f32(8, 8)[:, ::2], "text"):
        with pytest.raises(TypeError, match="buffer protocol"):
            weights.matrix("bf16", 4, 4, bad, **args)
    source = bytearray(32)
    weights.matrix("bf16", 4, 4, source, **args)
    source.append(0)  # released: a held bytearray cannot grow
    with pytest.raises(ValueError):
        weights.matrix("bf16", 9, 4, source, **args)
    source.append(0)


def test_info_and_unpack_have_the_stub_shapes(weights):
    kwargs, codes, scales, zeros = grouped(3, 64, "bytes", 0)
    side = {"mins": bytes(scales), "zeros": bytes(zeros)}
    wanted = {
        "q4g32": {"codes": np.uint8, "scales": np.float16},
        "q4g32z": {"codes": np.uint8, "scales": np.float16, "zeros": np.uint8},
        "q4g32m": {"codes": np.uint8, "scales": np.float16, "mins": np.float16},
        "w8g32": {"codes": np.int8, "scales": np.float16},
    }
    for fmt, types in wanted.items():
        extra = {name: side[name] for name in SIDES.get(fmt, [])} | {"scales": bytes(scales)}
        id_ = weights.matrix(fmt, 3, 64, bytes(codes), **extra, **kwargs)
        info = weights.info(id_)
        assert (info["format"], info["n"], info["k"], info["group"]) == (fmt, 3, 64, 32)
        assert (info["has_zero"], info["has_min"]) == (fmt == "q4g32z", fmt == "q4g32m")
        got = weights.unpack(id_)
        assert {name: a.dtype.type for name, a in got.items()} == types
        assert got["codes"].shape == (3, 64) and got["scales"].shape == (3, 2)
    kwargs["scale_type"] = "bf16"
    id_ = weights.matrix("q4g32", 3, 64, bytes(codes), scales=bytes(scales), **kwargs)
    assert weights.unpack(id_)["scales"].dtype == np.uint16
    with pytest.raises(ValueError):
        weights.info(10**6)
    with pytest.raises(ValueError):
        weights.unpack(10**6)


# ---- many at once ----------------------------------------------------------------------------


def source_of(fmt, n, k, rng, pad=1):
    """Arguments of one random matrix, by name."""
    if fmt in {"f32", "f16", "bf16"}:
        raw = rng.integers(0, 256, n * k * (4 if fmt == "f32" else 2), np.uint8)
        return {"format": fmt, "n": n, "k": k, "codes": raw, "source": "values",
                "values_type": fmt, "row_stride": len(raw) // n}  # fmt: skip
    kind = "bytes" if fmt == "w8g32" else "halves"
    kwargs, codes, scales, zeros = grouped(n, k, kind, pad)
    sides = {"mins": scales, "zeros": zeros}
    kwargs["codes"] = rng.integers(0, 256, codes, np.uint8)
    kwargs["scales"] = rng.integers(0, 256, scales, np.uint8)
    for name in SIDES.get(fmt, []):
        top = 16 if name == "zeros" else 256
        kwargs[name] = rng.integers(0, top, sides[name], np.uint8)
    return {"format": fmt, "n": n, "k": k, **kwargs}


FORMATS = ["f32", "f16", "bf16", "w8g32", *SIDES]


def raw_bits(weights, i):
    return {name: a.tobytes() for name, a in weights.unpack(i).items()}


@pytest.mark.parametrize("threads", [1, 3])
def test_many_at_once_are_the_same_as_one_by_one(threads):
    rng = np.random.default_rng(3)
    shapes = [(1, 32), (33, 64), (100, 96), (640, 32), (64, 1024)]
    sources = [source_of(fmt, n, k, rng) for n, k in shapes for fmt in FORMATS]
    sources[9]["row_map"] = rng.permutation(sources[9]["n"]).astype(np.int32)
    together, alone = (_core.Weights(_core.Runtime(threads)) for _ in range(2))
    alone.vector(f32(5))
    assert together.matrices(sources[:1]) == [0]
    assert together.matrices(sources[1:]) == list(range(1, len(sources)))
    for i, s in enumerate(sources):
        assert alone.matrix(**s) == i
        assert together.info(i) == alone.info(i)
        assert raw_bits(together, i) == raw_bits(alone, i)
    assert together.nbytes + 20 == alone.nbytes


def counts():
    return {tag: count for tag, (_, count) in _core.memory().items()}


def test_many_are_added_all_or_none():
    rng = np.random.default_rng(4)
    weights = _core.Weights(_core.Runtime(2))
    good = [source_of(fmt, 40, 64, rng) for fmt in FORMATS]
    keep = weights.matrices(good[:2])
    before, blocks = weights.nbytes, counts()
    kwargs, codes, scales, _ = grouped(40, 64, "bytes", 0)
    high = {"format": "q4g32", "n": 40, "k": 64, "scales": bytes(scales), **kwargs}
    big = bytearray(codes)
    big[37 * 64 + 5] = big[39 * 64] = 16
    short = {**good[3], "codes": good[3]["codes"][:-1]}
    for bad, error, words in [
        ({**high, "codes": bytes(big)}, ValueError, "source row 37 holds a code"),
        (short, ValueError, "past the end"),
        ({**good[0], "format": "q5"}, ValueError, "unknown weight format 'q5'"),
        ({**good[0], "more": 1}, TypeError, "more"),
        ({"format": "f32"}, TypeError, "missing"),
        ({}, TypeError, "missing"),
        (None, TypeError, r"sources\[7\] must be a dict, got NoneType"),
    ]:
        with pytest.raises(error, match=words):
            weights.matrices([*good, bad])
        with pytest.raises(error):
            weights.matrices([bad, *good])
        assert (weights.nbytes, counts()) == (before, blocks)
    for none in ([], ()):
        with pytest.raises(ValueError, match="0 sources, legal are 1 to 65535"):
            weights.matrices(none)
    with pytest.raises(ValueError, match="65536 sources"):
        weights.matrices([good[0]] * 65536)
    with pytest.raises(TypeError):
        weights.matrices(5)
    assert weights.matrices(iter(good)) == list(range(2, 9)) and keep == [0, 1]


def test_codes_are_checked_in_the_rows_that_are_packed(weights):
    kwargs, codes, scales, zeros = grouped(40, 32, "bytes", 0)
    args = {**kwargs, "scales": bytes(scales)}
    big = bytearray(codes)
    big[35 * 32 + 31] = 0xF0
    rows = np.arange(8, dtype=np.int32)
    weights.matrix("q4g32", 8, 32, big, row_map=rows, **args)
    with pytest.raises(ValueError, match="source row 35 holds a code or zero point above 15"):
        weights.matrix("q4g32", 8, 32, big, row_map=rows + 30, **args)
    bad_zeros = bytearray(zeros)
    bad_zeros[12] = 16
    with pytest.raises(ValueError, match="source row 12 holds a code or zero point above 15"):
        weights.matrix("q4g32z", 40, 32, bytes(codes), zeros=bad_zeros, **args)


def test_large_blocks_hold_what_was_put_in_and_go_back():
    """Past 4 MiB a block is a mapping of its own, with the ledger and the bytes of any other."""
    before = _core.memory()["weights"]
    weights = _core.Weights(_core.Runtime(2))
    rng = np.random.default_rng(5)
    for n in (32 << 10, (64 << 10) - 32, (64 << 10), (64 << 10) + 32, 100_000):
        values = rng.integers(0, 256, (n, 64), np.uint8)
        i = weights.matrix("bf16", n, 32, values, source="values", values_type="bf16",
                           row_stride=64)  # fmt: skip
        assert weights.unpack(i)["values"].tobytes() == values.tobytes()
    held = _core.memory()["weights"][0] - before[0]
    assert weights.nbytes <= held < weights.nbytes + 4096
    weights.close()
    assert _core.memory()["weights"] == before
    kwargs = {"source": "values", "values_type": "f32", "row_stride": 0}
    with pytest.raises(MemoryError, match="no memory"):  # 2^45 bytes, all from one row
        _core.Weights(_core.Runtime(1)).matrix("f32", 1 << 28, 32768, bytes(1 << 17), **kwargs)
