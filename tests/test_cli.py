"""The `octavo` command: exit statuses, and results on a tiny model that agree with the API."""

import json
import os
import subprocess
import sys

import pytest
from oracle import fixtures

import octavo
from octavo import cli, demo, study
from octavo.engine.stepper import Stepper


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(fixtures.text())
    return str(path)


def run(capsys, *argv):
    status = cli.main([str(a) for a in argv])
    return status, *capsys.readouterr()


@pytest.mark.core
def test_perplexity_prints_what_the_study_gives(capsys, tiny_llama, text_file):
    argv = ["perplexity", tiny_llama, text_file, "--protocol", "llama.cpp-512", "--chunks", 2]
    status, out, err = run(capsys, *argv, "--json")
    assert status == 0 and err.count("[") == 2
    with octavo.LLM(tiny_llama) as llm:
        want = study.perplexity(llm, fixtures.text(), "llama.cpp-512", chunks=2, quiet=True)
    assert json.loads(out)["ppl"] == want.value


@pytest.mark.core
def test_ladder_has_a_row_per_scheme(capsys, tiny_llama, text_file):
    argv = ["ladder", tiny_llama, text_file, "--tokens", 300, "--kv", "f32", "int8", "int4"]
    status, out, _ = run(capsys, *argv, "--json")
    rows = json.loads(out)
    assert status == 0 and [r["name"] for r in rows] == ["f32", "int8", "int4"]
    assert rows[0]["kld_mean"] < rows[1]["kld_mean"] < rows[2]["kld_mean"]
    status, out, _ = run(capsys, *argv)
    assert status == 0 and "int4" in out


@pytest.mark.core
def test_divergence_compares_activations(capsys, tiny_llama, text_file):
    argv = ["divergence", tiny_llama, text_file, "--tokens", 200, "--base-act", "a32", "--json"]
    status, out, _ = run(capsys, *argv, "--kv", "int8", "--act", "a32")
    rows = json.loads(out)
    assert status == 0 and [r["name"] for r in rows] == ["int8", "equal"]
    assert rows[1]["kld_p100"] == 0 and rows[1]["top1"] == 1


@pytest.mark.core
def test_generate_info_kernels(capsys, tiny_llama):
    status, out, _ = run(capsys, "generate", tiny_llama, "Alice was", "--max-tokens", 8)
    assert status == 0 and out.endswith("\n")
    assert run(capsys, "info", tiny_llama)[0] == 0
    status, out, _ = run(capsys, "kernels")
    assert status == 0 and "int4" in out


def test_profile_prints_both_phases_against_the_roofs(capsys, tiny_llama):
    sizes = ["--prefill", "70", "--decode", "3", "--context", "66", "--kv", "int8"]
    status, out, _ = run(capsys, "profile", tiny_llama, "--threads", "1", *sizes)
    assert status == 0
    assert "prefill after 66 tokens" in out and "70 tokens in 1 steps" in out
    assert "decode after 66 tokens" in out and "3 tokens in 3 steps" in out
    assert out.count("attend") == 2 and "roofs:" in out


def test_plan_prints_tables_or_json(capsys):
    argv = ["plan", "kimi-k2.5", "--context", 262144, "--kv", "int4", "--memory", "24GiB,512GiB"]
    status, out, err = run(capsys, *argv, "--bandwidth", "400GB/s")
    assert status == 0 and not err
    for part in ("1,026,408,232,448", "6,396,313,600", "512.00 GiB", "tokens/s"):
        assert part in out
    status, out, _ = run(capsys, *argv, "--json")
    found = json.loads(out)
    assert status == 0 and found["fits"][1]["others_and_context"] and not found["ceilings"]
    status, out, err = run(capsys, "plan", "kimi-k2.5", "--context", 0)
    assert status == 1 and not out and "context is 0" in err


def test_plan_measures_this_machine(capsys, tiny_llama):
    argv = ["plan", tiny_llama, "--bandwidth", "measured", "--threads", 1]
    status, out, _ = run(capsys, *argv)
    assert status == 0 and "roofs: " in out and "GB/s" in out and "held by" in out


def test_errors_are_one_line_and_status_1(capsys, tmp_path):
    status, out, err = run(capsys, "info", tmp_path / "none.gguf")
    assert status == 1 and not out and err.startswith("octavo: ") and "none.gguf" in err
    assert run(capsys, "pull", "no-such-model")[0] == 1


def test_wrong_usage_is_status_2():
    done = subprocess.run([sys.executable, "-m", "octavo", "no-such"], capture_output=True)
    assert done.returncode == 2


@pytest.mark.core
def test_demo_times_every_token_of_every_prompt(capsys, tiny_llama, monkeypatch):
    """A prompt that found pages in the prefix index would seem faster than it is."""
    fed, calls = [], []
    step, greedy = Stepper.step, demo.greedy

    def counted_step(self, pool, items, *args, **wanted):
        fed.append(sum(len(tokens) for _, tokens, _ in items))
        return step(self, pool, items, *args, **wanted)

    def counted_greedy(llm, ids, count=demo.DECODE_TOKENS):
        fed.clear()
        out = greedy(llm, ids, count)
        calls.append((str(llm.kv), len(ids), sum(fed) - count))
        return out

    monkeypatch.setattr(Stepper, "step", counted_step)
    monkeypatch.setattr(demo, "greedy", counted_greedy)
    assert run(capsys, "demo", "--model", tiny_llama, "--tokens", 192)[0] == 0
    timed = [(kv, prompt, ran) for kv, prompt, ran in calls if prompt > 64]
    assert [kv for kv, _, _ in timed] == list(demo.SCHEMES)
    assert all(prompt == ran for _, prompt, ran in calls), calls


def test_demo_needs_no_network(tmp_path):
    """Its default cannot be fetched: it says so, and shows `kimi-mini`, which recalls."""
    offline = {"PIP_NO_INDEX": "1", "OCTAVO_CACHE": str(tmp_path), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "octavo", "demo", "--tokens", "192"],
        env=os.environ | offline, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "kimi-mini" in done.stderr and "not a language model" in done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    recalled = {row[0]: float(row[-1]) for row in rows if len(row) == 9 and row[0] in demo.SCHEMES}
    assert recalled["bf16"] >= 95 and set(recalled) == set(demo.SCHEMES) - {"k8v4"}


@pytest.mark.model
def test_demo_prints_its_table(capsys, smollm2):
    status, out, _ = run(capsys, "demo", "--model", smollm2, "--tokens", 192)
    assert status == 0
    for scheme in ("bf16", "fp8", "int8", "k8v4", "int4-had", "int4"):
        assert scheme in out
