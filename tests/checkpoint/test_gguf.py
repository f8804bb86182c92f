"""GGUF files written and decoded by the `gguf` package, read by us: names, bytes and values."""

import os
import struct
import time

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from quantized_kit import packed

from octavo.checkpoint import open_checkpoint
from octavo.checkpoint.dequant import DECODABLE
from octavo.checkpoint.ggml_types import BY_ID, BY_NAME
from octavo.errors import CheckpointError, ClosedError, UnsupportedError

ORACLE = [name for name in DECODABLE if name != "Q8_K"]  # which the package cannot decode


def blocks(name, rows, width, seed=1):
    """Random bytes as blocks of a type: any byte pattern is a legal block, NaN scales included."""
    kind = BY_NAME[name]
    nbytes = rows * width // kind.block_elements * kind.block_bytes
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8).reshape(rows, -1)


def write(path, tensors, **keys):
    """Write (name, bytes, type) tensors with the package's own writer."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in keys.items():
        writer.add_key_value(key.replace("__", "."), *value)
    for name, data, kind in tensors:
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def small(tmp_path):
    values = np.arange(96, dtype=np.float32).reshape(3, 32)
    tensors = [("f", values, None), ("h", values.astype(np.float16), None)]
    tensors += [("q", blocks("Q8_0", 3, 64), Q.Q8_0), ("v", values[0], None)]
    return write(tmp_path / "small.gguf", tensors)


def same_bits(a, b):
    return np.array_equal(a.view(np.uint32), np.ascontiguousarray(b).view(np.uint32))


def test_type_table_is_the_packages_own():
    for kind in BY_ID.values():
        assert Q(kind.id).name == kind.name
        assert gguf.GGML_QUANT_SIZES[Q(kind.id)] == (kind.block_elements, kind.block_bytes)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", ORACLE)
def test_decoders_give_the_packages_bits(tmp_path, name):
    raw = blocks(name, 33, 2304)
    if name == "F32":  # the writer takes plain types as arrays
        raw = raw.view(np.float32)
    path = write(tmp_path / "t.gguf", [("t", raw, Q[name])])
    want = gguf.dequantize(raw, Q[name]).astype(np.float32).reshape(33, 2304)
    with open_checkpoint(path) as checkpoint:
        got = checkpoint.tensors["t"]
        assert (got.type, got.shape) == (name, (33, 2304))
        assert np.array_equal(got.raw(), raw.view(np.uint8).ravel())
        assert same_bits(got.dequantize(), want)
        assert same_bits(got.dequantize(slice(5, 31)), want[5:31])


@pytest.mark.core
def test_mxfp4_is_held_in_bfloat16_exactly(tmp_path):
    raw = blocks("MXFP4", 33, 2304)
    with open_checkpoint(write(tmp_path / "t.gguf", [("t", raw, Q.MXFP4)])) as checkpoint:
        formats, (got,), report = packed(checkpoint, "t")
        want = checkpoint.tensors["t"].dequantize()
    assert formats == ["bf16"] and report.decoded == []
    assert same_bits(got["values"].astype(np.uint32) << 16, want)


def test_q8_k_is_code_times_scale(tmp_path):
    raw = blocks("Q8_K", 2, 256)
    raw[:, :4] = np.array([0.5, -3.0], np.float32).view(np.uint8).reshape(2, 4)
    with open_checkpoint(write(tmp_path / "t.gguf", [("t", raw, Q.Q8_K)])) as checkpoint:
        got = checkpoint.tensors["t"].dequantize()
    assert np.array_equal(got, raw[:, 4:260].view(np.int8) * np.float32([[0.5], [-3.0]]))


@pytest.mark.parametrize("mmap", [True, False])
def test_tensors_are_found_as_written(small, mmap):
    values = np.arange(96, dtype=np.float32).reshape(3, 32)
    with open_checkpoint(small, mmap=mmap) as checkpoint:
        assert checkpoint.kind == "gguf" and list(checkpoint.tensors) == ["f", "h", "q", "v"]
        f, h, q, v = checkpoint.tensors.values()
        assert (f.shape, h.shape, q.shape, v.shape) == ((3, 32), (3, 32), (3, 64), (32,))
        assert np.array_equal(f.array(), values) and np.array_equal(h.array(), values)
        assert np.array_equal(h.dequantize(slice(1, None)), values[1:])
        assert f.dequantize(slice(2, 1)).shape == (0, 32)
        for tensor in (f, h, q, v):
            assert not tensor.raw().flags.writeable
            with pytest.raises(ValueError):
                tensor.raw().setflags(write=True)
            assert np.shares_memory(tensor.raw(), tensor.raw()) == mmap


def test_wrong_questions_are_refused_by_name(small):
    with open_checkpoint(small) as checkpoint:
        with pytest.raises(UnsupportedError, match=r"'q'.*Q8_0"):
            checkpoint.tensors["q"].array()
        with pytest.raises(ValueError, match="step"):
            checkpoint.tensors["f"].dequantize(slice(0, 3, 2))
        for tensor, rows in (("v", slice(0, 1)), ("f", 1)):
            with pytest.raises(TypeError, match=tensor):
                checkpoint.tensors[tensor].dequantize(rows)


def test_closed_checkpoints_say_so_and_views_survive(small):
    checkpoint = open_checkpoint(small)
    view, tensor = checkpoint.tensors["f"].array(), checkpoint.tensors["f"]
    checkpoint.close()
    checkpoint.close()
    assert "closed" in repr(checkpoint) and view[2, 31] == 95
    with pytest.raises(ClosedError, match=r"small\.gguf"):
        tensor.raw()
    with pytest.raises(ClosedError):
        _ = checkpoint.identity


def test_opening_leaks_no_descriptor(small, tmp_path):
    (tmp_path / "bad.gguf").write_bytes(small.read_bytes()[:200])
    before = len(os.listdir("/dev/fd"))
    for _ in range(20):
        open_checkpoint(small)
        with pytest.raises(CheckpointError):
            open_checkpoint(tmp_path / "bad.gguf")
    assert len(os.listdir("/dev/fd")) <= before + 1


def test_identity_tells_models_apart_and_not_paths(small, tmp_path):
    def identity(path):
        with open_checkpoint(path) as checkpoint:
            return checkpoint.identity

    data = bytearray(small.read_bytes())
    (tmp_path / "copy.gguf").write_bytes(data)
    data[-100] ^= 1
    (tmp_path / "other.gguf").write_bytes(data)
    assert identity(small) == identity(tmp_path / "copy.gguf") != identity(tmp_path / "other.gguf")


def test_values_of_every_type_come_back(tmp_path):
    V = gguf.GGUFValueType
    keys = {
        "a__u8": (200, V.UINT8), "a__i8": (-5, V.INT8), "a__u16": (60000, V.UINT16),
        "a__i16": (-300, V.INT16), "a__u32": (4 << 28, V.UINT32), "a__i32": (-7, V.INT32),
        "a__u64": (1 << 63, V.UINT64), "a__i64": (-(1 << 62), V.INT64), "a__f32": (0.5, V.FLOAT32),
        "a__f64": (0.1, V.FLOAT64), "a__bool": (True, V.BOOL), "a__text": ("naïve", V.STRING),
        "a__strings": (["", "x", "東京"], V.ARRAY), "a__numbers": ([1, -2, 3], V.ARRAY),
    }  # fmt: skip
    path = write(tmp_path / "k.gguf", [("t", np.zeros(32, np.float32), None)], **keys)
    with open_checkpoint(path) as checkpoint:
        for key, (value, _) in keys.items():
            got = checkpoint.metadata[key.replace("__", ".")]
            assert list(got) == value if isinstance(value, list) else got == value, key
        assert type(checkpoint.metadata["a.bool"]) is bool
        strings = checkpoint.metadata["a.strings"]
        assert (strings[-1], strings[0:2], "x" in strings) == ("東京", ["", "x"], True)


def test_large_vocabularies_open_fast(tmp_path):
    tokens = [f"token number {i}" for i in range(131_072)]
    path = tmp_path / "v.gguf"
    key = {"tokenizer__ggml__tokens": (tokens, gguf.GGUFValueType.ARRAY)}
    write(path, [("t", np.zeros(32, np.float32), None)], **key)
    start = time.perf_counter()
    with open_checkpoint(path) as checkpoint:
        seconds = time.perf_counter() - start
        assert list(checkpoint.metadata["tokenizer.ggml.tokens"]) == tokens
    assert seconds < 5, seconds  # a watchdog at ten times the figure


def string_lists():
    """Arrays around every edge of reading many strings at once: slabs, windows, odd strings."""
    rng = np.random.default_rng(7)
    many = [f"token {i:x}" * (1 + i % 3) for i in range(9000)]
    odd = ["", "\0", "a\0b", "é", "𝄞" * 70, "x" * 255, "x" * 256, "y" * 70_000, " ", "\0" * 40]
    mixed = list(many)
    for at in rng.integers(0, len(mixed), 40):
        mixed[at] = odd[at % len(odd)]
    yield from ([], ["one"], [""] * 5000, odd, odd * 1000, many, many[:4096], many[:4097], mixed)
    yield from ([*many, bad, *many[:300]] for bad in odd)
    yield ["\x01" + "\0" * 7] * 600  # text that looks like the length of the next string


@pytest.mark.parametrize("strings", list(string_lists()), ids=lambda s: str(len(s)))
def test_strings_are_what_was_written_however_they_are_read(tmp_path, strings):
    raw = [s.encode() for s in strings]
    body = b"".join(len(s).to_bytes(8, "little") + s for s in raw)
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + struct.pack("<Q1sI", 1, b"s", 9)
    tail = struct.pack("<Q1sII", 1, b"z", 4, 77)  # a key behind it: the walk must end where it ends
    path = tmp_path / "s.gguf"
    path.write_bytes(head + struct.pack("<IQ", 8, len(raw)) + body + tail + bytes(64))
    with open_checkpoint(path) as checkpoint:
        got = checkpoint.metadata["s"]
        assert checkpoint.metadata["z"] == 77
        assert got.tolist() == list(got) == strings
        assert got[1:3] == strings[1:3] and len(got) == len(strings)
        assert [got[i] for i in range(len(got))[:5]] == strings[:5]


def test_text_that_is_none_is_named_however_it_is_read(tmp_path):
    raw = [b"good"] * 5000 + [b"half \xc3"] + [b"\xa9 other half"] + [b"good"] * 10
    body = b"".join(len(s).to_bytes(8, "little") + s for s in raw)
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sI", 1, b"s", 9)
    path = tmp_path / "s.gguf"
    path.write_bytes(head + struct.pack("<IQ", 8, len(raw)) + body + bytes(64))
    with open_checkpoint(path) as checkpoint:
        strings = checkpoint.metadata["s"]
        for read in (list, type(strings).tolist, lambda s: s[5000]):
            with pytest.raises(CheckpointError, match=r"'s' at byte \d+ .*UTF-8"):
                read(strings)


def test_split_files_are_one_checkpoint(tmp_path):
    tensors = {f"t{i}": np.full(32, i, np.float32) for i in range(4)}
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    first, second = sorted(tmp_path.glob("*.gguf"))
    with open_checkpoint(first) as checkpoint:
        assert {n: t.array()[0] for n, t in checkpoint.tensors.items()} == {
            f"t{i}": i for i in range(4)
        }
    with pytest.raises(CheckpointError, match="00001-of-00002"):
        open_checkpoint(second)


@pytest.mark.model
def test_the_real_model_reads_as_the_package_reads_it():
    from octavo import hub

    path = hub.resolve("smollm2-135m")
    theirs = gguf.GGUFReader(path)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.metadata["general.architecture"] == "llama"
        assert len(checkpoint.tensors) == len(theirs.tensors) == 272
        for t in theirs.tensors:
            ours = checkpoint.tensors[t.name]
            assert np.array_equal(ours.raw(), t.data.view(np.uint8).ravel())
            part = slice(0, 64) if len(ours.shape) == 2 else None
            want = gguf.dequantize(t.data, t.tensor_type)
            assert same_bits(ours.dequantize(part), want[:64] if part else want)
