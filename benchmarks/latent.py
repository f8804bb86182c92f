"""Latent attention (MLA) at the widths of Kimi K2.5: decode over sealed latents that fill memory.

    python benchmarks/latent.py [--kv bf16 int8 int4] [--context 32768 131072 262144]
    python benchmarks/latent.py --prefill 2048

One layer, 64 heads over one latent of 512 and one rotated key of 64, queries after the last token,
sequences in turn until they exceed twice the last-level cache. Bytes are the pages' as stored. The
roof's time is the larger of bytes / stream and byte operations / their peak + float operations /
theirs: 4 * heads * 512 * tokens of the latent, in the scheme's form, and 2 * heads * 64 * tokens of
the rotated key, always in floats. `times bf16` compares rates within the rounds.
"""

import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from attention import BLOCK, decode_call, filled, normal, prompt_time
from common import (
    ROOFS,
    interleaved,
    machine,
    options,
    roof_row,
    roofs,
    spread,
    timer,
    use,
    write,
)

import octavo

SCALE = 0.1446796


def cache_of(kv: str, args: Any, tokens: int) -> Any:
    """Return an empty one-layer cache with room for so many tokens, on the shared threads."""
    memory = (tokens + 4 * BLOCK) * 4 * (args.rank + args.rope) + (64 << 20)
    return octavo.Cache(1, 1, args.rank, kv=kv, rope_dim=args.rope, memory=memory)


def decode(context: int, args: Any) -> list[dict[str, Any]]:
    """Return a row per scheme and thread count, all interleaved."""
    cases: dict[Any, Callable[[], Any]] = {}
    held, stored = [], {}
    rows = normal(BLOCK, 1, args.rank), normal(BLOCK, 1, args.rope)
    q = normal(1, args.heads, args.rank + args.rope)
    for threads in args.threads:
        isa = use(threads, args.isa).isa
        cases[ROOFS, threads] = lambda threads=threads: roofs(threads, args.isa)
        for kv in args.kv:
            make = partial(cache_of, kv, args)
            cache, sequences, stored[kv] = filled(make, rows, context, args.rotate)
            held.append(cache)
            cases[kv, threads] = timer(decode_call(sequences, q, SCALE), args.at_least)
    found, out = interleaved(cases, args.rounds), []
    for kv, threads in (key for key in found if key[0] != ROOFS):
        row = {"kind": "decode", "kv": kv, "context": context, "stored_bytes": stored[kv]}
        row |= described(args, threads, isa)
        pairs = context * args.heads
        out.append(finished(row, pairs, stored[kv], found, args))
    for cache in held:
        cache.close()
    return out


def prefill(tokens: int, args: Any) -> list[dict[str, Any]]:
    """Return a row per scheme and thread count for a causal prompt, less what storing takes."""
    rows = normal(tokens, 1, args.rank), normal(tokens, 1, args.rope)
    q = normal(tokens, args.heads, args.rank + args.rope)
    cases: dict[Any, Callable[[], Any]] = {}
    held = []
    for threads in args.threads:
        isa = use(threads, args.isa).isa
        cases[ROOFS, threads] = lambda threads=threads: roofs(threads, args.isa)
        for kv in args.kv:
            held.append(cache := cache_of(kv, args, tokens))
            cases[kv, threads] = lambda cache=cache: max(
                1e-9, prompt_time(cache, rows, q, args.chunk, SCALE)
                - prompt_time(cache, rows, None, args.chunk)
            )  # fmt: skip
    found, out = interleaved(cases, args.rounds), []
    for kv, threads in (key for key in found if key[0] != ROOFS):
        row = {"kind": "prefill", "kv": kv, "context": tokens, "chunk": args.chunk}
        row |= described(args, threads, isa)
        out.append(finished(row, args.heads * tokens * (tokens + 1) / 2, 0, found, args))
    for cache in held:
        cache.close()
    return out


def described(args: Any, threads: int, isa: str) -> dict[str, Any]:
    return {"heads": args.heads, "rank": args.rank, "rope": args.rope, "threads": threads,
            "isa": isa}  # fmt: skip


def finished(
    row: dict[str, Any], pairs: float, nbytes: int, found: dict[Any, list[Any]], args: Any
) -> dict[str, Any]:
    """Add times, rates and the part of the roof that was reached, and print the row."""
    kv, threads = row["kv"], row["threads"]
    times, at = found[kv, threads], found[ROOFS, threads]
    scheme = octavo.KVScheme.parse(kv)
    codes = scheme.k in ("int8", "int4") and scheme.attention != "f32"
    ops = {"latent": 4 * pairs * args.rank, "rope": 2 * pairs * args.rope}
    peak = "int8_gops" if codes else "f32_gops"
    least = [
        max(nbytes / r["stream_gbs"], ops["latent"] / r[peak] + ops["rope"] / r["f32_gops"]) / 1e9
        for r in at
    ]
    row["us"] = spread([1e6 * t for t in times])
    row["gbs"] = spread([nbytes / t / 1e9 for t in times])
    row["gops"] = spread([sum(ops.values()) / t / 1e9 for t in times])
    row["percent_roof"] = 100 * statistics.median(least) / statistics.median(times)
    if base := found.get(("bf16", threads)):
        row["times_bf16"] = statistics.median(b / t for b, t in zip(base, times, strict=True))
    row["roofs"] = roof_row(at)
    print(f"{row['kind']:<7} {kv:<18} context {row['context']:<6} {threads} threads: "
          f"{row['us']['median'] / 1e3:9.2f} ms {row['gbs']['median']:6.1f} GB/s "
          f"{row['gops']['median']:7.1f} Gop/s, {row['percent_roof']:5.1f} % of the roof, "
          f"{row.get('times_bf16', float('nan')):5.2f} x bf16")  # fmt: skip
    return row


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--kv", nargs="+", default=["bf16", "fp8", "int8", "int4"])
    parser.add_argument("--context", type=int, nargs="+", default=[32768, 131072, 262144])
    parser.add_argument("--prefill", type=int, nargs="+", help="prompts, instead of --context")
    parser.add_argument("--chunk", type=int, default=512, help="rows of a step of a prompt")
    parser.add_argument("--heads", type=int, default=64)
    parser.add_argument("--rank", type=int, default=512)
    parser.add_argument("--rope", type=int, default=64)
    parser.add_argument("--isa")
    parser.add_argument("--most-mib", type=int, default=640, help="limit on what is read in turn")
    parser.add_argument("--at-least", type=float, default=0.1, help="seconds of a sample")
    args = parser.parse_args(argv)
    about = machine()
    args.rotate = min(2 * about["llc_bytes"] + (1 << 20), args.most_mib << 20)
    measure, sizes = (prefill, args.prefill) if args.prefill else (decode, args.context)
    for size in sizes:
        write("latent", measure(size, args), about, args.results)


if __name__ == "__main__":
    main()
