"""The roof op: how much a task does is the column's business, what it computes is not."""

import numpy as np
import pytest
from op_oracle import COLUMNS as VECTORS

from octavo import _core, _probe

INT8, F32, READ, TILE = range(4)
COLUMNS = [*VECTORS, "amx"]


def aligned(rows, nbytes):
    raw = np.empty(rows * nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + rows * nbytes].reshape(rows, nbytes)


def run(isa, kind, steps, data, *rows):
    if not _probe.runs_here(isa):
        pytest.skip(f"{isa} is absent on this machine")
    work, check = np.full(len(data), -1, np.int64), np.full(len(data), -1, np.int32)
    assert _probe.op_roof(isa, kind, steps, data, work, check, *rows) == 0
    return work, check.view(np.uint32)


@pytest.mark.parametrize("isa", COLUMNS)
@pytest.mark.parametrize("steps", [0, 1, 7, 1000])
def test_burns_compute_what_they_say(isa, steps):
    data = aligned(3, 1024)
    work, check = run(isa, INT8, steps, data)
    assert (check == steps * 4 * 2 * 3).all()
    assert (work % max(steps, 1) == 0).all() and (work >= 4 * steps).all()
    work, check = run(isa, F32, steps, data)
    a = np.float32(0)
    for _ in range(steps):
        a = a * np.float32(0.5) + np.float32(1)  # exact: each sum fits until it is 2
    assert (check.view(np.float32) == a).all()
    assert (work % max(steps, 1) == 0).all() and (work >= steps).all()


@pytest.mark.parametrize("isa", COLUMNS)
@pytest.mark.parametrize("steps", [0, 1, 1000])
def test_tiles_are_one_columns(isa, steps):
    work, check = run(isa, TILE, steps, aligned(3, 1024))
    products = 16 * 16 * 64 if isa == "amx" else 0
    assert (work == 4 * steps * products).all()
    assert (check == (steps * 64 * 2 * 3 if products else 0)).all()


@pytest.mark.parametrize("isa", COLUMNS)
@pytest.mark.parametrize("nbytes", [1024, 3072, 65536])
def test_reading_reads_every_byte_once(isa, nbytes):
    data = aligned(4, nbytes)
    data[...] = np.random.default_rng(nbytes).integers(0, 256, data.shape, np.uint8)
    work, check = run(isa, READ, 0, data)
    np.testing.assert_array_equal(check, np.bitwise_xor.reduce(data.view(np.uint32), axis=1))
    assert (work == nbytes).all()
    work, check = run(isa, READ, 0, data, 1, 3)
    assert (work == [-1, nbytes, nbytes, -1]).all()


def test_roofs_of_a_pool():
    runtime = _core.Runtime(2)
    roofs = runtime.roofs(1 << 20, 0.001)
    assert set(roofs) == {"int8_ops", "tile_ops", "f32_ops", "read_bytes"}
    tiles = roofs.pop("tile_ops")
    assert (1e6 < tiles < 1e16) if runtime.isa == "amx" else tiles == 0
    assert all(1e6 < rate < 1e16 for rate in roofs.values()), roofs
    for bad in ((0,), (1 << 40,), (1 << 20, 0.0), (1 << 20, float("nan")), (1 << 20, 61.0)):
        with pytest.raises(ValueError):
            runtime.roofs(*bad)
    runtime.close()
