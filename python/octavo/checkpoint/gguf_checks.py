"""Does a GGUF contradict itself? Metadata against tensors, files of a split against each other.

The walk in `gguf` proves bytes; this module proves meaning, as far as every architecture shares it:
counts of layers and heads, widths, the tokenizer's arrays, the keys of a split. What only one model
family knows is checked by that family.
"""

import re

import numpy as np

from .gguf import read_header
from .gguf_strings import Strings
from .source import File, fail

MAX_LAYERS = 4096
MAX_WIDTH = 1 << 24
MAX_SPLITS = 4096
_SPLIT_NAME = re.compile(r"(?s)(.*)-(\d{5})-of-(\d{5})\.gguf")


def read_gguf(path, *, mmap=True):
    """Open a GGUF file, or all files of a split from its first, and check them.

    Returns
    -------
    metadata : dict
    tensors : list of (TensorInfo, File)
    files : list of File
    """
    files = [File(path, mmap=mmap)]
    try:
        header = read_header(files[0])
        tensors = [(t, files[0]) for t in header.tensors]
        count = _split_count(path, header)
        if count > 1:
            tensors += _rest_of_split(path, header, count, files, mmap)
            _check_split_total(path, header, tensors)
        check_metadata(path, header.metadata, {t.name: t for t, _ in tensors})
    except BaseException:
        for file in files:
            file.close()
        raise
    return header.metadata, tensors, files


def _integer(path, metadata, key, least, most, default=None):
    value = metadata.get(key, default)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise fail(path, key, value, f"an integer from {least} to {most}")
    return value


def _split_count(path, header):
    count = _integer(path, header.metadata, "split.count", 1, MAX_SPLITS, default=1)
    number = _integer(path, header.metadata, "split.no", 0, MAX_SPLITS - 1, default=0)
    if count > 1 and number != 0:
        first = f"the first file of the split, -00001-of-{count:05d}.gguf"
        raise fail(path, "split.no", number, f"0: open {first}")
    return count


def _rest_of_split(path, header, count, files, mmap):
    match = _SPLIT_NAME.fullmatch(path.name)
    if not match or int(match[2]) != 1 or int(match[3]) != count:
        raise fail(path, "file name", repr(path.name), f"<model>-00001-of-{count:05d}.gguf")
    paths = [path.with_name(f"{match[1]}-{i:05d}-of-{count:05d}.gguf") for i in range(2, count + 1)]
    for missing in (p for p in paths if not p.exists()):
        legal = f"all {count} files in one folder"
        raise fail(path, "split file", f"{missing.name} missing", legal)
    tensors, names = [], {t.name for t in header.tensors}
    for number, part in enumerate(paths, 1):
        files.append(File(part, mmap=mmap))
        other = read_header(files[-1])
        _check_sibling(part, header.metadata, other.metadata, number, count)
        for t in other.tensors:
            if t.name in names:
                raise fail(part, "tensor name", repr(t.name), "each name in one file of the split")
            names.add(t.name)
            tensors.append((t, files[-1]))
    return tensors


def _check_sibling(path, first, other, number, count):
    for key, want in (("split.no", number), ("split.count", count)):
        if (got := _integer(path, other, key, 0, MAX_SPLITS, default=-1)) != want:
            raise fail(path, key, got, f"{want} in this file")
    for key, value in other.items():
        if key == "split.no" or key not in first:
            continue
        same = np.array_equal(value, first[key])
        if not same:
            raise fail(path, key, value, f"{first[key]!r}, as in the first file of the split")


def _check_split_total(path, header, tensors):
    want = _integer(path, header.metadata, "split.tensors.count", 0, 1 << 31)
    if want is not None and want != len(tensors):
        raise fail(path, "split.tensors.count", want, f"{len(tensors)}, the tensors found")


def check_metadata(path, metadata, tensors):
    """Compare what the keys claim with what the tensors are; see `CheckpointError`."""
    arch = metadata.get("general.architecture")
    if arch is not None and not isinstance(arch, str):
        raise fail(path, "general.architecture", arch, "a string")
    if arch:
        _check_shape_keys(path, metadata, arch, tensors)
    check_tokenizer(path, metadata, tensors)


