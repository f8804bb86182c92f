"""seal, decode and the descriptor of every page format and column, against NumPy."""

import functools

import ml_dtypes
import numpy as np
import page_oracle as po
import pytest
from page_oracle import BF16, F32, FORMATS, HERE, PLAIN, WIDTHS

from octavo import _probe

CODED = ["fp8", "int8", "int4"]
COLUMNS = [(f, isa) for f in FORMATS for isa in po.ISAS]


def own_rows(fmt, x):
    """Rows in the type that the format's open pages have."""
    with np.errstate(all="ignore"):
        if fmt == "f16":
            return np.clip(x, -65504, 65504).astype(np.float16)
        return x.astype(PLAIN.get(fmt, np.dtype(BF16)))


def want_block(fmt, rows, role):
    if fmt in PLAIN:
        return po.pack_plain(rows, role)
    codes, scale, zero, bad = po.encode(fmt, rows.astype(F32))
    assert not bad.any()
    return po.pack(fmt, role, codes, scale, zero)


def need(isa):
    if isa not in HERE:
        pytest.skip(f"{isa} is absent on this machine")


@functools.lru_cache(maxsize=1)
def sealed_and_decoded(fmt, role, d):
    """Of every kind of rows: its name, the rows, their block, and the image's bits; for all columns
    of one case, which are its fastest parameter."""
    cases = []
    for name, x in po.hostile(d).items():
        rows = own_rows(fmt, x)
        value = rows.astype(F32)
        if fmt in CODED:
            value = po.decode(fmt, *po.encode(fmt, value)[:3])
        value = np.ascontiguousarray(value.T if role == "k" else value)
        cases.append((name, rows, want_block(fmt, rows, role), value.view(np.uint32)))
    return cases


@pytest.mark.parametrize("isa", po.ISAS)
@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("role", ["k", "v"])
@pytest.mark.parametrize("fmt", FORMATS)
def test_seal_and_decode_match_numpy(fmt, isa, role, d):
    need(isa)
    for name, rows, want, value in sealed_and_decoded(fmt, role, d):
        for extra in (0, 3):
            block, status = po.seal(fmt, isa, rows, role, extra)
            assert status == (0, -1, -1), name
            np.testing.assert_array_equal(block, want, err_msg=name)
        image = po.decode_block(fmt, isa, block, d, role)
        np.testing.assert_array_equal(image.view(np.uint32), value, name)


