"""Opening, sharing, closing, showing: the life of an LLM, and what `import octavo` costs."""

import copy
import gc
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
from oracle import fixtures

import octavo
from octavo import SamplingParams, progress
from octavo.errors import BusyError, ClosedError, UnsupportedError

GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)


def live():
    gc.collect()
    return {tag: count for tag, count in octavo.memory().items() if tag != "threads"}


def test_closing_gives_everything_back(tiny_llama, ids):
    before = live()
    for end in ("close", "with", "del"):
        llm = octavo.LLM(tiny_llama, progress=False)
        seq = llm.prefill(ids[:100])
        other = seq.fork(kv="int8")
        llm.generate([ids[:9]], GREEDY)
        assert octavo.memory()["weights"][0] > before["weights"][0]
        if end == "close":
            llm.close()
            llm.close()
        elif end == "with":
            with llm:
                pass
        assert (end == "del") != llm.closed
        assert (end == "del") != seq.closed
        del seq, other, llm
        assert live() == before


@pytest.mark.parametrize("pinned", ["bf16", "int4", "int8"])
@pytest.mark.parametrize("how", ["view", "edit", "writable view"])
def test_a_close_that_is_refused_changes_nothing(tiny_llama, ids, pinned, how):
    """Whichever of an LLM's caches refuses, all of them go on."""
    before = live()
    llm = octavo.LLM(tiny_llama, act="a32", progress=False)
    variant = llm.variant(kv="int8")
    a = llm.prefill(ids[:100])
    forks = {kv: a.fork(kv=kv) for kv in ("bf16", "int4", "int8")}
    want = {kv: s.fork().append(ids[100:110], all_logits=True) for kv, s in forks.items()}
    ledgers = {kv: s.kv.bytes() for kv, s in forks.items()}
    if how == "view":
        held = forks[pinned].kv.page(0, 0).k.codes
    else:
        block = forks[pinned].kv.edit(0, 0)
        held = block.__enter__()
        if how == "writable view":
            held = held.k.codes
            with pytest.raises(BufferError):
                block.__exit__(None, None, None)
    for _ in range(2):
        with pytest.raises(BusyError if how == "edit" else BufferError, match="nothing was chang"):
            llm.close()
    assert not llm.closed and not any(s.closed for s in forks.values())
    if how == "edit":
        block.__exit__(None, None, None)
    del held
    for kv, seq in forks.items():
        assert seq.kv.bytes() == ledgers[kv]
        np.testing.assert_array_equal(seq.fork().append(ids[100:110], all_logits=True), want[kv])
    assert llm.generate([ids[:9]], GREEDY)[0].outputs[0].token_ids
    view = variant.prefill(ids[:64]).kv.page(0, 0).k.codes
    llm.close()  # a variant's views hold the variant alone
    with pytest.raises(BufferError):
        variant.close()
    assert variant.generate([ids[:9]], GREEDY)[0].outputs[0].token_ids
    del view
    variant.close()
    assert all(s.closed for s in forks.values())
    del llm, variant, a, forks, seq
    assert live() == before


def test_use_after_close(tiny_llama, ids):
    llm = octavo.LLM(tiny_llama, progress=False)
    seq, stream = llm.prefill(ids[:9]), llm.stream(ids[:9], GREEDY)
    taps = llm.capture("norm")
    llm.close()
    calls = [lambda: llm.generate("a"), lambda: llm.prefill([1]), lambda: llm.score([1, 2]),
             lambda: llm.stream("a"), lambda: next(stream), llm.variant, llm.sequence,
             lambda: seq.append([1]), lambda: seq.logits[0] if seq._logits is None else seq.fork(),
             lambda: seq.fork(kv="int8"), lambda: seq.kv.page(0, 0), lambda: seq.kv.bytes(),
             lambda: llm.chat([{"role": "user", "content": "a"}])]  # fmt: skip
    for call in calls:
        with pytest.raises(ClosedError, match="closed"):
            call()
    seq.close()
    with taps:
        pass
    assert "closed" in repr(llm) and "closed" in llm._repr_html_()


