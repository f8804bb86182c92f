"""Hostile GGUF files, groups G1 to G14: bytes made by hand, so that every lie can be told."""

import struct

from harness import Case, open_and_touch, write

U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
FMT = dict(zip(range(13), "BbHhIif?xxQqd", strict=True))
MAX = (1 << 64) - 1


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def kv(key, kind, value):
    head = text(key) + struct.pack("<I", kind)
    return head + (text(value) if kind == STR else struct.pack("<" + FMT[kind], value))


def arr(key, kind, values, count=None):
    body = b"".join(text(v) if kind == STR else struct.pack("<" + FMT[kind], v) for v in values)
    count = len(values) if count is None else count
    return text(key) + struct.pack("<IIQ", ARR, kind, count) + body


def tensor(name, ne=(32,), kind=0, offset=0, n_dims=None):
    n = len(ne) if n_dims is None else n_dims
    return text(name) + struct.pack("<I", n) + struct.pack(f"<{len(ne)}QIQ", *ne, kind, offset)


def gguf(kvs=(), tensors=(), data=b"", *, version=3, magic=b"GGUF", n_kv=None, n_tensors=None):
    n_kv = len(kvs) if n_kv is None else n_kv
    n_tensors = len(tensors) if n_tensors is None else n_tensors
    head = magic + struct.pack("<IQQ", version, n_tensors, n_kv) + b"".join([*kvs, *tensors])
    return head + b"\0" * (-len(head) % 32) + data


def case(folder, name, data, **options):
    """A file that is refused, whether it is mapped or read."""
    path, size = write(folder, f"{name[:40].replace('/', '_')}.gguf", data)

    def run():
        open_and_touch(path, mmap=False)
        open_and_touch(path)

    return Case(name, run, size, **options)


ONE = [tensor("a", (32,))]
DATA = b"\0" * 128


def G1(d):
    yield case(d, "a good file", gguf([kv("k", U32, 1)], ONE, DATA), legal=True)
    yield case(d, "version 2", gguf([], ONE, DATA, version=2), legal=True)
    for magic in (b"GGML", b"\0\0\0\0", b"FUGG", b"gguf"):
        yield case(d, f"magic {magic}", gguf([], ONE, DATA, magic=magic))
    for version in (0, 1, 4, 1 << 31, 3 << 24):
        yield case(d, f"version {version}", gguf([], ONE, DATA, version=version))
    whole = gguf([kv("k", STR, "value"), arr("t", STR, ["a", "bc"])], ONE, DATA)
    for end in range(len(whole)):
        yield case(d, f"cut at {end}", whole[:end])


