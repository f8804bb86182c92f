"""The guard and reader of GGUF v2/v3 headers: one bounded walk over untrusted bytes.

All arithmetic is on plain Python integers, so nothing wraps; every count is compared with what the
file could hold before anything is allocated. Large string arrays stay undecoded until somebody
looks. What comes out is a set of proven descriptors. Contradictions between metadata and tensors
are the business of `gguf_checks`; bytes and types that of `dequant`.
"""

import struct
from typing import NamedTuple

import numpy as np

from .ggml_types import BY_ID, REMOVED
from .gguf_strings import Strings, find_starts
from .source import fail

MAX_HEADER_BYTES = 256 << 20
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_STRINGS = 1 << 22
MAX_KEY_BYTES = 0xFFFF
MAX_NAME_BYTES = 1024
MAX_ALIGNMENT = 1 << 20

_MIN_KEY_BYTES = 8 + 1 + 4 + 1  # length, one character, value type, the smallest value
_MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8  # name, n_dims, one dimension, type, offset
_CHUNK = 4 << 20
_BOOL, _STRING, _ARRAY = 7, 8, 9
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?",
            10: "<Q", 11: "<q", 12: "<d"}  # fmt: skip
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class TensorInfo(NamedTuple):
    """A tensor entry of the header, proven against the file; `offset` is from the file's start."""

    name: str
    type: str
    shape: tuple
    nbytes: int
    offset: int


class Header(NamedTuple):
    """A whole GGUF header: metadata, tensors in file order, first data byte, all proven."""

    metadata: dict
    tensors: list
    data_start: int


class _Cursor:
    """Reads forward through the header; fetches more of the file only when it is needed.

    The buffer is as large as the header may become, but its pages cost nothing until they are
    filled, and everything read from it later is a view: no byte of the header is held twice.
    """

    def __init__(self, file):
        self.file = file
        self.path = file.path
        self.at = 0
        self.have = 0
        self.limit = min(file.size, MAX_HEADER_BYTES)
        self.buffer = np.empty(self.limit, np.uint8)
        self.data = memoryview(self.buffer)

    def need(self, count, what):
        """Make `count` bytes from the current position available, or refuse."""
        end = self.at + count
        if end > self.limit:
            left = self.limit - self.at
            raise fail(self.path, what, f"{count} bytes", f"at most the {left} left", self.at)
        if end > self.have:
            upto = min(self.limit, max(end, self.have + _CHUNK))
            self.file.read_into(self.data[self.have : upto], self.have)
            self.have = upto

    def u32(self, what):
        self.need(4, what)
        self.at += 4
        return _U32.unpack_from(self.data, self.at - 4)[0]

    def u64(self, what):
        self.need(8, what)
        self.at += 8
        return _U64.unpack_from(self.data, self.at - 8)[0]

    def text(self, what, limit, least=0):
        """Read a string of `least` to `limit` bytes of UTF-8."""
        start = self.at
        count = self.u64(f"length of {what}")
        if not least <= count <= limit:
            legal = f"{least} to {limit} bytes"
            raise fail(self.path, f"length of {what}", count, legal, start)
        self.need(count, what)
        raw = bytes(self.data[self.at : self.at + count])
        self.at += count
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise fail(self.path, what, raw, "UTF-8 text", start + 8) from None


