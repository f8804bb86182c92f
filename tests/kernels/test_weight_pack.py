"""Weight formats as bytes: pack, unpack and gather of every column that has them."""

import numpy as np
import pytest
import weight_calls as calls
import weight_oracle as oracle

from octavo import _probe

SHAPES = [(1, 32), (31, 64), (32, 96), (33, 70), (80, 33), (80, 1)]


def split(n):
    """The blocks of n channels in two calls, the later first."""
    nb = calls.blocks(n)
    return [(nb // 2, nb), (0, nb // 2)]


@pytest.mark.parametrize("name", calls.GROUPED)
@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("scale_type", [1, 2])
def test_bytes_are_as_drawn_and_come_back(name, n, k, scale_type):
    rng = np.random.default_rng(n * k)
    w = calls.random_matrix(name, n, k, rng, scale_type)
    drawn = oracle.packed(name, w.codes, w.scales, w.zeros, w.mins)
    np.testing.assert_array_equal(w.data, drawn)
    source = calls.plain_source(w.codes, w.scales, w.zeros, w.mins)
    again = calls.pack(name, "scalar", n, k, source, scale_type, split(n))
    np.testing.assert_array_equal(again, drawn)
    back = calls.unpack(w, "scalar")
    for got, want in zip(back, [w.codes, w.scales, w.zeros, w.mins], strict=False):
        assert (got is None) == (want is None)
        if want is not None:
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", calls.GROUPED)
def test_bits_per_weight_are_as_stored(name):
    channels = 32 * 32 if name == "w8" else 0  # a float32 each
    bits = calls.TRAITS[name]["bits"] * 576 * 32 + channels
    assert _probe.weight_block_bytes(name, 576) * 8 == bits


def gguf(codes, scales, mins, bits):
    """Records of scale, [minimum], 32 codes, at an odd address: GGUF's Q4_0, Q4_1 and Q8_0."""
    n, k = codes.shape
    parts = [scales, mins] if mins is not None else [scales]
    parts = [p.view(np.uint8).reshape(n, k // 32, 2) for p in parts]
    body = codes.reshape(n, k // 32, 32)
    parts.append(body if bits == 8 else body[..., :16] | body[..., 16:] << 4)
    record = np.concatenate(parts, axis=2)
    whole = calls.aligned(record.reshape(-1), 1)
    size = record.shape[2]
    codes_at = 2 * (len(parts) - 1)
    return {
        "kind": "bytes" if bits == 8 else "halves",
        "codes": whole,
        "codes_at": codes_at,
        "row_stride": size * (k // 32),
        "group_stride": size,
        "scales": whole,
        "mins": whole if mins is not None else None,
        "mins_at": 2,
        "scale_row_stride": size * (k // 32),
        "scale_group_stride": size,
    }


@pytest.mark.parametrize("name", ["w8g32", "q4g32", "q4g32m"])
def test_gguf_records_with_a_row_map(name):
    n, k = 45, 96
    w = calls.random_matrix(name, n, k, np.random.default_rng(7))
    source = gguf(w.codes, w.scales, w.mins, calls.TRAITS[name]["code_bits"])
    order = np.random.default_rng(8).permutation(n).astype(np.int32)
    source["row_map"] = order
    data = calls.pack(name, "scalar", n, k, source, 1, split(n))
    mins = None if w.mins is None else w.mins[order]
    drawn = oracle.packed(name, w.codes[order], w.scales[order], None, mins)
    np.testing.assert_array_equal(data, drawn)


ISAS = [isa for isa in calls.ISAS if _probe.runs_here(isa)]
# Of whole groups: one run of them and several of different length, whole and partial blocks.
WHOLE = [(1, 32), (31, 64), (32, 32), (33, 512), (64, 544), (96, 576), (100, 1056)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["w8g32", "q4g32", "q4g32m"])
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(("n", "k"), WHOLE)
def test_every_column_packs_gguf_records_as_drawn(name, isa, mapped, n, k):
    """Under any cut of the blocks."""
    w = calls.random_matrix(name, n, k, np.random.default_rng(n + k), 1)
    source = gguf(w.codes, w.scales, w.mins, calls.TRAITS[name]["code_bits"])
    order = np.random.default_rng(8).permutation(n).astype(np.int32) if mapped else None
    source["row_map"] = order
    rows = slice(None) if order is None else order
    mins = None if w.mins is None else w.mins[rows]
    drawn = oracle.packed(name, w.codes[rows], w.scales[rows], None, mins)
    each = [(b, b + 1) for b in range(calls.blocks(n))]
    for spans in (split(n), [(0, calls.blocks(n))], each):
        data = calls.pack(name, isa, n, k, source, 1, spans)
        np.testing.assert_array_equal(data, drawn)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", calls.GROUPED)
@pytest.mark.parametrize(("n", "k"), [*SHAPES, (64, 704)])
def test_every_column_packs_plain_bytes_as_drawn(name, isa, n, k):
    w = calls.random_matrix(name, n, k, np.random.default_rng(n * k), 2)
    source = calls.plain_source(w.codes, w.scales, w.zeros, w.mins)
    np.testing.assert_array_equal(calls.pack(name, isa, n, k, source, 2), w.data)


def pairs(w):
    """The same matrix with two neighbours in a byte, at an odd address: compressed-tensors."""
    n, k = w.codes.shape
    even = np.zeros((n, k + k % 2), np.uint8)
    even[:, :k] = w.codes
    packed = calls.aligned(even[:, 0::2] | even[:, 1::2] << 4, 3)
    source = calls.plain_source(w.codes, w.scales, w.zeros, w.mins)
    return source | {
        "kind": "pairs", "codes": packed, "row_stride": packed.shape[1], "group_stride": 16,
    }  # fmt: skip


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["q4g32", "q4g32z", "q4g32m"])
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(("n", "k"), [*SHAPES, *WHOLE, (33, 71), (64, 575)])
def test_every_column_packs_pairs_as_drawn(name, isa, mapped, n, k):
    w = calls.random_matrix(name, n, k, np.random.default_rng(n + k), 2)
    order = np.random.default_rng(9).permutation(n).astype(np.int32) if mapped else None
    rows = slice(None) if order is None else order
    parts = (None if p is None else p[rows] for p in (w.codes, w.scales, w.zeros, w.mins))
    drawn = oracle.packed(name, *parts)
    each = [(b, b + 1) for b in range(calls.blocks(n))]
    for spans in (split(n), [(0, calls.blocks(n))], each):
        data = calls.pack(name, isa, n, k, pairs(w) | {"row_map": order}, 2, spans)
        np.testing.assert_array_equal(data, drawn)


@pytest.mark.parametrize("name", calls.FLOATS)
@pytest.mark.parametrize("source_type", calls.FLOATS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_values_convert_exactly_or_round_once(name, source_type, n, k):
    rng = np.random.default_rng(n + k)
    wide = rng.standard_normal((n, k)) * 2.0 ** rng.integers(-30, 18, (n, k))
    with np.errstate(over="ignore"):
        values = calls.aligned(wide.astype(oracle.ELEMENT[source_type]), 1)
    source = {"kind": "values", "values_type": source_type, "codes": values}
    source["row_stride"] = values.strides[0]
    data = calls.pack(name, "scalar", n, k, source, spans=split(n))
    with np.errstate(over="ignore"):
        want = np.array(values).astype(np.float32).astype(oracle.ELEMENT[name])
    drawn = np.zeros((calls.blocks(n) * 32, k), oracle.ELEMENT[name])
    drawn[:n] = want
    drawn = np.ascontiguousarray(drawn.reshape(-1, 32, k).transpose(0, 2, 1))
    np.testing.assert_array_equal(data, drawn.view(np.uint8).reshape(-1))
    back = calls.unpack(calls.Matrix(name, data, n, k), "scalar")[4]
    np.testing.assert_array_equal(back.view(np.uint8), want.view(np.uint8))


@pytest.mark.parametrize("name", calls.FLOATS)
def test_bits_of_nan_and_infinity_are_kept(name):
    type_ = np.dtype(oracle.ELEMENT[name])
    patterns = {4: [0x7F800001, 0xFFC12345, 0xFF800000, 1], 2: [0x7F81, 0xFFC1, 0xFC00, 1]}
    bits = np.array([patterns[type_.itemsize]], f"u{type_.itemsize}")
    source = {"kind": "values", "values_type": name, "codes": bits, "row_stride": bits.nbytes}
    data = calls.pack(name, "scalar", 1, 4, source)
    back = calls.unpack(calls.Matrix(name, data, 1, 4), "scalar")[4]
    np.testing.assert_array_equal(back.view(bits.dtype), bits)


@pytest.mark.parametrize("name", list(calls.TRAITS))
@pytest.mark.parametrize("scale_type", [1, 2])
def test_gather_rounds_each_element_once(name, scale_type):
    n, k = 80, 70
    rng = np.random.default_rng(11)
    w = calls.random_matrix(name, n, k, rng, scale_type)
    ids = rng.integers(0, n, 9, dtype=np.int32)
    want = oracle.dequantize(name, *w.logical) if w.values is None else w.values.astype(np.float32)
    y = calls.Guarded((9, k + 3), np.float32, 4)
    args = (w.name, "scalar", w.tuple, calls.at(ids), 9, calls.at(y.array), k + 3)
    assert _probe.weight_gather(*args, 0, 9) == 0
    y.check()
    np.testing.assert_array_equal(y.array[:, :k], want[ids])
    assert (y.array[:, k:].view(np.uint32) == 0xA5A5A5A5).all()
    y.array[:] = 7
    assert _probe.weight_gather(*args, 3, 5) == 0
    assert (y.array[[0, 1, 2, 5, 6, 7, 8]] == 7).all()
    np.testing.assert_array_equal(y.array[3:5, :k], want[ids[3:5]])


@pytest.mark.parametrize("name", list(calls.TRAITS))
def test_unpack_writes_only_its_blocks(name):
    n, k = 80, 64
    w = calls.random_matrix(name, n, k, np.random.default_rng(12))
    part, whole = calls.unpack(w, "scalar", (1, 2)), calls.unpack(w, "scalar")
    for some, every in zip(part, whole, strict=True):
        if some is None:
            continue
        np.testing.assert_array_equal(some[32:64], every[32:64])
        assert (some[:32].reshape(-1).view(np.uint8) == calls.FILL).all()
        assert (some[64:].reshape(-1).view(np.uint8) == calls.FILL).all()


def test_the_oracle_fma_rounds_once():
    a = np.float32(1 + 2.0**-23)
    assert oracle.fma(a, a, np.float32(-1)) == np.float32(2.0**-22 + 2.0**-46)
    # 1 + 2^-24 + 2^-60 lies just above a tie: two roundings would fall to 1.
    tie = oracle.fma(np.float32(2.0**-30), np.float32(2.0**-30), np.float32(2.0**-24))
    assert oracle.fma(np.float32(1), np.float32(1), tie) >= 1
    near = oracle.fma(np.float32(2.0**-30), np.float32(2.0**-30), np.float32(1))
    assert near == 1
    up = oracle.fma(np.float32(2.0**-12), np.float32(2.0**-12 + 2.0**-35), np.float32(1))
    assert up == np.float32(1 + 2.0**-23)
