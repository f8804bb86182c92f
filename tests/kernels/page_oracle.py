"""The page formats again, in NumPy: an oracle written from docs/formats.md, not from the C.

Logical arrays only (codes [64, d], scales and zeros [64, d/G]); `pack` lays them out as the headers
draw them. Below are thin wrappers that give `octavo._probe` aligned blocks and poisoned padding.
"""

import functools

import ml_dtypes
import numpy as np

from octavo import _probe

BF16, E4M3 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
F32 = np.float32
WIDTHS = [16, 32, 64, 80, 96, 128, 192, 256, 512, 576]
FORMATS = [row[0] for row in _probe.page_formats()]
PLAIN = {"f32": np.dtype(F32), "f16": np.dtype(np.float16), "bf16": np.dtype(BF16)}
DTYPES = [np.dtype(t) for t in (F32, np.float16, BF16, "u1", "i1", "i4", E4M3, "u1")]
ISAS = ["scalar", "avx2", "avx512", "amx"]
HERE = [isa for isa in ISAS if _probe.runs_here(isa)]
TINY, LARGE = F32(2.0**-60), F32(2.0**56)


def group(d):
    return d if d <= 128 else next(g for g in (128, 64, 32) if d % g == 0)


# ---- arithmetic -------------------------------------------------------------------------------


def fma(a, b, c):
    """float32 fused multiply-add: exact product, sum rounded to odd in float64, then once."""
    with np.errstate(all="ignore"):
        p, c = np.multiply(a, b, dtype=np.float64), np.asarray(c, np.float64)
        p, c = np.broadcast_arrays(p, c)
        s = np.atleast_1d(p + c)
        back = s - p
        error = (p - (s - back)) + (c - back)
        bits = s.view(np.int64).copy()
        inexact = np.isfinite(s) & (error != 0) & (bits & 1 == 0)
        bits += np.where(inexact, np.where((error > 0) == (s > 0), 1, -1), 0)
        return bits.view(np.float64).astype(F32).reshape(p.shape)


def bf16_up(x):
    """The smallest bf16 that is not below x >= 0, as float32."""
    down = (np.ascontiguousarray(x, F32).view(np.uint32) >> 16 << 16).view(F32)
    return np.where(down < x, np.nextafter(down.astype(BF16), BF16(np.inf)).astype(F32), down)


def tree(acc):
    """Sum over 16 accumulators (last axis): halves are added onto halves."""
    while acc.shape[-1] > 1:
        half = acc.shape[-1] // 2
        acc = acc[..., :half] + acc[..., half:]
    return acc[..., 0]


# ---- encoders: rows [64, d] as float32 that bf16 holds -------------------------------------------


def encode(fmt, x):
    """codes [64, d] (int), scales, zeros [64, d/G] float32 (zeros None without), bad groups."""
    n, g = x.shape[0], group(x.shape[1])
    v = x.reshape(n, -1, g)
    with np.errstate(all="ignore"):
        bad = ~np.all(np.abs(v) < LARGE, axis=2)
        safe = np.where(bad[..., None], F32(0), v)
        if fmt == "int4":
            zero, top = safe.min(axis=2) + F32(0), safe.max(axis=2)
            span, steps = top - zero, F32(15)
        else:
            zero, span = None, np.abs(safe).max(axis=2)
            steps = F32(127) if fmt == "int8" else F32(448)
        scale = np.where(span < TINY, F32(0), bf16_up(span / steps)).astype(F32)
        ratio = (safe if zero is None else safe - zero[..., None]) / scale[..., None]
        ratio = np.where(scale[..., None] == 0, F32(0), ratio)
        if fmt == "fp8":
            codes = np.clip(ratio, -448, 448).astype(E4M3).view(np.uint8)
        else:
            codes = np.clip(np.rint(ratio), 0 if fmt == "int4" else -127, steps).astype(int)
    scale = np.where(bad, F32(np.nan), scale)
    codes = np.where(bad[..., None], 0, codes).reshape(x.shape)
    return codes, scale, zero, bad


