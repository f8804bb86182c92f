"""Every byte is in the ledger: the figures of formats.md D, written out again here from its table
of bits, scales and zeros, and the memory of the process."""

import gc
import os

import numpy as np
import pytest
import small
import tiny
from small import SANITIZED
from test_threads import rss

from octavo import _core

pytestmark = pytest.mark.core
LAYERS, HEADS, DIM = 30, 3, 64  # SmolLM2-135M
# Bits per code, 16-bit numbers per token of a head (scale; scale and zero), bytes of an open value.
FORMATS = {
    "f32": (32, 0, 4),
    "f16": (16, 0, 2),
    "bf16": (16, 0, 2),
    "fp8": (8, 1, 2),
    "int8": (8, 1, 2),
    "int4": (4, 2, 2),
}


def block_bytes(fmt, d=DIM):
    bits, extra, _ = FORMATS[fmt]
    return 64 * (d * bits // 8 + 2 * extra)


def expected(scheme, tokens, sinks=0, recent=0):
    k, v, _ = tiny.SCHEMES[scheme]
    heads = LAYERS * HEADS
    page = heads * (block_bytes(k) + block_bytes(v))
    row = heads * DIM * (FORMATS[k][2] + FORMATS[v][2])
    full, rest = divmod(tokens, 64)
    sealed = max(0, full - sinks - recent)
    rows = (full - sealed) * 64 + -(-rest // 16) * 16
    return sealed * page, rows * row, page, 16 * row


@pytest.fixture(scope="module")
def runtime():
    return _core.Runtime()


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return rng.standard_normal((2, 512 * LAYERS * HEADS * DIM), dtype=np.float32)


def grow(cache, seq, rows, tokens, at=0):
    while at < tokens:
        n = min(512, tokens - at)
        size = n * LAYERS * HEADS * DIM
        cache.append(seq, rows[0, :size], rows[1, :size], n)
        at += n


@pytest.mark.parametrize("scheme", tiny.SCHEMES)
def test_bytes_equal_the_formula(runtime, rows, scheme):
    layers = tiny.layers(scheme, LAYERS, kv_heads=HEADS, dim=DIM)
    cache = _core.Cache(runtime, layers, budget=1 << 30)
    seq, at = cache.open(), 0
    for tokens in (1, 64, 1000) if SANITIZED else (1, 64, 1000, 8192):
        grow(cache, seq, rows, tokens, at)
        at = tokens
        sealed, opened, page, unit = expected(scheme, tokens)
        for ledger in (cache.ledger(), cache.ledger(seq)):
            assert (ledger["sealed"], ledger["open"]) == (sealed, opened)
            assert (ledger["page_bytes"], ledger["unit_bytes"]) == (page, unit)
        memory = _core.memory()
        assert memory["pages"][0] >= sealed and memory["open"][0] >= opened


def test_published_figures():
    """Figures that formats.md gives outright."""
    assert expected("bf16", 8192)[0] == 180 << 20  # 180 MiB of SmolLM2 at 8,192 tokens
    assert expected("int4", 64)[0] // 64 == 6480  # bytes per token, where bf16 takes 23,040
    assert expected("bf16", 64)[0] // 64 == 23040
    assert [block_bytes(f, 128) for f in ("bf16", "int8", "int4")] == [16384, 8320, 4352]


@pytest.mark.parametrize("sinks,recent", [(1, 0), (0, 2), (1, 2), (40, 0)])
def test_windows_are_in_the_formula(runtime, rows, sinks, recent):
    layers = tiny.layers("int4", LAYERS, kv_heads=HEADS, dim=DIM)
    cache = _core.Cache(runtime, layers, budget=1 << 30, sink_pages=sinks, recent_pages=recent)
    seq, at = cache.open(), 0
    for tokens in (63, 64, 130, 192, 200, 1000):
        grow(cache, seq, rows, tokens, at)
        at = tokens
        ledger = cache.ledger()
        assert (ledger["sealed"], ledger["open"]) == expected("int4", tokens, sinks, recent)[:2]
        cache.check()


def test_ledger_equals_the_seam(runtime):
    """Sealed, open and tables, to the byte, through a life with every kind of change."""
    program = small.program(runtime)
    gc.collect()
    start = _core.memory()
    caches = [small.cache(runtime), small.cache(runtime, "int4", sink_pages=1, recent_pages=1)]

    def same():
        now = _core.memory()
        ledgers = [cache.ledger() for cache in caches]
        for tag, name in (("pages", "sealed"), ("open", "open"), ("tables", "tables")):
            grown = now[tag][0] - start[tag][0]
            assert grown == sum(ledger[name] for ledger in ledgers), tag

    same()
    for cache in caches:
        seqs = [cache.open() for _ in range(20)]
        for i, seq in enumerate(seqs[:6]):
            _core.step(program, cache, [(seq, tiny.tokens(150 + i, i) % 40, 150 + i)])
            same()
        fork = cache.fork(seqs[0])
        same()
        cache.truncate(fork, 90)
        view = cache.page(seqs[1], 0, 1, "k")
        view = view.array("codes") if view.sealed else None
        cache.release(seqs[1], True)
        same()
        del view
        same()
        for seq in (*seqs[2:], seqs[0], fork):
            cache.release(seq)
        same()
        cache.drop_prefix()
        same()
        assert cache.ledger()["sealed"] == cache.ledger()["open"] == 0
    for cache in caches:
        cache.close()
    assert small.live("pages", "open", "tables") == {
        tag: start[tag] for tag in ("pages", "open", "tables")
    }


@pytest.mark.skipif(SANITIZED, reason="a sanitizer's shadow is resident too")
@pytest.mark.parametrize("scheme", ["int8", "bf16"])
def test_a_gibibyte_is_a_gibibyte(runtime, rows, scheme):
    """The ledger's total equals the growth of resident memory within 1 %, and goes back with it."""
    layers = tiny.layers(scheme, LAYERS, kv_heads=HEADS, dim=DIM)
    warm = _core.Cache(runtime, layers, budget=1 << 28)
    grow(warm, warm.open(), rows, 640)  # scratch and code are resident from here on
    warm.close()
    cache = _core.Cache(runtime, layers, budget=(1 << 30) + (1 << 27))
    seq = cache.open()
    page = cache.ledger()["page_bytes"]
    tokens = -(-(1 << 30) // page) * 64
    gc.collect()
    before, ledger = rss(), cache.ledger()
    grow(cache, seq, rows, tokens)
    after, full = rss(), cache.ledger()
    total = sum(full[name] - ledger[name] for name in ("sealed", "open", "tables"))
    assert full["sealed"] >= 1 << 30
    assert abs((after - before) - total) <= 0.01 * total, (after - before, total)
    cache.release(seq)
    assert cache.ledger()["sealed"] == cache.ledger()["open"] == 0
    if not small.FAULTS:  # which poisons pages instead
        assert rss() - before <= 0.01 * total


def test_needs_and_bytes_for_are_exact(runtime):
    for kw in ({}, {"sink_pages": 1, "recent_pages": 2}):
        cache = small.cache(runtime, "int8", 1 << 22, **kw)
        program, seq, length = small.program(runtime), cache.open(), 0
        rng = np.random.default_rng(1)
        peak = 0
        for _ in range(60):
            n = int(rng.integers(1, 100))
            used = sum(cache.ledger()[name] for name in ("sealed", "open"))
            needed, room = cache.needs([seq], [n])
            assert room == (1 << 22) - used
            _core.step(program, cache, [(seq, tiny.tokens(n) % 40, n)])
            length += n
            now = sum(cache.ledger()[name] for name in ("sealed", "open"))
            assert now <= used + needed  # a step holds both forms of the pages it seals
            peak = max(peak, now)
            assert peak <= cache.bytes_for(length)
        with pytest.raises(ValueError):
            cache.needs([seq], [-1])
        for huge in ((1 << 36) * 64, (1 << 63) - 1):
            needed, _ = cache.needs([seq], [huge])
            assert needed > 1 << 40


def test_what_bytes_for_says_is_enough(runtime):
    """A budget of bytes_for(n) takes n tokens one by one."""
    for kw in ({}, {"sink_pages": 1, "recent_pages": 1}):
        for tokens in (1, 63, 64, 65, 200, 256):
            budget = small.cache(runtime, "int8", 1 << 20, **kw).bytes_for(tokens)
            cache = small.cache(runtime, "int8", budget, **kw)
            program, seq = small.program(runtime), cache.open()
            for i in range(tokens):
                _core.step(program, cache, [(seq, tiny.tokens(1, i) % 40, 1)])
            cache.check()
            assert cache.length(seq) == tokens


def test_rss_helper_reads_this_process():
    assert 1 << 20 < rss() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
