"""safetensors folders written by the library, read by us: types, shards, alignment, refusals."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save, save_file

from octavo.checkpoint import open_checkpoint
from octavo.errors import CheckpointError, ClosedError, UnsupportedError

TENSORS = {
    "w": np.arange(12, dtype=np.float32).reshape(3, 4),
    "h": np.arange(6, dtype=np.float16).reshape(2, 3),
    "b": np.arange(5).astype(ml_dtypes.bfloat16),
    "i": np.arange(4, dtype=np.int64),
    "scalar": np.array(3, np.float32),
    "empty": np.zeros((0, 7), np.float32),
}


@pytest.fixture
def folder(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "np"})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "eps": 1e-5}))
    return tmp_path


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_a_folder_and_its_file_read_alike(folder, mmap, name):
    with open_checkpoint(folder / name, mmap=mmap) as checkpoint:
        assert checkpoint.kind == "safetensors" and set(checkpoint.tensors) == set(TENSORS)
        assert checkpoint.metadata["config"]["eps"] == 1e-5
        assert checkpoint.metadata["format"] == {"format": "np"}
        for key, want in TENSORS.items():
            tensor = checkpoint.tensors[key]
            assert tensor.shape == want.shape and tensor.nbytes == want.nbytes
            assert tensor.raw().tobytes() == want.tobytes()
            if key != "i":
                assert tensor.array().dtype == want.dtype
                assert np.array_equal(tensor.array(), want)
                assert np.array_equal(tensor.dequantize(), want.astype(np.float32))
        with pytest.raises(UnsupportedError, match=r"'i'.*I64"):
            checkpoint.tensors["i"].dequantize()


def test_unaligned_tensors_are_copied_and_read_only(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for pad in range(8):
        raw = bytearray(save({"a": np.arange(4, dtype=np.float32)}))
        count = int.from_bytes(raw[:8], "little")
        header = raw[8 : 8 + count].rstrip() + b" " * pad
        data = len(header).to_bytes(8, "little") + header + raw[8 + count :]
        (tmp_path / "model.safetensors").write_bytes(data)
        with open_checkpoint(tmp_path) as checkpoint:
            array = checkpoint.tensors["a"].array()
            assert array.flags.aligned and not array.flags.writeable
            assert np.array_equal(array, np.arange(4))


def test_shards_are_one_checkpoint(folder):
    (folder / "model.safetensors").unlink()
    names = {}
    for number, (key, value) in enumerate(TENSORS.items(), 1):
        names[key] = f"model-{number:05d}-of-00006.safetensors"
        save_file({key: value}, folder / names[key])
    index = {"metadata": {"total_size": 1}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with open_checkpoint(folder) as checkpoint:
        assert set(checkpoint.tensors) == set(TENSORS)
        assert np.array_equal(checkpoint.tensors["w"].array(), TENSORS["w"])
        tensor = checkpoint.tensors["h"]
    with pytest.raises(ClosedError):
        tensor.raw()
    (folder / names["w"]).unlink()
    with pytest.raises(CheckpointError, match=names["w"]):
        open_checkpoint(folder)


def test_folders_without_what_is_needed_say_what(folder, tmp_path):
    (folder / "extra.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with open_checkpoint(folder) as checkpoint:
        assert len(checkpoint.tensors) == len(TENSORS)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(CheckpointError, match="2 without an index"):
        open_checkpoint(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(folder)
    with pytest.raises(FileNotFoundError, match="absent"):
        open_checkpoint(tmp_path / "absent")


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "", None, 4, ["fp8"]])
@pytest.mark.parametrize("nested", [False, True])
def test_unknown_quantizations_are_refused_by_method(folder, method, nested):
    config = {"quantization_config": {"quant_method": method, "bits": 4}}
    config = {"text_config": config} if nested else config
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError) as error:
        open_checkpoint(folder)
    for part in (f"quant_method is {method!r}", "config.json", "compressed-tensors, fp8, mxfp4"):
        assert part in str(error.value)


def test_errors_name_file_tensor_value_and_limit(folder):
    data = (folder / "model.safetensors").read_bytes().replace(b"[3,4]", b"[3,5]")
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(folder)
    for part in ("model.safetensors", "'w'", "[3, 5]", "legal:"):
        assert part in str(error.value)


def test_identity_sees_weights_and_config(folder):
    def identity():
        with open_checkpoint(folder) as checkpoint:
            return checkpoint.identity

    first = identity()
    assert identity() == first
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "eps": 1e-6}))
    assert identity() != first
