"""One layer of experts at the width of Kimi K2.5, on random weights that really fill memory.

    python benchmarks/moe.py [--experts 384] [--rows 1 8 64 512 4096] [--act a8 a8g32 a8x2]

All 384 experts in int4 with bf16 scales per 32 are 9.5 GB, so one token's eight, 198 MB, come from
memory. Every step draws other tokens, and a random router spreads them nearly evenly. Bytes are
those of the experts that the step chose, each once; the time is of the experts alone, with sharing
out, SwiGLU and the weighted sum; the router's is beside it.
"""

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import ml_dtypes
import numpy as np
from common import ROOFS, interleaved, machine, options, roofs, spread, use, write
from linear import row_of

from octavo import _core

VOCAB = 4096


def random_int4(rng: Any, n: int, k: int) -> dict[str, Any]:
    """Return what `Weights.matrices` takes of an int4 matrix with bf16 scales per 32."""
    scales = rng.uniform(0.001, 0.01, (n, k // 32)).astype(ml_dtypes.bfloat16)
    return dict(
        format="q4g32", n=n, k=k, codes=rng.integers(0, 16, (n, k), dtype=np.uint8), row_stride=k,
        group_stride=32, scales=scales.view(np.uint16), scale_type="bf16",
        scale_row_stride=k // 32 * 2, scale_group_stride=2,
    )  # fmt: skip


class Layer:
    """embed, one mixture of experts, and a head of one block."""

    def __init__(self, runtime: Any, args: Any, act: str, weights: Any = None) -> None:
        self.weights = weights or self.fill(runtime, args)
        experts, top = args.experts, args.top
        matrices = np.arange(3, 3 + 3 * experts, dtype=np.int32).reshape(-1, 3)
        moe = {"kind": "moe", "in": 0, "out": [0, 1], "w": [1], "matrices": matrices, "top": top,
               "experts": experts, "renorm": True, "scale": 2.827}  # fmt: skip
        ops = [{"kind": "embed", "out": [0], "w": [0]}, moe, {"kind": "head", "in": 0, "w": [2]}]
        self.program = _core.Program(
            self.weights, widths=[args.hidden, experts + 2 * top], ops=ops, ropes=[], act=act,
            max_rows=max(args.rows),
        )  # fmt: skip
        layer = {"kv_heads": 1, "k_width": 16, "v_width": 16, "k_format": "f32", "v_format": "f32"}
        self.cache = _core.Cache(runtime, [layer], budget=1 << 26)
        self.draw = np.random.default_rng(1)

    @staticmethod
    def fill(runtime: Any, args: Any) -> Any:
        """Matrices 0 to 2 are embedding, router and head; then gate, up, down of each expert."""
        rng, hidden = np.random.default_rng(0), args.hidden
        weights = _core.Weights(runtime)
        for fmt, n in (("f32", VOCAB), ("bf16", args.experts), ("f32", 32)):
            w = rng.standard_normal((n, hidden), dtype=np.float32) / np.float32(hidden**0.5)
            weights.matrix(fmt, n, hidden, w, source="values", values_type="f32",
                           row_stride=4 * hidden)  # fmt: skip
        shapes = (args.inner, hidden), (args.inner, hidden), (hidden, args.inner)
        kinds = [random_int4(rng, n, k) for n, k in shapes]
        for _ in range(args.experts):
            weights.matrices(kinds)
        return weights

    def step(self, n: int) -> dict[str, tuple[float, ...]]:
        """Run one step of n drawn tokens and return its cost by kind of work."""
        seq = self.cache.open()
        ids = self.draw.integers(0, VOCAB, n).astype(np.int32)
        cost = _core.step(self.program, self.cache, [(seq, ids, n)], timed=True)["cost"]
        self.cache.release(seq)
        return cost


def measure(args: Any, isa: str, threads: int) -> list[dict[str, Any]]:
    """Return a row per activation form and number of tokens, all interleaved."""
    runtime = use(threads, isa)
    layers: dict[str, Layer] = {}
    for act in args.act:
        shared = next(iter(layers.values())).weights if layers else None
        layers[act] = Layer(runtime, args, act, shared)
    cases: dict[Any, Callable[[], Any]] = {ROOFS: lambda: roofs(threads, isa)}
    for act, n in itertools.product(args.act, args.rows):
        cases[act, n] = lambda act=act, n=n: layers[act].step(n)
    found, rows = interleaved(cases, args.rounds), []
    at = found.pop(ROOFS)
    for (act, n), costs in found.items():
        took = [c["expert"][0] for c in costs]
        nbytes, ops = (round(np.median([c["expert"][i] for c in costs])) for i in (1, 2))
        row = {"weights": "q4g32", "act": act, "m": n, "experts": args.experts, "top": args.top}
        row |= {"hidden": args.hidden, "inner": args.inner, "isa": runtime.isa, "threads": threads}
        row |= {"bytes": nbytes, "ops": ops}
        row |= {"route_us": spread([1e6 * c["route"][0] for c in costs])}
        row |= row_of(took, at, nbytes, ops, "int8_gops")
        print(f"{act:<6} m{n:<5} {row['us']['median'] / 1e3:9.2f} ms, "
              f"{row['gbs']['median']:6.1f} GB/s {row['percent_stream']:5.1f} % of stream, "
              f"{row['gops']['median']:7.1f} Gop/s {row['percent_peak']:5.1f} % of peak, "
              f"{row['percent_lower_roof']:5.1f} % of the lower roof; "
              f"router {row['route_us']['median']:.0f} us")  # fmt: skip
        rows.append(row)
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--experts", type=int, default=384)
    parser.add_argument("--top", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=7168)
    parser.add_argument("--inner", type=int, default=2048)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--act", nargs="+", default=["a8", "a8g32", "a8x2"])
    parser.add_argument("--isa", default=None)
    args = parser.parse_args(argv)
    about = machine()
    for threads in args.threads:
        write("moe", measure(args, args.isa, threads), about, args.results)


if __name__ == "__main__":
    main()
