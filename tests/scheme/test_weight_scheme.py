"""Weight schemes and activation forms by name."""

import pytest

from octavo.errors import UnsupportedError
from octavo.scheme import WeightScheme, parse_act


def test_names_and_defaults():
    assert WeightScheme.parse("checkpoint").format_of("layers.0.attn.q") == "checkpoint"
    four = WeightScheme.parse("q4g32")
    assert four.format_of("layers.0.attn.q") == "q4g32"
    assert four.format_of("embed") == four.format_of("head") == "checkpoint"
    assert WeightScheme.parse("bf16").format_of("embed") == "bf16"
    assert str(WeightScheme("q4_0", grid="ggml")) == "q4g32,grid=ggml"
    kept = WeightScheme("w8g32", ignore=("layers.0.*",))
    assert kept.format_of("layers.0.mlp.up") == "checkpoint"
    assert kept.format_of("embed") == "w8g32"
    assert hash(kept) != hash(WeightScheme("w8g32"))


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: WeightScheme("q4g33"), ValueError, "nearest: 'q4g32'"),
        (lambda: WeightScheme("w4a8-g64"), UnsupportedError, "not built"),
        (lambda: WeightScheme("fp8"), UnsupportedError, "w8g32"),
        (lambda: WeightScheme("w8a8"), UnsupportedError, "'w8'"),
        (lambda: WeightScheme("q4g32", method="gptq"), ValueError, "rtn"),
        (lambda: WeightScheme("q4g32m", grid=7), ValueError, "grid"),
        (lambda: WeightScheme("q4g32", ignore="embed"), TypeError, "ignore"),
        (lambda: WeightScheme.parse(3), TypeError, "int"),
        (lambda: parse_act("a9"), ValueError, "known: a32"),
        (lambda: parse_act("a16"), UnsupportedError, "a8x2"),
    ],
)
def test_errors_help(make, error, text):
    with pytest.raises(error, match=text):
        make()
