"""KV scheme names: what they mean, that they round-trip, and how errors help."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import UnsupportedError
from octavo.model import LayerShape
from octavo.plan.machine import tables
from octavo.scheme import KVScheme, known_kv_names

FORMATS = ["f32", "f16", "bf16", "fp8", "int8", "int4"]
SHAPES = (LayerShape(3, 64, 64),) * 4


@pytest.mark.parametrize(
    ("name", "k", "v", "k_transform", "v_transform", "canonical"),
    [
        ("bf16", "bf16", "bf16", None, None, "bf16"),
        ("k8v4", "int8", "int4", None, None, "k8v4"),
        ("int8:int4", "int8", "int4", None, None, "k8v4"),
        ("int4-had", "int4", "int4", "had", "had", "int4-had"),
        ("int4-had:int8", "int4", "int8", "had", None, "int4-had:int8"),
        ("int4-had0:16:int4", "int4", "int4", "had0:16", None, "int4-had0:16:int4"),
        ("fp8_e4m3", "fp8", "fp8", None, None, "fp8"),
        ("auto", "bf16", "bf16", None, None, "bf16"),
        (" INT8 ", "int8", "int8", None, None, "int8"),
    ],
)
def test_names(name, k, v, k_transform, v_transform, canonical):
    s = KVScheme.parse(name)
    assert (s.k, s.v, s.k_transform, s.v_transform) == (k, v, k_transform, v_transform)
    assert str(s) == canonical
    assert KVScheme.parse(canonical) == s


side = st.tuples(st.sampled_from(FORMATS), st.sampled_from([None, "had", "had0", "had:16"]))


@given(k=side, v=side, sinks=st.integers(0, 3), recent=st.integers(0, 3),
       layers=st.dictionaries(st.integers(-4, 3), side, max_size=3))  # fmt: skip
def test_canonical_names_round_trip(k, v, sinks, recent, layers):
    inner = {i: KVScheme(f, k_transform=t, v_transform=t) for i, (f, t) in layers.items()}
    s = KVScheme(k[0], v[0], k[1], v[1], sinks, recent, layers=inner)
    again = KVScheme.parse(str(s))
    assert again == s
    assert hash(again) == hash(s)
    assert (again.k, again.v_transform, again.sink_pages) == (k[0], v[1], sinks)
    assert {i: str(x) for i, x in again.layers.items()} == {i: str(x) for i, x in inner.items()}


def test_formats_come_from_the_core():
    assert set(FORMATS) <= set(tables().pages)
    assert {"int4-had", "k8v4", *FORMATS} <= set(known_kv_names())


def test_layers_by_index_from_both_ends():
    s = KVScheme("int4", layers={0: "bf16", -1: "int8-had"})
    low = s.core_layers(SHAPES)
    assert [d["k_format"] for d in low] == ["bf16", "int4", "int4", "int8"]
    assert [d["v_transform"] for d in low] == [None, None, None, "had"]
    for bad, text in (({4: "bf16"}, "no layer 4"), ({3: "bf16", -1: "int8"}, "the same layer")):
        with pytest.raises(ValueError, match=text):
            KVScheme("int4", layers=bad).core_layers(SHAPES)


def test_attention_holds_where_a_format_has_it():
    s = KVScheme.parse("int8,attention=q8x2,layer0=bf16")
    assert [d["form"] for d in s.core_layers(SHAPES)] == [None, "q8x2", "q8x2", "q8x2"]
    with pytest.raises(UnsupportedError, match="q8"):
        KVScheme("bf16", attention="q8")


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("int5", ValueError, "nearest: 'int"),
        ("", ValueError, "1 to 400"),
        ("x" * 1_000_000, ValueError, "1 to 400"),
        ("int4-hadamard", ValueError, "known: "),
        ("int4-had:3", ValueError, "power of two"),
        ("int4:", ValueError, "known: "),
        ("int4,sinks=-1", ValueError, "legal: sinks=N"),
        ("int4,layer0=bf16,layer0=int8", ValueError, "each layer once"),
        ("int4,layer0=bf16,flavour=mild", ValueError, "flavour"),
        ("nvfp4", UnsupportedError, "not built.*'int4'"),
        ("kivi2", UnsupportedError, "int4-had"),
        ("fp8:turbo4", UnsupportedError, "turbo4"),
        ("fp8_e5m2", UnsupportedError, "'fp8'"),
        (None, TypeError, "NoneType"),
        (4, TypeError, "int"),
    ],
)
def test_errors_help(name, error, text):
    with pytest.raises(error, match=text):
        KVScheme.parse(name)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [("sink_pages", -1, ValueError), ("recent_pages", True, TypeError), ("sink_pages", 1.0,
     TypeError), ("layers", [1], TypeError), ("layers", {"0": "bf16"}, TypeError),
     ("layers", {0: "bf16,sinks=1"}, ValueError), ("k_transform", "dct", ValueError),
     ("attention", "flash", ValueError)],
)  # fmt: skip
def test_fields_are_checked(field, value, error):
    with pytest.raises(error):
        KVScheme("int4", **{field: value})


def test_the_error_lists_all_known_names():
    with pytest.raises(ValueError) as caught:
        KVScheme.parse("int5")
    assert all(name in str(caught.value) for name in known_kv_names())
