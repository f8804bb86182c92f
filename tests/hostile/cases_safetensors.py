"""Hostile safetensors files, groups S1 to S12: headers written by hand around real data."""

import json
import os
import struct

from harness import Case, open_and_touch, write

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def raw(header, data=b"\0" * 8, count=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if count is None else count) + header + data


def folder(d, name, data, config=b"{}"):
    """A checkpoint folder with one file."""
    path = d / f"{len(os.listdir(d))} {''.join(c if c.isalnum() else '_' for c in name[:60])}"
    path.mkdir()
    (path / "config.json").write_bytes(config)
    _, size = write(path, "model.safetensors", data)
    return path, size


def case(d, name, data, **options):
    path, size = folder(d, name, data)

    def run():
        open_and_touch(path, mmap=False)
        open_and_touch(path)

    return Case(name, run, size, **options)


def entry(**changed):
    return {"a": F32 | changed}


def S1(d):
    yield case(d, "a good file", raw({"a": F32}), legal=True)
    for n in range(10):
        yield case(d, f"{n} bytes", raw({"a": F32})[:n])
    yield case(d, "nine zeros", b"\0" * 9)


def S2(d):
    for count in (0, 1, (1 << 64) - 1, 1 << 63, 10_000, 100_000_001):
        yield case(d, f"header length {count}", raw({"a": F32}, count=count))
    path, _ = folder(d, "sparse", b"")
    with open(path / "model.safetensors", "wb") as f:
        f.write(struct.pack("<Q", 100_000_001) + b"{")
        f.truncate(200_000_000)
    yield Case("header over 100 MB, really there", lambda: open_and_touch(path))


def S3(d):
    good = json.dumps({"a": F32}).encode()
    for name, header in {
        "list": b"[1, 2, 3]",
        "text": b'"abcdefgh"',
        "blank first": b" " + good,
        "BOM": b"\xef\xbb\xbf" + good,
        "not UTF-8": good.replace(b'"a"', b'"\xff"'),
        "NUL in a name": good.replace(b'"a"', b'"a\\u0000b"'),
        "lone surrogate": good.replace(b'"a"', b'"\\ud800"'),
        "empty name": good.replace(b'"a"', b'""'),
        "cut": good[:-1],
        "garbage behind": good + b"x",
        "two objects": good + good,
        "NaN": good.replace(b"[2]", b"[NaN]"),
    }.items():
        yield case(d, name, raw(header))
    yield case(d, "padded with blanks", raw(good + b"   "), legal=True)


def S4(d):
    for shape in (
        [1 << 32, 1 << 32], [1 << 63], [-1], [-2, -1], [2.0], ["2"], [None], [[2]], [True, 2], 2,
        None, "2", {}, [1 << 62, 1 << 62, 0],
    ):  # fmt: skip
        yield case(d, f"shape {shape}", raw(entry(shape=shape)))
    for number in (b"1e3", b"9" * 400, b"9" * 5000, b"02", b"2.0", b"1e999"):
        header = json.dumps({"a": F32}).encode().replace(b"[2]", b"[" + number + b"]")
        yield case(d, f"shape {number[:8]} {len(number)}", raw(header))


def S5(d):
    bad = ([8, 0], [0, 16], [4, 12], [-8, 0], [0], [0, 8, 8], [0.0, 8.0], [False, 8], "08", None)
    for offsets in (*bad, [1 << 70, (1 << 70) + 8], [(1 << 64) - 8, 1 << 64]):
        yield case(d, f"offsets {offsets}", raw(entry(data_offsets=offsets)))


def S6(d):
    header = {f"tensor{i}": F32 for i in range(60_000)}
    yield case(d, "60,000 names over one range", raw(header))
    header = {f"tensor{i}": F32 for i in range(100_000)}
    yield case(d, "100,000 names over one range", raw(header))


def S7(d):
    two = {"a": F32, "b": F32 | {"data_offsets": [16, 24]}}
    yield case(d, "hole", raw(two, b"\0" * 24))
    yield case(d, "trailing byte", raw({"a": F32}, b"\0" * 9))
    yield case(d, "data cut", raw({"a": F32}, b"\0" * 7))
    overlap = {"a": F32, "b": F32 | {"data_offsets": [4, 12]}}
    yield case(d, "overlap", raw(overlap, b"\0" * 12))
    yield case(d, "no tensor, a byte", raw({}, b"\0"))


