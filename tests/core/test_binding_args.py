"""Arguments of octavo._core: what is refused, by which exception, and that the text helps."""

import numpy as np
import pytest
from binding_kit import (
    HEAD_DIM,
    HEADS,
    LAYER,
    VOCAB,
    WIDTH,
    f32,
    filled,
    ids,
    make,
    ops,
    rope,
    rows,
)

from octavo import _core
from octavo.errors import ClosedError

pytestmark = pytest.mark.core


@pytest.fixture
def kit():
    return make()


def misaligned(a):
    raw = np.zeros(a.nbytes + 1, np.uint8)[1:]
    out = raw.view(a.dtype).reshape(a.shape)
    out[...] = a
    assert not out.flags.aligned
    return out


def wrong_arrays(good):
    """Arrays like `good` but for one property, with a word that the message must hold."""
    yield good.astype(np.float16), "another dtype"
    yield good.astype(good.dtype.newbyteorder()), "byte order"
    yield misaligned(good), "not aligned"
    yield np.repeat(good, 2, axis=-1)[..., ::2], "not C-contiguous"
    yield good[None], "another number of dimensions"
    yield good.reshape(-1)[0], "got numpy.float32" if good.dtype == np.float32 else "got numpy."
    yield good.tolist(), "got list"
    yield None, "got NoneType"


def array_calls(kit):
    """(name of function and argument, good array, call) for every array argument."""
    r, w, c = kit.runtime, kit.weights, kit.cache
    x = f32(3, VOCAB)
    u = np.full(3, 0.5)
    seq = filled(c, 20)
    k, v = rows(2)
    q = f32(2 * HEADS * HEAD_DIM)
    return [
        ("kl: base", x, lambda a: r.kl(a, x)),
        ("kl: other", x, lambda a: r.kl(x, a)),
        ("lse: x", x, r.lse),
        ("argmax: x", x, r.argmax),
        ("topk: x", x, lambda a: r.topk(a, 2)),
        ("sample: x", x, lambda a: r.sample(a, u)),
        ("sample: u", u, lambda a: r.sample(x, a)),
        ("vector: values", f32(5), w.vector),
        ("rows: ids", ids(0, 1), lambda a: w.rows(0, a)),
        ("linear: x", f32(2, WIDTH), lambda a: w.linear(1, a, "a32")),
        ("match: tokens", ids(1, 2), lambda a: c.match(c.open(), a)),
        ("append: k", k, lambda a: c.append(seq, a, v, 2)),
        ("append: v", v, lambda a: c.append(seq, k, a, 2)),
        ("append: q", q, lambda a: c.append(seq, k, v, 2, a, HEADS)),
        ("attend: q", f32(2, HEADS, HEAD_DIM), lambda a: c.attend(seq, 0, a, HEADS, 0.25)),
        (
            "step: items[0].tokens",
            ids(1, 2),
            lambda a: _core.step(kit.program, c, [(seq, a, 0)]),
        ),
        (
            "step: targets[0]",
            ids(1, 2),
            lambda a: _core.step(kit.program, c, [(seq, ids(1, 2), 0)], targets=[a]),
        ),
    ]


@pytest.mark.parametrize("index", range(17))
def test_wrong_arrays_are_type_errors(kit, index):
    where, good, call = array_calls(kit)[index]
    for bad, words in wrong_arrays(good):
        if bad is None and where in ("append: q", "step: targets[0]"):
            continue
        with pytest.raises(TypeError) as info:
            call(bad)
        text = str(info.value)
        assert text.startswith(where) and words in text, text
        assert "ascontiguousarray" in text
    call(good)


def test_read_only_inputs_are_fine(kit):
    x = f32(3, VOCAB)
    x.flags.writeable = False
    assert kit.runtime.lse(x).shape == (3,)


def test_wrong_extents_are_value_errors(kit):
    r, w, c, seq = kit.runtime, kit.weights, kit.cache, filled(kit.cache, 5)
    k, v = rows(2)
    x = f32(3, VOCAB)
    calls = {
        "kl: other": lambda: r.kl(x, f32(3, VOCAB + 1)),
        "sample: u": lambda: r.sample(x, np.zeros(2)),
        "linear: x": lambda: w.linear(1, f32(2, WIDTH + 1), "a32"),
        "linear: out": lambda: w.linear(1, f32(2, WIDTH), "a32", f32(3, WIDTH)),
        "append: k": lambda: c.append(seq, k[1:], v, 2),
        "append: v": lambda: c.append(seq, k, v[1:], 2),
        "append: q": lambda: c.append(seq, k, v, 2, k[1:], HEADS),
        "attend: q": lambda: c.attend(seq, 0, f32(1, HEADS, HEAD_DIM + 1), HEADS, 1.0),
        "step: targets[0]": lambda: _core.step(
            kit.program, c, [(seq, ids(1, 2), 1)], targets=[ids(1, 2)]
        ),
    }
    for where, call in calls.items():
        with pytest.raises(ValueError) as info:
            call()
        assert str(info.value).startswith(where) and "extent" in str(info.value)
    assert c.length(seq) == 5


