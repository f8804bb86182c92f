"""Hostile JSON, indexes, tokenizers and templates, groups J1 to J9."""

import base64
import json
import os
import struct

from cases_safetensors import F32, folder, raw
from harness import Case, open_and_touch

DEEP = b"[" * 100_000
VOCAB = {c: i for i, c in enumerate("abcdefgh")} | {"ab": 8}


def config(d, name, data, **options):
    """A good folder with this config.json."""
    path, _ = folder(d, name, raw({"a": F32}), config=data)
    return Case(name, lambda: open_and_touch(path), len(data), **options)


def J1(d):
    for name, data in {
        "lists": DEEP, "closed lists": DEEP + b"]" * 100_000, "objects": b'{"a":' * 100_000,
        "lists in a key": b'{"a":' + DEEP + b"]" * 100_000 + b"}",
        "70 levels": b'{"a":' + b"[" * 70 + b"]" * 70 + b"}",
    }.items():  # fmt: skip
        yield config(d, f"{name} in config.json", data)
        yield index(d, f"{name} in the index", data)
        yield tokenizer(d, f"{name} in tokenizer.json", data)


def J2(d):
    path, _ = folder(d, "config of 1 GB", raw({"a": F32}))
    with open(path / "config.json", "wb") as f:
        f.truncate(1 << 30)
    yield Case("config of 1 GB", lambda: open_and_touch(path))
    for value in (
        b"9" * 400, b"-" + b"9" * 400, b"9" * 5000, b"1e999", b"-1e999", b"NaN", b"Infinity",
        b"-Infinity", b'"\\ud800"', b"0" * 400 + b"1", b"1." + b"9" * 10_000,
    ):  # fmt: skip
        yield config(d, f"number {value[:12]} {len(value)}", b'{"a": ' + value + b"}")
    yield config(d, "key twice", b'{"a": 1, "a": 1}')
    yield config(d, "a list", b"[]")
    yield config(d, "empty", b"")
    yield config(d, "not UTF-8", b'{"a": "\xff"}')
    yield config(d, "good numbers", b'{"a": [1, -2.5, 1e-5, 100000]}', legal=True)


def index(d, name, data, files=("model-1.safetensors",), **options):
    path, _ = folder(d, name, raw({"a": F32}))
    os.unlink(path / "model.safetensors")
    for number, file in enumerate(files):
        (path / file).write_bytes(raw({"ab"[number]: F32}))
    data = data if isinstance(data, bytes) else json.dumps({"weight_map": data}).encode()
    (path / "model.safetensors.index.json").write_bytes(data)
    return Case(name, lambda: open_and_touch(path), len(data), **options)


def J3(d):
    (d / "model-1.safetensors").write_bytes(raw({"a": F32}))
    good = "model-1.safetensors"
    yield index(d, "a good index", {"a": good}, legal=True)
    for value in (
        f"../{good}", f"/etc/{good}", "..", ".", "", f"C:\\{good}", f"x\\{good}", f"%2e%2e/{good}",
        f"%2E{good}", f"a\0{good}", 1, None, [good], {"a": good}, True, "x" * 300 + ".safetensors",
        "model.bin", "config.json", "absent.safetensors", f"C:{good}", f"..%2f{good}",
    ):  # fmt: skip
        yield index(d, f"weight_map {str(value)[:30]!r}", {"a": value})
    yield index(d, "10^6 shards", {f"t{i}": f"m{i}.safetensors" for i in range(1_000_000)})
    yield index(d, "10,000 shards", {f"t{i}": f"m{i}.safetensors" for i in range(10_000)})
    yield index(d, "no weight_map", b"{}")
    yield index(d, "weight_map a list", b'{"weight_map": []}')
    yield index(d, "weight_map empty", {})
    two = ("model-1.safetensors", "model-2.safetensors")
    yield index(d, "two shards", {"a": two[0], "b": two[1]}, two, legal=True)
    yield index(d, "tensor of the other shard", {"a": two[1], "b": two[0]}, two)
    yield index(d, "tensor in no shard", {"a": two[0], "b": two[1], "c": two[1]}, two)
    both = {"a": F32, "b": F32 | {"data_offsets": [8, 16]}}
    for name, mapping in {
        "shard has more than the index": {"a": two[0]},
        "a tensor in two shards": {"a": two[0], "b": two[1]},
    }.items():
        path, _ = folder(d, name, raw({"a": F32}))
        for shard in two:
            (path / shard).write_bytes(raw(both, b"\0" * 16))
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": mapping}))
        yield Case(name, lambda p=path: open_and_touch(p))


