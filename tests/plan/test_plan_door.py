"""What `octavo.plan` may be told, what it refuses and how, and that its name is a package too."""

import inspect
import json
import subprocess
import sys

import pytest

import octavo
from octavo.errors import CheckpointError, UnsupportedError
from octavo.model import spec_of
from octavo.plan.amounts import parse_bytes, parse_rate
from octavo.plan.configs import KNOWN
from octavo.plan.door import plan


def write(folder, **changes):
    config = KNOWN["deepseek-v3"].config | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_package_is_the_function():
    import octavo.plan.machine as machine

    assert octavo.plan.machine is machine and callable(octavo.plan)
    ours, theirs = (inspect.signature(f).parameters.values() for f in (octavo.plan, plan))
    assert [(p.name, p.kind, p.default) for p in ours] == [
        (p.name, p.kind, p.default) for p in theirs
    ]


@pytest.mark.parametrize(
    "first", ["import octavo.plan.machine", "import octavo.scheme", "from octavo import plan", ""]
)
def test_it_can_be_called_whatever_was_imported_first(first):
    code = f"{first}\nimport octavo\nassert octavo.plan('kimi-k2.5', 64).context == 64"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_importing_octavo_stays_light():
    code = "import octavo, sys; assert 'numpy' not in sys.modules and callable(octavo.plan)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_names_are_read_in_any_case(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kimi-k2").mkdir()  # a folder of that name changes nothing
    assert octavo.plan("Kimi-K2", 64).model == "kimi-k2"


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("kimi-k2.6",), ValueError, r"unknown model 'kimi-k2.6'; nearest: 'kimi-k2.5'; known: "),
        (("zzz",), ValueError, "known: kimi-k2.5, kimi-k2, deepseek-v3"),
        (("none/config.json",), FileNotFoundError, "no such file.*Known names: kimi-k2.5"),
        (("none.gguf",), FileNotFoundError, "no such file"),
        (("",), FileNotFoundError, "no such file"),
        (("a\0b/c",), FileNotFoundError, "no such file"),
        (("~of-nobody-at-all/x",), FileNotFoundError, "no such file"),
        ((7,), TypeError, "plan: model must be a name, a path or an LLM, not int"),
        ((None,), TypeError, "model"),
        (("kimi-k2.5", 0), ValueError, "context is 0; legal: 1 to 262144"),
        (("kimi-k2.5", -1), ValueError, "context is -1"),
        (("kimi-k2.5", 262_145), ValueError, "context is 262145; legal: 1 to 262144"),
        (("kimi-k2.5", 1.5), TypeError, "context must be an int, not float"),
        (("kimi-k2.5", True), TypeError, "context must be an int, not bool"),
        (("kimi-k2.5", 64, "int5"), ValueError, "int5"),
        (("kimi-k2.5", 64, "nvfp4"), UnsupportedError, "nvfp4"),
        (("kimi-k2.5", 64, "bf16,layer61=int8"), ValueError, "no layer 61"),
        (("kimi-k2.5", 64, "bf16", "q4g33"), ValueError, "q4g33"),
    ],
)
def test_arguments_that_are_refused(arguments, error, text):
    with pytest.raises(error, match=text):
        octavo.plan(*arguments)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"memory": "24 apples"}, ValueError, "plan: memory is '24 apples'; legal"),
        ({"memory": "24GiB,"}, ValueError, "plan: memory is ''"),
        ({"memory": [0]}, ValueError, "plan: memory is 0; legal: 1 byte"),
        ({"memory": None}, TypeError, "plan: memory must be an int or a str"),
        ({"memory": ["1 GiB"] * 17}, ValueError, "17 memories; legal: at most 16"),
        ({"bandwidth": "fast"}, ValueError, "plan: bandwidth is 'fast'; legal"),
        ({"bandwidth": 0}, ValueError, "bandwidth is 0; legal: above 0"),
        ({"bandwidth": 10**400}, ValueError, "bandwidth is 10+.*; legal: above 0"),
        ({"bandwidth": float("nan")}, ValueError, "bandwidth is nan"),
        ({"bandwidth": [1]}, TypeError, "bandwidth must be a number or a str, not list"),
    ],
)
def test_options_that_are_refused(options, error, text):
    with pytest.raises(error, match=text):
        octavo.plan("kimi-k2.5", **options)


def test_amounts():
    assert [parse_bytes(m) for m in ("1 KiB", "2MB", "1.5 GiB", "7", "3 b")] == [
        1024, 2_000_000, 3 << 29, 7, 3]  # fmt: skip
    assert [parse_rate(r) for r in ("400GB/s", "1.5 TB/s", "64 GiB", 5, 2.5)] == [
        4e11, 1.5e12, float(64 << 30), 5.0, 2.5]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, UnsupportedError, "Gemma"),
        ({"vocab_size": None}, CheckpointError, "vocab_size is missing"),
        ({"vocab_size": -4}, CheckpointError, "vocab_size is -4"),
        ({"n_routed_experts": "many"}, CheckpointError, "n_routed_experts"),
        ({"torch_dtype": None}, CheckpointError, "torch_dtype"),
        ({"quantization_config": {"quant_method": "gptq"}}, UnsupportedError, "gptq"),
        ({"text_config": 3}, CheckpointError, "text_config"),
        # Each number is legal; together they would list millions of matrices.
        ({"num_hidden_layers": 4096, "n_routed_experts": 1024}, CheckpointError, "at most 262144"),
        ({"num_attention_heads": 1 << 24}, CheckpointError, "at most 262144"),
    ],
)
def test_configs_that_are_refused(tmp_path, changes, error, text):
    with pytest.raises(error, match=text):
        octavo.plan(write(tmp_path, **changes))


def test_files_that_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json; legal: a folder with one"):
        octavo.plan(tmp_path)
    (tmp_path / "config.json").write_text('{"a": 1, "a": 2}')
    with pytest.raises(CheckpointError, match="twice"):
        octavo.plan(tmp_path)
    (tmp_path / "model.bin").write_text("")
    with pytest.raises(CheckpointError, match=r"not a model; legal: \.gguf, config\.json"):
        octavo.plan(tmp_path / "model.bin")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"model\.gguf"):
        octavo.plan(tmp_path / "model.gguf")


def test_a_file_of_a_known_config_gives_the_same_plan(tmp_path):
    a, b = octavo.plan(write(tmp_path), 64), octavo.plan("deepseek-v3", 64)
    assert a.weights == b.weights and a.kv == b.kv and a.model == tmp_path.name


def test_a_nested_text_model_has_prefixed_tensors():
    spec = spec_of(KNOWN["kimi-k2.5"].config, "here")
    assert all(use.tensor.startswith("language_model.") for use in spec.uses)
    spec = spec_of(KNOWN["kimi-k2"].config, "here")
    assert not any(use.tensor.startswith("language_model.") for use in spec.uses)
