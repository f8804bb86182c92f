"""NumPy decoders of GGML block types: what the bytes mean, bit-equal to the reference.

Each decoder takes blocks as a structured array, whose dtype draws the bytes, and returns float32
of shape (blocks, elements). They are written to be read; the packed kernels are elsewhere. Sources
of the layouts: formats.md C2 and the `gguf` package, which is the oracle of the tests.
"""

import numpy as np

from octavo.errors import UnsupportedError

from .ggml_types import BY_NAME

# About 64 k elements at a time: temporaries stay in cache and in bounded memory.
_CHUNK_ELEMENTS = 1 << 16

_F2 = "<f2"
_DRAWN = {
    "Q4_0": [("d", _F2), ("qs", "u1", 16)],
    "Q4_1": [("d", _F2), ("m", _F2), ("qs", "u1", 16)],
    "Q5_0": [("d", _F2), ("qh", "<u4"), ("qs", "u1", 16)],
    "Q5_1": [("d", _F2), ("m", _F2), ("qh", "<u4"), ("qs", "u1", 16)],
    "Q8_0": [("d", _F2), ("qs", "i1", 32)],
    "Q2_K": [("scales", "u1", 16), ("qs", "u1", 64), ("d", _F2), ("dmin", _F2)],
    "Q3_K": [("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", _F2)],
    "Q4_K": [("d", _F2), ("dmin", _F2), ("scales", "u1", 12), ("qs", "u1", 128)],
    "Q5_K": [("d", _F2), ("dmin", _F2), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)],
    "Q6_K": [("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", _F2)],
    "Q8_K": [("d", "<f4"), ("qs", "i1", 256), ("bsums", "<i2", 16)],
    "IQ4_NL": [("d", _F2), ("qs", "u1", 16)],
    "IQ4_XS": [("d", _F2), ("high", "<u2"), ("low", "u1", 4), ("qs", "u1", 128)],
    "MXFP4": [("e", "u1"), ("qs", "u1", 16)],
}
_FP4_TWICE = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], "f4")


def _f32(a):
    return a.astype(np.float32)


def _fields(packed, width):
    """Split each byte of [..., bytes] into 8/width fields: [..., 8/width, bytes], lowest first."""
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    return (packed[..., None, :] >> shifts) & np.uint8((1 << width) - 1)


def _halves(packed):
    """Nibbles of a 32-element block: low nibbles are the first 16 elements, high the rest."""
    return _fields(packed, 4).reshape(len(packed), -1)


def _fifth_bits(qh):
    return ((qh[:, None] >> np.arange(32, dtype=np.uint32)) & 1).astype(np.uint8) << 4


def _q4_0(b):
    return _f32(b["d"])[:, None] * (_f32(_halves(b["qs"])) - 8)


def _q4_1(b):
    return _f32(b["d"])[:, None] * _f32(_halves(b["qs"])) + _f32(b["m"])[:, None]


def _q5_0(b):
    return _f32(b["d"])[:, None] * (_f32(_halves(b["qs"]) | _fifth_bits(b["qh"])) - 16)


def _q5_1(b):
    codes = _f32(_halves(b["qs"]) | _fifth_bits(b["qh"]))
    return _f32(b["d"])[:, None] * codes + _f32(b["m"])[:, None]


def _q8(b):
    return _f32(b["qs"]) * _f32(b["d"])[:, None]