def spec(**model):
    base = {"type": "BPE", "vocab": VOCAB, "merges": [["a", "b"]], "byte_fallback": False}
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": level, "post_processor": None, "decoder": level,
        "model": base | model,
    }  # fmt: skip


def tokenizer(d, name, data, run=None, **options):
    """A folder with this tokenizer.json, whose tokenizer is built (and `run`)."""
    from octavo.engine.tokenizer import Tokenizer

    path, _ = folder(d, name, raw({"a": F32}))
    data = data if isinstance(data, bytes) else json.dumps(data).encode()
    (path / "tokenizer.json").write_bytes(data)

    def build():
        built = Tokenizer.from_folder(path)
        assert built.decode(built.encode("abc")) == "abc"
        if run:
            run(built)

    return Case(name, build, len(data), **options)


def added(**changed):
    token = {
        "id": 9, "content": "<end>", "special": True, "single_word": False, "lstrip": False,
        "rstrip": False, "normalized": False,
    }  # fmt: skip
    return spec() | {"added_tokens": [token | changed]}


def J4(d):
    yield tokenizer(d, "a good tokenizer", spec(), legal=True)
    for name, vocab in {
        "negative": VOCAB | {"z": -1}, "twice": VOCAB | {"z": 0}, "2^31": VOCAB | {"z": 1 << 31},
        "2^64": VOCAB | {"z": 1 << 64}, "gap of 10^9": VOCAB | {"z": 10**9}, "float": {"a": 0.5},
        "bool": {"a": True}, "text": {"a": "0"}, "a number": 7, "null": None,
    }.items():  # fmt: skip
        yield tokenizer(d, f"vocabulary {name}", spec(vocab=vocab))
    for name, merges in {
        "of strangers": [["a", "z"]], "to nowhere": [["a", "c"]], "longer than any": [["ab", "ab"]],
        "of three": [["a", "b", "c"]], "text of three": ["a b c"], "of one": ["ab"], "number": [1],
        "of numbers": [[0, 1]],
    }.items():  # fmt: skip
        yield tokenizer(d, f"merge {name}", spec(merges=merges))
    yield tokenizer(d, "a good added token", added(), legal=True)
    for i in (-1, 10**9, 1 << 31, "9", None, 9.0):
        yield tokenizer(d, f"added token {i}", added(id=i))
    yield tokenizer(d, "added tokens a number", spec() | {"added_tokens": 5})
    yield tokenizer(d, "model missing", spec() | {"model": None})
    yield tokenizer(d, "model unknown", spec(type="Magic"))
    yield tokenizer(
        d, "decoder unknown", spec() | {"decoder": {"type": "WordPiece"}, "pre_tokenizer": None}
    )
    yield tokenizer(d, "decoder missing", spec() | {"decoder": None, "pre_tokenizer": None})


def split(pattern):
    node = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return spec() | {"pre_tokenizer": node}


def J5(d):
    for pattern in ("(a+)+$", "(a*)*b", "((a+)b?)*c", "(?:a|(b+))+c", "(a{2,})+b", "([^x]+)*y",
                    "(a|b*){2,}", "(x+x+)+y", "(" * 5000 + "a", "[a", "(?P<"):  # fmt: skip
        yield tokenizer(d, f"pattern {pattern[:20]!r}", split(pattern))
    node = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}
    yield tokenizer(d, "pattern in a normalizer", spec() | {"normalizer": node})
    long = "a" * 10_000_000

    def within(built):
        built.encode(long, limit=8192)

    yield tokenizer(d, "10 MB of one byte, 8,192 fit", spec(), within, also=("ValueError",))


def _grow(start, step, end=""):
    """Sixty rounds of a step that makes `n.x` larger."""
    rounds = f"{{% for a in range(60) %}}{step}{{% endfor %}}"
    return f"{{% set n=namespace(x={start}) %}}{rounds}{end}"


