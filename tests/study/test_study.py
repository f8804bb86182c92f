"""The studies' arithmetic on a stand-in engine whose distributions are known in closed form.

Logits of the stand-in are a pure function of the token and its position in its window, so that
windows, chunk borders and targets can be checked against one vectorized computation.
"""

import hashlib
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from oracle import fixtures

import octavo
from octavo import table
from octavo.errors import NumericalError
from octavo.study import (
    Interval,
    divergence,
    ladder,
    mean_interval,
    perplexity,
    sealed_fraction,
)
from octavo.study.perplexity import gptq_text
from octavo.study.stats import block_ids

VOCAB = 40
NOISE = {"bf16": 0.0, "f32": 1e-3, "int8": 1e-2, "int4": 0.1}


def logits_of(ids, positions, noise):
    base = np.sin(np.outer(np.asarray(ids) + 1.0, np.arange(1, VOCAB + 1)) + positions[:, None])
    jitter = np.cos(np.outer(positions + 2.0, np.arange(VOCAB) * 1.7))
    return (3 * base + noise * jitter).astype(np.float32)


class FakeSequence:
    def __init__(self, llm):
        self.llm, self.n = llm, 0
        ledger = SimpleNamespace(sealed_token_bytes=100, open_token_bytes=300)
        self.kv = SimpleNamespace(bytes=lambda: ledger)

    def append(self, ids, all_logits):
        assert all_logits and len(ids) <= 128
        out = logits_of(ids, np.arange(self.n, self.n + len(ids)), self.llm.noise)
        self.n += len(ids)
        return out

    def close(self):
        self.llm.open_sequences -= 1


class FakeRuntime:
    isa, cpu, threads = "scalar", "fake", 1

    def lse(self, x):
        return np.log(np.exp(x.astype(np.float64)).sum(axis=1)).astype(np.float32)

    def argmax(self, x):
        return x.argmax(axis=1).astype(np.int32)

    def kl(self, base, other):
        a, b = (x.astype(np.float64) for x in (base, other))
        a -= np.log(np.exp(a).sum(axis=1, keepdims=True))
        b -= np.log(np.exp(b).sum(axis=1, keepdims=True))
        return (np.exp(a) * (a - b)).sum(axis=1)


class FakeScheme(str):
    sink_pages = recent_pages = 0


class FakeLLM:
    name, weights, act, runtime = "fake", "checkpoint", "a32", FakeRuntime()

    def __init__(self, kv="bf16", bos=None):
        self.noise, self.open_sequences, self.closed = NOISE[kv], 0, False
        self.kv = FakeScheme(kv)
        self.tokenizer = SimpleNamespace(
            encode=lambda text: ([bos] if bos is not None else []) + [ord(c) % VOCAB for c in text],
            bos_id=bos,
        )
        self.scored, self.made = [], []

    def variant(self, kv):
        self.made.append(FakeLLM(kv))
        return self.made[-1]

    def sequence(self, *, prefix):
        assert not prefix, "a study leaves no pages in the index"
        self.open_sequences += 1
        return FakeSequence(self)

    def score(self, ids):
        self.scored.append(list(ids))
        logits = logits_of(ids, np.arange(len(ids)), self.noise).astype(np.float64)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return logits[np.arange(len(ids) - 1), ids[1:]].astype(np.float32)

    def close(self):
        assert self.open_sequences == 0
        self.closed = True


def text_of(count):
    return "".join(chr(48 + (i * i + 3 * i) % 37) for i in range(count))


