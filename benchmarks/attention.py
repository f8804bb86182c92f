"""Attention over pages: KV scheme by depth by heads by threads, decode and prefill.

    python benchmarks/attention.py [--kv bf16 int8] [--context 4096] [--threads 1 2]
    python benchmarks/attention.py --prefill 4096 --shape 9x3x64 32x8x128

Decode is one layer, queries after the last token, sequences in turn until they exceed twice the
last-level cache; bytes are the pages' as stored, ops 4*m*heads*d*tokens. Prefill appends a causal
prompt in chunks as the engine does, once with queries and once without; the difference of the two
is attention, its ops are half of the full square.
"""

import itertools
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from common import (
    ROOFS,
    interleaved,
    machine,
    options,
    percent,
    roof_row,
    roofs,
    seconds,
    spread,
    timer,
    use,
    write,
)

import octavo

BLOCK = 2048  # rows appended at once while a cache is filled


def cache_of(kv: str, shape: list[int], tokens: int) -> Any:
    """Return an empty one-layer cache with room for so many tokens, on the shared threads."""
    _, kv_heads, d = shape
    row = 2 * kv_heads * d * 4
    return octavo.Cache(1, kv_heads, d, kv=kv, memory=(tokens + 4 * BLOCK) * row + (64 << 20))