class Liar:
    """__index__ runs arbitrary Python."""

    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (True, TypeError),
        (1.0, TypeError),
        ("1", TypeError),
        (None, TypeError),
        (np.float32(1), TypeError),
        (-1, ValueError),
        (2**70, ValueError),
        (-(2**70), ValueError),
        (Liar(-1), ValueError),
    ],
)
def test_integers(kit, value, error):
    r, w, c = kit.runtime, kit.weights, kit.cache
    calls = {
        "Runtime: threads": lambda: _core.Runtime(value),
        "Runtime.threads": lambda: setattr(r, "threads", value),
        "topk: count": lambda: r.topk(f32(2, 3), value),
        "sample: top_k": lambda: r.sample(f32(2, 3), np.zeros(2), top_k=value),
        "info: id": lambda: w.info(value),
        "unpack: id": lambda: w.unpack(value),
        "rows: id": lambda: w.rows(value, ids(0)),
        "linear: id": lambda: w.linear(value, f32(1, WIDTH)),
        "matrix: n": lambda: w.matrix("f32", value, 4, b"", row_stride=0),
        "matrix: k": lambda: w.matrix("f32", 4, value, b"", row_stride=0),
        "matrix: row_stride": lambda: w.matrix("f32", 4, 4, b"", row_stride=value),
        "length: seq": lambda: c.length(value),
        "fork: seq": lambda: c.fork(value),
        "release: seq": lambda: c.release(value),
        "truncate: n": lambda: c.truncate(1, value),
        "needs: seqs": lambda: c.needs([value], [1]),
        "needs: counts": lambda: c.needs([1], [value]),
        "bytes_for: tokens": lambda: c.bytes_for(value),
        "page: layer": lambda: c.page(1, value, 0, "k"),
        "page: index": lambda: c.page(1, 0, value, "k"),
        "append: n": lambda: c.append(1, f32(1), f32(1), value),
        "match: salt": lambda: c.match(1, ids(1), value),
        "uniform: seed": lambda: _core.uniform(value, 0, 0),
        "Cache: budget": lambda: _core.Cache(r, [LAYER], budget=value),
        "Cache: sink_pages": lambda: _core.Cache(r, [LAYER], budget=1 << 20, sink_pages=value),
        "step: topk": lambda: _core.step(kit.program, c, [], topk=value),
        "step: items[0].seq": lambda: _core.step(kit.program, c, [(value, ids(1), 0)]),
        "step: items[0].first": lambda: _core.step(kit.program, c, [(1, ids(1), value)]),
    }
    for where, call in calls.items():
        with pytest.raises(error) as info:
            call()
        assert str(info.value).startswith(where), where


def test_index_objects_are_integers(kit):
    assert kit.runtime.topk(f32(2, 5), np.int64(3))[0].shape == (2, 3)
    assert kit.cache.bytes_for(Liar(3)) == kit.cache.bytes_for(3)


def test_texts(kit):
    for bad in (1, b"k", None):
        with pytest.raises(TypeError, match="segment must be a str"):
            kit.cache.page(1, 0, 0, bad)
    with pytest.raises(ValueError, match="null character"):
        kit.cache.page(1, 0, 0, "k\0")
    with pytest.raises(ValueError, match="'k' or 'v'"):
        kit.cache.page(1, 0, 0, "q")
    with pytest.raises(UnicodeEncodeError):
        kit.cache.page(1, 0, 0, "\ud800")


def test_out_of_linear(kit):
    x = f32(2, WIDTH)
    out = np.empty((2, WIDTH), np.float32)
    assert kit.weights.linear(1, x, "a32", out) is out
    assert np.array_equal(out, kit.weights.linear(1, x, act="a32"))
    both = f32(3, WIDTH)
    with pytest.raises(ValueError, match="overlaps"):
        kit.weights.linear(1, both[:2], "a32", both[1:])
    kit.weights.linear(1, both[:1], "a32", both[1:2])
    out.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        kit.weights.linear(1, x, "a32", out)
    with pytest.raises(TypeError, match="linear: out"):
        kit.weights.linear(1, x, "a32", out.astype(np.float64))


