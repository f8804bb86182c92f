"""safetensors files and folders: our guard walks, the library validates, and both must agree.

The guard bounds time and memory before any parser runs, and turns each entry into a compact proven
descriptor. Shards and `config.json` come from the same folder only, by bare names. Tensor bytes are
not aligned in this format; `Tensor.array` copies where it must.
"""

import re
from typing import NamedTuple

import safetensors

from octavo.errors import CheckpointError

from .guarded_json import parse_json, read_json
from .quantization import reader_of
from .source import File, bare_name, fail
from .tensors import Checkpoint, Tensor

MAX_HEADER_BYTES = 32 << 20  # the format allows 10^8; this holds MAX_TENSORS long names
MAX_TENSORS = 1 << 16
MAX_INDEX_ENTRIES = 1 << 18
MAX_SHARDS = 4096
MAX_RANK = 32
MAX_NAME = 1024
CONFIG_BYTES = 16 << 20
INDEX_BYTES = 32 << 20

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
_INDEX = "model.safetensors.index.json"
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class _Entry(NamedTuple):
    """One tensor of a header: `begin` and `end` count from the first data byte."""

    dtype: str
    shape: tuple
    begin: int
    end: int


class _Bad(NamedTuple):
    """An entry that breaks a rule, kept until its name is known."""

    what: str
    value: object
    legal: str


def open_safetensors(path, *, mmap=True):
    """Open a folder of safetensors files (with ``config.json``), or one file of such a folder.

    Returns
    -------
    Checkpoint

    Raises
    ------
    CheckpointError, UnsupportedError
        See `octavo.checkpoint.open_checkpoint`.
    """
    folder = path if path.is_dir() else path.parent
    metadata = _folder_metadata(folder)
    logical = reader_of(folder / "config.json", metadata["config"])
    shards = {path.name: None} if path != folder else _shards(folder)
    files, tensors = [], {}
    try:
        for name, mapped in shards.items():
            files.append(File(folder / name, mmap=mmap))
            part = read_header(files[-1], metadata["format"])
            if mapped is not None and set(part) != mapped:
                raise _index_mismatch(folder, name, set(part), mapped)
            tensors.update(part)
        tensors = logical(tensors)
    except BaseException:
        for file in files:
            file.close()
        raise
    return Checkpoint(path, "safetensors", metadata, tensors, files)


def _folder_metadata(folder):
    path = folder / "config.json"
    if not path.exists():
        raise CheckpointError(f"{folder}: no config.json; legal: one beside the safetensors files")
    metadata = {"config": read_json(path, limit_bytes=CONFIG_BYTES), "format": {}}
    for name in ("generation_config", "tokenizer_config"):
        if (folder / f"{name}.json").exists():
            metadata[name] = read_json(folder / f"{name}.json", limit_bytes=CONFIG_BYTES)
    return metadata


def _shards(folder):
    """Return {file name: names of its tensors, or None where no index says}."""
    if (folder / _INDEX).exists():
        return _indexed(folder / _INDEX)
    found = sorted(p.name for p in folder.glob("*.safetensors"))
    if len(found) == 1:
        return {found[0]: None}
    if "model.safetensors" in found:
        return {"model.safetensors": None}
    if found:
        value = f"{len(found)} without an index"
        raise fail(folder, "safetensors files", value, f"one file, or an {_INDEX}")
    pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
    if pickles:
        value = f"only {pickles[0]!r}, a pickle that can run code when it is read"
        raise fail(folder, "weights", value, "*.safetensors files, or a .gguf file given by name")
    raise fail(folder, "weights", "none", "*.safetensors files, or a .gguf file given by name")


def _indexed(path):
    index = read_json(path, limit_bytes=INDEX_BYTES)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not 0 < len(weight_map) <= MAX_INDEX_ENTRIES:
        value = len(weight_map) if isinstance(weight_map, dict) else type(weight_map).__name__
        raise fail(path, "weight_map", value, f"an object of 1 to {MAX_INDEX_ENTRIES} tensors")
    shards = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or name not in shards:
            bare_name(path, f"weight_map[{tensor!r:.80}]", name)
            if not name.endswith(".safetensors"):
                raise fail(path, f"weight_map[{tensor!r:.80}]", repr(name), "a .safetensors file")
            if len(shards) == MAX_SHARDS:
                raise fail(path, "shards", f"more than {MAX_SHARDS}", f"at most {MAX_SHARDS}")
        shards.setdefault(name, set()).add(tensor)
    for name in shards:
        if not (path.parent / name).exists():
            raise fail(path, "shard", f"{name!r} missing", f"all {len(shards)} files in the folder")
    return dict(sorted(shards.items()))


def _index_mismatch(folder, name, have, mapped):
    if extra := sorted(have - mapped):
        value, legal = f"tensor {extra[0]!r}", "only tensors that the index maps to this file"
    else:
        value = f"without tensor {min(mapped - have)!r}"
        legal = "every tensor that the index maps to this file"
    return fail(folder / name, "header", value, legal)