def normal(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def filled(
    make: Callable[[int], Any], rows: tuple[Any, Any], context: int, nbytes: int
) -> tuple[Any, list[Any], int]:
    """Return a cache, sequences in it that hold `nbytes` in all, and the bytes of one.

    `make` gives an empty cache with room for so many tokens; `rows` are BLOCK of keys and of
    values, again and again.
    """
    with make(BLOCK) as probe:
        count = min(256, int(nbytes / probe.bytes().sealed_token_bytes / context) + 1)
    cache = make(context * count)
    sequences = [cache.sequence() for _ in range(count)]
    for one in sequences:
        for at in range(0, context, BLOCK):
            one.append(*(part[: context - at] for part in rows))
    ledger = sequences[0].bytes()
    return cache, sequences, ledger.sealed + ledger.open


def decode_call(sequences: list[Any], q: Any, scale: float | None = None) -> Callable[[], Any]:
    turn = itertools.cycle(sequences)
    return lambda: next(turn).attend(q, scale=scale)


def decode(shape: list[int], context: int, args: Any) -> list[dict[str, Any]]:
    """Return a row per scheme, thread count and number of query rows; all interleaved."""
    heads, kv_heads, d = shape
    k = normal(BLOCK, kv_heads, d)
    cases: dict[Any, Callable[[], Any]] = {}
    held, stored = [], {}
    for threads in args.threads:
        isa = use(threads, args.isa).isa
        cases[ROOFS, threads] = lambda threads=threads: roofs(threads, args.isa)
        for kv in args.kv:
            make = partial(cache_of, kv, shape)
            cache, sequences, stored[kv] = filled(make, (k, k), context, args.rotate)
            held.append(cache)
            for m in args.rows:
                call = decode_call(sequences, normal(m, heads, d))
                cases[kv, threads, m] = timer(call, args.at_least)
    found, rows = interleaved(cases, args.rounds), []
    for (kv, threads, m), times in ((k, v) for k, v in found.items() if k[0] != ROOFS):
        ops = 4 * m * heads * d * context
        row = {"kind": "decode", "kv": kv, "context": context, "m": m, "stored_bytes": stored[kv]}
        row |= described(shape, threads, isa) | rates(kv, times, stored[kv], ops)
        rows.append(finished(row, found[ROOFS, threads]))
    for cache in held:
        cache.close()
    return rows


def prompt_time(
    cache: Any, rows: tuple[Any, Any], q: Any | None, chunk: int, scale: float | None = None
) -> float:
    """Append a prompt to a new sequence, chunk by chunk, and return the seconds."""
    sequence = cache.sequence()
    k, v = rows
    parts = [slice(at, at + chunk) for at in range(0, len(k), chunk)]

    def run() -> None:
        for part in parts:
            sequence.append(k[part], v[part], None if q is None else q[part], scale)

    took = seconds(run)
    sequence.close()
    return took


def prefill(shape: list[int], tokens: int, args: Any) -> list[dict[str, Any]]:
    """Return a row per scheme and thread count for a causal prompt."""
    heads, kv_heads, d = shape
    k, q = normal(tokens, kv_heads, d), normal(tokens, heads, d)
    cases: dict[Any, Callable[[], Any]] = {}
    held = []
    for threads in args.threads:
        isa = use(threads, args.isa).isa
        cases[ROOFS, threads] = lambda threads=threads: roofs(threads, args.isa)
        for kv in args.kv:
            held.append(cache := cache_of(kv, shape, tokens))
            for name, queries in (("with", q), ("without", None)):
                cases[kv, threads, name] = (
                    lambda cache=cache, queries=queries: prompt_time(
                        cache, (k, k), queries, args.chunk
                    )
                )  # fmt: skip
    found, rows = interleaved(cases, args.rounds), []
    for (kv, threads, _), whole in ((k, v) for k, v in found.items() if k[-1] == "with"):
        bare = found[kv, threads, "without"]
        times = [max(1e-9, a - b) for a, b in zip(whole, bare, strict=True)]
        row = {"kind": "prefill", "kv": kv, "context": tokens, "m": tokens, "chunk": args.chunk}
        row |= {"append_s": spread(bare), **described(shape, threads, isa)}
        row |= rates(kv, times, 0, 2 * heads * d * tokens * (tokens + 1))
        rows.append(finished(row, found[ROOFS, threads]))
    for cache in held:
        cache.close()
    return rows


def described(shape: list[int], threads: int, isa: str) -> dict[str, Any]:
    heads, kv_heads, d = shape
    return {"heads": heads, "kv_heads": kv_heads, "head_dim": d, "threads": threads, "isa": isa}


def rates(kv: str, times: list[float], nbytes: int, ops: int) -> dict[str, Any]:
    """Return times, rates, and the roof of operations that the scheme's dot form has."""
    scheme = octavo.KVScheme.parse(kv)
    codes = {scheme.k, scheme.v} <= {"int8", "int4"} and scheme.attention != "f32"
    out = {"us": spread([1e6 * t for t in times]), "peak": "int8_gops" if codes else "f32_gops"}
    out["gbs"] = spread([nbytes / t / 1e9 for t in times])
    out["gops"] = spread([ops / t / 1e9 for t in times])
    return out


def finished(row: dict[str, Any], at: list[dict[str, float]]) -> dict[str, Any]:
    """Add percentages of the roofs, and print the row."""
    row["percent_stream"] = percent(row["gbs"]["samples"], at, "stream_gbs")
    row["percent_peak"] = percent(row["gops"]["samples"], at, row["peak"])
    row["roofs"] = roof_row(at)
    shape = f"{row['heads']}x{row['kv_heads']}x{row['head_dim']}"
    read = f"{row['gbs']['median']:6.1f} GB/s {row['percent_stream']:5.1f} % of stream, "
    read = read if row["kind"] == "decode" else ""
    print(f"{row['kind']:<7} {row['kv']:<18} {shape} context {row['context']:<6} m{row['m']:<4} "
          f"{row['threads']} threads: {read}{row['gops']['median']:7.1f} Gop/s "
          f"{row['percent_peak']:5.1f} % of {row['peak'][:-5]}")  # fmt: skip
    return row


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--kv", nargs="+", default=["bf16", "fp8", "int8", "k8v4", "int4"])
    parser.add_argument("--context", type=int, nargs="+", default=[512, 4096, 32768])
    parser.add_argument("--prefill", type=int, nargs="+", help="prompts, instead of --context")
    parser.add_argument("--chunk", type=int, default=512, help="rows of a step of a prompt")
    parser.add_argument("--rows", type=int, nargs="+", default=[1])
    parser.add_argument("--shape", nargs="+", default=["32x8x128", "9x3x64"], metavar="HxKVxD")
    parser.add_argument("--isa")
    parser.add_argument("--most-mib", type=int, default=512, help="limit on what is read in turn")
    parser.add_argument("--at-least", type=float, default=0.1, help="seconds of a sample")
    args = parser.parse_args(argv)
    about = machine()
    args.rotate = min(2 * about["llc_bytes"] + (1 << 20), args.most_mib << 20)
    measure, sizes = (prefill, args.prefill) if args.prefill else (decode, args.context)
    for shape, size in itertools.product(args.shape, sizes):
        rows = measure([int(n) for n in shape.split("x")], size, args)
        write("attention", rows, about, args.results)


if __name__ == "__main__":
    main()