def _check_shape_keys(path, metadata, arch, tensors):
    layers = _integer(path, metadata, f"{arch}.block_count", 1, MAX_LAYERS)
    width = _integer(path, metadata, f"{arch}.embedding_length", 1, MAX_WIDTH)
    rope = _integer(path, metadata, f"{arch}.rope.dimension_count", 0, MAX_WIDTH)
    _integer(path, metadata, f"{arch}.context_length", 1, 1 << 40)
    _check_heads(path, metadata, arch)
    if rope is not None and rope % 2:
        raise fail(path, f"{arch}.rope.dimension_count", rope, "an even number")
    if layers is not None:
        highest = max((int(m[1]) for m in map(_BLOCK.match, tensors) if m), default=-1)
        if highest + 1 > layers:
            legal = f"at least {highest + 1}: there are tensors of blk.{highest}"
            raise fail(path, f"{arch}.block_count", layers, legal)
    embed = tensors.get("token_embd.weight")
    known = embed is not None and width is not None
    if known and (len(embed.shape), embed.shape[-1]) != (2, width):
        legal = f"[vocabulary, {width}] ({arch}.embedding_length)"
        raise fail(path, "shape of tensor 'token_embd.weight'", list(embed.shape), legal)


_BLOCK = re.compile(r"blk\.(\d{1,9})\.")


def _check_heads(path, metadata, arch):
    heads = _per_layer(path, metadata, f"{arch}.attention.head_count")
    kv = _per_layer(path, metadata, f"{arch}.attention.head_count_kv")
    for a, b in zip(heads * max(1, len(kv) // max(1, len(heads))), kv, strict=False):
        if b and a % b:
            legal = f"a divisor of {arch}.attention.head_count = {a}"
            raise fail(path, f"{arch}.attention.head_count_kv", b, legal)


def _per_layer(path, metadata, key):
    """Return a head count as a list: one number, or an array with one per layer (0 allowed)."""
    value = metadata.get(key)
    if value is None:
        return []
    if not isinstance(value, np.ndarray):
        return [_integer(path, metadata, key, 1, MAX_WIDTH)]
    if value.dtype.kind not in "iu" or not 0 < len(value) <= MAX_LAYERS:
        raise fail(path, key, f"array of {value.dtype}[{len(value)}]", "one integer per layer")
    if (value < 0).any() or (value > MAX_WIDTH).any():
        raise fail(path, key, value.tolist(), f"integers from 0 to {MAX_WIDTH}")
    return value.tolist()


def check_tokenizer(path, metadata, tensors):
    """Check element types, lengths and ids of the tokenizer's arrays."""
    prefix = "tokenizer.ggml."
    tokens = metadata.get(f"{prefix}tokens")
    if tokens is None:
        return
    for key in ("tokens", "merges"):
        value = metadata.get(f"{prefix}{key}")
        if value is not None and not isinstance(value, Strings):
            raise fail(path, prefix + key, _describe(value), "an array of strings")
    for key, kinds in (("token_type", "iu"), ("scores", "f")):
        value = metadata.get(f"{prefix}{key}")
        if value is None:
            continue
        if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds:
            legal = "an array of integers" if kinds == "iu" else "an array of floats"
            raise fail(path, prefix + key, _describe(value), legal)
        if len(value) != len(tokens):
            legal = f"{len(tokens)}, one per token"
            raise fail(path, f"length of {prefix}{key}", len(value), legal)
    for key in metadata:
        if key.startswith(prefix) and key.endswith("_token_id"):
            _integer(path, metadata, key, 0, len(tokens) - 1)
    embed = tensors.get("token_embd.weight")
    if embed is not None and embed.shape[0] < len(tokens):
        legal = f"at most {embed.shape[0]}, the rows of 'token_embd.weight'"
        raise fail(path, f"length of {prefix}tokens", len(tokens), legal)


def _describe(value):
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    return "an array of strings" if isinstance(value, Strings) else type(value).__name__