def decode(fmt, codes, scale, zero=None):
    g = codes.shape[1] // scale.shape[1]
    value = codes.astype(np.uint8).view(E4M3) if fmt == "fp8" else codes
    value, scale = value.astype(F32), np.repeat(scale, g, axis=1)
    return value * scale if zero is None else fma(value, scale, np.repeat(zero, g, axis=1))


def pack(fmt, role, codes, scale, zero):
    """The bytes of a block as <format>.h draws them."""
    n, d = codes.shape
    parts = [scale.T.astype(BF16).tobytes()]
    if zero is not None:
        parts.append(zero.T.astype(BF16).tobytes())
    if fmt == "int4":
        if role == "k":
            pieces = codes.reshape(n, d // 8, 2, 4).transpose(2, 1, 0, 3)
        else:
            pieces = codes.reshape(n // 8, 2, 4, d).transpose(1, 0, 3, 2)
        parts.append((pieces[0] | pieces[1] << 4).astype(np.uint8).tobytes())
    else:
        codes = codes + 128 if fmt == "int8" else codes
        if role == "k":
            lines = codes.reshape(n, d // 4, 4).transpose(1, 0, 2)
        else:
            lines = codes.reshape(n // 4, 4, d).transpose(0, 2, 1)
        parts.append(lines.astype(np.uint8).tobytes())
    return np.frombuffer(b"".join(parts), np.uint8)


def pack_plain(x, role):
    d = x.shape[1]
    units = x.reshape(4, 16, d).transpose(0, 2, 1) if role == "k" else x
    return np.frombuffer(np.ascontiguousarray(units).tobytes(), np.uint8)


# ---- dot forms: queries are quantized rows -------------------------------------------------------


def quantize_rows(x, steps):
    """codes [n, d] and scales [n] of the forms a8 (127) and a8x2 (16256)."""
    top = np.abs(x).max(axis=1)
    with np.errstate(all="ignore"):
        ratio = F32(steps) / top
        codes = np.clip(np.rint(x * ratio[:, None]), -steps, steps)
    good = np.isfinite(top) & (top >= TINY)
    scale = np.where(np.isfinite(top), np.where(good, top / F32(steps), F32(0)), F32(np.nan))
    return np.where(good[:, None], codes, 0).astype(np.int64), scale.astype(F32)


def scores_q(q, sq, codes, scale, zero, visible):
    """q [n, d] integer codes, sq [n]; codes as stored (int8 signed, int4 0..15)."""
    g = codes.shape[1] // scale.shape[1]
    acc = np.zeros((len(q), 64), F32)
    for j in range(scale.shape[1]):
        part = slice(j * g, (j + 1) * g)
        dot = q[:, part] @ codes[:, part].T.astype(np.int64)
        acc = fma(dot.astype(F32), scale[:, j], acc)
        if zero is not None:
            total = q[:, part].sum(axis=1).astype(F32)
            acc = fma(total[:, None], zero[:, j], acc)
    score = acc * sq[:, None]
    return np.where(np.arange(64) < visible[:, None], score, F32(-np.inf))


def scores_f(q, x, visible, scale=None):
    """x [64, d] decoded values, or codes with a per-token scale applied after the chain."""
    acc = np.zeros((len(q), 64), F32)
    for c in range(x.shape[1]):
        acc = fma(q[:, c : c + 1], x[:, c], acc)
    if scale is not None:
        acc = acc * scale
    return np.where(np.arange(64) < visible[:, None], acc, F32(-np.inf))


def mix_q(p, steps, codes, scale, zero, visible, o):
    """p [n, 64], o [n, d]; int4 codes are centred by 8, with its zeros moved to match."""
    g = codes.shape[1] // scale.shape[1]
    seen = np.arange(64) < visible[:, None]
    p = np.where(seen, p, F32(0))
    centred = codes.astype(np.int64) - (0 if zero is None else 8)
    out = o.copy()
    for j in range(scale.shape[1]):
        part = slice(j * g, (j + 1) * g)
        with np.errstate(all="ignore"):
            w = np.where(seen, p * scale[:, j], F32(0))
            top = np.abs(w).max(axis=1)
            ok = np.isfinite(top) & (top >= F32(2.0**-100))
            whole = np.rint(w * (F32(steps) / top)[:, None])
        whole = np.where(ok[:, None], whole, 0).astype(np.int64)
        sp = np.where(ok, top / F32(steps), np.where(np.isfinite(top), F32(0), F32(np.nan)))
        dot = whole @ centred[:, part]
        out[:, part] = fma(dot.astype(F32), sp.astype(F32)[:, None], out[:, part])
        if zero is not None:
            zc = fma(F32(8), scale[:, j], zero[:, j])
            acc = np.zeros((len(p), 16), F32)
            for t in range(0, 64, 16):
                step = fma(p[:, t : t + 16], zc[t : t + 16], acc)
                acc = np.where(seen[:, t : t + 16], step, acc)
            out[:, part] += tree(acc)[:, None]
    return out


def mix_f(p, x, visible, o, scale=None):
    out = o.copy()
    for t in range(int(visible.max())):
        w = p[:, t] if scale is None else p[:, t] * scale[t]
        out = np.where((t < visible)[:, None], fma(w[:, None], x[t], out), out)
    return out


# ---- either form, from what a page holds: codes, scales, zeros (None without) --------------------


def page_scores(fmt, form, codes, scale, zero, q, visible):
    if form != "f32":
        steps = 127 if form == "q8" else 16256
        return scores_q(*quantize_rows(q, steps), codes, scale, zero, visible)
    if zero is None and scale.shape[1] == 1:
        return scores_f(q, decode(fmt, codes, np.ones_like(scale)), visible, scale[:, 0])
    return scores_f(q, decode(fmt, codes, scale, zero), visible)


def page_mix(fmt, form, codes, scale, zero, p, visible, o):
    if form != "f32":
        return mix_q(p, 127 if form == "q8" else 16256, codes, scale, zero, visible, o)
    if zero is None and scale.shape[1] == 1:
        return mix_f(p, decode(fmt, codes, np.ones_like(scale)), visible, o, scale[:, 0])
    return mix_f(p, decode(fmt, codes, scale, zero), visible, o)


# ---- the probe, with aligned blocks and poison ---------------------------------------------------


def aligned(nbytes, fill=0xA5, offset=0):
    """`nbytes` bytes at 64k + offset, with 64 canary bytes on both sides of them."""
    raw = np.full(nbytes + 320, fill, np.uint8)
    start = 64 + (-(raw.ctypes.data + 64)) % 64 + offset
    return raw, raw[start : start + nbytes]


def intact(raw, inner, fill=0xA5):
    start = inner.ctypes.data - raw.ctypes.data
    return (raw[:start] == fill).all() and (raw[start + inner.nbytes :] == fill).all()


def padded(x, extra, fill=np.nan):
    """x in a wider array, so that [n, ld] rows end in poison."""
    wide = np.full((x.shape[0], x.shape[1] + extra), fill).astype(x.dtype)
    wide[:, : x.shape[1]] = x
    return wide


def layout(fmt, isa, d, role):
    return _probe.page_layout(fmt, isa, d, role)


def seal(fmt, isa, x, role, extra=3):
    """x [64, d] of the format's own row type. Returns block and (status, token, channel)."""
    d = x.shape[1]
    raw, block = aligned(layout(fmt, isa, d, role)["bytes"])
    wide = padded(x, extra)
    status = _probe.page_seal(fmt, isa, wide, wide.shape[1], d, role, block)
    assert intact(raw, block), "seal wrote outside the block"
    return block, status


def decode_block(fmt, isa, block, d, role, tokens=64, stride=None):
    """Image K [d, 64] or V [64, d]; what is not decoded stays at the fill of 0xA5 bytes."""
    raw, out = aligned(4 * 64 * d)
    unit = block.nbytes // 4 if stride is None else stride
    assert _probe.page_decode(fmt, isa, block, unit, d, tokens, role, out) == 0
    assert intact(raw, out), "decode wrote outside the image"
    return out.view(F32).reshape((d, 64) if role == "k" else (64, d))


def units_apart(block, units=4, gap=192):
    """The first units of a block of plain values, `gap` bytes of 0xFF between; and their stride."""
    unit = block.nbytes // 4
    _, apart = aligned(4 * (unit + gap), fill=0xFF)
    for u in range(units):
        apart[u * (unit + gap) :][:unit] = block[u * unit : (u + 1) * unit]
    return apart, unit + gap


def turn(fmt, isa, block, d, tokens=64, stride=None):
    """The V block of a K block; what is not turned stays at the fill of 0xA5 bytes."""
    raw, out = aligned(layout(fmt, isa, d, "v")["bytes"])
    unit = block.nbytes // 4 if stride is None else stride
    assert _probe.page_turn(fmt, isa, block, unit, d, tokens, out) == 0
    assert intact(raw, out), "turn wrote outside the block"
    return out


def unpack(part, block):
    """The logical array of one part, by its descriptor alone."""
    dtype, shape = DTYPES[part["dtype"]], list(part["shape"])
    count = int(np.prod(shape)) * dtype.itemsize
    stored = block[part["offset"] : part["offset"] + count].view(dtype).reshape(shape)
    if part["split"] > 1:
        bits = 8 // part["split"]
        pieces = [stored >> (i * bits) & ((1 << bits) - 1) for i in range(part["split"])]
        stored = np.stack(pieces, axis=part["split_axis"])
    logical = stored.transpose(part["axes"]).reshape(part["logical"])
    return logical.astype(np.int16) + part["bias"] if part["bias"] else logical


def scores(fmt, isa, form, block, d, q, visible, stride=None, place=np.asarray, add=None):
    """q [n, d] float32. Returns s [n, 64], added to `add`. place: where what is read is put."""
    n, kp = len(q), -(-d // 32) * 32
    steps = {"f32": 1, "q8": 127, "q8x2": 16256}[form]
    codes, sq = quantize_rows(q, steps)
    full = np.zeros((n, kp), np.int64)
    full[:, :d] = codes
    hi, lo = full, np.zeros_like(full)
    if form == "q8x2":
        hi = (full + 64) >> 7
        lo = full - 128 * hi
    total = full.reshape(n, -1, 32).sum(axis=2).astype(np.int32)
    _, hi8 = aligned(n * kp)
    _, lo8 = aligned(n * kp)
    hi8[:], lo8[:] = (
        hi.astype(np.int8).view(np.uint8).ravel(),
        lo.astype(np.int8).view(np.uint8).ravel(),
    )
    hi8, lo8, sq, total, block = (place(a) for a in (hi8, lo8, sq, total, block))
    wide, lds = place(padded(q, 1)), 67
    raw, out = aligned(4 * n * lds, offset=4)
    if add is not None:
        out.view(F32).reshape(n, lds)[:, :64] = add
    given = np.ascontiguousarray(visible, np.int32)
    ints = [None] * 4 if form == "f32" else [hi8, lo8 if form == "q8x2" else None, sq, total]
    unit = block.nbytes // 4 if stride is None else stride
    status = _probe.page_scores(
        fmt, isa, form, block, unit, d, n, given, wide, wide.shape[1], *ints, out, lds,
        add is not None,
    )  # fmt: skip
    assert status == 0 and intact(raw, out)
    s = out.view(F32).reshape(n, lds)
    assert (s[:, 64:].view(np.uint8) == 0xA5).all(), "scores wrote past the row"
    return s[:, :64]


def mix(fmt, isa, form, block, d, p, visible, o, stride=None, place=np.asarray, pages=1):
    """p [n, 64 * pages], of one page NaN past the largest `visible`. Returns o [n, d]."""
    n, ldp, ldo = len(p), 64 * pages + 1, d + 5
    wide = padded(p, 1)
    if pages == 1:
        wide[:, int(visible.max()) :] = np.nan
    wide, block = place(wide), place(block)
    raw, out = aligned(4 * n * ldo, offset=4)
    view = out.view(F32).reshape(n, ldo)
    view[:, :d] = o
    given = np.ascontiguousarray(visible, np.int32)
    unit = block.nbytes // pages // 4 if stride is None else stride
    status = _probe.page_mix(fmt, isa, form, block, unit, d, n, given, wide, ldp, out, ldo, pages)
    assert status == 0 and intact(raw, out)
    assert (view[:, d:].view(np.uint32) == 0xA5A5A5A5).all(), "mix wrote past the row"
    return view[:, :d].copy()


# ---- rows ----------------------------------------------------------------------------------------


def recipe(d, outliers=False):
    """24 pages of accuracy.md section 3, as bf16."""
    x = np.random.default_rng(1234).standard_normal((24, 64, d))
    if outliers:
        at = [5, d // 4 + 5, d // 2 + 5, 3 * d // 4 + 5]
        x[:, :, at] = 4 * x[:, :, at] + np.array([20, -20, 20, -20])
    return x.astype(F32).astype(BF16)


def golden():
    t, c = np.mgrid[:64, :64]
    return (((37 * c + 11 * t) % 64 - 32) / 8).astype(BF16)


@functools.lru_cache(maxsize=32)
def hostile(d, seed=1):
    """name -> [64, d] float32 rows, all admissible; read-only, for many tests share them."""
    r = np.random.default_rng(seed)
    gauss = r.standard_normal((64, d))
    spread = gauss * 2.0 ** r.integers(-80, 50, (64, 1))
    out = gauss.copy()
    out[:, 3::17] *= 400
    zeros = np.zeros((64, d))
    zeros[1::2] = -0.0
    zeros[::3, ::2] = -0.0
    some = np.where(r.random((64, d)) < 0.7, np.where(r.random((64, d)) < 0.5, 0.0, -0.0), gauss)
    constant = np.repeat(gauss[:, :1] * 3, d, axis=1)
    ties = r.integers(-508, 509, (64, d)) / 8.0
    ties[:, 0], ties[:, 1] = 63.5, -63.5
    edge = np.full((64, d), 2.0**-60) * r.choice([1, 0.5, -1, 0.99609375, 2**-70], (64, d))
    subnormal = r.integers(-127, 128, (64, d)) * 2.0**-133
    huge = r.choice([1, -1], (64, d)) * 2.0**55 * (2 - 2**-7) * r.random((64, d))
    cases = dict(gauss=gauss, spread=spread, outliers=out, zeros=zeros, some_zeros=some,
                 constant=constant, ties=ties, edge=edge, subnormal=subnormal, huge=huge,
                 positive=np.abs(gauss) + 4)  # fmt: skip
    cases = {name: x.astype(F32) for name, x in cases.items()}
    for x in cases.values():
        x.flags.writeable = False
    return cases


def spoiled(d, seed=2):
    """bf16 rows with refused values in them."""
    r = np.random.default_rng(seed)
    x = r.standard_normal((64, d)).astype(BF16)
    for value in (np.nan, -np.nan, np.inf, -np.inf, 2.0**56, -(2.0**56), 3e38):
        x[r.integers(5, 64), r.integers(0, d)] = value
    x[5, d - 1] = np.nan
    return x
