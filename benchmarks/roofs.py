"""What this machine reaches at best, per column of kernels and number of threads.

    python benchmarks/roofs.py [--isa avx512 avx2] [--threads 1 2]

Byte products and float fma in registers, and reading memory; medians of rounds, columns and thread
counts interleaved. Every other benchmark measures these again beside its own rounds.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from common import interleaved, machine, options, roofs, spread, write

UNITS = {
    "stream_gbs": "GB/s",
    "int8_gops": "Gop/s",
    "f32_gops": "Gflop/s",
    "tile_gops": "Gop/s in tiles",
}


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__)
    parser.set_defaults(threads=[1, 2])
    parser.add_argument("--isa", nargs="+", default=["amx", "avx512", "avx2"])
    parser.add_argument("--seconds", type=float, default=0.2, help="for each of the roofs")
    args = parser.parse_args(argv)
    about = machine()
    cases = {
        (isa, threads): lambda threads=threads, isa=isa: roofs(threads, isa, args.seconds)
        for isa in args.isa
        for threads in args.threads
    }
    rows = []
    for (isa, threads), found in interleaved(cases, args.rounds).items():
        rates = {name: spread([at[name] for at in found]) for name in UNITS}
        rows.append({"isa": isa, "threads": threads, **rates})
        shown = (f"{r['median']:,.1f} ({r['min']:,.1f} to {r['max']:,.1f}) {UNITS[name]}"
                 for name, r in rates.items())  # fmt: skip
        print(f"{isa:<7} {threads} threads: {', '.join(shown)}")
    write("roofs", rows, about, args.results)


if __name__ == "__main__":
    main()
