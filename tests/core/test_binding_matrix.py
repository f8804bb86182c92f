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