def _q2_k(b):
    scale = _f32(b["d"])[:, None] * _f32(b["scales"] & 15)
    low = _f32(b["dmin"])[:, None] * _f32(b["scales"] >> 4)
    codes = _fields(b["qs"].reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    return scale[..., None] * _f32(codes) - low[..., None]


def _q3_k(b):
    # Sixteen 6-bit scales: nibbles in the first 8 bytes, upper pairs of bits in the last 4.
    low = _fields(b["scales"][:, :8], 4).reshape(-1, 16)
    high = _fields(b["scales"][:, 8:], 2).reshape(-1, 16)
    scale = _f32(b["d"])[:, None] * (_f32(low | (high << 4)) - 32)
    low = _fields(b["qs"].reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    high = _fields(b["hmask"], 1).reshape(-1, 16, 16)
    return scale[..., None] * (_f32(low | (high << 2)) - 4)


def _six_bit_pairs(s):
    """Eight (scale, minimum) pairs of 6 bits from the 12 bytes that Q4_K and Q5_K share."""
    a, b, c = s[:, 0:4], s[:, 4:8], s[:, 8:12]
    scale = np.concatenate([a & 63, (c & 15) | ((a >> 6) << 4)], axis=1)
    low = np.concatenate([b & 63, (c >> 4) | ((b >> 6) << 4)], axis=1)
    return _f32(scale), _f32(low)


def _scaled_k(b, codes):
    scale, low = _six_bit_pairs(b["scales"])
    scale, low = _f32(b["d"])[:, None] * scale, _f32(b["dmin"])[:, None] * low
    return scale[..., None] * _f32(codes) - low[..., None]


def _q4_k(b):
    return _scaled_k(b, _fields(b["qs"].reshape(-1, 4, 32), 4).reshape(-1, 8, 32))


def _q5_k(b):
    low = _fields(b["qs"].reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    return _scaled_k(b, low | (_fields(b["qh"], 1) << 4))


def _q6_k(b):
    low = _fields(b["ql"].reshape(-1, 2, 64), 4).reshape(-1, 8, 32)
    high = _fields(b["qh"].reshape(-1, 2, 32), 2).reshape(-1, 8, 32)
    codes = (_f32(low | (high << 4)) - 32).reshape(-1, 16, 16)
    return (_f32(b["d"])[:, None] * _f32(b["scales"]))[..., None] * codes


def _iq4_nl(b):
    return _f32(b["d"])[:, None] * _IQ4[_halves(b["qs"])]


def _iq4_xs(b):
    low = np.stack([b["low"] & 15, b["low"] >> 4], axis=-1).reshape(-1, 8)
    high = ((b["high"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16)) & 3).astype(np.uint8)
    scale = _f32(b["d"])[:, None] * (_f32(low | (high << 4)) - 32)
    codes = _fields(b["qs"].reshape(-1, 8, 16), 4).reshape(-1, 8, 32)
    return scale[..., None] * _IQ4[codes]


def _mxfp4(b):
    # 2^(e-128), since the table holds twice the values; the two smallest are subnormal.
    e = b["e"].astype(np.uint32)
    bits = np.where(e < 2, np.uint32(0x00200000) << np.minimum(e, 1), (e - 1) << np.uint32(23))
    return bits.astype(np.uint32).view(np.float32)[:, None] * _FP4_TWICE[_halves(b["qs"])]


def _f16(b):
    return _f32(b.view("<f2"))


def _bf16(b):
    return (b.view("<u2").astype(np.uint32) << 16).view(np.float32)


_DECODERS = {
    "F32": lambda b: b.view("<f4"), "F16": _f16, "BF16": _bf16,
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8,
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "Q8_K": _q8,
    "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs, "MXFP4": _mxfp4,
}  # fmt: skip

DECODABLE = tuple(_DECODERS)


def require_decodable(name, what):
    """Raise `UnsupportedError`, naming `what`, unless type `name` has a decoder."""
    if name not in _DECODERS:
        known = ", ".join(DECODABLE)
        raise UnsupportedError(f"{what} has type {name}, which is not decoded; decoded: {known}")


def decode_into(out, raw, name):
    """Decode `raw` (uint8, whole blocks of type `name`) into `out` (float32, 1-D, contiguous).

    Memory beyond `out` is bounded by a few multiples of 64 k elements.
    """
    kind, decode = BY_NAME[name], _DECODERS[name]
    blocks = raw.reshape(-1, kind.block_bytes)
    if name in _DRAWN:
        blocks = blocks.view(np.dtype(_DRAWN[name]))[:, 0]
    rows = out.reshape(-1, kind.block_elements)
    step = max(1, _CHUNK_ELEMENTS // kind.block_elements)
    # A hostile block may hold Inf or NaN scales; they decode like any other value.
    with np.errstate(invalid="ignore", over="ignore"):
        for at in range(0, len(rows), step):
            part = rows[at : at + step]
            part[...] = decode(blocks[at : at + step]).reshape(part.shape)
