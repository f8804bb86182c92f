"""Captures: what the float64 oracle computes at the same places."""

import numpy as np
import pytest
from oracle.forward import from_gguf

import octavo


@pytest.mark.core
def test_captures_equal_the_oracle(tiny_llama, ids):
    seen = {}
    from_gguf(tiny_llama).logits(ids[:100], lambda name, x: seen.__setitem__(name, x.copy()))
    with octavo.LLM(tiny_llama, kv="f32", act="a32", max_rows=33, progress=False) as llm:
        with llm.capture("layers.*.attn.out", "layers.*.out", "layers.1.attn.v") as taps:
            llm.prefill(ids[:100])
        for layer in range(2):
            for name in ("attn.out", "out"):
                got = taps[f"layers.{layer}.{name}"]
                assert got.dtype == np.float32
                np.testing.assert_allclose(got, seen[f"layers.{layer}.{name}"], atol=2e-4)
        want = seen["layers.1.v"].reshape(100, -1)
        np.testing.assert_allclose(taps["layers.1.attn.v"], want, atol=2e-4)
        assert taps.position.tolist() == list(range(100))
        assert taps.token.tolist() == ids[:100]
        llm.prefill(ids[:10])
        assert len(taps["layers.0.out"]) == 100, "nothing is captured outside the block"


def test_captures_of_a_batch_name_their_rows(llm, ids):
    params = octavo.SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    with llm.capture("norm") as outer, llm.capture("norm", "embed") as inner:
        together = llm.generate([ids[:30], ids[40:60]], params)
    assert set(outer) == {"norm"} and set(inner) == {"norm", "embed"}
    np.testing.assert_array_equal(outer["norm"], inner["norm"])
    handles = list(dict.fromkeys(outer.sequence.tolist()))
    assert len(handles) == 2
    for handle, prompt, out in zip(handles, (ids[:30], ids[40:60]), together, strict=True):
        rows = outer.sequence == handle
        assert outer.position[rows].tolist() == list(range(len(prompt) + 3))
        assert outer.token[rows].tolist() == prompt + out.outputs[0].token_ids[:3]
        with llm.capture("norm") as alone:
            llm.generate(prompt, params)
        np.testing.assert_array_equal(alone["norm"], outer["norm"][rows])
    assert "2 names" in repr(inner)
    inner.clear()
    assert inner["embed"].shape == (0, 0) and not len(inner.position)


def test_equal_captures_leave_in_any_order(llm, ids):
    first, second = llm.capture("norm"), llm.capture("norm")
    with first:
        llm.score(ids[:9])
        with second:
            llm.score(ids[:9])
        llm.score(ids[:5])
    np.testing.assert_array_equal(first["norm"][8:16], second["norm"])
    assert len(first["norm"]) == 20 and len(set(first.sequence.tolist())) == 3
    with first, pytest.raises(RuntimeError, match="Taps: it is in force already"):
        first.__enter__()
    llm.score(ids[:9])
    assert len(first["norm"]) == 20


def test_a_sequence_keeps_its_number_and_a_fork_has_its_own(llm, ids):
    """Handles change with every call that takes several steps."""
    with llm.sequence() as seq, llm.capture("norm") as taps:
        for lo in (0, 100, 200):
            seq.append(ids[lo : lo + 100])
        assert len(set(taps.sequence.tolist())) == 1
        with seq.fork() as twin:
            twin.append(ids[300:310])
    assert len(set(taps.sequence.tolist())) == 2


@pytest.mark.parametrize(("names", "error", "text"), [
    (("layers.9.out",), ValueError, r"known: embed, layers\.\*"), ((), ValueError, "no names"),
    ((3,), TypeError, "int"), (("layers.*.router",), ValueError, "router"),
])  # fmt: skip
def test_names_are_checked(llm, names, error, text):
    with pytest.raises(error, match=text):
        llm.capture(*names)