_LOOP = "{% for a in range(100000) %}"
_END = "{% endfor %}"
TEMPLATES = {
    "nested loops": _LOOP + _LOOP + _END + _END,
    "range of 10^12": "{% for a in range(10**12) %}{% endfor %}",
    "doubling by ~": _grow("'a'", "{% set n.x = n.x ~ n.x %}"),
    "doubling by +": _grow("'a'", "{% set n.x = n.x + n.x %}"),
    "doubling by a block": _grow(
        "'a'", "{% set t %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = t %}"
    ),
    "doubling by a list": _grow("['a']", "{% set n.x = [n.x, n.x] %}", "{{ n.x|tojson }}"),
    "doubling by a dict": _grow("{}", "{% set n.x = dict(a=n.x, b=n.x) %}", "{{ n.x }}"),
    "squaring": _grow("3", "{% set n.x = n.x * n.x %}"),
    "repeat": "{{ 'a' * 10**12 }}",
    "repeat a list": "{{ [1] * 10**9 }}",
    "ljust": "{{ 'a'.ljust(10**12) }}",
    "% width": "{{ '%1000000000d' % 1 }}",
    "format width": "{{ '{:>1000000000}'.format(1) }}",
    "format nested width": "{{ ('{:{}}' * 1000).format(1, 99999) }}",
    "center": "{{ 'a'|center(1000000000) }}",
    "indent": "{{ 'a'|indent(1000000000, true) }}",
    "tojson indent": "{{ [1]|tojson(indent=1000000000) }}",
    "replace": "{{ ('a'*100000)|replace('a','b'*100000) }}",
    "join": "{{ range(100000)|list|join('x'*100000) }}",
    "str.replace": "{{ ('a'*100000).replace('a','b'*100000) }}",
    "str.join": "{{ ('x'*100000).join(['a']*100000) }}",
    "expandtabs": "{{ ('\t'*100000).expandtabs(100000) }}",
    "to_bytes": "{{ (5).to_bytes(1000000000,'big') }}",
    "long text in a loop": "{% set x %}" + _LOOP + "z" * 100_000 + _END + "{% endset %}{{ x }}",
    "recursive macro": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "branching macro": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.popen('id') }}",
    "attr": "{{ ''|attr('__class__') }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "change messages": "{{ messages.append(1) }}",
    "lipsum": "{{ lipsum(1000) }}",
    "hidden filter": "{{ ['a']|map('tick')|list }}",
    "no end": "{% for x in y %}",
    "5,000 open loops": "{% for x in y %}" * 5000,
    "brackets": "{{" + "(" * 100_000,
    "1 MB": "{{ 1 }}" * 150_000,
}  # fmt: skip


def J6(d):
    from octavo.engine.chat_template import ChatTemplate

    messages = [{"role": "user", "content": "hi"}]
    for name, source in TEMPLATES.items():
        yield Case(name, lambda s=source: ChatTemplate(s, "f").render({"messages": messages}))
    good = "{% for m in messages %}{{ m.role ~ ': ' + m['content']|trim }}{% endfor %}"
    yield Case("a good template", lambda: ChatTemplate(good, "f").render({"messages": messages}),
               legal=True)  # fmt: skip


def J7(d):
    for name in (
        "pytorch_model.bin",
        "model.pt",
        "model.pth",
        "weights.npy",
        "w.npz",
        "x.pkl",
        "a.ckpt",
    ):
        path = d / name
        path.write_bytes(
            b"\x93NUMPY\x01\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (1,)}"
        )
        yield Case(name, lambda p=path: open_and_touch(p))
    path, _ = folder(d, "pickles only", raw({"a": F32}))
    os.rename(path / "model.safetensors", path / "pytorch_model.bin")
    yield Case("folder of pickles", lambda: open_and_touch(path))
    for name, data in {"a.txt": b"text", "a": b"GGUF" + struct.pack("<IQQ", 3, 0, 0)}.items():
        (d / name).write_bytes(data)
        yield Case(name, lambda p=d / name: open_and_touch(p))


