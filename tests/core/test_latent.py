"""Latent layers (MLA) at Kimi's widths: bytes, attention against float64, folding, and what is
refused at the door. That chunks, threads and columns change no bit is in test_laws.py.
"""

import numpy as np
import pytest
import tiny
from small import TSAN

from octavo import _core, _probe

pytestmark = pytest.mark.core
ISAS = [isa for isa in ("scalar", "avx2", "avx512", "amx") if _probe.runs_here(isa)]
if TSAN:
    ISAS = ISAS[-1:]  # what threads share is the same in every column
RANK, ROPE, SCALE = 512, 64, 0.1446796
# Stored bytes of a token in a layer: formats.md, A6.
BYTES = {"f32": 2304, "f16": 1152, "bf16": 1152, "fp8": 648, "int8": 648, "int4": 400,
         "int4-had": 400}  # fmt: skip


def kimi_cache(runtime, scheme, n=1, budget=1 << 26, **kw):
    layers = tiny.latent_layers(scheme, n, rank=RANK, rope=ROPE, form=kw.pop("form", None))
    return _core.Cache(runtime, layers, budget=budget, **kw)


def rows(n, heads=None, seed=0):
    rng = np.random.default_rng(seed)
    c, r = (rng.standard_normal((n, 1, d)).astype(np.float32) for d in (RANK, ROPE))
    if heads is None:
        return c, r
    return rng.standard_normal((n, heads, RANK + ROPE)).astype(np.float32)


def history(cache, n, seed=0):
    seq = cache.open()
    c, r = rows(n, seed=seed)
    cache.append(seq, c.ravel(), r.ravel(), n)
    return seq


def decoded(cache, seq, segment, model_basis=True):
    pages = -(-cache.length(seq) // 64)
    parts = [cache.decode(seq, 0, i, segment, model_basis)[0] for i in range(pages)]
    return np.concatenate(parts).astype(np.float64)


@pytest.mark.parametrize("scheme", BYTES)
def test_stored_bytes_are_those_of_the_table(scheme):
    cache = kimi_cache(_core.Runtime(1), scheme, n=61)
    ledger = cache.ledger()
    assert ledger["page_bytes"] == 61 * 64 * BYTES[scheme]
    assert ledger["unit_bytes"] == 61 * 16 * (2304 if scheme == "f32" else 1152)
    history = cache.open()
    c, r = rows(130)
    cache.append(history, np.tile(c.ravel(), 61), np.tile(r.ravel(), 61), 130)
    assert cache.ledger(history)["sealed"] == 2 * 61 * 64 * BYTES[scheme]
    cache.check()


@pytest.mark.parametrize(
    ("scheme", "form", "bound"),
    [
        ("f32", None, 2e-6), ("f16", None, 2e-6), ("bf16", None, 2e-6), ("fp8", None, 2e-6),
        ("int8", "f32", 2e-6), ("int4", "f32", 2e-6), ("int4-had", "f32", 2e-6),
        ("int8", "q8", 3e-2), ("int4", "q8", 3e-2), ("int8", "q8x2", 3e-4),
    ],
)  # fmt: skip
@pytest.mark.parametrize("heads", [1, 3, 64, 128])
def test_attention_is_that_of_the_decoded_pages(scheme, form, bound, heads):
    """Softmax over q . [latent | rotated key], gathering latents, in float64."""
    cache = kimi_cache(_core.Runtime(2), scheme, form=form)
    n = 330 if heads < 64 else 140
    seq, q = history(cache, n), rows(2, heads, seed=1)
    c, r = decoded(cache, seq, "latent"), decoded(cache, seq, "rope")
    s = q[..., :RANK] @ c.T + q[..., RANK:] @ r.T
    p = np.exp(SCALE * (s - s.max(axis=-1, keepdims=True)))
    want = p @ c / p.sum(axis=-1, keepdims=True)
    got = cache.attend(seq, 0, q, heads, SCALE)
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= bound * np.abs(want).max() * 4


@pytest.mark.parametrize("scheme", ["bf16", "fp8", "int8", "int4-had"])
def test_columns_threads_and_rows_change_no_bit(scheme):
    q, want = rows(3, 64, seed=2), None
    for isa in ISAS:
        for threads in (1, 3):
            cache = kimi_cache(_core.Runtime(threads, isa), scheme)
            seq = history(cache, 300)
            got = cache.attend(seq, 0, q, 64, SCALE)
            want = got if want is None else want
            np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))
            alone = [cache.attend(seq, 0, q[i : i + 1].copy(), 64, SCALE) for i in range(3)]
            np.testing.assert_array_equal(np.concatenate(alone), want)


