"""Sequences: law one through the Python door, branching, and the state after every failure."""

import signal
import threading

import numpy as np
import pytest

import octavo
from octavo.errors import BusyError, ClosedError, NumericalError, OutOfPages

SCHEMES = ["f32", "f16", "bf16", "fp8", "int8", "k8v4", "int4", "int4-had", "int4,sinks=1,recent=1"]


def bits(x):
    return x.view(np.uint32).tolist()


def digest(seq):
    """Bits of every page of a sequence, as attention reads it."""
    return [
        side.dequantize().tobytes()
        for layer in range(seq.kv.layers)
        for index in range(len(seq.kv))
        for side in (seq.kv.page(layer, index).k, seq.kv.page(layer, index).v)
    ]


@pytest.mark.core
@pytest.mark.parametrize("kv", SCHEMES)
def test_any_split_gives_the_same_bits(llm, ids, kv):
    with llm.variant(kv=kv, max_rows=300) as model:
        whole = model.sequence()
        rows = whole.append(ids[:300], all_logits=True)
        for sizes in ([1] * 300, [7, 64, 1, 63, 65, 100], [299, 1]):
            other, at = model.sequence(), 0
            for n in sizes:
                got = other.append(ids[at : at + n], all_logits=True)
                assert bits(got) == bits(rows[at : at + n]), (at, n)
                at += n
            assert digest(other) == digest(whole)


@pytest.mark.parametrize("kv", SCHEMES)
def test_truncate_and_redo_equals_fresh(llm, ids, kv):
    with llm.variant(kv=kv) as model:
        want = model.sequence()
        rows = want.append(ids[:260], all_logits=True)
        for n in (200, 192, 130, 64, 1, 0):
            seq = model.prefill(ids[:260])
            seq.truncate(n)
            assert len(seq) == n
            if n:
                assert bits(seq.logits) == bits(rows[n - 1])
            seq.append(ids[n:260])
            assert bits(seq.logits) == bits(rows[-1])
            assert digest(seq) == digest(want)
            seq.close()


@pytest.mark.parametrize("n", [1, 63, 64, 65, 200])
def test_fork_is_independent_and_equal(llm, ids, n):
    a = llm.prefill(ids[:n])
    b = a.fork()
    assert bits(a.logits) == bits(b.logits)
    before = bits(a.logits)
    b.append(ids[n : n + 90])
    assert bits(a.logits) == before and len(a) == n
    a.append(ids[n : n + 90])
    assert bits(a.logits) == bits(b.logits)


def test_reading_logits_changes_no_page(llm, ids):
    a = llm.prefill(ids[:130])
    b = a.fork(kv="int4")
    pages = digest(b)
    assert b._logits is None
    b.logits  # noqa: B018 (computed again, on a fork)
    assert digest(b) == pages
    assert b.reencoded_from == octavo.KVScheme("bf16")
    assert str(b.scheme) == "int4" and "re-encoded from bf16" in repr(b)


def test_a_bf16_history_reencodes_to_its_own_bytes(llm, ids):
    a = llm.prefill(ids[:150])
    same = a.fork(kv="bf16,recent=1").fork(kv="bf16")
    assert digest(same) == digest(a)


@pytest.mark.core
@pytest.mark.parametrize("kv", ["int8", "int4", "int4-had", "f32:int4-had0"])
def test_reencoding_gives_the_bytes_of_running(llm, ids, kv):
    """Layer 0 sees the same rows in every scheme, so its re-encoded pages are those of a run."""
    with llm.variant(kv=kv) as model:
        ran, forked = model.prefill(ids[:150]), llm.prefill(ids[:150]).fork(kv=kv)
        for index in range(3):
            a, b = (s.kv.page(0, index) for s in (ran, forked))
            for side in ("k", "v"):
                x, y = (getattr(p, side) for p in (a, b))
                if x.format != "f32":  # a bf16 history has no more than bf16 to give
                    assert x.dequantize().tobytes() == y.dequantize().tobytes()


def test_tokens_text_and_repr(llm, ids):
    a = llm.prefill(ids[:5])
    assert a.tokens.dtype == np.int32 and a.tokens.tolist() == ids[:5]
    with pytest.raises(ValueError, match="read-only"):
        a.tokens[0] = 1
    assert a.text == llm.tokenizer.decode(ids[:5])
    assert repr(a) == "<Sequence: 5 tokens in bf16>"
    a.close()
    a.close()
    assert a.closed and repr(a) == "<closed Sequence>"
    calls = [lambda: a.append([1]), a.fork, lambda: a.truncate(0), lambda: a.kv.page(0, 0)]
    for call in (*calls, lambda: a.logits):
        with pytest.raises(ClosedError, match="closed"):
            call()


