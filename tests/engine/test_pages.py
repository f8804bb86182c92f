"""Pages as NumPy sees them: views, layouts, edits, ledgers and differences."""

import gc

import numpy as np
import pytest
from oracle.forward import causal_attention

import octavo
from octavo.errors import BusyError, ClosedError, StaleHandleError, UnsupportedError

KV = ["f32", "f16", "bf16", "fp8", "int8", "int4", "int4-had"]


@pytest.mark.core
@pytest.mark.parametrize("kv", KV)
def test_views_are_what_attention_reads(llm, ids, kv):
    with llm.variant(kv=kv) as model:
        seq = model.prefill(ids[:150])
        for layer, index in ((0, 0), (-1, 1)):
            page = seq.kv.page(layer, index)
            for side in (page.k, page.v):
                values = decode(side)
                np.testing.assert_array_equal(values, side.dequantize())
                assert not side.codes.flags.writeable
                with pytest.raises(ValueError):
                    side.codes.setflags(write=True)
                if kv.startswith("int"):
                    assert (side.layout.pack(side.unpack()) == side.codes).all()
        last = seq.kv.page(0, 2)
        assert not last.k.sealed and last.k.tokens == 22
        assert last.k.dequantize().shape == (2, 22, 16)
        with pytest.raises(UnsupportedError, match="open"):
            last.k.codes  # noqa: B018
        del page, side


