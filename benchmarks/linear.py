"""One matrix product: weight formats by activation forms by rows, in GB/s and Gop/s.

    python benchmarks/linear.py [--weights q4g32 w8g32 bf16] [--rows 1 128]

Matrices rotate through more than twice the last-level cache that the CPU reports (or --most-mib),
so that m = 1 reads memory. Bytes are those stored, scales included; ops are 2*m*n*k, beside the
roofs measured just after: the peak of byte products, or of float fma for a32.
"""

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from common import machine, timed, write

import octavo


def layers(scheme: str, act: str, n: int, k: int, nbytes: int) -> list[Any]:
    """Return as many packed matrices as reach `nbytes`; random weights, packed again each time."""
    w = np.random.default_rng(0).standard_normal((n, k), dtype=np.float32)
    out = [octavo.Linear(w, weights=scheme, act=act)]
    while sum(layer.nbytes for layer in out) < nbytes:
        out.append(octavo.Linear(w, weights=scheme, act=act))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--weights", nargs="+", default=["q4g32", "q4g32m", "w8g32", "bf16"])
    parser.add_argument("--act", nargs="+", default=["a8x2", "a8g32", "a32"])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 128])
    parser.add_argument("--shape", type=int, nargs=2, default=[4096, 4096], metavar=("N", "K"))
    parser.add_argument("--most-mib", type=int, default=512, help="limit on the rotation")
    args = parser.parse_args()
    n, k = args.shape
    about, rows = machine(), []
    target = min(2 * about["llc_bytes"], args.most_mib << 20)
    for scheme, act in itertools.product(args.weights, args.act):
        if scheme in {"bf16", "f16", "f32"} and act != "a32":
            continue  # float formats read exact activations
        rotation = layers(scheme, act, n, k, target)
        stored = rotation[0].nbytes
        for m in args.rows:
            x = np.random.default_rng(1).standard_normal((m, k), dtype=np.float32)
            turn = itertools.cycle(rotation)
            row = timed(lambda turn=turn, x=x: next(turn)(x))
            seconds = row["median_s"]
            row |= {"bench": "linear", "weights": scheme, "act": act, "m": m, "n": n, "k": k}
            row |= {"stored_bytes": stored, "rotation_bytes": stored * len(rotation)}
            row |= {"gbs": stored / seconds / 1e9, "gops": 2 * m * n * k / seconds / 1e9}
            roofs = octavo.machine(seconds=0.1, refresh=True)  # of this very moment
            peak = roofs.f32_ops if act == "a32" else roofs.int8_ops
            row |= {"stream_gbs": roofs.read_bytes / 1e9, "peak_gops": peak / 1e9}
            read, done = 100 * row["gbs"] / row["stream_gbs"], 100 * row["gops"] / row["peak_gops"]
            print(f"{scheme:<7} {act:<6} m{m:<4} {row['gbs']:7.1f} GB/s {read:5.1f} % of stream, "
                  f"{row['gops']:8.1f} Gop/s {done:5.1f} % of peak")  # fmt: skip
            rows.append(row)
    write("linear", rows, about)


if __name__ == "__main__":
    main()