def test_causal_append_equals_token_by_token():
    n, heads = 200, 5
    c, r = rows(n)
    q = rows(n, heads, seed=3)
    whole, single = (kimi_cache(_core.Runtime(2), "int4-had") for _ in range(2))
    want = whole.append(whole.open(), c.ravel(), r.ravel(), n, q.ravel(), heads, SCALE)
    seq = single.open()
    got = [
        single.append(seq, c[i].ravel(), r[i].ravel(), 1, q[i].ravel(), heads, SCALE)
        for i in range(n)
    ]
    np.testing.assert_array_equal(np.concatenate(got), want)
    assert want.size == n * heads * RANK


def test_long_histories_fold_the_same():
    """More than a super-chunk of 4,096 tokens: one lane all of it, lanes chunks of it."""
    q, want = rows(4, 16, seed=4), None
    for threads in (1, 4):
        cache = kimi_cache(_core.Runtime(threads), "int4")
        seq = history(cache, 4096 + 700)
        got = [cache.attend(seq, 0, q[:k].copy(), 16, SCALE) for k in (1, 4)]
        want = got[1] if want is None else want
        np.testing.assert_array_equal(got[1], want)
        np.testing.assert_array_equal(got[0], want[:1])


@pytest.mark.parametrize("target", ["int8", "int4", "int4-had", "fp8"])
def test_a_reencoded_history_is_the_one_that_was_run(target):
    runtime = _core.Runtime(2)
    plain, other = kimi_cache(runtime, "bf16"), kimi_cache(runtime, target)
    names = ("latent", "rope")
    forked = plain.reencode(history(plain, 150), other)
    fresh = history(other, 150)
    for seq in (forked, fresh):
        other.check()
        assert other.length(seq) == 150
    assert tiny.sealed_bytes(other, forked, 1, names) == tiny.sealed_bytes(other, fresh, 1, names)


def test_the_rotated_key_is_never_quantized_nor_transformed():
    cache = kimi_cache(_core.Runtime(1), "int4-had")
    seq = history(cache, 64)
    page = cache.page(seq, 0, 0, "rope")
    assert (page.format, page.sealed) == ("bf16", True)
    want = rows(64)[1][:, 0].astype("float32")
    np.testing.assert_allclose(decoded(cache, seq, "rope", False), want, rtol=2**-8)
    assert cache.page(seq, 0, 0, "latent").format == "int4"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"kv_heads": 2}, "a latent layer has 1"),
        ({"k_width": 520}, "k_width is 520"),
        ({"v_width": 24}, "v_width is 24"),
        ({"k_width": 592}, "k_width is 592"),
        ({"v_width": 2**31 - 1, "k_width": 2**31 - 1}, "k_width is 2147483647"),
        ({"k_format": "nvfp9"}, "unknown page format"),
        ({"k_transform": "had:1024"}, "block must be"),
    ],
)
def test_impossible_layers_are_refused(change, text):
    layer = tiny.latent_layers("int8", 1, rank=RANK, rope=ROPE)[0] | change
    with pytest.raises(ValueError, match=text):
        _core.Cache(_core.Runtime(1), [layer], budget=1 << 20)


def test_segments_go_by_their_names():
    cache = kimi_cache(_core.Runtime(1), "int8")
    seq = history(cache, 64)
    with pytest.raises(ValueError, match="segment must be 'latent' or 'rope', got 'k'"):
        cache.page(seq, 0, 0, "k")
    plain = _core.Cache(_core.Runtime(1), tiny.layers("int8", 1), budget=1 << 20)
    with pytest.raises(ValueError, match="segment must be 'k' or 'v', got 'rope'"):
        plain.decode(plain.open(), 0, 0, "rope")


def test_rows_of_other_widths_are_refused():
    cache = kimi_cache(_core.Runtime(1), "int8")
    seq = cache.open()
    c, _ = rows(3)
    with pytest.raises(ValueError, match="append: v"):
        cache.append(seq, c.ravel(), c.ravel(), 3)
    with pytest.raises(ValueError, match="attend: q"):
        cache.attend(seq, 0, np.zeros((1, 4, RANK), np.float32), 4, SCALE)
    assert cache.length(seq) == 0