def test_empty_sequences(llm):
    seq = llm.prefill([])
    assert len(seq) == 0
    with pytest.raises(ValueError, match="empty"):
        seq.logits  # noqa: B018
    assert seq.append([], all_logits=True).shape == (0, 300)
    assert seq.fork().fork(kv="int8").tokens.size == 0


@pytest.mark.parametrize(
    ("bad", "error", "text"),
    [
        ([300], ValueError, "0 to 299"), ([1, -1], ValueError, "position 1"),
        ([2**70], ValueError, "beyond"), ([True], TypeError, "bool"), ([1.0], TypeError, "float"),
        ("text", TypeError, "str"), (None, TypeError, "NoneType"), (7, TypeError, "int"),
        (np.zeros((2, 2), int), ValueError, "one dimension"), (np.zeros(2), TypeError, "float64"),
        ([None], TypeError, "NoneType"),
    ],
)  # fmt: skip
def test_ids_are_checked(llm, bad, error, text):
    seq = llm.prefill([1, 2])
    with pytest.raises(error, match=text):
        seq.append(bad)
    assert seq.tokens.tolist() == [1, 2]


def test_odd_but_legal_ids(llm):
    want = bits(llm.prefill([3, 4, 5]).logits)
    strided = np.array([3, 0, 4, 0, 5], np.uint8)[::2]
    swapped = np.array([3, 4, 5], ">i8")
    for ids in (strided, swapped, (3, 4, 5), iter([3, 4, 5]), [np.int16(3), 4, 5]):
        assert bits(llm.prefill(ids).logits) == want


@pytest.mark.parametrize(("n", "error"), [(-1, ValueError), (6, ValueError), (1.0, TypeError),
                                          (True, TypeError), (None, TypeError)])  # fmt: skip
def test_truncate_is_checked(llm, n, error):
    seq = llm.prefill([1, 2, 3, 4, 5])
    with pytest.raises(error, match="truncate"):
        seq.truncate(n)
    assert len(seq) == 5


def test_context_is_enforced(tiny_llama, ids):
    with octavo.LLM(tiny_llama, context=100, max_rows=32, progress=False) as llm:
        with pytest.raises(ValueError, match=r"101 tokens.*context.*100"):
            llm.prefill(ids[:101])
        seq = llm.prefill(ids[:100])
        with pytest.raises(ValueError, match="101 tokens"):
            seq.append([1])
        assert len(seq) == 100
        with pytest.raises(ValueError, match="at most 100 fit"):
            llm.prefill("many words " * 10_000)


# ---- failures leave no trace


def test_out_of_pages_leaves_the_sequence(llm, ids):
    with llm.variant(memory=64_000, max_rows=16) as model:
        seq = model.prefill(ids[:40])
        before, logits = digest(seq), bits(seq.logits)
        with pytest.raises(OutOfPages) as caught:
            seq.append(ids[40:400] * 3)
        assert caught.value.needed > caught.value.available
        assert digest(seq) == before and bits(seq.logits) == logits and len(seq) == 40
        seq.append(ids[40:60])
        assert bits(seq.logits) == bits(llm.prefill(ids[:60]).logits)


def test_steps_shrink_where_pages_are_short(llm, ids):
    """A long chunk is held open and sealed at once; smaller steps need less, with equal bits."""
    with llm.variant(kv="int4", max_rows=256) as roomy:
        want = roomy.prefill(ids[:256])
        needed = roomy._pool.core.bytes_for(256)
        with llm.variant(kv="int4", max_rows=256, memory=int(needed * 1.6)) as tight:
            seq = tight.prefill(ids[:256])
            assert bits(seq.logits) == bits(want.logits)


class Interrupt:
    """Raises KeyboardInterrupt out of the n-th step, before or after the core ran it."""

    def __init__(self, stepper, n, after):
        self.stepper, self.n, self.after = stepper, n, after
        self.step = stepper.step

    def __enter__(self):
        self.stepper.step = self

    def __exit__(self, *exc):
        del self.stepper.step

    def __call__(self, *args, **kwargs):
        self.n -= 1
        if self.n == 0 and not self.after:
            raise KeyboardInterrupt
        out = self.step(*args, **kwargs)
        if self.n == 0:
            raise KeyboardInterrupt
        return out


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("start", "n", "at"), [(70, 200, 1), (70, 200, 3), (64, 30, 1), (0, 1, 1),
                                                (100, 40, 1)])  # fmt: skip