def test_variants_share_weights_and_live_on_their_own(tiny_llama, ids):
    before = live()
    base = octavo.LLM(tiny_llama, progress=False)
    weights = octavo.memory()["weights"][0]
    other = base.variant(kv="int4-had", act="a8")
    assert octavo.memory()["weights"][0] == weights
    assert other.tokenizer is base.tokenizer and other.runtime is base.runtime
    assert (str(other.kv), other.act, str(other.weights)) == ("int4-had", "a8", "checkpoint")
    four = other.variant(weights="q4g32")
    assert octavo.memory()["weights"][0] > weights
    assert str(four.kv) == "int4-had"
    want = base.generate([ids[:9]], GREEDY)[0].outputs[0].token_ids
    base.close()
    assert octavo.memory()["weights"][0] > weights, "other still uses them"
    bf16 = other.variant(kv="bf16", act="a8x2")
    assert bf16.generate([ids[:9]], GREEDY)[0].outputs[0].token_ids == want
    with pytest.raises(ClosedError):
        base.variant()
    for llm in (other, four, bf16):
        llm.close()
    del base, other, four, bf16
    assert live() == before


def test_variants_run_in_threads(llm, ids):
    variants = [llm.variant() for _ in range(2)]
    want = llm.generate([ids[:30]], GREEDY)[0].outputs[0].token_ids
    got, errors = [], []

    def run(model):
        for _ in range(20):
            try:
                got.append(model.generate([ids[:30]], GREEDY)[0].outputs[0].token_ids)
            except BusyError as error:
                errors.append(error)

    threads = [threading.Thread(target=run, args=(v,)) for v in variants]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert got == [want] * 40 and not errors


def test_a_failed_open_leaks_nothing(tiny_llama, tmp_path):
    before = live()
    for bad, error in (({"kv": "int5"}, ValueError), ({"weights": "q9"}, ValueError),
                       ({"act": "a1"}, ValueError), ({"threads": 0}, ValueError),
                       ({"threads": True}, TypeError), ({"max_rows": 0}, ValueError),
                       ({"max_rows": 1 << 40}, ValueError), ({"context": 4096}, ValueError),
                       ({"context": 0}, ValueError), ({"memory": "lots"}, ValueError),
                       ({"kv": "int4,layer5=bf16"}, ValueError),
                       ({"kv": "nvfp4"}, UnsupportedError),
                       ({"tokenizer": tmp_path}, Exception)):  # fmt: skip
        with pytest.raises(error):
            octavo.LLM(tiny_llama, progress=False, **bad)
        assert live() == before, bad
    for missing in ("no-such-model", tmp_path / "none.gguf", tmp_path):
        with pytest.raises((ValueError, OSError)):
            octavo.LLM(missing)


@pytest.mark.parametrize("quant", ["F32", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q6_K"])
def test_the_load_report_says_how_tensors_are_held(tmp_path, quant):
    path = fixtures.write_gguf(tmp_path / "m.gguf", fixtures.WIDE, quant=quant)
    held = {"F32": "f32", "BF16": "bf16", "Q8_0": "w8g32", "Q4_0": "q4g32", "Q4_1": "q4g32m"}
    with octavo.LLM(path, progress=False) as llm:
        rows = {r.kind: r for r in llm.report.rows}
        row = rows["layers.*.attn.q"]
        assert (row.stored, row.format, row.count) == (quant, held.get(quant, "f32"), 2)
        assert llm.report.decoded == ([] if quant in held else [quant])
        assert sum(r.nbytes for r in rows.values()) == llm.weight_bytes
        assert "head" not in rows, "a tied matrix is held once"
        assert row.kind in repr(llm.report)


@pytest.mark.parametrize(
    "weights", ["f32", "bf16", "f16", "w8", "w8g32", "q4g32", "q4g32z", "q4g32m"]
)
def test_requantized_weights_are_near(tmp_path, ids, weights):
    path = fixtures.write_gguf(tmp_path / "m.gguf", fixtures.WIDE)
    with octavo.LLM(path, act="a32", progress=False) as llm:
        want = llm.prefill(ids[:50]).logits
        with llm.variant(weights=weights) as other:
            got = other.prefill(ids[:50]).logits
            kinds = {r.kind: r.format for r in other.report.rows}
        assert kinds["layers.*.mlp.up"] == weights
        assert kinds["embed"] == (weights if weights[0] in "fb" else "f32")
        error = np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2))
        low, high = {"f32": (-1, 0), "f16": (0, 0.01), "bf16": (0, 0.05), "w8": (0, 0.06),
                     "w8g32": (0, 0.06)}.get(weights, (0.06, 0.5))  # fmt: skip
        assert low < error <= high, error