@pytest.mark.parametrize("window", [50, 128, 300, 4096])
@pytest.mark.parametrize("count", [1, 127, 129, 700])
def test_lockstep_scores_every_position_once(count, window):
    base, text = FakeLLM(), text_of(count)
    ids = np.array(base.tokenizer.encode(text))
    got = divergence(base, "int8", text, window=window, quiet=True)
    position = np.arange(count) % window
    a, b = (logits_of(ids, position, n) for n in (0.0, NOISE["int8"]))
    runtime = FakeRuntime()
    np.testing.assert_array_equal(got.position, position)
    np.testing.assert_array_equal(got.window, np.arange(count) // window)
    np.testing.assert_array_equal(got.kld, runtime.kl(a, b))
    np.testing.assert_array_equal(got.same, a.argmax(axis=1) == b.argmax(axis=1))
    nll = runtime.lse(b).astype(np.float64)[:-1] - b[np.arange(count - 1), ids[1:]]
    np.testing.assert_array_equal(got.nll[:-1], nll)
    assert math.isnan(got.nll[-1]) and math.isnan(got.nll_base[-1])
    assert got.sealed_bytes == 100 and got.open_bytes == 300
    assert base.open_sequences == 0 and not base.closed and base.made[0].closed


def test_ladder_orders_and_pairs():
    out = ladder(FakeLLM(), text_of(2500), ["f32", "int8", "int4"], quiet=True)
    assert out.order() == ["f32", "int8", "int4"]
    step = out["int8"].minus(out["f32"])
    assert step.low > 0 and step.value == pytest.approx(
        out["int8"].mean.value - out["f32"].mean.value
    )
    text, html = str(out), out._repr_html_()
    assert "int4" in text and "2,500 positions in 2 windows" in text and "<table>" in html
    rows = json.loads(out.to_json())
    assert [r["name"] for r in rows] == ["f32", "int8", "int4"]
    assert rows[0]["kld_p100"] == out["f32"].kld.max()
    assert sum(1 for _ in out["int4"].octaves()) == 6  # 64, 128, ..., 2,048


def test_equal_variants_differ_by_nothing():
    base = FakeLLM()
    row = divergence(base, FakeLLM(), text_of(600), quiet=True)
    assert row.name == "equal" and row.mean.value == 0 and row.top1 == Interval(1.0, 1.0, 1.0)


@pytest.mark.core
def test_studies_leave_no_pages_behind(tiny_llama):
    """On the engine itself: windows are no prompts, so nothing of them stays in the index."""
    with octavo.LLM(tiny_llama, act="a32", progress=False) as llm:
        divergence(llm, ["int8"], fixtures.text(), tokens=300, quiet=True)
        perplexity(llm, fixtures.text(), "llama.cpp-512", chunks=1, quiet=True)
        ledger = llm._pool.core.ledger()
        assert (ledger["cached_pages"], ledger["sealed"], ledger["sequences"]) == (0, 0, 0)


def test_non_finite_logits_are_an_error(monkeypatch):
    base = FakeLLM()
    monkeypatch.setitem(NOISE, "int4", float("nan"))
    with pytest.raises(NumericalError, match="not finite"):
        divergence(base, "int4", text_of(10), quiet=True)
    assert base.open_sequences == 0 and base.made[0].closed


@pytest.mark.parametrize("bad", [{"tokens": 0}, {"window": 0}])
def test_divergence_refuses(bad):
    with pytest.raises(ValueError, match="divergence"):
        divergence(FakeLLM(), "int8", text_of(5), quiet=True, **bad)


def test_perplexity_gptq_takes_whole_windows():
    llm, seen = FakeLLM(), []
    text = text_of(5000)
    out = perplexity(llm, text, on_window=lambda *a: seen.append(a), quiet=True)
    ids = llm.tokenizer.encode(gptq_text(text))
    assert llm.scored == [ids[:2048], ids[2048:4096]]
    means = [-np.mean(llm.score(w), dtype=np.float64) for w in llm.scored[:2]]
    assert out.value == pytest.approx(math.exp(np.mean(means)), rel=1e-12)
    assert (out.windows, out.available, len(out.nll)) == (2, 2, 4094)
    assert seen[-1] == (2, 2, pytest.approx(out.value)) and "gptq-2048" in str(out)
    assert json.loads(out.to_json())["ppl"] == out.value


def test_perplexity_llama_cpp_scores_second_halves():
    llm = FakeLLM()
    out = perplexity(llm, text_of(1500), "llama.cpp-512", chunks=1, quiet=True)
    want = -np.asarray(llm.score(llm.scored[0]), np.float64)[256:]
    assert (out.windows, out.available, len(want)) == (1, 2, 255)
    np.testing.assert_array_equal(out.nll, want)
    np.testing.assert_array_equal(out.position, np.arange(256, 511))
    spread = out.value * math.sqrt(want.var() / 254)
    assert out.ci_iid == pytest.approx(spread)


def test_perplexity_llama_cpp_replaces_the_first_token_by_bos():
    llm = FakeLLM(bos=1)
    perplexity(llm, text_of(1100), "llama.cpp-512", quiet=True)
    ids = llm.tokenizer.encode(text_of(1100))
    assert [w[0] for w in llm.scored] == [1, 1] and llm.scored[1][1:] == ids[513:1024]


@pytest.mark.parametrize("bad", [{"protocol": "gptq"}, {"chunks": 0}, {}])
def test_perplexity_refuses(bad):
    with pytest.raises(ValueError, match="perplexity"):
        perplexity(FakeLLM(), text_of(100), quiet=True, **bad)


@pytest.mark.wikitext
def test_gptq_text_is_the_published_one(wikitext):
    data = gptq_text(wikitext).encode()
    assert len(data) == 1_296_370
    digest = "696cca6b65a171b0a358a4be6732cdfdf2dd6164a32e20fd70e3c13fc4dfae83"
    assert hashlib.sha256(data).hexdigest() == digest


def test_gptq_text_keeps_newlines_of_lines_and_empties_blank_ones():
    assert gptq_text(" \n = A = \n b\n") == "\n\n = A = \n\n\n b\n"


def test_sealed_fraction_gives_the_published_table():
    cases = {(0, 0): (0.915, 0.916), (0, 1): (0.742, 0.808), (1, 2): (0.395, 0.648)}
    for (sinks, recent), (chunk, window) in cases.items():
        law = {"sinks": sinks, "recent": recent}
        assert sealed_fraction(511, first=256, **law) == pytest.approx(chunk, abs=5e-4)
        assert sealed_fraction(2047, **law) == pytest.approx(window, abs=5e-4)


def test_blocks_are_runs_of_256_until_there_are_thirty_windows():
    window, position = np.repeat([0, 1], 600), np.tile(np.arange(600), 2)
    ids = block_ids(window, position)
    assert np.bincount(ids).tolist() == [256, 256, 88, 256, 256, 88]
    assert (
        np.bincount(block_ids(np.repeat(np.arange(30), 600), np.tile(position, 15))).tolist()
        == [600] * 30
    )


def test_block_intervals_cover_and_token_intervals_do_not():
    rng = np.random.default_rng(5)
    blocks, hits, naive = np.repeat(np.arange(40), 64), 0, 0
    for trial in range(200):
        values = rng.standard_normal(40)[blocks] + 0.5 * rng.standard_normal(len(blocks))
        hits += 0.0 in mean_interval(values, blocks, resamples=400, seed=trial)
        naive += abs(values.mean()) < 1.96 * values.std() / math.sqrt(len(values))
    assert hits >= 180 and naive < 100


def test_intervals_are_reproducible_and_skip_nan():
    values, blocks = np.arange(100.0), np.arange(100) // 10
    values[7] = math.nan
    got = mean_interval(values, blocks)
    assert got == mean_interval(values, blocks) and got.value == np.nanmean(values)
    assert math.isnan(mean_interval(values[:10], blocks[:10]).low)
    with pytest.raises(ValueError, match="no values"):
        mean_interval([math.nan], np.array([0]))


def test_table_escapes_and_checks_its_width():
    out = table.Table("a < b", ["name", "x"])
    out.add("<i>", 3)
    assert "&lt;i&gt;" in out._repr_html_() and str(out).splitlines()[-1] == "<i>   3"
    with pytest.raises(ValueError, match="3 cells for 2"):
        out.add(1, 2, 3)
    assert [table.figure(x) for x in (0, 1.23456, 2.5e-5, float("nan"))] == [
        *("0", "1.23", "2.50e-05", "-")
    ]