def G2(d):
    for count in (MAX, 1 << 60, MAX // 24, 1 << 32, 1000):
        yield case(d, f"n_tensors {count}", gguf([], ONE, DATA, n_tensors=count))
        yield case(d, f"n_kv {count}", gguf([kv("k", U32, 1)], ONE, DATA, n_kv=count))
    many = b"\0" * (1 << 24)
    yield case(d, "n_tensors fits the file only", gguf([], [], many, n_tensors=1 << 18))
    yield case(d, "n_kv fits the file only", gguf([], [], many, n_kv=1 << 20))


def G3(d):
    for count in (MAX, 0, 1 << 40, 70000):
        raw = struct.pack("<Q", count) + b"k" * 100 + struct.pack("<II", U32, 1)
        yield case(d, f"key length {count}", gguf([raw], ONE, DATA))
    yield case(d, "key of 70,000 bytes", gguf([kv("k" * 70000, U32, 1)], ONE, DATA))
    yield case(d, "key not UTF-8", gguf([kv(b"\xff\xfe", U32, 1)], ONE, DATA))
    yield case(d, "key with NUL", gguf([kv("a\0b", U32, 1)], ONE, DATA))
    yield case(d, "value not UTF-8", gguf([kv("k", STR, b"\xc3(")], ONE, DATA))


def G4(d):
    for kind in (13, (1 << 32) - 1, 255):
        yield case(d, f"type {kind}", gguf([text("k") + struct.pack("<II", kind, 1)], ONE, DATA))
        raw = text("k") + struct.pack("<IIQ", ARR, kind, 1)
        yield case(d, f"array of {kind}", gguf([raw], ONE, DATA))
    nested = text("k") + struct.pack("<I", ARR) + struct.pack("<IQ", ARR, 1) * 100_000
    yield case(d, "arrays nested 10^5", gguf([nested], ONE, DATA))
    yield case(d, "bool of 7", gguf([text("k") + struct.pack("<IB", BOOL, 7)], ONE, DATA))


def G5(d):
    for kind in (U8, U64, F64, STR):
        for count in (MAX, MAX // 8 + 1, 1 << 61, 1 << 40):
            lie = arr("k", kind, [], count)
            yield case(d, f"array of {kind} x {count}", gguf([lie], ONE, DATA))
    empty = text("k") + struct.pack("<IIQ", ARR, STR, 1 << 22) + b"\0" * (8 << 22)
    yield case(d, "2^22 empty strings, then nothing", gguf([empty], [], n_kv=2))
    last = arr("k", STR, ["a"] * 1000) + struct.pack("<Q", MAX - 7)
    last = last.replace(struct.pack("<Q", 1000), struct.pack("<Q", 1001), 1)
    yield case(d, "last string wraps", gguf([last], ONE, DATA))


def G6(d):
    yield case(d, "key twice", gguf([kv("k", U32, 1), kv("k", U32, 1)], ONE, DATA))
    twice = [tensor("a"), tensor("a", offset=128)]
    yield case(d, "tensor twice", gguf([], twice, DATA * 2))
    yield case(d, "tensor without name", gguf([], [tensor("")], DATA))
    yield case(d, "tensor name of 2,000 bytes", gguf([], [tensor("n" * 2000)], DATA))


def G7(d):
    for value in (0, 13, 1 << 31, 4, (1 << 32) - 1):
        yield case(d, f"alignment {value}", gguf([kv("general.alignment", U32, value)], ONE, DATA))
    yield case(d, "alignment -32", gguf([kv("general.alignment", I32, -32)], ONE, DATA))
    yield case(d, "alignment text", gguf([kv("general.alignment", STR, "32")], ONE, DATA))
    yield case(d, "alignment 32.0", gguf([kv("general.alignment", F32, 32.0)], ONE, DATA))
    yield case(d, "alignment true", gguf([kv("general.alignment", BOOL, True)], ONE, DATA))


def G8(d):
    for n_dims in (0, 5, 4, (1 << 32) - 1):
        yield case(d, f"n_dims {n_dims}", gguf([], [tensor("a", n_dims=n_dims)], DATA))


def G9(d):
    for ne in ((1 << 32, 1 << 32), (1 << 63, 2), (MAX, MAX, MAX, MAX), (1 << 62,), (0,), (32, 0)):
        yield case(d, f"shape {ne}", gguf([], [tensor("a", ne)], DATA))
    yield case(d, "half a block", gguf([], [tensor("a", (31,), kind=2)], DATA))
    yield case(d, "blocks across rows", gguf([], [tensor("a", (16, 2), kind=8)], DATA))
    huge = [tensor(f"t{i}", (1 << 58,), offset=0) for i in range(20)]
    yield case(d, "legal sizes, wrapping sum", gguf([], huge, DATA))


def G10(d):
    for offset in (1, 31, 128, 1 << 40, MAX - 31, MAX - 127):
        yield case(d, f"offset {offset}", gguf([], [tensor("a", offset=offset)], DATA))
    pair = [tensor("a", (32,)), tensor("b", (32,), offset=96)]
    yield case(d, "overlap", gguf([], pair, DATA * 2))
    same = [tensor("a", (32,)), tensor("b", (32,), offset=0)]
    yield case(d, "same bytes", gguf([], same, DATA * 2))
    yield case(d, "data cut", gguf([], ONE, DATA[:127]))


def G11(d):
    for kind in (4, 5, 9, 31, 33, 36, 41, 99, (1 << 32) - 1):
        yield case(d, f"tensor type {kind}", gguf([], [tensor("a", (256,), kind)], DATA * 64))


def tokens(n=3, **override):
    base = {
        "tokens": arr("tokenizer.ggml.tokens", STR, [f"t{i}" for i in range(n)]),
        "token_type": arr("tokenizer.ggml.token_type", I32, [1] * n),
        "model": kv("tokenizer.ggml.model", STR, "gpt2"),
    }
    return [v for v in (base | override).values() if v is not None]


def G12(d):
    yield case(d, "good tokenizer", gguf(tokens(), ONE, DATA), legal=True)
    bad = {
        "scores as UINT8": arr("tokenizer.ggml.scores", U8, [1] * 3),
        "two scores": arr("tokenizer.ggml.scores", F32, [1.0] * 2),
        "merges of integers": arr("tokenizer.ggml.merges", I32, [1, 2]),
        "eos of -1": kv("tokenizer.ggml.eos_token_id", I32, -1),
        "eos past the end": kv("tokenizer.ggml.eos_token_id", U32, 3),
        "bos as text": kv("tokenizer.ggml.bos_token_id", STR, "1"),
    }
    for name, extra in bad.items():
        yield case(d, name, gguf(tokens(extra=extra), ONE, DATA))
    strings = arr("tokenizer.ggml.token_type", STR, ["1"] * 3)
    yield case(d, "types as text", gguf(tokens(token_type=strings), ONE, DATA))
    short = arr("tokenizer.ggml.token_type", I32, [1] * 2)
    yield case(d, "two types", gguf(tokens(token_type=short), ONE, DATA))
    numbers = arr("tokenizer.ggml.tokens", I32, [1] * 3)
    yield case(d, "tokens of integers", gguf(tokens(tokens=numbers), ONE, DATA))
    rows = [tensor("token_embd.weight", (32, 2))]
    yield case(d, "more tokens than rows", gguf(tokens(), rows, DATA * 2))
    yield from _tokenizers(d)


def _tokenizers(d):
    """Tokenizers that pass as metadata and must be refused when they are built."""
    from octavo.checkpoint import open_checkpoint
    from octavo.engine.tokenizer import Tokenizer

    pre = kv("tokenizer.ggml.pre", STR, "gpt-2")
    merges = "tokenizer.ggml.merges"
    twice = arr("tokenizer.ggml.tokens", STR, ["a", "b", "a"])
    bad = {
        "unknown pre": tokens(pre=kv("tokenizer.ggml.pre", STR, "gpt-5"), m=arr(merges, STR, [])),
        "no pre": tokens(m=arr(merges, STR, [])),
        "unknown model": tokens(model=kv("tokenizer.ggml.model", STR, "bert")),
        "model of 1 MB": tokens(model=kv("tokenizer.ggml.model", STR, "x" * (1 << 20))),
        "no merges": tokens(pre=pre),
        "merge of strangers": tokens(pre=pre, m=arr(merges, STR, ["t0 zz"])),
        "merge to nowhere": tokens(pre=pre, m=arr(merges, STR, ["t0 t1"])),
        "merge without space": tokens(pre=pre, m=arr(merges, STR, ["t0"])),
        "empty merge": tokens(pre=pre, m=arr(merges, STR, [""])),
        "token twice": tokens(tokens=twice, pre=pre, m=arr(merges, STR, [])),
        "token not UTF-8": tokens(tokens=arr("tokenizer.ggml.tokens", STR, [b"\xff", "b", "c"])),
        "SentencePiece without scores": tokens(model=kv("tokenizer.ggml.model", STR, "llama")),
    }
    for name, kvs in bad.items():
        path, size = write(d, f"{name}.gguf", gguf(kvs, ONE, DATA))
        yield Case(name, lambda p=path: Tokenizer.from_checkpoint(open_checkpoint(p)), size)


def G13(d):
    arch = kv("general.architecture", STR, "llama")
    embed = tensor("token_embd.weight", (32, 3), offset=128)
    block = [tensor("blk.1.ffn_up.weight", (32, 1)), embed]
    good = {
        "llama.block_count": 2, "llama.embedding_length": 32, "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2, "llama.rope.dimension_count": 8,
    }  # fmt: skip

    def lie(**changed):
        values = good | {k.replace("__", "."): v for k, v in changed.items()}
        return gguf([arch, *[kv(k, U32, v) for k, v in values.items()]], block, DATA * 4)

    yield case(d, "the truth", lie(), legal=True)
    for key, bad in {
        "block_count": (0, 1, 10**9),
        "embedding_length": (0, 31, 1 << 31),
        "attention__head_count": (0, 10**9, 3),
        "attention__head_count_kv": (0, 3, 8),
        "rope__dimension_count": (7, 1 << 31),
    }.items():
        for value in bad:
            yield case(d, f"{key} {value}", lie(**{f"llama__{key}": value}))
    yield case(d, "architecture 7", gguf([kv("general.architecture", U32, 7)], ONE, DATA))
    floats = arr("llama.attention.head_count", F32, [1.0])
    yield case(d, "heads of floats", gguf([arch, floats], ONE, DATA))
    none = arr("llama.attention.head_count", U32, [])
    yield case(d, "heads for no layer", gguf([arch, none], ONE, DATA))


def _split(d, count, number, of=2, name="a", kind=U16, extra=(), total=2):
    keys = [kv("split.no", kind, number), kv("split.count", kind, of)]
    keys += [kv("split.tensors.count", I32, total), *extra]
    data = gguf(keys, [tensor(name)], DATA)
    return write(d, f"m-{count:05d}-of-{of:05d}.gguf", data)


def G14(d):
    def both(name, **options):
        path = d / "m-00001-of-00002.gguf"
        return Case(name, lambda: open_and_touch(path), path.stat().st_size, **options)

    _split(d, 1, 0)
    yield both("missing shard")
    _split(d, 2, 1, name="b")
    yield both("a good split", legal=True)
    write(d, "m-00002-of-00002.gguf", gguf([], [tensor("b")], DATA))
    yield both("shard that is no split")
    _split(d, 2, 0, name="b")
    yield both("shard with the wrong number")
    _split(d, 2, 1, name="a")
    yield both("tensor in both")
    _split(d, 2, 1, name="b", total=3)
    yield both("shards disagree")
    arch = [kv("general.architecture", STR, "llama")]
    _split(d, 1, 0, extra=arch)
    _split(d, 2, 1, name="b", extra=[kv("general.architecture", STR, "qwen3")])
    yield both("shard of another model")
    second, size = _split(d, 2, 1, name="b")
    yield Case("the second of two", lambda: open_and_touch(second), size)
    path, size = write(d, "n.gguf", gguf([kv("split.count", U16, 2)], ONE, DATA))
    yield Case("split under a plain name", lambda: open_and_touch(path), size)
    for count in (65535, 0):
        path, size = _split(d, 1, 0, of=count)
        yield Case(f"n_splits {count}", lambda p=path: open_and_touch(p), size)