def test_prequantized_q_and_k_rows_are_mapped(tmp_path, ids):
    """Q4_0 files and their re-quantized twins see the same rows of q and k."""
    path = fixtures.write_gguf(tmp_path / "m.gguf", fixtures.WIDE, quant="Q8_0")
    with octavo.LLM(path, act="a32", kv="f32", progress=False) as llm:
        want = llm.prefill(ids[:40]).logits
        with llm.variant(weights="f32") as other:
            np.testing.assert_allclose(other.prefill(ids[:40]).logits, want, atol=1e-4)


def test_reprs(llm, ids):
    for text in (repr(llm), llm._repr_html_()):
        for word in ("tiny-llama", "bf16", "bytes/token", "checkpoint", "a32", "context 2,048"):
            assert word in text, word
    seq = llm.prefill(ids[:70])
    assert "sealed" in seq.kv.page(0, 0)._repr_html_() and "open" in repr(seq.kv.page(0, 1))
    assert "2 pages x 2 layers" in repr(seq.kv)
    evil = llm.generate([{"prompt": "<script>", "prompt_token_ids": ids[:5]}], GREEDY)[0]
    assert "<script>" not in evil._repr_html_()
    table = llm.kernels()
    assert {"weight", "page", "op"} == {k.table for k in table}
    assert "int4" in repr(table) and "<table>" in table._repr_html_()
    assert {k.isa for k in octavo.kernels("scalar")} <= {"scalar", None}


def test_no_copies_of_live_things(llm, ids):
    seq = llm.prefill(ids[:5])
    for thing in (llm, seq):
        for f in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="cannot be pickled"):
                f(thing)


def test_import_is_light_and_lazy():
    code = (
        "import sys, octavo; heavy = {'numpy', 'tokenizers', 'jinja2', 'tqdm', 'octavo._core'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules);"
        "assert set(octavo.__all__) <= set(dir(octavo));"
        "[getattr(octavo, n) for n in octavo.__all__];"
        "octavo.__version__; assert 'numpy' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    with pytest.raises(AttributeError, match="LLMs"):
        octavo.LLMs  # noqa: B018


def test_the_first_token_needs_no_templates_and_no_bars(tiny_llama):
    """What a start must not pay for: `progress=True` shows bars of long work only."""
    code = (
        "import sys, octavo;"
        "llm = octavo.LLM(sys.argv[1], threads=1);"
        "llm.generate([[1, 2, 3]], octavo.SamplingParams(max_tokens=1));"
        "slow = {'jinja2', 'tqdm', 'asyncio', 'subprocess', 'zipfile', 'rich', 'safetensors'};"
        "assert not slow & set(sys.modules), slow & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, tiny_llama], check=True, timeout=60)


def test_bars_appear_when_they_are_due(monkeypatch):
    drawn = []

    class Drawn:
        def __init__(self, **options):
            drawn.append(options["desc"])
            self.n, self.start_t = 0, 0.0

        def update(self, count):
            self.n += count

        def close(self):
            drawn.append(self.n)

    monkeypatch.setattr(progress, "_draw", lambda options: Drawn(**options))
    for what, options in [("now", {}), ("never", {"shown": False}), ("later", {"delay": 60.0})]:
        with progress.Bar(3, what, **options) as bar:
            bar.update(2)
            if what == "later":
                assert not drawn[2:]
                bar._began -= 61.0
            bar.update(1)
        assert bar.n == 3
    assert drawn == ["now", 3, "later", 3]


def test_bars_are_real():
    with progress.Bar(2, "two", "tok", leave=False) as bar:
        bar.update(2)
    assert bar.n == 2
