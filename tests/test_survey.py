"""`octavo.machine`: roofs measured once a process, for any thread count and column."""

import pytest

import octavo
from octavo import _core
from octavo.plan.machine import last_level_cache


def test_roofs_are_measured_once_and_on_demand():
    first = octavo.machine(1, seconds=0.005)
    assert octavo.machine(1) is first and first.threads == 1
    again = octavo.machine(1, seconds=0.005, refresh=True)
    assert again is not first and octavo.machine(1) is again
    assert first.cpu and first.isa == _core.Runtime(1).isa
    assert first.last_level_cache == last_level_cache() >= 1 << 16
    assert min(first.int8_ops, first.f32_ops, first.read_bytes) > 1e7
    assert "GB/s" in str(first) and first.isa in str(first)


def test_columns_differ():
    scalar = octavo.machine(1, "scalar", seconds=0.005)
    assert scalar.isa == "scalar" and scalar is not octavo.machine(1, seconds=0.005)


@pytest.mark.parametrize("threads", [0, -1, 10_000])
def test_bad_thread_counts(threads):
    with pytest.raises(ValueError, match="threads"):
        octavo.machine(threads)


@pytest.mark.parametrize("threads", ["2", 1.5, True])
def test_thread_counts_that_are_no_integers(threads):
    with pytest.raises(TypeError, match="machine: threads must be an int"):
        octavo.machine(threads)


def test_an_unknown_column():
    with pytest.raises(ValueError, match="avx1024"):
        octavo.machine(1, "avx1024")
