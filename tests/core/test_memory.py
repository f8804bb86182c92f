"""Bytes: the ledger equals the formula of docs/formats.md D, and what the process really took."""

import os
from pathlib import Path

import numpy as np
import pytest
import tiny

from octavo import _core

pytestmark = pytest.mark.core
LAYERS, KV_HEADS, DIM = 30, 3, 64  # SmolLM2-135M
ROW = {"f32": 256, "f16": 128, "bf16": 128, "fp8": 66, "int8": 66, "int4": 36}  # bytes, d = 64


def append_random(cache: _core.Cache, seq: int, n: int, layers: int, chunk: int = 512) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal(layers * chunk * KV_HEADS * DIM).astype(np.float32)
    for at in range(0, n, chunk):
        count = min(chunk, n - at)
        flat = rows[: layers * count * KV_HEADS * DIM]
        cache.append(seq, flat, flat, count)


@pytest.mark.parametrize("tokens", [64, 1000, 8192])
@pytest.mark.parametrize("scheme", tiny.SCHEMES)
def test_ledger_equals_the_formula(scheme, tokens):
    layers = 2 if os.environ.get("OCTAVO_SANITIZER") else LAYERS
    k, v, _ = tiny.SCHEMES[scheme]
    cache = _core.Cache(
        _core.Runtime(2), tiny.layers(scheme, layers, kv_heads=KV_HEADS, dim=DIM), budget=1 << 30
    )
    seq = cache.open()
    append_random(cache, seq, tokens, layers)
    heads = layers * KV_HEADS
    page = 64 * heads * (ROW[k] + ROW[v])
    rows = {"f32": 256}.get(k, 128) + {"f32": 256}.get(v, 128)
    units = -(-(tokens % 64) // 16)
    for ledger in (cache.ledger(), cache.ledger(seq)):
        assert ledger["sealed"] == tokens // 64 * page
        assert ledger["open"] == units * 16 * heads * rows
    assert _core.memory()["pages"][0] >= tokens // 64 * page
    cache.check()


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


@pytest.mark.skipif("OCTAVO_SANITIZER" in os.environ, reason="shadow memory counts as resident")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_a_gigabyte_of_cache_is_a_gigabyte_resident():
    cache = _core.Cache(
        _core.Runtime(2), tiny.layers("bf16", 4, kv_heads=KV_HEADS, dim=DIM), budget=5 << 28
    )
    seq = cache.open()
    append_random(cache, seq, 512, 4)  # warm: scratch and tables are there
    before, ledger = resident(), cache.ledger()
    held = ledger["sealed"] + ledger["open"] + ledger["tables"]
    append_random(cache, seq, (1 << 30) // (4 * KV_HEADS * DIM * 4) // 512 * 512, 4)
    after = cache.ledger()
    grown = after["sealed"] + after["open"] + after["tables"] - held
    assert grown > 1e9
    assert abs((resident() - before) / grown - 1) < 0.01
    cache.release(seq)
    assert cache.ledger()["sealed"] == 0
    assert resident() - before < 0.01 * grown
