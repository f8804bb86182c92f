"""One matrix product: weight format by activation form by rows by shape by column.

    python benchmarks/linear.py [--weights q4g32 bf16] [--rows 1 128] [--isa avx512 avx2]

Matrices rotate through more than twice the last-level cache that the CPU reports (at most
--most-mib), so that m = 1 reads memory. Bytes are those stored, scales included; ops are 2*m*n*k.
The lower roof is the longer of the two times that bytes and ops need: reading memory, and the peak
of byte products (of float fma for a32).
"""

import itertools
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from common import (
    ROOFS,
    Roofs,
    interleaved,
    machine,
    options,
    percent,
    roof_row,
    roofs,
    spread,
    timer,
    use,
    write,
)

import octavo

FLOATS = {"bf16", "f16", "f32"}


def rotation(scheme: str, n: int, k: int, nbytes: int) -> list[Any]:
    """Return as many packed copies of a random matrix as reach `nbytes`."""
    w = np.random.default_rng(0).standard_normal((n, k), dtype=np.float32)
    out = [octavo.Linear(w, weights=scheme)]
    copies = min(-(-nbytes // out[0].nbytes), 64)
    return out + [octavo.Linear(w, weights=scheme) for _ in range(copies - 1)]


def product(layers: list[Any], act: str, m: int) -> Callable[[], Any]:
    """Return a call that multiplies m rows by the next of the matrices."""
    n, k = layers[0].shape
    x = np.random.default_rng(1).standard_normal((m, k), dtype=np.float32)
    out, turn = np.empty((m, n), np.float32), itertools.cycle(layers)

    def call() -> None:
        layer = next(turn)
        layer.act = act
        layer(x, out=out)

    return call


def row_of(times: list[float], at: list[Roofs], nbytes: int, ops: int, peak: str) -> dict[str, Any]:
    """Return rates and percentages of the roofs."""
    gbs, gops = [nbytes / t / 1e9 for t in times], [ops / t / 1e9 for t in times]
    floor = [max(nbytes / r["stream_gbs"], ops / r[peak]) / 1e9 for r in at]
    of_floor = [100 * f / t for f, t in zip(floor, times, strict=True)]
    return {
        "us": spread([1e6 * t for t in times]),
        "gbs": spread(gbs),
        "gops": spread(gops),
        "percent_stream": percent(gbs, at, "stream_gbs"),
        "percent_peak": percent(gops, at, peak),
        "percent_lower_roof": round(statistics.median(of_floor), 2),
        "peak": peak,
        "roofs": roof_row(at),
    }


def measure(scheme: str, shape: tuple[int, int], isa: str, threads: int, args: Any) -> list[dict]:
    """Return one row per activation form and number of rows, all interleaved."""
    n, k = shape
    actual = use(threads, isa).isa
    layers = rotation(scheme, n, k, args.rotate)
    stored = layers[0].nbytes
    acts = ["a32"] if scheme in FLOATS else [a for a in args.act if a != "a32"]
    cases: dict[Any, Callable[[], Any]] = {ROOFS: lambda: roofs(threads, isa)}
    for act, m in itertools.product(acts, args.rows):
        cases[act, m] = timer(product(layers, act, m), args.at_least)
    found, rows = interleaved(cases, args.rounds), []
    at = found.pop(ROOFS)
    for (act, m), times in found.items():
        peak = "f32_gops" if act == "a32" else "int8_gops"
        row = {"weights": scheme, "act": act, "m": m, "n": n, "k": k, "isa": actual}
        row |= {"threads": threads, "stored_bytes": stored, "rotation_bytes": stored * len(layers)}
        row |= row_of(times, at, stored, 2 * m * n * k, peak)
        print(f"{actual:<7} {scheme:<7} {act:<6} {n}x{k} m{m:<4} {row['gbs']['median']:7.1f} GB/s "
              f"{row['percent_stream']:5.1f} % of stream, {row['gops']['median']:8.1f} Gop/s "
              f"{row['percent_peak']:5.1f} % of peak")  # fmt: skip
        rows.append(row)
    for layer in layers:
        layer.close()
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__)
    known = ["q4g32", "q4g32m", "q4g32z", "w8g32", "w8", "bf16", "f32"]
    parser.add_argument("--weights", nargs="+", default=known)
    parser.add_argument("--act", nargs="+", default=["a8x2", "a8g32", "a8"])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 64, 512])
    parser.add_argument("--shape", nargs="+", default=["4096x4096"], metavar="NxK")
    parser.add_argument("--isa", nargs="+", default=["amx", "avx512", "avx2"])
    parser.add_argument("--most-mib", type=int, default=512, help="limit on the rotation")
    parser.add_argument("--at-least", type=float, default=0.05, help="seconds of a sample")
    args = parser.parse_args(argv)
    about = machine()
    args.rotate = min(2 * about["llc_bytes"] + (1 << 20), args.most_mib << 20)
    shapes = [tuple(map(int, s.split("x"))) for s in args.shape]
    for each in itertools.product(args.isa, args.threads, shapes, args.weights):
        isa, threads, shape, scheme = each
        write("linear", measure(scheme, shape, isa, threads, args), about, args.results)


if __name__ == "__main__":
    main()