def read_header(file, notes=None):
    """Guard, validate and compare the header of one file.

    Parameters
    ----------
    file : File
    notes : dict, optional
        Receives the file's ``__metadata__``.

    Returns
    -------
    dict of str to Tensor
        In the order of the data.
    """
    raw, start = _header_bytes(file)
    entries, extra = _parse(file.path, raw)
    _check_layout(file, entries, start)
    _compare_with_library(file, entries)
    if notes is not None:
        notes.update(extra)
    ordered = sorted(entries.items(), key=lambda kv: (kv[1].begin, kv[1].end))
    return {
        name: Tensor(name, e.dtype, e.shape, e.end - e.begin, start + e.begin, file)
        for name, e in ordered
    }


def _header_bytes(file):
    path = file.path
    if file.size < 10:
        raise fail(path, "size", f"{file.size} bytes", "at least 10 bytes: a length and '{}'")
    count = int.from_bytes(file.read(0, 8), "little")
    most = min(MAX_HEADER_BYTES, file.size - 8)
    if not 2 <= count <= most:
        raise fail(path, "header length", count, f"2 to {most} bytes in this file", 0)
    if file.read(8, 1) != b"{":
        raise fail(path, "header", file.read(8, 1), "JSON that starts with '{'", 8)
    raw = file.read(8, count)
    # Every tensor needs its own object, so braces bound the work before any parsing.
    if raw.count(b"{") > MAX_TENSORS + 2:
        value = f"{raw.count(b'{')} JSON objects"
        raise fail(path, "header", value, f"at most {MAX_TENSORS} tensors", 8)
    return raw, 8 + count


def _parse(path, raw):
    """Parse the header; inner objects become `_Entry` at once, so memory stays small."""
    pairs = parse_json(raw, path, root=list, pairs_hook=_object)
    entries, extra = {}, {}
    for name, value in pairs:
        if name in entries or (name == "__metadata__" and extra):
            raise fail(path, "header key", f"{name!r} twice", "each name once")
        if name == "__metadata__":
            extra = _string_map(path, value)
        elif isinstance(value, _Bad):
            raise fail(path, f"{value.what} of tensor {name!r:.200}", value.value, value.legal)
        elif not isinstance(value, _Entry):
            raise fail(path, f"entry {name!r}", value, "{dtype, shape, data_offsets}")
        elif not 0 < len(name) <= MAX_NAME or "\0" in name:
            raise fail(path, "tensor name", repr(name), f"1 to {MAX_NAME} characters, no NUL")
        else:
            entries[name] = value
    return entries, extra


def _object(pairs):
    """Turn an entry into `_Entry` or `_Bad`; leave any other object as its list of pairs."""
    if len(pairs) != 3 or {k for k, _ in pairs} != _ENTRY_KEYS:
        return pairs
    entry = dict(pairs)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        return _Bad("dtype", dtype, ", ".join(_BITS))
    if not _sizes(shape) or len(shape) > MAX_RANK:
        return _Bad("shape", shape, f"a list of at most {MAX_RANK} integers from 0 to 2^63-1")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return _Bad("data_offsets", offsets, "[begin, end] with 0 <= begin <= end")
    bits = _BITS[dtype]
    for n in shape:
        bits *= n
    if bits % 8 or bits // 8 != offsets[1] - offsets[0]:
        value = f"{offsets} for {dtype} of shape {shape}"
        return _Bad("data_offsets", value, f"a range of {bits} / 8 bytes, a whole number")
    return _Entry(dtype, tuple(shape), *offsets)


def _sizes(value):
    # type() and not isinstance: True is not a size.
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in value)


def _string_map(path, value):
    good = isinstance(value, list) and all(
        isinstance(pair, tuple) and isinstance(pair[1], str) for pair in value
    )
    if not good or len(dict(value)) != len(value):
        raise fail(path, "__metadata__", value, "an object of strings, each key once")
    return dict(value)


def _check_layout(file, entries, start):
    """No holes, no overlaps, no trailing bytes: the ranges tile the data exactly."""
    end, before = 0, "the header"
    for name, e in sorted(entries.items(), key=lambda kv: (kv[1].begin, kv[1].end)):
        if e.begin != end:
            legal = f"{end}, where {before} ends (no holes, no overlaps)"
            raise fail(file.path, f"begin of tensor {name!r}", e.begin, legal)
        end, before = e.end, f"tensor {name!r}"
    if end != file.size - start:
        legal = f"{end}, the end of the last tensor"
        raise fail(file.path, "bytes of data", file.size - start, legal, start)


def _compare_with_library(file, entries):
    """Let the format's own library read the same inode; whatever it sees must be what we saw."""
    try:
        with safetensors.safe_open(file.descriptor_path(), framework="np") as f:
            names = list(f.keys())
            seen = {name: f.get_slice(name) for name in names}
            theirs = {n: (s.get_dtype(), tuple(s.get_shape())) for n, s in seen.items()}
    except Exception as error:  # the library's own type is not stable over its versions
        text = re.sub(r"/dev/fd/\d+", str(file.path), str(error))
        raise CheckpointError(f"{file.path}: the safetensors library refuses it: {text}") from error
    ours = {n: (e.dtype, e.shape) for n, e in entries.items()}
    if ours != theirs:
        odd = min(n for n in {*ours, *theirs} if ours.get(n) != theirs.get(n))
        value = f"{theirs.get(odd)} to the library"
        raise fail(file.path, f"tensor {odd!r}", value, f"{ours.get(odd)}, as the guard read")
