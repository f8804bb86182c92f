"""Independent NumPy meaning of the ops, and the arrays that catch stray reads and writes.

The oracles are written from kernels.h and docs/formats.md, in float64 where a bound is claimed and
operation by operation where bits are. They share no code with the C.
"""

import ml_dtypes
import numpy as np
import pytest

from octavo import _probe

COLUMNS = ["scalar", "avx2", "avx512"]
FAST = COLUMNS[1:]
SIZES = [1, 7, 15, 16, 17, 63, 64, 100, 576, 1000]


def need(isa):
    if not _probe.runs_here(isa):
        pytest.skip(f"{isa} is absent on this machine")


def poisoned(values, poison=np.nan, offset=3, pad=5):
    """`values` as rows of a larger array full of poison, misaligned and with an odd stride."""
    values = np.asarray(values)
    flat = values.reshape(-1, values.shape[-1]) if values.ndim else values.reshape(1, 1)
    rows, cols = flat.shape
    store = np.full(offset + rows * (cols + pad) + 64, poison, values.dtype)
    view = store[offset : offset + rows * (cols + pad)].reshape(rows, cols + pad)[:, :cols]
    view[...] = flat
    return view


class Guarded:
    """An output of `shape` inside bytes of 0xA5; `take()` checks that nothing else was written."""

    def __init__(self, shape, dtype=np.float32, fill=None, offset=1, pad=3):
        rows, cols = (1, shape[0]) if len(shape) == 1 else shape
        if len(shape) == 1:
            pad = 0
        self.shape, dtype = shape, np.dtype(dtype)
        self.store = np.full((offset + rows * (cols + pad) + 32) * dtype.itemsize, 0xA5, np.uint8)
        body = self.store.view(dtype)[offset : offset + rows * (cols + pad)]
        self.view = body.reshape(rows, cols + pad)[:, :cols]
        self.inside = np.zeros(self.store.size, bool)
        mask = self.inside.reshape(-1, dtype.itemsize)[offset : offset + rows * (cols + pad)]
        mask.reshape(rows, cols + pad, dtype.itemsize)[:, :cols] = True
        if fill is not None:
            self.view[...] = fill
        self.array = self.view[0] if len(shape) == 1 else self.view

    def take(self):
        assert (self.store[~self.inside] == 0xA5).all(), "written outside the output"
        return self.view.reshape(self.shape).copy()


def same(got, want, note=""):
    """Equal bits; a NaN equals a NaN."""
    if not isinstance(got, tuple):
        got, want = (got,), (want,)
    for g, w in zip(got, want, strict=True):
        g, w = np.asarray(g), np.asarray(w)
        assert g.dtype == w.dtype and g.shape == w.shape
        if g.dtype.kind == "f":
            unsigned = f"u{g.dtype.itemsize}"
            both = np.isnan(g) & np.isnan(w)
            g, w = np.where(both, 0, g.view(unsigned)), np.where(both, 0, w.view(unsigned))
        np.testing.assert_array_equal(g, w, err_msg=str(note))


def bits(x):
    return np.ascontiguousarray(x, np.float32).view(np.uint32)


def floats(u):
    return np.ascontiguousarray(u, np.uint32).view(np.float32)


def exp32(x):
    """The exp of num.h on an array (its bits are pinned by test_op_num)."""
    return floats(_probe.num("exp", bits(x))).reshape(np.shape(x))


def hostile(n, seed=0, rows=1):
    """Named float rows: usual, large, tiny, and with zeros of both signs, ties and infinities."""
    r = np.random.default_rng(seed)
    x = r.standard_normal((rows, n)).astype(np.float32)
    mixed = x.copy()
    mixed[:, ::3] = 0.0
    mixed[:, 1::5] = -0.0
    mixed[:, 2::7] = 1e-40
    special = x.copy()
    special[:, r.integers(0, n)] = np.inf
    special[:, r.integers(0, n)] = -np.inf
    nan = x.copy()
    nan[:, r.integers(0, n)] = np.nan
    return {
        "normal": x,
        "wide": (x * np.exp2(r.integers(-30, 30, x.shape))).astype(np.float32),
        "steep": (x * 40).astype(np.float32),
        "denormal": (x * np.float32(1e-39)).astype(np.float32),
        "mixed": mixed,
        "ties": np.round(x).astype(np.float32),
        "special": special,
        "nan": nan,
        "zeros": np.zeros_like(x),
        "minus inf": np.full_like(x, -np.inf),
    }


