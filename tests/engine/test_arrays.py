"""`octavo.Cache` and `octavo.Linear`: pages and kernels on the caller's own arrays."""

import ml_dtypes
import numpy as np
import pytest
from oracle.forward import causal_attention

import octavo
from octavo.errors import BusyError, ClosedError, NumericalError, OutOfPages


def rows(layers, n, heads, width, seed=0):
    shape = (layers, n, heads, width)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rounded(x):
    return x.astype(ml_dtypes.bfloat16).astype(np.float32)


def attention(q, k, v):
    return causal_attention(*(x.astype(np.float64) for x in (q, k, v)))


@pytest.mark.core
@pytest.mark.parametrize(("kv", "atol"), [("f32", 1e-5), ("bf16", 2e-2), ("int8", 4e-2)])
@pytest.mark.parametrize("v_dim", [32, 64])
def test_appending_attends_causally(kv, atol, v_dim):
    k, v, q = rows(2, 150, 2, 32), rows(2, 150, 2, v_dim, 1), rows(2, 150, 6, 32, 2)
    with octavo.Cache(2, 2, 32, kv=kv, v_dim=v_dim, threads=1) as cache:
        parts = [cache.append(k[:, a:b], v[:, a:b], q[:, a:b]) if (b - a) == 150 else
                 cache.append(*(np.ascontiguousarray(x[:, a:b]) for x in (k, v, q)))
                 for a, b in ((0, 70), (70, 71), (71, 150))]  # fmt: skip
        got = np.concatenate(parts, axis=1)
        assert got.shape == (2, 150, 6, v_dim) and len(cache) == 150
        for layer in range(2):
            want = attention(q[layer], k[layer], v[layer])
            np.testing.assert_allclose(got[layer], want, atol=atol)
        cache.check()