@pytest.mark.parametrize("d", [16, 80, 192])
@pytest.mark.parametrize("role", ["k", "v"])
@pytest.mark.parametrize(("fmt", "isa"), COLUMNS)
def test_decode_leaves_later_units_alone(fmt, isa, role, d):
    need(isa)
    rows = own_rows(fmt, po.hostile(d)["gauss"])
    block, _ = po.seal(fmt, isa, rows, role)
    whole = po.decode_block(fmt, "scalar", block, d, role)
    for tokens in (0, 1, 16, 17, 33, 48, 63, 64):
        image = po.decode_block(fmt, isa, block, d, role, tokens)
        image, full = (image.T, whole.T) if role == "k" else (image, whole)
        upto = -(-tokens // 16) * 16
        assert np.array_equal(image[:upto], full[:upto])
        assert (np.ascontiguousarray(image[upto:]).view(np.uint32) == 0xA5A5A5A5).all()


@pytest.mark.parametrize("role", ["k", "v"])
@pytest.mark.parametrize("fmt", list(PLAIN))
@pytest.mark.parametrize("isa", po.ISAS)
def test_open_pages_have_units_apart(fmt, isa, role):
    need(isa)
    d = 80
    rows = own_rows(fmt, po.hostile(d)["gauss"])
    block, _ = po.seal(fmt, isa, rows, role)
    apart, stride = po.units_apart(block)
    image = po.decode_block(fmt, isa, apart, d, role, stride=stride)
    assert np.array_equal(image, po.decode_block(fmt, "scalar", block, d, role))


@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize(("fmt", "isa"), COLUMNS)
def test_a_turned_block_is_the_other_role_of_the_same(fmt, isa, d):
    """Sealed rows as `seal` would have laid them out for V, and any other bytes as well."""
    need(isa)
    rows = own_rows(fmt, po.hostile(d)["gauss"])
    keys, _ = po.seal(fmt, isa, rows, "k")
    values, _ = po.seal(fmt, isa, rows, "v")
    np.testing.assert_array_equal(po.turn(fmt, isa, keys, d), values)
    _, noise = po.aligned(keys.nbytes)
    noise[:] = np.random.default_rng(d).integers(0, 256, keys.nbytes)
    turned = po.turn(fmt, isa, noise, d)
    parts = [po.layout(fmt, isa, d, role)["parts"] for role in "kv"]
    for k, v in zip(*parts, strict=True):
        got, want = (np.ascontiguousarray(po.unpack(*x)) for x in ((v, turned), (k, noise)))
        np.testing.assert_array_equal(got.view(np.uint8), want.view(np.uint8), k["name"])


@pytest.mark.parametrize("tokens", [1, 16, 17, 48, 64])
@pytest.mark.parametrize("fmt", list(PLAIN))
@pytest.mark.parametrize("isa", po.ISAS)
def test_open_units_are_turned_side_by_side(fmt, isa, tokens):
    need(isa)
    d = 80
    rows = own_rows(fmt, po.hostile(d)["gauss"])
    keys, _ = po.seal(fmt, isa, rows, "k")
    values, _ = po.seal(fmt, isa, rows, "v")
    unit, whole = keys.nbytes // 4, -(-tokens // 16)
    apart, stride = po.units_apart(keys, whole)
    got = po.turn(fmt, isa, apart, d, tokens, stride)
    np.testing.assert_array_equal(got[: whole * unit], values[: whole * unit])
    assert (got[whole * unit :] == 0xA5).all()


@pytest.mark.parametrize("d", [16, 64, 80, 576])
@pytest.mark.parametrize("role", ["k", "v"])
@pytest.mark.parametrize(("fmt", "isa"), COLUMNS)
def test_seal_refuses_bad_values(fmt, isa, role, d):
    need(isa)
    rows = po.spoiled(d)
    if fmt in PLAIN:
        with np.errstate(all="ignore"):
            rows = rows.astype(PLAIN[fmt])
        bad = ~np.isfinite(rows.astype(F32))
        if fmt == "bf16":
            bad |= ~(np.abs(rows.astype(F32)) < po.LARGE)
        mended = rows.copy()
        mended[bad] = np.nan
        bits = mended.view(f"u{mended.itemsize}")
        bits[bad] = {"f32": 0x7FC00000, "f16": 0x7E00, "bf16": 0x7FC0}[fmt]
        want, at = po.pack_plain(mended, role), np.argwhere(bad)[0]
    else:
        codes, scale, zero, groups = po.encode(fmt, rows.astype(F32))
        assert groups.any()
        want = po.pack(fmt, role, codes, scale, zero)
        at = np.argwhere(~(np.abs(rows.astype(F32)) < po.LARGE))[0]
    block, status = po.seal(fmt, isa, rows, role)
    assert status == (1, *at)
    np.testing.assert_array_equal(block, want)
    image = po.decode_block(fmt, isa, block, d, role)
    assert np.isnan(image.T if role == "k" else image)[at[0], at[1]]


@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("role", ["k", "v"])
@pytest.mark.parametrize("fmt", FORMATS)
def test_descriptor_unpacks_to_the_logical_arrays(fmt, role, d):
    rows = own_rows(fmt, po.hostile(d)["gauss"])
    block, _ = po.seal(fmt, "scalar", rows, role)
    info = po.layout(fmt, "avx512", d, role)
    assert info == po.layout(fmt, "scalar", d, role)
    assert info["bytes"] == block.nbytes and info["bytes"] % 64 == 0
    parts = {p["name"]: po.unpack(p, block) for p in info["parts"]}
    if fmt in PLAIN:
        assert info["group"] == d
        value = parts["codes"].astype(F32)
    else:
        assert info["group"] == po.group(d)
        codes, scale, zero, _ = po.encode(fmt, rows.astype(F32))
        stored = parts["codes"].view(np.uint8) if fmt == "fp8" else parts["codes"]
        np.testing.assert_array_equal(stored, codes)
        np.testing.assert_array_equal(parts["scales"].astype(F32), scale)
        if zero is not None:
            np.testing.assert_array_equal(parts["zeros"].astype(F32), zero)
        zero = parts["zeros"].astype(F32) if "zeros" in parts else None
        value = po.decode(fmt, stored.astype(int), parts["scales"].astype(F32), zero)
    image = po.decode_block(fmt, "scalar", block, d, role)
    np.testing.assert_array_equal(image.T if role == "k" else image, value)


def test_block_bytes_are_those_of_the_table():
    sizes = {"bf16": (8192, 16384, 65536), "int8": (4224, 8320, 33280), "fp8": (4224, 8320, 33280),
             "int4": (2304, 4352, 17408)}  # fmt: skip
    for fmt, row in sizes.items():
        assert tuple(po.layout(fmt, "scalar", d, "k")["bytes"] for d in (64, 128, 512)) == row


@pytest.mark.parametrize("fmt", FORMATS)
def test_widths_that_no_page_holds(fmt):
    for d in (0, -16, 8, 24, 100, 592, 1024):
        assert po.layout(fmt, "scalar", d, "k") is None
    assert (po.layout(fmt, "scalar", 144, "v") is None) == (fmt in CODED)


@pytest.mark.parametrize("isa", po.ISAS)
def test_golden_block(isa):
    need(isa)
    x = po.golden()
    assert x[0, :8].astype(float).tolist() == [-4, 0.625, -2.75, 1.875, -1.5, 3.125, -0.25, -3.625]
    want = {
        "int8": (0x3D02, [-126, 20, -87, 59, -47, 98, -8, -114]),
        "fp8": (0x3C13, [0xFE, 0x69, 0xFA, 0x75, 0xF2, 0x7B, 0xDE, 0xFD]),
        "int4": (0x3F07, [0, 9, 2, 11, 5, 14, 7, 1]),
    }
    for fmt, (scale, codes) in want.items():
        for role in "kv":
            block, _ = po.seal(fmt, isa, x, role)
            parts = {p["name"]: po.unpack(p, block) for p in po.layout(fmt, isa, 64, role)["parts"]}
            assert parts["scales"].view(np.uint16)[0, 0] == scale
            stored = parts["codes"].view(np.uint8) if fmt == "fp8" else parts["codes"]
            assert stored[0, :8].tolist() == codes
            if fmt == "int4":
                assert parts["zeros"][0, 0] == -4


def hadamard(x):
    """docs/formats.md A2, `had`: bf16 rows in, bf16 rows out."""
    d = x.shape[-1]
    state, signs = 0, []
    for _ in range(d):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        signs.append(-1 if (z ^ z >> 31) >> 63 else 1)
    i = np.arange(d)
    w = 1 - 2 * (np.bitwise_count(i[:, None] & i) % 2).astype(int)
    y = (x.astype(np.float64) * signs) @ w / np.sqrt(d)
    return y.astype(F32).astype(BF16)


ANCHORS = {  # formats.md A7: Gauss, outliers, ordinary channels of the outlier rows, outliers + had
    128: {"int8": (43.79, 36.59, 25.13, 45.00), "fp8": (31.78, 33.50, 31.55, 31.82),
          "int4": (20.06, 12.80, 1.27, 20.81)},
    64: {"int8": (44.41, 39.42, None, 49.10), "fp8": (32.01, 33.47, None, 31.51),
         "int4": (20.96, 15.71, None, 24.97)},
}  # fmt: skip


@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("fmt", CODED)
def test_signal_to_noise_anchors(fmt, d):
    def through(x):
        pages = [po.seal(fmt, HERE[-1], page, "v")[0] for page in x]
        return np.stack([po.decode_block(fmt, HERE[-1], b, d, "v") for b in pages])

    def snr(x, y):
        x, y = x.astype(np.float64), y.astype(np.float64)
        return 10 * np.log10((x**2).sum() / ((x - y) ** 2).sum())

    plain, out = po.recipe(d), po.recipe(d, outliers=True)
    rotated = hadamard(out)
    ordinary = np.setdiff1d(np.arange(d), [5, d // 4 + 5, d // 2 + 5, 3 * d // 4 + 5])
    y = through(out)
    got = [snr(plain, through(plain)), snr(out, y), snr(out[..., ordinary], y[..., ordinary]),
           snr(rotated, through(rotated))]  # fmt: skip
    for have, want in zip(got, ANCHORS[d][fmt], strict=True):
        assert want is None or abs(have - want) <= 0.02, (got, ANCHORS[d][fmt])


@pytest.mark.parametrize("d", [64, 256])
@pytest.mark.parametrize("fmt", ["int8", "int4"])
def test_error_is_at_most_half_a_step(fmt, d):
    for name, x in po.hostile(d, seed=7).items():
        rows = x.astype(BF16).astype(F32)
        block, _ = po.seal(fmt, HERE[-1], rows.astype(BF16), "v")
        _, scale, _, _ = po.encode(fmt, rows)
        value = po.decode_block(fmt, HERE[-1], block, d, "v")
        step = np.repeat(scale, po.group(d), axis=1).astype(np.float64)
        bound = step / 2 * (1 + 2.0**-10) + (step == 0) * 2.0**-60
        # int4 adds a zero in float32: half an ulp of the value on top, which only large zeros show
        bound += np.spacing(np.abs(value)).astype(np.float64) / 2 * (fmt == "int4")
        assert (np.abs(value.astype(np.float64) - rows) <= bound).all(), name


@pytest.mark.parametrize("isa", po.ISAS)
def test_fp8_decodes_every_byte(isa):
    """Codes that seal never writes (0x7F, 0xFF) are NaN, as in the type."""
    need(isa)
    block = np.zeros(0, np.uint8)
    rows = np.ones((64, 64), BF16)
    block, _ = po.seal("fp8", isa, rows, "v")
    block[128:] = np.tile(np.arange(256, dtype=np.uint8), 16)
    block[:128].view(BF16)[:] = 1
    image = po.decode_block("fp8", isa, block, 64, "v")
    want = po.unpack(po.layout("fp8", isa, 64, "v")["parts"][1], block).astype(F32)
    np.testing.assert_array_equal(image, want)
    assert ml_dtypes.finfo(po.E4M3).max == np.nanmax(image) == 448


def test_every_column_says_who_serves_a_slot():
    for fmt in FORMATS:
        for isa in po.ISAS:
            slots = _probe.page_columns(fmt, isa)
            assert "f32" in slots and set(slots) <= {"seal", "decode", "turn", "f32", "q8", "q8x2"}
            assert ("q8" in slots) == (fmt in ("int8", "int4"))