def read_header(file):
    """Walk the header of an open `File` and prove every descriptor in it.

    Returns
    -------
    Header

    Raises
    ------
    CheckpointError
        At the first thing that is not legal GGUF, naming it, its offset, value and legal values.
    """
    cursor = _Cursor(file)
    n_tensors, n_keys = _preamble(cursor)
    metadata = _metadata(cursor, n_keys)
    alignment = _alignment(cursor.path, metadata)
    entries = _entries(cursor, n_tensors)
    data_start = -(-cursor.at // alignment) * alignment
    tensors = [_place(file, entry, data_start, alignment) for entry in entries]
    _refuse_overlap(file.path, tensors)
    return Header(metadata, tensors, data_start)


def _preamble(cursor):
    path = cursor.path
    if cursor.limit < 24:
        raise fail(path, "size", f"{cursor.limit} bytes", "at least the 24 of a GGUF header")
    cursor.need(24, "header")
    if cursor.data[:4] != b"GGUF":
        raise fail(path, "magic", bytes(cursor.data[:4]), "b'GGUF'", 0)
    cursor.at = 4
    version = cursor.u32("version")
    if version not in (2, 3):
        legal = "2 or 3, little endian"
        raise fail(path, "version", version, legal, 4)
    n_tensors, n_keys = cursor.u64("tensor count"), cursor.u64("key count")
    left = cursor.file.size - cursor.at
    for what, count, cap, least, at in (
        ("tensor count", n_tensors, MAX_TENSORS, _MIN_TENSOR_BYTES, 8),
        ("key count", n_keys, MAX_KEYS, _MIN_KEY_BYTES, 16),
    ):
        most = min(cap, left // least)
        if count > most:
            raise fail(path, what, count, f"at most {most} in a file of this size", at)
    return n_tensors, n_keys


def _metadata(cursor, n_keys):
    out = {}
    for _ in range(n_keys):
        start = cursor.at
        key = cursor.text("key", MAX_KEY_BYTES, least=1)
        if key in out or "\0" in key:
            raise fail(cursor.path, "key", repr(key), "each key once, without NUL", start)
        out[key] = _value(cursor, key)
    return out


def _value(cursor, key):
    start = cursor.at
    kind = cursor.u32(f"type of {key!r}")
    if kind == _STRING:
        return cursor.text(f"value of {key!r}", cursor.limit)
    if kind == _ARRAY:
        return _array(cursor, key)
    if kind not in _SCALARS:
        raise fail(cursor.path, f"type of {key!r}", kind, "a GGUF value type, 0 to 12", start)
    return _numbers(cursor, key, kind, 1)[0].item()


def _array(cursor, key):
    start = cursor.at
    kind, count = cursor.u32(f"element type of {key!r}"), cursor.u64(f"length of {key!r}")
    if kind == _STRING:
        return _strings(cursor, key, count)
    if kind not in _SCALARS:
        legal = "a scalar or string type (arrays of arrays are not read)"
        raise fail(cursor.path, f"element type of {key!r}", kind, legal, start)
    return _numbers(cursor, key, kind, count)


def _numbers(cursor, key, kind, count):
    size = struct.calcsize(_SCALARS[kind])
    what = f"value of {key!r}"
    cursor.need(count * size, what)
    raw = cursor.buffer[cursor.at : cursor.at + count * size]
    raw.setflags(write=False)
    if kind == _BOOL and (raw > 1).any():
        raise fail(cursor.path, what, "neither 0 nor 1", "booleans of 0 or 1", cursor.at)
    cursor.at += count * size
    return raw.view(_SCALARS[kind])


def _strings(cursor, key, count):
    what = f"length of {key!r}"
    most = min(MAX_STRINGS, (cursor.limit - cursor.at) // 8)
    if count > most:
        raise fail(cursor.path, what, count, f"at most {most} strings here", cursor.at - 8)
    starts = find_starts(cursor, key, count)
    return Strings(cursor.data.toreadonly(), starts, cursor.path, repr(key))


def _alignment(path, metadata):
    value = metadata.get("general.alignment", 32)
    power = isinstance(value, int) and not isinstance(value, bool) and value > 0
    if not power or value & (value - 1) or not 8 <= value <= MAX_ALIGNMENT:
        legal = f"a power of two from 8 to {MAX_ALIGNMENT}"
        raise fail(path, "general.alignment", value, legal)
    return value


def _entries(cursor, n_tensors):
    """Read (name, type, shape, relative offset, header position) of each tensor."""
    out, seen = [], set()
    for _ in range(n_tensors):
        start = cursor.at
        name = cursor.text("tensor name", MAX_NAME_BYTES, least=1)
        if name in seen or "\0" in name:
            legal = "each name once, without NUL"
            raise fail(cursor.path, "tensor name", repr(name), legal, start)
        seen.add(name)
        at = cursor.at
        n_dims = cursor.u32(f"rank of {name!r}")
        if not 1 <= n_dims <= 4:
            raise fail(cursor.path, f"rank of tensor {name!r}", n_dims, "1 to 4", at)
        cursor.need(8 * n_dims + 12, f"entry of tensor {name!r}")
        *ne, kind, offset = struct.unpack_from(f"<{n_dims}QIQ", cursor.data, cursor.at)
        cursor.at += 8 * n_dims + 12
        out.append((name, kind, tuple(reversed(ne)), offset, at))
    return out


def _place(file, entry, data_start, alignment):
    """Turn an entry into a proven byte range of the file."""
    name, kind, shape, offset, at = entry
    what = f"tensor {name!r}"
    if kind not in BY_ID:
        old = f"{kind} ({REMOVED[kind]}, not a stored type)" if kind in REMOVED else kind
        raise fail(file.path, f"type of {what}", old, "a tensor type of GGUF v3", at)
    elements = 1
    for n in shape:
        elements *= n
    # 2^62 bytes is beyond any file, and keeps every later product inside int64.
    if not 0 < elements < 1 << 62:
        raise fail(file.path, f"shape of {what}", shape, "1 to 2^62 elements", at)
    t = BY_ID[kind]
    if shape[-1] % t.block_elements:
        legal = f"rows of a multiple of {t.block_elements} elements ({t.name})"
        raise fail(file.path, f"shape of {what}", shape, legal, at)
    nbytes = elements // t.block_elements * t.block_bytes
    room = file.size - data_start
    if offset % alignment or offset + nbytes > room:
        value = f"{offset} for {nbytes} bytes"
        legal = f"a multiple of {alignment} that ends within the {max(room, 0)} data bytes"
        raise fail(file.path, f"offset of {what}", value, legal, at)
    return TensorInfo(name, t.name, shape, nbytes, data_start + offset)


def _refuse_overlap(path, tensors):
    end, before = 0, None
    for t in sorted(tensors, key=lambda t: t.offset):
        if t.offset < end:
            legal = f"at or after byte {end}, where {before!r} ends"
            raise fail(path, f"start of tensor {t.name!r}", t.offset, legal)
        end, before = t.offset + t.nbytes, t.name