def S8(d):
    e, m = json.dumps(F32), '{"k": "1"}'
    for name, header in {
        "name twice": f'{{"a": {e}, "a": {e}}}',
        "name twice through an escape": f'{{"a": {e}, "\\u0061": {e}}}',
        "dtype twice": '{"a": {"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        "metadata of numbers": f'{{"__metadata__": {{"k": 1}}, "a": {e}}}',
        "metadata a list": f'{{"__metadata__": ["k"], "a": {e}}}',
        "metadata twice": f'{{"__metadata__": {m}, "__metadata__": {m}, "a": {e}}}',
        "metadata key twice": f'{{"__metadata__": {{"k": "1", "k": "2"}}, "a": {e}}}',
        "a fourth key": '{"a": {"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}}',
        "no dtype": '{"a": {"shape":[2],"data_offsets":[0,8]}}',
        "entry a list": '{"a": [1,2,3]}',
        "entry null": '{"a": null}',
        "objects nested 10^5": '{"a":' * 100_000,
        "lists nested 10^5": '{"a":' + "[" * 100_000,
    }.items():
        yield case(d, name, raw(header.encode()))
    good = f'{{"__metadata__": {{"format": "pt"}}, "a": {e}}}'.encode()
    yield case(d, "metadata", raw(good), legal=True)


def S9(d):
    for dtype in ("F31", "", "f32", 32, None, ["F32"], "Q4_0"):
        yield case(d, f"dtype {dtype}", raw(entry(dtype=dtype)))
    yield case(d, "F4, odd", raw(entry(dtype="F4", shape=[15], data_offsets=[0, 8])))
    yield case(d, "F6, 3 elements", raw(entry(dtype="F6_E2M3", shape=[3], data_offsets=[0, 8])))
    yield case(d, "wrong size", raw(entry(dtype="F64")))


def S10(d):
    yield case(d, "rank 0", raw({"a": F32 | {"shape": [], "data_offsets": [0, 4]}}, b"\0" * 4),
               legal=True)  # fmt: skip
    yield case(d, "empty", raw({"a": F32 | {"shape": [0, 5], "data_offsets": [0, 0]}}, b""),
               legal=True)  # fmt: skip
    yield case(d, "no tensors", raw({}, b""), legal=True)
    yield case(d, "rank 1,000", raw(entry(shape=[1] * 999 + [2])))


def S11(d):
    from octavo.checkpoint import open_checkpoint

    for mapped in (True, False):
        path, size = folder(d, f"truncated {mapped}", raw(entry()))

        def run(path=path, mapped=mapped):
            with open_checkpoint(path, mmap=mapped) as checkpoint:
                os.truncate(path / "model.safetensors", 20)
                checkpoint.tensors["a"].raw()

        yield Case(f"truncated after open, mmap={mapped}", run, size)
    for name, make in {
        "FIFO": os.mkfifo,
        "folder": os.mkdir,
        "device": lambda p: os.symlink("/dev/zero", p),
        "endless device": lambda p: os.symlink("/dev/urandom", p),
    }.items():
        for file in ("model.safetensors", "config.json"):
            path, size = folder(d, f"{name} {file}", raw(entry()))
            os.unlink(path / file)
            make(path / file)
            yield Case(f"{file} is a {name}", lambda p=path: open_and_touch(p), size)
    path, size = folder(d, "link", raw(entry()))
    os.rename(path / "model.safetensors", d / "elsewhere")
    os.symlink(d / "elsewhere", path / "model.safetensors")
    yield Case("the user's own link", lambda: open_and_touch(path), size, legal=True)
    fifo = d / "m.gguf"
    os.mkfifo(fifo)
    yield Case("a GGUF that is a FIFO", lambda: open_and_touch(fifo))


def _bytes_of(count):
    """A header of `count` tensors of one byte, without spending seconds on json.dumps."""
    one = '"{0:06d}":{{"dtype":"U8","shape":[1],"data_offsets":[{0},{1}]}}'
    return ("{" + ",".join(one.format(i, i + 1) for i in range(count)) + "}").encode()


def S12(d):
    header = _bytes_of(1_000_000)
    header += b" " * (99_000_000 - len(header))
    yield case(d, "10^6 tiny tensors in 99 MB", raw(header, b"\0" * 1_000_000))
    yield case(d, "60,000 tensors, data cut", raw(_bytes_of(60_000), b"\0" * 59_999))
    for size in (99_000_000, 33_000_000):
        text = b'{"a": "' + b"x" * size + b'"}'
        yield case(d, f"{size} bytes of one string", raw(text))
