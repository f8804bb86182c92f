"""Whatever ends an append inside a mixture, under `llm.route`: the sequence is as it was, in its
first step and in later ones, and appending again gives what it always gives.

On latent attention with a shared expert, and on windows with sinks. How the core fails by itself is
in tests/core.
"""

import signal
from dataclasses import replace

import pytest
from oracle import gpt_oss, latent

import octavo
from octavo import _core

pytestmark = pytest.mark.core
needs_faults = pytest.mark.skipif(not hasattr(_core, "fault"), reason="the build has no fault seam")
MODELS = {
    "kimi": (latent.write_folder, replace(latent.KIMI, q_rank=64), ("latent", "rope")),
    "gpt-oss": (gpt_oss.write_folder, gpt_oss.Shape(layers=2), ("k", "v")),
}
IDS = [*range(3, 163)]
START = 70  # the rest takes two steps


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    """An LLM with a function at its routers, and the names of its pages' segments."""
    write, shape, segments = MODELS[request.param]
    write(path := tmp_path_factory.mktemp("mixture") / request.param, shape)
    with (
        octavo.LLM(path, kv="int8", threads=1, max_rows=48, progress=False) as llm,
        llm.route(lambda layer, r: (r.ids, r.gates / 2)),
    ):
        yield llm, segments


def digest(seq, segments):
    """Tokens, logits, every byte of its pages, and the ledger of them all but for the tables."""
    core, places = seq._pool.core, range(-(-len(seq) // 64))
    pages = [
        core.decode(seq._handle, layer, index, segment).tobytes()
        for layer in range(seq.kv.layers) for index in places for segment in segments
    ]  # fmt: skip
    ledger = core.ledger() | {"tables": 0}
    return seq.tokens.tolist(), seq.logits.tobytes(), pages, ledger


def appended(seq):
    return seq.append(IDS[START:], all_logits=True).tobytes()


@pytest.fixture
def history(model):
    """A sequence of START tokens, and what appending the rest gives."""
    llm, _ = model
    with llm.prefill(IDS[:START]) as other:
        want = appended(other)
    with llm.prefill(IDS[:START]) as seq:
        yield seq, want


def fail():
    raise LookupError("mine")


@pytest.mark.parametrize(
    ("stop", "error"),
    [(fail, LookupError), (lambda: signal.raise_signal(signal.SIGINT), KeyboardInterrupt)],
    ids=["error", "Ctrl-C"],
)
def test_a_function_that_raises_at_any_router_of_any_step(model, history, stop, error):
    (llm, segments), (seq, want) = model, history
    before, calls = digest(seq, segments), []
    for last in range(1, 100):
        calls.clear()

        def function(layer, r, last=last):
            calls.append(layer)
            if len(calls) == last:
                stop()

        with llm.route(function):
            try:
                got = appended(seq)
            except error:
                assert len(calls) == last
                assert digest(seq, segments) == before
                seq._pool.core.check()
                continue
        assert got == want and len(calls) == last - 1 == 2 * len(set(calls))
        return
    pytest.fail("never whole")


def attempt(arm, n, seq):
    arm(n)
    try:
        return appended(seq)
    finally:
        arm(0)


@needs_faults
@pytest.mark.parametrize(
    ("seam", "error", "growth", "least"),
    [("fault", MemoryError, 1.0, 8), ("cancel_after", KeyboardInterrupt, 1.1, 20)],
)
def test_allocations_and_tile_boundaries_of_an_append(model, history, seam, error, growth, least):
    """Every allocation, and boundaries ever farther apart: all of them are tried on the core."""
    (_, segments), (seq, want) = model, history
    before, n = digest(seq, segments), 1
    for failed in range(1000):
        try:
            got = attempt(getattr(_core, seam), n, seq)
        except error:
            assert digest(seq, segments) == before
            seq._pool.core.check()
            n = int(n * growth) + 1
        else:
            assert got == want and failed >= least
            return
    pytest.fail("never whole")