def decode(side):
    """Values of a segment from its views alone, as formats.md A3 writes them."""
    if side.format in ("f32", "f16", "bf16"):
        return side.layout.logical(side.codes).astype(np.float32)
    scales = side.scales.astype(np.float32)
    groups = scales.shape[2]
    scales = np.repeat(scales, side.unpack().shape[2] // groups, axis=2)
    if side.format == "fp8":
        return side.layout.logical(side.codes).astype(np.float32) * scales
    values = side.unpack().astype(np.float32) * scales
    if side.format == "int4":
        values += np.repeat(side.zeros.astype(np.float32), values.shape[2] // groups, axis=2)
    return values


def test_views_share_memory_and_outlive_everything(tiny_llama, ids):
    llm = octavo.LLM(tiny_llama, kv="int8", progress=False)
    seq = llm.prefill(ids[:64])
    codes = seq.kv.page(0, 0).k.codes
    scales = seq.kv.page(0, 0).k.scales
    want, want_scales = codes.copy(), scales.copy()
    assert np.shares_memory(codes, seq.kv.page(0, 0).k.codes)
    with pytest.raises(BufferError, match="views"):
        seq.close()
    with pytest.raises(BufferError):
        llm.close()
    assert not llm.closed and len(seq) == 64
    with pytest.raises(BufferError):
        seq.truncate(3)
    assert len(seq) == 64
    with pytest.warns(ResourceWarning), pytest.raises(ZeroDivisionError), llm:
        1 / 0  # noqa: B018
    del seq, llm
    gc.collect()
    np.testing.assert_array_equal(codes, want)
    np.testing.assert_array_equal(scales, want_scales)
    before = octavo.memory()["pages"][0]
    del codes, scales
    gc.collect()
    assert octavo.memory()["pages"][0] < before


@pytest.mark.parametrize(("layer", "index", "error"), [
    (2, 0, IndexError), (-3, 0, IndexError), (0, 3, IndexError), (0.0, 0, TypeError),
    (0, True, TypeError), (0, None, TypeError),
])  # fmt: skip
def test_places_are_checked(llm, ids, layer, index, error):
    with pytest.raises(error, match=r"layer|page"):
        llm.prefill(ids[:150]).kv.page(layer, index)


@pytest.mark.core
@pytest.mark.parametrize("kv", ["int8", "int4-had", "f32"])
def test_an_edit_changes_the_next_attention_as_numpy_says(kv):
    """On user arrays, where queries are ours: change codes, attend over what pages decode to."""
    rng = np.random.default_rng(0)
    k, v = (rng.standard_normal((1, 128, 2, 32)).astype(np.float32) for _ in "kv")
    q = rng.standard_normal((3, 4, 32)).astype(np.float32)
    form = {} if kv == "f32" else {"attention": "f32"}
    scheme = octavo.KVScheme.parse(kv)
    scheme = octavo.KVScheme(scheme.k, scheme.v, scheme.k_transform, scheme.v_transform, **form)
    with octavo.Cache(1, 2, 32, kv=scheme, threads=1) as cache:
        cache.append(k, v)
        check_attention(cache, q)
        with cache.edit(0, 0) as page:
            for side in (page.k, page.v):
                codes = side.unpack()
                codes[:, 5] = codes[:, 9]
                codes[1, 30:] = codes[1, 0]
                side.codes[:] = pack(side, codes)
                del side
        check_attention(cache, q)


def pack(side, codes):
    if side.format != "f32":
        return side.layout.pack(codes)
    layout = side.layout
    axes = np.argsort((0, *(1 + a for a in layout.axes)))
    permuted = [layout.shape[a] for a in layout.axes]
    return codes.reshape(len(codes), *permuted).transpose(axes)


def check_attention(cache, q):
    rows = [cache.page(0, i) for i in range(2)]
    k = np.concatenate([p.k.dequantize("model") for p in rows], axis=1).swapaxes(0, 1)
    v = np.concatenate([p.v.dequantize("model") for p in rows], axis=1).swapaxes(0, 1)
    got = cache.attend(q)
    seen = np.concatenate([np.zeros((128, 4, 32)), q])  # each query sees all 128 tokens
    for i in range(len(q)):
        want = causal_attention(seen[128 + i : 129 + i].astype(np.float64), k, v)[0]
        np.testing.assert_allclose(got[i], want, atol=2e-5)


def test_edits_are_private_marked_and_exclusive(llm, ids):
    with llm.variant(kv="int8") as model:
        a = model.prefill(ids[:100])
        b = a.fork()
        want = b.kv.page(1, 0).k.unpack()
        logits = a.logits.copy()
        with a.kv.edit(1, 0) as page:
            page.k.codes[:] = 128
            for call in (lambda: a.append([1]), lambda: a.logits, a.fork, lambda: a.truncate(3),
                         a.close, lambda: a.kv.page(0, 0), model.close):  # fmt: skip
                with pytest.raises(BusyError, match="edit"):
                    call()
            assert len(a) == 100 and not a.closed and not model.closed
            c = b.fork()
            c.append(ids[100:140])  # other sequences go on
            assert (model.prefill(ids[:140]).logits == c.logits).all()
            assert model.generate([ids[:9]])[0].outputs[0].token_ids
        assert a.edited and "edited" in repr(a)
        assert not b.edited
        np.testing.assert_array_equal(b.kv.page(1, 0).k.unpack(), want)
        assert not a.kv.page(1, 0).k.unpack().any()
        assert (a.logits != logits).any() and (b.logits == logits).all()
        assert (model.prefill(ids[:100]).logits == logits).all(), "the index has the original"
        assert a.fork().edited


def test_edits_refuse(tiny_llama, ids):
    with octavo.LLM(tiny_llama, kv="int8", prefix=False, progress=False) as model:
        seq = model.prefill(ids[:100])
        with pytest.raises(ValueError, match="open"), seq.kv.edit(0, 1):
            pass
        view = seq.kv.page(0, 0).k.codes
        with pytest.raises(BufferError), seq.kv.edit(0, 0):
            pass
        del view
        assert not seq.edited
        with pytest.raises(BufferError), seq.kv.edit(0, 0) as page:
            held = page.v.codes
            page.k.unpack()  # would end the edit of v, which is still held
        del held, page
        seq.append([1])


@pytest.fixture
def no_gc():
    """What must go at once goes by its last name, not when the garbage collector comes by."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.core
def test_a_page_is_decoded_while_its_sequence_goes_on(llm, ids):
    """Appending more than a step's rows gives the sequence another handle; its pages stay."""
    with llm.variant(kv="int4-had") as model, model.prefill(ids[:150]) as seq:
        pages = [seq.kv.page(1, i) for i in range(3)]
        want = [[getattr(p, side).dequantize(b) for side in "kv" for b in ("stored", "model")]
                for p in pages]  # fmt: skip
        handle = seq._handle
        for more in ([], ids[150:153], ids[153:290]):
            seq.append(more)
            still = pages[: 3 if len(seq) < 192 else 2]
            for page, values in zip(still, want, strict=False):
                for side, (stored, basis) in zip("kv", (values[:2], values[2:]), strict=True):
                    part = getattr(page, side)
                    np.testing.assert_array_equal(part.dequantize(), stored)
                    np.testing.assert_array_equal(part.dequantize("model"), basis)
        assert seq._handle != handle
        with pytest.raises(StaleHandleError, match=r"page 2 of layer 1 .* sealed"):
            pages[2].k.dequantize()
        assert model.prefill(ids[:64]).kv.page(0, 0).k.dequantize().shape == (2, 64, 16)


def test_a_page_that_is_gone_is_not_decoded(llm, ids):
    with llm.variant(kv="int8") as model:
        seq = model.prefill(ids[:150])
        first, cut, tail = (seq.kv.page(0, i) for i in range(3))
        seq.truncate(140)
        assert cut.k.dequantize().any()
        with pytest.raises(StaleHandleError, match="page 2"):
            tail.k.dequantize()
        seq.truncate(100)
        with pytest.raises(StaleHandleError, match="page 1"):
            cut.v.dequantize()
        seq.append(ids[:60])
        for gone in (cut.v, tail.k):
            with pytest.raises(StaleHandleError, match="again"):
                gone.dequantize()
        shared = seq.fork()
        with seq.kv.edit(0, 0) as page:
            held = page.v.codes
            assert page.k.dequantize().shape == (2, 64, 16)
            del held
        with pytest.raises(ClosedError, match="ended"):
            page.k.dequantize()
        with pytest.raises(StaleHandleError, match="edited"):
            first.k.dequantize()  # it is of the other sequence, which shared it
        assert (shared.kv.page(0, 0).k.codes == first.k.codes).all()
        now = seq.kv.page(0, 0)
        seq.close()
        with pytest.raises(ClosedError, match="closed"):
            now.k.dequantize()
        now = shared.kv.page(0, 0)
    with pytest.raises(ClosedError, match="closed"):
        now.k.dequantize()
    rows = np.ones((1, 100, 2, 32), np.float32)
    with octavo.Cache(1, 2, 32, threads=1) as cache:
        cache.append(rows, rows)
        page = cache.page(0, 0)
        cache.truncate(0)
        cache.append(rows * 2, rows)
        with pytest.raises(StaleHandleError):
            page.k.dequantize()
        page = cache.page(0, 0)
        cache.first.close()
        with pytest.raises(ClosedError, match="closed"):
            page.k.dequantize()


def edit_of(thing):
    return thing.edit(0, 0) if isinstance(thing, octavo.Cache) else thing.kv.edit(0, 0)


@pytest.fixture(params=["sequence", "cache"])
def editable(request, llm, ids):
    """Something of at least one sealed page, and a call that needs it idle."""
    if request.param == "sequence":
        with llm.variant(kv="int8") as model, model.prefill(ids[:100]) as seq:
            yield seq, lambda: seq.append([1])
    else:
        rows = np.ones((1, 64, 2, 32), np.float32)
        with octavo.Cache(1, 2, 32, kv="int8", threads=1) as cache:
            cache.append(rows, rows)
            yield cache, lambda: cache.append(rows, rows)


def test_an_edit_ends_with_its_last_view(editable, no_gc):
    thing, use = editable
    with pytest.raises(BufferError, match="still held at the end"), edit_of(thing) as page:
        codes = page.k.codes
        part = codes[0]
    with pytest.raises(ClosedError, match="has ended"):
        page.v.codes  # noqa: B018
    part[...] = 129  # still the page's own bytes
    for last in (False, True):
        with pytest.raises(BusyError, match="edited"):
            use()
        if last:
            del part
        else:
            del codes
    use()
    with edit_of(thing) as page:
        assert (page.k.codes[0] == 129).all()
    use()


def test_an_edit_ends_when_its_block_is_abandoned(editable, no_gc):
    thing, use = editable
    block = edit_of(thing)
    block.__enter__()
    with pytest.raises(BusyError):
        use()
    del block
    use()


def test_an_edit_never_masks_an_exception(editable, no_gc):
    thing, use = editable
    codes = None
    with pytest.warns(ResourceWarning, match="still held"):
        with pytest.raises(ZeroDivisionError), edit_of(thing) as page:
            codes = page.k.codes
            1 / 0  # noqa: B018
    with pytest.raises(BusyError, match="edited"):
        use()
    del codes
    use()


def test_held_writable_views_do_not_mask_an_exception_of_the_outer_block(tiny_llama, ids):
    rows = np.ones((1, 64, 2, 32), np.float32)
    with pytest.warns(ResourceWarning), pytest.raises(ZeroDivisionError):
        with octavo.Cache(1, 2, 32, kv="int8", threads=1) as cache:
            cache.append(rows, rows)
            with cache.edit(0, 0) as page:
                codes = page.k.codes
                1 / 0  # noqa: B018
    with pytest.warns(ResourceWarning), pytest.raises(ZeroDivisionError):
        with octavo.LLM(tiny_llama, progress=False) as model, model.prefill(ids[:64]) as seq:
            with seq.kv.edit(0, 0) as page:
                codes = page.k.codes
                1 / 0  # noqa: B018
    assert not cache.closed and not seq.closed and not model.closed
    del codes
    for thing in (seq, cache, model):
        thing.close()


@pytest.mark.core
@pytest.mark.parametrize(("kv", "bits"), [("bf16", 16), ("f32", 32), ("int8", 8 + 16 / 32),
                                          ("int4", 4 + 32 / 32), ("k8v4", None)])  # fmt: skip
def test_the_ledger_is_the_formula(tiny_qwen3, ids, kv, bits):
    with octavo.LLM(tiny_qwen3, kv=kv, progress=False) as llm:
        for n in (0, 1, 16, 64, 150, 400):
            seq = llm.prefill(ids[:n])
            found = seq.kv.bytes()
            rows = 2 * 2 * 32  # layers x KV heads x width, of K or of V
            k, v = (bits, bits) if bits else (8.5, 5.0)
            assert found.page_bytes == 64 * rows * (k + v) / 8
            assert found.sealed == n // 64 * found.page_bytes
            open_bits = 32 if kv == "f32" else 16
            assert found.open == -(-(n % 64) // 16) * 16 * rows * 2 * open_bits / 8
            assert found.total == found.sealed + found.open + found.tables
            assert "total" in found._repr_html_()


def test_diff(llm, ids):
    a = llm.prefill(ids[:200])
    exact = a.diff(a.fork())
    assert np.isinf(exact.k_snr).all() and not exact.v_max.any()
    eight, four = a.diff(a.fork(kv="int8")), a.diff(a.fork(kv="int4"))
    assert eight.sealed.tolist() == [True, True, True, False]
    assert eight.k_snr.shape == (2, 4)
    assert (eight.k_snr[:, :3] > four.k_snr[:, :3] + 15).all()
    assert "int4 against bf16" in repr(four) and "<table>" in four._repr_html_()
    with pytest.raises(ValueError, match="histories differ"):
        a.diff(llm.prefill(ids[:199]))