def test_attend_after_the_last_token_and_one_layer():
    k, v, q = rows(1, 64, 2, 16)[0], rows(1, 64, 2, 16, 1)[0], rows(1, 3, 4, 16, 2)[0]
    with octavo.Cache(1, 2, 16, kv="f32", threads=1) as cache:
        assert cache.append(k, v) is None
        got = cache.attend(q)
        assert got.shape == (3, 4, 16)
        for i in range(3):
            scores = np.einsum("hd,thd->ht", q[i].astype(np.float64), np.repeat(k, 2, axis=1)) / 4
            p = np.exp(scores - scores.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            want = np.einsum("ht,thd->hd", p, np.repeat(v, 2, axis=1))
            np.testing.assert_allclose(got[i], want, atol=1e-5)
        np.testing.assert_array_equal(cache.attend(q, scale=0.25), got)


# Bytes of a 64-wide row of one head, sealed (scales and zeros included) and open: formats.md D.
SEALED = {"f32": 256, "f16": 128, "bf16": 128, "fp8": 66, "int8": 66, "int4": 36}
OPEN = {"f32": 256}


@pytest.mark.parametrize("tokens", [64, 1000, 8192])
@pytest.mark.parametrize("kv", [*SEALED, "k8v4", "int4-had", "int4,sinks=1,recent=2"])
def test_the_ledger_is_the_formula_at_any_length(kv, tokens):
    """SmolLM2-135M's shape: 30 layers, 3 KV heads of 64."""
    name, _, windows = kv.partition(",")
    k, v = ("int8", "int4") if name == "k8v4" else (name.removesuffix("-had"),) * 2
    with octavo.Cache(30, 3, 64, kv=kv, memory="1GiB", threads=2) as cache:
        chunk = rows(30, 512, 3, 64)
        for at in range(0, tokens, 512):
            part = np.ascontiguousarray(chunk[:, : min(512, tokens - at)])
            cache.append(part, part)
        found, full = cache.bytes(), tokens // 64
        kept = min(full, 3) if windows else 0
        row = OPEN.get(k, 128) + OPEN.get(v, 128)
        assert found.sealed == (full - kept) * 64 * 90 * (SEALED[k] + SEALED[v])
        assert found.open == (kept * 64 + -(-(tokens % 64) // 16) * 16) * 90 * row
        assert found.total - found.sealed - found.open == found.tables < 1 << 20


def test_pages_ledger_truncate_and_fork():
    k, v = rows(2, 130, 2, 32), rows(2, 130, 2, 32, 1)
    with octavo.Cache(2, 2, 32, kv="int8", threads=1) as cache:
        cache.append(k, v)
        page = cache.page(1, 0)
        np.testing.assert_allclose(page.k.dequantize().swapaxes(0, 1), k[1, :64], atol=0.03)
        assert cache.bytes().sealed_pages == 2
        other = cache.first.fork()
        assert cache.truncate(100) == 64 and len(other) == 130
        with octavo.Cache(2, 2, 32, kv="int4-had", threads=None) as four:
            with pytest.raises(ValueError, match="runtime"):
                other.fork(into=four)
        other.close()
        other.close()
        with pytest.raises(ClosedError):
            other.append(k, v)
    assert cache.closed and repr(cache) == "<closed Cache>"


def test_a_close_that_is_refused_changes_nothing():
    k = rows(1, 64, 2, 32)
    with octavo.Cache(1, 2, 32, kv="int8", threads=1) as cache:
        cache.append(k, k)
        view = cache.page(0, 0).k.codes
        with pytest.raises(BufferError, match="nothing was changed"):
            cache.close()
        del view
        with cache.edit(0, 0), pytest.raises(BusyError, match="nothing was changed"):
            cache.close()
        assert not cache.closed and len(cache) == 64
        cache.append(k, k)


def test_reencoding_between_caches():
    k, v = (rounded(rows(1, 130, 2, 32, seed)) for seed in (0, 1))
    with octavo.Cache(1, 2, 32) as a, octavo.Cache(1, 2, 32, kv="int4-had") as b:
        a.append(k, v)
        b.append(k, v)
        twin = a.first.fork(into=b)
        for side in "kv":
            got, want = (getattr(s.page(0, 1), side).unpack() for s in (twin, b))
            np.testing.assert_array_equal(got, want)
        del got, want


def test_inputs_are_borrowed_not_copied_or_changed():
    k, v = rows(1, 4000, 8, 128), rows(1, 4000, 8, 128, 1)
    k.setflags(write=False)
    want = v.copy()
    with octavo.Cache(1, 8, 128, threads=1) as cache:
        cache.append(k, v)
        np.testing.assert_array_equal(v, want)


@pytest.mark.parametrize(("k", "error", "text"), [
    (rows(2, 5, 2, 32).astype(np.float64), TypeError, "float64"),
    (rows(2, 10, 2, 32)[:, ::2], TypeError, "not contiguous"),
    (rows(2, 5, 2, 32).astype(">f4"), TypeError, "C-contiguous float32"),
    (rows(2, 5, 3, 32), ValueError, r"\[2, 5, 3, 32\]"), (rows(1, 5, 2, 32), ValueError, "legal"),
    (rows(2, 5, 2, 32)[:, :0], ValueError, "legal"), ([[1.0]], TypeError, "list"),
    (np.float32(1), TypeError, "float32"),
])  # fmt: skip
def test_arrays_are_checked(k, error, text):
    with octavo.Cache(2, 2, 32, threads=1) as cache:
        with pytest.raises(error, match=text):
            cache.append(k, rows(2, 5, 2, 32))
        assert len(cache) == 0


def test_bad_rows_and_no_room_change_nothing():
    k = rows(1, 64, 1, 16)
    with octavo.Cache(1, 1, 16, kv="int8", memory=20_000, threads=1) as cache:
        cache.append(k, k)
        for bad in (np.nan, np.inf, 1e30):
            spoiled = k.copy()
            spoiled[0, 3, 0, 2] = bad
            with pytest.raises(NumericalError):
                cache.append(spoiled, k)
        with pytest.raises(OutOfPages):
            cache.append(rows(1, 3000, 1, 16), rows(1, 3000, 1, 16))
        assert len(cache) == 64
        cache.check()


@pytest.mark.parametrize(("args", "error"), [
    ((0, 1, 16), ValueError), ((1, -1, 16), ValueError), ((1, 1, 2**40), ValueError),
    ((1, 1, 63), ValueError), ((1.0, 1, 16), TypeError), ((True, 1, 16), TypeError),
])  # fmt: skip
def test_cache_shapes_are_checked(args, error):
    with pytest.raises(error):
        octavo.Cache(*args)


@pytest.mark.parametrize(("options", "error"), [
    ({"v_dim": 0}, ValueError), ({"v_dim": -16}, ValueError), ({"v_dim": 16.0}, TypeError),
    ({"v_dim": False}, TypeError), ({"threads": 0}, ValueError), ({"threads": -1}, ValueError),
    ({"threads": 257}, ValueError), ({"threads": True}, TypeError), ({"threads": 1.0}, TypeError),
])  # fmt: skip
def test_options_are_checked(options, error):
    (name,) = options
    with pytest.raises(error, match=name):
        octavo.Cache(1, 1, 16, **options)
    if name == "threads":
        with pytest.raises(error, match=name):
            octavo.Linear(np.ones((4, 32), np.float32), **options)


@pytest.mark.parametrize(("scale", "error"), [
    (np.nan, ValueError), (np.inf, ValueError), (-np.inf, ValueError), (np.float32(np.nan),
    ValueError), (1e39, ValueError), (10**400, ValueError), ("1", TypeError), (True, TypeError),
    (1j, TypeError), (np.ones(1), TypeError),
])  # fmt: skip
def test_scales_are_checked(scale, error):
    k = rows(1, 3, 1, 16)
    with octavo.Cache(1, 1, 16, threads=1) as cache:
        for q in (k, None):
            with pytest.raises(error, match="scale"):
                cache.append(k, k, q, scale=scale)
        assert len(cache) == 0
        cache.append(k, k)
        with pytest.raises(error, match="scale"):
            cache.attend(k[0], scale=scale)
        for legal in (0, -1, np.float32(0.25), np.float64(2), np.int64(1)):
            assert np.isfinite(cache.attend(k[0], scale=legal)).all()


@pytest.mark.parametrize("q", [[[1.0]], 1.0, "q", np.float32(1)])
def test_queries_are_checked(q):
    k = rows(1, 3, 1, 16)
    with octavo.Cache(1, 1, 16, threads=1) as cache:
        with pytest.raises(TypeError, match="q must be a NumPy array"):
            cache.append(k, k, q=q)
        assert len(cache) == 0


@pytest.mark.parametrize("memory", ["2 apples", "", 0, -1, 2**60, None, True, 1.5, "9" * 50])
def test_memory_is_checked(memory):
    with pytest.raises((ValueError, TypeError), match="memory"):
        octavo.Cache(1, 1, 16, memory=memory)


# ---- Linear


@pytest.mark.core
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_float_matrices_are_held_exactly(dtype):
    w = rows(1, 1, 40, 64)[0, 0].astype(dtype)
    x = rows(1, 1, 7, 64, 1)[0, 0]
    linear = octavo.Linear(w, threads=1)
    np.testing.assert_array_equal(linear.dequantize(), w.astype(np.float32))
    np.testing.assert_allclose(linear(x), x @ w.astype(np.float32).T, atol=1e-4)
    assert linear.act == "a32"


@pytest.mark.core
@pytest.mark.parametrize("act", ["a32", "a8x2", "a8g32", "a8"])
@pytest.mark.parametrize("weights", ["w8", "w8g32", "q4g32", "q4g32z", "q4g32m"])
def test_grouped_matrices(weights, act):
    w, x = rows(1, 1, 70, 96)[0, 0], rows(1, 1, 9, 96, 1)[0, 0]
    linear = octavo.Linear(w, weights=weights, act=act, threads=1)
    want = x.astype(np.float64) @ linear.dequantize().astype(np.float64).T
    atol = {"a32": 1e-4, "a8x2": 2e-3, "a8g32": 0.2, "a8": 0.3}[act]
    got = linear(x)
    np.testing.assert_allclose(got, want, atol=atol)
    for i in range(len(x)):  # a row does not depend on its batch
        np.testing.assert_array_equal(linear(x[i]), got[i])
    out = np.empty((9, 70), np.float32)
    assert linear(x, out=out) is out
    np.testing.assert_array_equal(out, got)
    np.testing.assert_array_equal(linear.dequantize([3, 3, 0]), linear.dequantize()[[3, 3, 0]])


@pytest.mark.parametrize("weights", ["checkpoint", "q4g32"])
def test_one_row_fills_out(weights):
    w, x = rows(1, 1, 70, 96)[0, 0], rows(1, 1, 1, 96, 1)[0, 0, 0]
    linear = octavo.Linear(w, weights=weights, threads=1)
    out = np.full(70, np.nan, np.float32)
    assert linear(x, out=out) is out
    np.testing.assert_array_equal(out, linear(x))
    for bad, error in ((np.empty((1, 70), np.float32), TypeError), ([0.0] * 70, TypeError),
                       (np.empty(70), TypeError), (np.empty(140, np.float32)[::2], TypeError),
                       (np.empty(69, np.float32), ValueError)):  # fmt: skip
        with pytest.raises(error, match="out"):
            linear(x, out=bad)


def test_rows_of_a_matrix_are_checked():
    w = rows(1, 1, 7, 32)[0, 0]
    linear = octavo.Linear(w, threads=1)
    for good in ([0, 6], (6, 0), np.array([3]), np.array([3], np.uint8), [np.int64(2)], range(7)):
        np.testing.assert_array_equal(linear.dequantize(good), w[np.array(good)])
    assert linear.dequantize([]).shape == (0, 32)
    for bad in ([1.7], ["1"], [True], [None], 3, np.array([1.0]), np.array([[1]])):
        with pytest.raises(TypeError):
            linear.dequantize(bad)
    for bad in ([7], [-1], [2**32 + 1], [2**70], np.array([2**32])):
        with pytest.raises(IndexError, match="legal: 0 to 6"):
            linear.dequantize(bad)


@pytest.mark.parametrize("weights", ["checkpoint", "f32", "bf16", "q4g32"])
def test_matrices_of_another_layout_are_refused(weights):
    w = rows(1, 1, 64, 64)[0, 0]
    for bad in (w.astype(">f4"), w.astype(">f2")):
        with pytest.raises(TypeError, match=rf"dtype {bad.dtype}"):
            octavo.Linear(bad, weights=weights)
    for bad in (w.T, w[::2], w[:, :32], np.asfortranarray(w)):
        with pytest.raises(TypeError, match="not contiguous"):
            octavo.Linear(bad, weights=weights)


def test_linear_checks():
    for bad in (np.zeros((2, 2, 2), np.float32), np.zeros((0, 4), np.float32), [[1.0]]):
        with pytest.raises(TypeError, match="legal: an array"):
            octavo.Linear(bad)
    with pytest.raises(TypeError, match="int64"):
        octavo.Linear(np.zeros((2, 2), int))
    with pytest.raises(ValueError, match="multiple of 32"):
        octavo.Linear(np.ones((4, 40), np.float32), weights="q4g32")
    with pytest.raises(ValueError, match="does not fit f16"):
        octavo.Linear(np.full((4, 32), 1e6, np.float32), weights="f16")
    linear = octavo.Linear(np.ones((4, 32), np.float32), threads=1)
    assert "4 x 32 in f32" in repr(linear) and linear.nbytes >= 4 * 32 * 4
    linear.close()
    linear.close()
    with pytest.raises(ClosedError):
        linear(np.ones((1, 32), np.float32))