class Small:
    """A program of one head_linear, or of one latent attend, to be bent out of shape."""

    def __init__(self):
        self.runtime = _core.Runtime(1)
        self.weights = _core.Weights(self.runtime)
        rng = np.random.default_rng(0)

        def matrix(n, k):
            return tiny.matrix(self.weights, "f32", rng.standard_normal((n, k)))

        self.embed, self.wide, self.odd = matrix(20, 64), matrix(32, 16), matrix(32, 15)
        self.head = matrix(20, 96)
        self.norm = self.weights.vector(np.ones(48, np.float32))

    def open(self, op, widths=(64, 96, 64)):
        ops = [{"kind": "embed", "out": [0], "w": [self.embed]}, op,
               {"kind": "head", "in": 1, "w": [self.head]}]  # fmt: skip
        rope = {"freq": np.ones(8), "dim": 16, "mscale": 1.0}
        return _core.Program(self.weights, widths=list(widths), ops=ops, ropes=[rope])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"heads": 0, "matrices": np.zeros((0, 1), np.int32)}, "0 heads do not divide"),
        ({"heads": 3, "matrices": np.zeros((3, 1), np.int32)}, "3 heads do not divide"),
        ({"out": [0]}, "in is out"),
        ({"matrices": np.full((2, 1), 99, np.int32)}, "head 0 has matrix 99"),
        ({"matrices": np.full((2, 1), -1, np.int32)}, "head 0 has matrix -1"),
        ({"matrices": np.zeros((3, 1), np.int32)}, "has 3 rows, must be heads = 2"),
        ({"matrices": np.zeros((2, 3), np.int32)}, "matrices"),
        ({"matrices": np.zeros((2, 1), np.int32)}, "20 x 64"),
        ({"matrices": "odd"}, "all must be alike"),
    ],
)
def test_impossible_head_linears_are_refused(change, text):
    small = Small()
    op = {"kind": "head_linear", "in": 0, "out": [1], "heads": 2}
    op["matrices"] = np.full((2, 1), small.wide, np.int32)
    small.open(op)
    if isinstance(change.get("matrices"), str):
        change = {"matrices": np.array([[small.wide], [small.odd]], np.int32)}
    with pytest.raises(ValueError, match=text):
        small.open(op | change)


@pytest.mark.parametrize(
    ("change", "widths", "text"),
    [
        ({}, (64, 96, 60), "in2 is 60 wide, must be 64"),
        ({}, (64, 64, 64), "output 64, which must be less"),
        ({"q_norm": 0}, (64, 48, 64), "q_norm must be -1"),
        ({}, (64, 32, 64), "width of rope is 16, must be 32"),
        ({"k_norm": 0, "rope": -1}, (64, 32, 64), "k_norm is 48, must be 32"),
        ({"in2": -1}, (64, 48, 64), "in2"),
    ],
)
def test_impossible_latent_attends_are_refused(change, widths, text):
    small = Small()
    op = {"kind": "attend", "in": 0, "in2": 2, "out": [1], "layer": 0, "heads": 1, "rope": 0,
          "scale": 0.1}  # fmt: skip
    good = Small()
    good.head = tiny.matrix(good.weights, "f32", np.ones((20, 48)))
    good.open(op, (64, 48, 64))
    small.head = tiny.matrix(small.weights, "f32", np.ones((20, widths[1])))
    with pytest.raises(ValueError, match=text):
        small.open(op | change, widths)


def test_a_program_and_a_cache_of_other_kinds_do_not_step():
    runtime = _core.Runtime(1)
    cases = [
        (tiny.latent_program(runtime), tiny.layers("bf16")),
        (tiny.program(runtime), tiny.latent_layers("bf16")),
        (tiny.latent_program(runtime), tiny.latent_layers("bf16", rank=128)),
        (tiny.latent_program(runtime), tiny.latent_layers("bf16", rope=32)),
    ]
    for program, layers in cases:
        cache = _core.Cache(runtime, layers, budget=1 << 20)
        seq = cache.open()
        with pytest.raises(ValueError, match="whose shape in this cache is another"):
            _core.step(program, cache, [(seq, tiny.tokens(3), 0)], logits=True)
        assert cache.length(seq) == 0