def test_interrupts_leave_the_sequence(llm, ids, start, n, at, after):
    seq = llm.prefill(ids[:start])
    logits = bits(seq.logits) if start else None
    with pytest.raises(KeyboardInterrupt), Interrupt(llm._stepper, at, after):
        seq.append(ids[start : start + n])
    assert seq.tokens.tolist() == ids[:start]
    if start:
        assert bits(seq.logits) == logits
    seq.append(ids[start : start + n])
    assert bits(seq.logits) == bits(llm.prefill(ids[: start + n]).logits)
    llm._pool.core.check()


def test_a_real_signal_in_a_long_prefill(llm, ids):
    with llm.variant(max_rows=4) as model:
        timer = threading.Timer(0.01, signal.raise_signal, [signal.SIGINT])
        seq = model.prefill(ids[:10])
        with pytest.raises(KeyboardInterrupt):
            timer.start()  # on a loaded machine the signal may come in here
            for _ in range(1000):
                seq.append(ids[:400])
                seq.truncate(10)
        timer.join()
        assert seq.tokens.tolist() in (ids[:10], ids[:10] + ids[:400])
        seq.truncate(10)
        assert bits(seq.logits) == bits(llm.prefill(ids[:10]).logits)


def test_non_finite_rows_fail_alone(tmp_path, ids):
    from oracle import fixtures

    path = tmp_path / "nan"
    weights = fixtures.write_folder(path, fixtures.varied(fixtures.LLAMA, tied=False))
    spoil(path, weights, ids[50])
    with octavo.LLM(path, act="a32", max_rows=32, progress=False) as llm:
        good = [i for i in ids if i != ids[50]]
        seq = llm.prefill(good[:40])
        logits = bits(seq.logits)
        for more in ([ids[50]], [*good[:60], ids[50]]):
            with pytest.raises(NumericalError, match="not finite"):
                seq.append(more)
            assert len(seq) == 40 and bits(seq.logits) == logits
        with pytest.raises(NumericalError, match="score"):
            llm.score([1, ids[50], 2])


def spoil(path, weights, token):
    """Make one token's embedding infinite in a float32 folder."""
    from safetensors.numpy import save_file

    weights = dict(weights)
    embed = weights["model.embed_tokens.weight"].copy()
    embed[token] = np.inf
    weights["model.embed_tokens.weight"] = embed
    save_file(weights, str(path / "model.safetensors"), metadata={"format": "pt"})


def test_one_user_at_a_time(llm, ids):
    """A second thread gets BusyError at once, and neither is harmed."""
    seq, inside, go = llm.prefill(ids[:10]), threading.Event(), threading.Event()

    def wait(_tokens, logits):
        inside.set()
        go.wait(10)
        return logits

    params = octavo.SamplingParams(max_tokens=1, logits_processors=[wait])
    thread = threading.Thread(target=llm.generate, args=(ids[:20], params))
    thread.start()
    assert inside.wait(10)
    try:
        for call in (lambda: seq.append([1]), lambda: llm.score(ids[:4]), llm.close, seq.fork):
            with pytest.raises(BusyError, match="in use by another call"):
                call()
    finally:
        go.set()
        thread.join()
    seq.append(ids[10:20])
    assert bits(seq.logits) == bits(llm.prefill(ids[:20]).logits)


@pytest.mark.core
def test_a_sequence_without_prefix_leaves_the_index_alone(llm, ids):
    with llm.variant() as model:
        cached = lambda: model._pool.core.ledger()["cached_pages"]  # noqa: E731
        with model.sequence(prefix=False) as quiet:
            want = quiet.append(ids[:300], all_logits=True)
            quiet.truncate(200)
            quiet.append(ids[200:300])
            with quiet.fork() as twin, quiet.fork(kv="int8") as other:
                for s in (twin, other):
                    s.append(ids[300:400])
                assert not other._pool.core.ledger()["cached_pages"]
        assert cached() == 0
        with model.sequence() as fed:
            np.testing.assert_array_equal(fed.append(ids[:300], all_logits=True), want)
        assert cached() == 4
        with model.sequence(prefix=False) as quiet:
            np.testing.assert_array_equal(quiet.append(ids[:300], all_logits=True), want)
        assert cached() == 4
