"""What weights, activation forms and linears mean, in NumPy, written from docs/formats.md B1 to B3.

Whole arrays and logical codes only: nothing here knows how the C packs bytes, except `packed`,
which draws a block from the headers' figures. `fma` rounds once, exactly, by float64 arithmetic
with rounding to odd.
"""

import ml_dtypes
import numpy as np

F32 = np.float32
SCALE_TYPES = {1: np.float16, 2: ml_dtypes.bfloat16}
ELEMENT = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
TINY = F32(2.0**-60)


def fma(a, b, c):
    """a * b + c in float32 with one rounding."""
    with np.errstate(all="ignore"):
        p = np.asarray(a, np.float64) * np.asarray(b, np.float64)  # exact: 24 + 24 bits
        c = np.asarray(c, np.float64)
        s = p + c
        t = s - p
        err = np.asarray((p - (s - t)) + (c - t))
        bits = np.asarray(s).view(np.int64)
        odd = (err != 0) & np.isfinite(err) & (bits & 1 == 0)
        step = np.where((err > 0) == (s > 0), 1, -1)
        return np.where(odd, bits + step, bits).view(np.float64).astype(F32)


def groups(k):
    return -(-k // 32)


def scales_in(name, k):
    """How many scales a row has."""
    return 1 if name == "w8" else groups(k)


def widen(bits, scale_type):
    """Raw 16-bit scales or minima to float32."""
    return bits.view(SCALE_TYPES[scale_type]).astype(F32)


def quantize(x, act):
    """One activation form: (codes int32 [m][kp], scale, sum int32 [m][kp/32], bad [m])."""
    m, k = x.shape
    kp = groups(k) * 32
    limit = F32(16256 if act == "a8x2" else 127)
    bad = ~np.isfinite(x).all(axis=1)
    xs = np.zeros((m, kp), F32)
    xs[:, :k] = np.where(bad[:, None], 0, x)
    spans = xs.reshape(m, -1, 32) if act == "a8g32" else xs.reshape(m, 1, kp)
    amax = np.abs(spans).max(axis=2)
    live = amax >= TINY
    safe = np.where(live, amax, F32(1))
    scale = np.where(live, safe / limit, F32(0)).astype(F32)
    inverse = np.where(live, limit / safe, F32(0)).astype(F32)
    codes = np.clip(np.rint(spans * inverse[:, :, None]), -limit, limit).astype(np.int32)
    codes = codes.reshape(m, kp)
    scale[bad] = np.nan
    total = codes.reshape(m, -1, 32).sum(axis=2, dtype=np.int32)
    return codes, scale if act == "a8g32" else scale[:, 0], total, bad


def integers(name, codes, zeros):
    """The integers that multiply the scale, int64 [n][k]; codes as `unpack` gives them."""
    k = codes.shape[1]
    if name in ("w8", "w8g32"):
        return codes.view(np.int8).astype(np.int64)
    u = codes.astype(np.int64)
    if name == "q4g32":
        return u - 8
    if name == "q4g32z":
        return u - np.repeat(zeros, 32, axis=1)[:, :k]
    return u


def dequantize(name, codes, scales, zeros=None, mins=None):
    """Float32 [n][k], each element rounded once. scales and mins are float32."""
    k = codes.shape[1]
    v = integers(name, codes, zeros).astype(F32)
    s = scales if name == "w8" else np.repeat(scales, 32, axis=1)[:, :k]
    return fma(v, s, np.repeat(mins, 32, axis=1)[:, :k]) if name == "q4g32m" else v * s


def finish(acc, y, bias, add):
    result = acc if bias is None else acc + bias
    return y + result if add else result


def linear_float(x, w):
    """a32 on f32, f16, bf16: one chain, k ascending."""
    t = np.zeros((x.shape[0], w.shape[0]), F32)
    for j in range(w.shape[1]):
        t = fma(x[:, j, None], w[None, :, j].astype(F32), t)
    return t


def linear_grouped_a32(x, name, codes, scales, zeros=None, mins=None):
    v = integers(name, codes, zeros).astype(F32)
    acc = np.zeros((x.shape[0], codes.shape[0]), F32)
    for g in range(scales.shape[1]):
        t, t1 = np.zeros_like(acc), np.zeros((x.shape[0], 1), F32)
        for j in range(g * 32, min(g * 32 + 32, codes.shape[1])):
            t = fma(x[:, j, None], v[None, :, j], t)
            t1 = t1 + x[:, j, None]
        acc = fma(t, scales[None, :, g], acc)
        if mins is not None:
            acc = fma(t1, mins[None, :, g], acc)
    return acc


def linear_channels(x, act, codes, scales):
    """w8: one float32 scale a row, [n][1], and integer sums over all of k."""
    v, s = integers("w8", codes, None), scales[None, :, 0]
    if act == "a32":
        return linear_float(x, v) * s
    q, sx, _, _ = quantize(x, act)
    wide = np.zeros((codes.shape[0], q.shape[1]), np.int64)
    wide[:, : codes.shape[1]] = v
    with np.errstate(invalid="ignore"):
        if act != "a8g32":
            return ((q.astype(np.int64) @ wide.T).astype(F32) * s) * sx[:, None]
        acc = np.zeros((x.shape[0], codes.shape[0]), F32)
        for g in range(sx.shape[1]):
            part = slice(g * 32, g * 32 + 32)
            dot = (q[:, part].astype(np.int64) @ wide[:, part].T).astype(F32)
            acc = fma(dot, sx[:, g, None], acc)
        return acc * s


def linear_grouped(x, act, name, codes, scales, zeros=None, mins=None):
    """Every format with codes and every form; scales and mins float32 [n][k/32]."""
    if name == "w8":
        return linear_channels(x, act, codes, scales)
    if act == "a32":
        return linear_grouped_a32(x, name, codes, scales, zeros, mins)
    q, sx, total, _ = quantize(x, act)
    v = np.zeros((codes.shape[0], q.shape[1]), np.int64)
    v[:, : codes.shape[1]] = integers(name, codes, zeros)
    acc = np.zeros((x.shape[0], codes.shape[0]), F32)
    for g in range(scales.shape[1]):
        part = slice(g * 32, g * 32 + 32)
        dot = (q[:, part].astype(np.int64) @ v[:, part].T).astype(F32)
        xg = total[:, g, None].astype(F32)
        with np.errstate(invalid="ignore"):
            if act == "a8g32":
                acc = fma(dot, scales[None, :, g] * sx[:, g, None], acc)
                acc = acc if mins is None else fma(xg * sx[:, g, None], mins[None, :, g], acc)
            else:
                acc = fma(dot, scales[None, :, g], acc)
                acc = acc if mins is None else fma(xg, mins[None, :, g], acc)
    return acc if act == "a8g32" else acc * sx[:, None]


def packed(name, codes, scales, zeros=None, mins=None):
    """The bytes of a packed matrix of codes by whole-array moves. scales (w8: f32), mins: raw."""
    n, k = codes.shape
    nb, ng = -(-n // 32), groups(k)
    u = np.zeros((nb * 32, ng * 32), np.uint8)
    u[:] = 8 if name == "q4g32" else 0
    if name == "q4g32z":
        u[:n] = np.repeat(zeros, 32, axis=1)
    u[:n, :k] = codes
    if name == "w8":
        whole = np.zeros((nb, 32), F32)
        whole.reshape(-1)[:n] = scales[:, 0]
        lines = (u ^ 0x80).reshape(nb, 32, ng * 8, 4).transpose(0, 2, 1, 3).reshape(nb, -1)
        return np.concatenate([whole.view(np.uint8), lines], axis=1).reshape(-1)
    if name == "w8g32":
        u ^= 0x80
        lines = u.reshape(nb, 2, 16, ng, 8, 4).transpose(0, 3, 1, 4, 2, 5)
    else:
        nibbles = u.reshape(nb, 2, 16, ng, 4, 2, 4)
        lines = nibbles[..., 0, :] | nibbles[..., 1, :] << 4
        lines = lines.transpose(0, 3, 1, 4, 2, 5)
    fields = [lines.reshape(nb, ng, -1)]
    for part in (scales, mins, zeros):
        if part is None:
            continue
        whole = np.zeros((nb * 32, ng), part.dtype)
        whole[:n] = part
        column = np.ascontiguousarray(whole.reshape(nb, 32, ng).transpose(0, 2, 1))
        fields.append(column.view(np.uint8).reshape(nb, ng, -1))
    return np.concatenate(fields, axis=2).reshape(-1)