def test_wrong_objects(kit):
    for make_one, where in [
        (lambda o: _core.Weights(o), "Weights: runtime"),
        (lambda o: _core.Program(o, widths=[], ops=[], ropes=[]), "Program: weights"),
        (lambda o: _core.Cache(o, [], budget=1), "Cache: runtime"),
        (lambda o: _core.step(o, kit.cache, []), "step: program"),
        (lambda o: _core.step(kit.program, o, []), "step: cache"),
        (lambda o: kit.cache.reencode(1, o), "reencode: into"),
    ]:
        for wrong in (None, 1, object(), make_one):
            with pytest.raises(TypeError, match=where):
                make_one(wrong)


def test_cannot_be_made_or_subclassed():
    for make_one in (_core.Page, lambda: type("Sub", (_core.Cache,), {})):
        with pytest.raises(TypeError):
            make_one()


def test_cache_layers(kit):
    def cache(*layers):
        return _core.Cache(kit.runtime, layers, budget=1 << 20)

    for bad, error, words in [
        (["kv_heads"], TypeError, r"layers\[0\] must be a mapping"),
        ({**LAYER, "heads": 1}, ValueError, "unknown fields"),
        ({**LAYER, "kv_heads": True}, TypeError, r"layers\[0\].kv_heads"),
        ({**LAYER, "kv_heads": 0}, ValueError, "above 0"),
        ({**LAYER, "k_width": -16}, ValueError, "above 0"),
        ({**LAYER, "k_format": 3}, TypeError, r"layers\[0\].k_format must be a str"),
        ({"kv_heads": 1}, ValueError, "needs kv_heads"),
    ]:
        with pytest.raises(error, match=words):
            cache(bad)
    with pytest.raises(TypeError, match="budget"):
        _core.Cache(kit.runtime, [LAYER])
    with pytest.raises(ValueError):
        cache()


def test_program_fields(kit):
    def program(ops_=None, ropes=None, widths=None, **kwargs):
        return _core.Program(
            kit.weights,
            widths=[WIDTH] * 5 if widths is None else widths,
            ops=ops() if ops_ is None else ops_,
            ropes=[rope()] if ropes is None else ropes,
            **({"act": "a32"} | kwargs),
        )

    head = ops()[-1]
    for bad, error, words in [
        ({}, ValueError, "no field 'kind'"),
        ({**head, "kind": "relu"}, ValueError, "not an op: 'relu'"),
        ({**head, "kind": None}, ValueError, "not an op"),
        ({**head, "kind": 3}, TypeError, "kind must be a str"),
        ({**head, "inn": 3}, ValueError, "unknown fields"),
        ({**head, "w": [1, 2, 3, 4]}, ValueError, "at most 3"),
        ({**head, "w": [1.5]}, TypeError, r"ops\[0\].w must be an integer"),
        ({**head, "eps": "a"}, TypeError, "eps must be a float"),
        ({**head, "n_out": 2}, ValueError, "n_out is 2"),
        ({**head, "w": 2**40}, ValueError, "must lie in"),
        (3, TypeError, "must be a mapping"),
    ]:
        with pytest.raises(error, match=words):
            program([bad])
    for bad, error, words in [
        ({**rope(), "dim": HEAD_DIM + 2}, ValueError, "dim / 2"),
        ({**rope(), "dim": 0}, ValueError, "dim / 2"),
        ({"dim": 4}, ValueError, "no field 'freq'"),
        ({**rope(), "freq": f32(8)}, TypeError, r"ropes\[0\].freq"),
        ({**rope(), "half_split": 1}, TypeError, "must be a bool"),
    ]:
        with pytest.raises(error, match=words):
            program(ropes=[bad])
    with pytest.raises(TypeError, match="widths must be a sequence"):
        program(widths=3)
    with pytest.raises(ValueError, match="widths"):
        program(widths=[0])
    with pytest.raises(ValueError, match="max_rows"):
        program(max_rows=0)
    with pytest.raises(TypeError, match="ropes"):
        _core.Program(kit.weights, widths=[1], ops=[])
    with pytest.raises(ValueError):
        program(ops()[:-1])
    program().close()


def test_hostile_index_cannot_close_what_is_used(kit):
    """Arguments are parsed before an object is entered: a close from __index__ is then seen."""
    cache = _core.Cache(kit.runtime, [LAYER], budget=1 << 22)
    seq = filled(cache)

    class Closer:
        def __index__(self):
            cache.close()
            return seq

    with pytest.raises(ClosedError):
        cache.length(Closer())
    assert cache.closed