def fma32(a, b, c):
    """fmaf: the product of two float32 is exact in float64; Boldo's odd rounding makes the sum
    round once."""
    a, b, c = (np.asarray(v, np.float64) for v in (a, b, c))
    p = a * b
    s = p + c
    v = s - p
    err = (p - (s - v)) + (c - v)
    u = s.view(np.int64) if s.ndim else np.array(s).view(np.int64)
    fix = np.isfinite(s) & (err != 0) & ((u & 1) == 0)
    up = (err > 0) == (s > 0)
    odd = np.where(fix, np.where(up, u + 1, u - 1), u).view(np.float64)
    with np.errstate(over="ignore", under="ignore"):
        return odd.astype(np.float32).reshape(s.shape)


def tree(terms):
    """The sum of num.h: 16 accumulators, then halves."""
    acc = np.zeros(16, terms.dtype)
    for i in range(0, len(terms), 16):
        part = terms[i : i + 16]
        acc[: len(part)] += part
    for h in (8, 4, 2, 1):
        acc[:h] += acc[h : 2 * h]
    return acc[0]


def splitmix_signs(n):
    """True where channel i is negative: bit 63 of output i of SplitMix64 from seed 0."""
    mask, state, out = (1 << 64) - 1, 0, []
    for _ in range(n):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        out.append(bool((z ^ (z >> 31)) >> 63))
    return np.array(out)


def hadamard(x, block, signs, inverse):
    """The transform of A2 in float64, by the matrix."""
    x = np.asarray(x, np.float64)
    i = np.arange(block)
    parity = np.array([[(a & b).bit_count() & 1 for b in i] for a in i])
    matrix = np.where(parity, -1.0, 1.0) / np.sqrt(block)
    sign = np.where(splitmix_signs(x.shape[-1]), -1.0, 1.0) if signs else 1.0
    y = x if inverse else sign * x
    y = (y.reshape(*x.shape[:-1], -1, block) @ matrix).reshape(x.shape)
    return sign * y if inverse else y


def to_bf16(x):
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(x).astype(ml_dtypes.bfloat16).view(np.uint16)


def topk_order(x):
    return np.lexsort(
        (np.arange(len(x)), np.where(np.isnan(x), 0, -x.astype(np.float64)), np.isnan(x))
    )


def sample(x, temperature, top_k, top_p, min_p, u):
    """The definition in kernels/op/sample/sample.h, by sorting."""
    x = np.asarray(x, np.float32)
    if not (x > -np.inf).any():
        return -1
    top = np.nanmax(x)
    if temperature == 0:
        return int(np.flatnonzero(x == top)[0])
    with np.errstate(all="ignore"):
        inverse = np.float32(1) / np.float32(temperature)
        z = np.where(x == top, np.float32(0), (x - top) * inverse).astype(np.float32)
    w = np.where(np.isnan(x), np.float32(0), exp32(z))
    ids = topk_order(x)
    w = w[ids]
    if 0 < top_k < len(x):
        ids, w = ids[:top_k], w[:top_k]

    def mass(w):
        return np.trunc(w.astype(np.float64) * 2.0**44).astype(np.uint64)

    if np.float32(top_p) < 1:
        running = np.cumsum(mass(w))
        reach = np.uint64(float(np.float32(top_p)) * float(running[-1]))
        n = int(np.argmax(running >= max(int(reach), 1))) + 1
        ids, w = ids[:n], w[:n]
    keep = w >= np.float32(min_p)
    ids, w = ids[keep], w[keep]
    running = np.cumsum(mass(w))
    t = min(int(u * float(running[-1])), int(running[-1]) - 1)
    return int(ids[np.argmax(running > np.uint64(t))])


def kl(x, y):
    """sum p (log p - log q), in longdouble."""
    x, y = x.astype(np.longdouble), y.astype(np.longdouble)
    lp = x - x.max() - np.log(np.exp(x - x.max()).sum())
    lq = y - y.max() - np.log(np.exp(y - y.max()).sum())
    p = np.exp(lp)
    with np.errstate(invalid="ignore"):
        return float(np.where(p > 0, p * (lp - lq), 0).sum())
