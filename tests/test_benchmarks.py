"""Every benchmark runs, at a size that measures nothing, and its rows make a page.

Times are never looked at. Other engines are stood in for by a script that prints what llama-bench
prints.
"""

import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import octavo

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
TINY = ["--rounds", "1", "--threads", "1"]
LLAMA_PYTHON = """#!{python}
import json, pathlib, sys
script, job = sys.argv[1], json.loads(sys.argv[2])
left = pathlib.Path(job["folder"]) / job["kv"]
rounds = 1 + int(left.read_text() if left.exists() else 0)
left.write_text(str(rounds))
config = pathlib.Path(script).name
print(json.dumps(dict(decode=rounds, version="abc", config=config)))
"""
LLAMA_BENCH = """#!{python}
import json, sys
flags = sys.argv[1:]
deep = "-ctk" in flags
row = {{"build_commit": "abc", "type_k": flags[flags.index("-ctk") + 1] if deep else "f16"}}
rows = [row | {{"n_prompt": 0, "n_gen": 4, "avg_ts": 7.0}}]
rows += [] if deep else [row | {{"n_prompt": 8, "n_gen": 0, "avg_ts": 70.0}}]
print("noise before", json.dumps(rows))
"""


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """A function that runs a script's main and returns the rows that it wrote."""
    from octavo.engine import arrays

    monkeypatch.syspath_prepend(str(FOLDER))
    common = importlib.import_module("common")
    quick = {"stream_gbs": 1.0, "int8_gops": 2.0, "f32_gops": 3.0}
    monkeypatch.setattr(arrays, "_runtime", arrays._runtime)

    def run(name, *argv, roofs=True):
        module = importlib.import_module(name)
        if roofs and hasattr(module, "roofs") and name != "roofs":
            monkeypatch.setattr(module, "roofs", lambda *_: dict(quick))
        module.main([*TINY, *map(str, argv), "--results", str(tmp_path)])
        text = (tmp_path / f"{name}.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    yield run
    for path in FOLDER.glob("*.py"):
        sys.modules.pop(path.stem, None)
    assert common.RESULTS == FOLDER / "results"


@pytest.fixture(scope="module")
def llama_shape(tmp_path_factory):
    """A file of Llama-3-8B's kind, made small."""
    path = tmp_path_factory.mktemp("llama") / "small.gguf"
    sys.path.insert(0, str(FOLDER))
    try:
        make = importlib.import_module("llama_gguf").main
    finally:
        sys.path.remove(str(FOLDER))
    sizes = {"layers": 2, "hidden": 256, "heads": 4, "kv-heads": 2, "head-dim": 64, "ffn": 384}
    make([str(path), "--form", "Q4_1", *(f"--{k}={v}" for k, v in sizes.items())])
    return path


def test_roofs_by_column_and_threads(bench):
    rows = bench("roofs", "--isa", "scalar", "--seconds", "0.001")
    assert [(r["isa"], r["threads"]) for r in rows] == [("scalar", 1)]
    assert rows[0]["stream_gbs"]["median"] > 0 and "commit" in rows[0]["machine"]


def test_linear_counts_bytes_and_operations(bench):
    argv = ["--weights", "q4g32", "bf16", "--act", "a8x2", "--rows", 1, 3, "--shape", "32x64"]
    rows = bench("linear", *argv, "--isa", "scalar", "--most-mib", 0, "--at-least", 0)
    assert [(r["weights"], r["act"], r["m"]) for r in rows] == [
        ("q4g32", "a8x2", 1), ("q4g32", "a8x2", 3), ("bf16", "a32", 1), ("bf16", "a32", 3),
    ]  # fmt: skip
    assert rows[0]["stored_bytes"] == octavo.Linear(np.ones((32, 64), np.float32), "q4g32").nbytes
    for r in rows:
        took = r["us"]["median"] * 1e-6
        assert r["gops"]["median"] * 1e9 * took == pytest.approx(2 * r["m"] * 32 * 64, rel=1e-2)
        assert r["gbs"]["median"] * 1e9 * took == pytest.approx(r["stored_bytes"], rel=1e-2)
        bounds = r["percent_stream"], r["percent_peak"]
        assert r["percent_lower_roof"] == pytest.approx(max(bounds), abs=0.02, rel=1e-2)


def test_attention_decode_and_prefill(bench):
    small = ["--shape", "4x2x16", "--isa", "scalar", "--most-mib", 0, "--at-least", 0]
    decode = bench("attention", *small, "--kv", "bf16", "int8", "--context", 70)
    assert [r["kv"] for r in decode] == ["bf16", "int8"]
    assert decode[0]["stored_bytes"] > decode[1]["stored_bytes"]
    prefill = bench("attention", *small, "--kv", "int4", "--prefill", 70, "--chunk", 32)[2:]
    assert [(r["kind"], r["kv"], r["context"]) for r in prefill] == [("prefill", "int4", 70)]


def test_model_over_depth_and_batch(bench, tiny_llama):
    small = ["--model", tiny_llama, "--kv", "int8", "--prefill", 8, "--decode", 2]
    rows = bench("model", *small, "--context", 0, 70)
    assert [(r["phase"], r["context"]) for r in rows] == [
        ("prefill", 0), ("decode", 0), ("decode", 70),
    ]  # fmt: skip
    with octavo.LLM(tiny_llama, kv="int8", prefix=False) as llm:
        pages = llm.sequence()
        pages.append([0] * 71)
        kept = pages.kv.bytes()
        assert rows[2]["step_bytes"] == llm.weight_bytes + kept.sealed + kept.open
        pages.close()
    rows = bench("model", *small, "--context", 8, "--batch", 1, 3)[3:]
    assert [r["batch"] for r in rows] == [1, 3]
    assert all(r["tokens_s"]["median"] > 0 for r in rows)


def test_arrivals_serve_every_token_both_ways(bench, tiny_llama):
    argv = ["--requests", 3, "--rate", 100, "--prompt", 4, 70, "--new", 2, 5, "--kv", "int8"]
    rows = bench("arrivals", "--model", tiny_llama, "--rows", 64, 8, *argv)
    ways = [("batched", 64), ("batched", 8), ("one by one", 64)]
    assert [(r["way"], r["rows"]) for r in rows] == ways
    asked = {round(r["tokens_s"]["median"] * r["seconds"]["median"]) for r in rows}
    assert len(asked) == 1 and 6 <= asked.pop() <= 15


def test_peers_interleave_and_say_who_is_absent(bench, llama_shape, tmp_path, capsys):
    other, child = tmp_path / "llama-bench", tmp_path / "llama-python"
    for path, text in ((other, LLAMA_BENCH), (child, LLAMA_PYTHON)):
        path.write_text(text.format(python=sys.executable))
        path.chmod(0o755)
    argv = ["--gguf", llama_shape, "--decode", 4, "--llama-bench", other]
    argv += ["--ik-llama-bench", tmp_path / "absent", "--openvino-python", ""]
    rows = bench("peers", *argv, "--prefill", 8, "--engines", "octavo:act=a8g32", "llama:", "ik:")
    assert [(r["engine"], r["phase"]) for r in rows] == [
        ("octavo", "prefill"), ("octavo", "decode"), ("llama", "prefill"), ("llama", "decode"),
    ]  # fmt: skip
    assert {r["form"] for r in rows} == {"Q4_1"} and rows[0]["config"] == "kv=bf16 act=a8g32"
    assert rows[2]["tokens_s"]["median"] == 70 and rows[2]["version"] == "abc"
    shown = capsys.readouterr().out
    assert "ik: skipped: there is no file" in shown and "openvino: skipped: neither" in shown
    argv += ["--llama-python", child, "--engines", "octavo:", "llama:", "--rounds", 3]
    deep = bench("peers", *argv, "--depth", 70, "--kv", "8")[4:]
    assert [(r["engine"], r["depth"], r["config"]) for r in deep] == [
        ("octavo", 70, "kv=int8 act=a8x2"), ("llama", 70, "child_llama.py"),
    ]  # fmt: skip
    assert deep[1]["tokens_s"]["samples"] == [1, 2, 3]  # what a round left, the next one found
    assert deep[0]["step_bytes"] == pytest.approx(deep[1]["step_bytes"], rel=0.1)


def test_the_llama_shape_is_a_model(llama_shape):
    with octavo.LLM(llama_shape, kv="int8", progress=False) as llm:
        assert (llm.spec.layers, llm.spec.hidden, llm.spec.kv_heads) == (2, 256, 2)
        logits = llm.prefill("the").logits
        assert np.isfinite(logits).all() and 0.3 < logits.std() < 3
        assert llm.tokenizer.decode(llm.tokenizer.encode("then in \n é")).endswith("then in \n é")


def reported(bench, tmp_path, *changes):
    """The folder of the report on copies of one row of `linear`, each changed."""
    argv = ["--weights", "q4g32", "--act", "a8", "--rows", 64, "--shape", "32x64"]
    bench("linear", *argv, "--isa", "scalar", "--most-mib", 0, "--at-least", 0)
    path = tmp_path / "linear.jsonl"
    first = json.loads(path.read_text())
    first |= {"n": 4096, "k": 4096, "isa": "avx512", "threads": 2, "percent_peak": 80.0}
    rows = [{**first, **c, "machine": {**first["machine"], **c["machine"]}} for c in changes]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    importlib.import_module("report").main(
        ["--results", str(tmp_path), "--out", str(tmp_path / "docs" / "page.md")]
    )
    return tmp_path / "docs"


def test_report_holds_rows_against_bars(bench, tmp_path):
    amd = {"machine": {"vendor": "AuthenticAMD"}}
    page = (reported(bench, tmp_path, amd) / "page.md").read_text()
    assert re.search(r"\| 1 \| q4g32 x a8, M >= 64.* \| 75.6 % \| 80 % \| met \|", page)
    assert re.search(r"\| 2 \| bf16, .* \| not measured \|", page)


def test_report_has_a_page_for_each_processor(bench, tmp_path):
    intel = {"vendor": "GenuineIntel", "cpu": "Intel(R) Some CPU @ 2", "time": "2030-01-02",
             "flags": ["avx2", "amx_int8"]}  # fmt: skip
    amd = {"vendor": "AuthenticAMD", "cpu": "AMD Other", "time": "2030-01-01", "flags": []}
    docs = reported(
        bench, tmp_path,
        {"machine": amd},
        {"machine": intel, "isa": "amx", "percent_peak": 150.0},
        {"machine": intel, "percent_peak": 60.0},
    )  # fmt: skip
    page, other = (docs / "page.md").read_text(), (docs / "page-amd-other.md").read_text()
    assert re.search(r"q4g32 x a8, M >= 64.* \| 68 % \| 150 % \| met \|", page)
    assert re.search(r"q4g32 x a8, M >= 64.* \| 75.6 % \| 80 % \| met \|", other)
    assert "[amd-other](page-amd-other.md)" in page and "[intel-some-cpu-2-amx](page.md)" in other
    assert sorted(p.name for p in docs.glob("*.md")) == ["page-amd-other.md", "page.md"]


def test_a_layer_of_experts_counts_those_chosen(bench):
    small = ["--experts", 5, "--top", 2, "--hidden", 64, "--inner", 32, "--isa", "scalar"]
    rows = bench("moe", *small, "--rows", 1, 40, "--act", "a8g32", "--rounds", 1)
    assert [(r["act"], r["m"]) for r in rows] == [("a8g32", 1), ("a8g32", 40)]
    each = 3 * 64 * 32 * 9 // 16  # 4.5 bits a weight
    assert [r["bytes"] for r in rows] == [2 * each, 5 * each]
    assert [r["ops"] for r in rows] == [m * 2 * 3 * 2 * 64 * 32 for m in (1, 40)]


def test_a_slice_of_a_model_runs_through_steps(bench):
    small = ("hidden_size=64 intermediate_size=96 moe_intermediate_size=32 n_routed_experts=8 "
             "vocab_size=128 q_lora_rank=32 num_attention_heads=2 "
             "num_key_value_heads=2")  # fmt: skip
    rows = bench("slice", "--set", *small.split(), "--context", 70, "--batch", 1, 3,
                 "--prefill", 20, "--rounds", 1, "--isa", "scalar")  # fmt: skip
    assert [(r["kind"], r["m"]) for r in rows] == [("decode", 1), ("decode", 3), ("prefill", 20)]
    assert all(abs(sum(r["share"].values()) - 1) < 0.01 and r["gbs"]["median"] > 0 for r in rows)