def J8(d):
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "group_size": 128}
    for name, changed in {
        "as usual": {}, "group 0": {"group_size": 0}, "bits 5": {"num_bits": 5},
        "unknown strategy": {"strategy": "magic"}, "group not dividing": {"group_size": 7},
    }.items():  # fmt: skip
        groups = {"g": {"targets": ["Linear"], "weights": weights | changed}}
        q = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
        q |= {"config_groups": groups, "ignore": ["re:(a+)+$"]}
        yield config(d, name, json.dumps({"quantization_config": q}).encode())
        yield config(d, f"{name}, nested",
                     json.dumps({"text_config": {"quantization_config": q}}).encode())  # fmt: skip
    for method in ("gptq", "awq", "fp8", "", None, 7, "x" * 100_000):
        q = {"quantization_config": {"quant_method": method, "bits": 4}}
        yield config(d, f"method {str(method)[:9]}", json.dumps(q).encode())
    yield config(d, "a list", b'{"quantization_config": [1]}')
    yield config(d, "null", b'{"quantization_config": null}', legal=True)


def entries(tokens, start=0):
    """Lines of a tiktoken.model: ranks count up from `start`."""
    lines = (b"%s %d" % (base64.b64encode(t), i) for i, t in enumerate(tokens, start))
    return b"\n".join(lines) + b"\n"


BYTES = [bytes([b]) for b in range(256)]


def ranks(d, name, data, named=None, size=None, **options):
    """A folder with this tiktoken.model (grown to `size`), whose tokenizer is built."""
    from octavo.engine.tokenizer import Tokenizer

    path, _ = folder(d, name, raw({"a": F32}))
    (path / "tiktoken.model").write_bytes(data)
    os.truncate(path / "tiktoken.model", size or len(data))
    (path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": named or {}}))

    def build():
        built = Tokenizer.from_folder(path)
        assert built.decode(built.encode("abc")) == "abc"

    return Case(name, build, len(data), **options)


def J9(d):
    good = entries(BYTES)
    full = entries([*BYTES, *(struct.pack(">I", i) for i in range((1 << 18) - 257))])
    yield ranks(d, "good ranks", good + entries([b"ab", b"bc", b"abc"], 256), legal=True)
    for name, more in {
        "bad base64": b"Y*I= 256", "half base64": b"YWI 256", "no rank": b"YWI=", "three": b"a b c",
        "rank a float": b"YWI= 256.0", "rank negative": b"YWI= -1", "rank text": b"YWI= x",
        "rank of 10^6 digits": b"YWI= " + b"9" * 1_000_000, "rank twice": b"YWI= 255",
        "token twice": b"YQ== 256", "gap": b"YWI= 257", "gap of 10^9": b"YWI= 999999999",
        "token of 10 MB": base64.b64encode(b"a" * 10_000_000) + b" 256", "NULs": b"\0" * 100_000,
    }.items():  # fmt: skip
        yield ranks(d, name, good + more)
        yield ranks(d, f"{name}, in the last line of many", full + more)
    yield ranks(d, "a byte missing", entries(BYTES[:-1]))
    yield ranks(d, "no line", b"")
    yield ranks(d, "10^6 lines", b"YQ== 0\n" * 1_000_000)
    yield ranks(d, "16 MB of empty lines", b"\n" * (16 << 20))
    yield ranks(d, "16 MB in one line", b"YWFh" * (4 << 20))
    yield ranks(d, "100,000 lines of 100 bytes", good + entries(
        (struct.pack(">I", i) * 25 for i in range(100_000)), 256))  # fmt: skip
    yield ranks(d, "ranks of 1 GB", good, size=1 << 30)
    yield ranks(d, "reserved id of a rank, after many", full, {"0": {"content": "<a>"}})
    for name, named in {
        "ids of ranks": {str(i): {"content": f"<{i}>"} for i in range(256)},
        "10^5 ids": {str(i): {"content": f"<{i}>"} for i in range(256, 100_000)},
        "an id of 5,000 digits": {"2" * 5000: {"content": "x"}}, "a list": {"256": ["x"]},
        "a long name": {"256": {"content": "x" * 1_000_000}},
        "a byte's name": {"256": {"content": "a"}},
        "one name twice": {str(i): {"content": "<a>"} for i in range(256, 512)},
    }.items():  # fmt: skip
        yield ranks(d, f"reserved: {name}", good, named)
