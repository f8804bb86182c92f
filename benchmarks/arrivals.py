"""A replayed arrival trace through continuous batching, beside the same trace run one by one.

    python benchmarks/arrivals.py [--model smollm2-135m] [--requests 64] [--rate 4] [--rows 512 128]

Arrivals are Poisson; lengths of prompts and of completions are log-uniform between two bounds each,
ids random, all from the seed. Reported are tokens a second over the whole trace, and median and
95th percentile of the time to the first token (from arrival, waiting included) and of the time per
token after it. One by one serves in order of arrival. Steps of fewer rows make prompts wait longer,
and those that decode meanwhile less.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from common import ROOFS, interleaved, machine, options, roof_row, roofs, spread, write
from serving import Job, run

import octavo


def trace(args: Any, vocab: int) -> list[Job]:
    """Return the jobs of a trace; the same for the same arguments."""
    rng = np.random.default_rng(args.seed)
    arrivals = np.cumsum(rng.exponential(1 / args.rate, args.requests))

    def lengths(bounds: list[int]) -> list[int]:
        low, high = np.log(bounds)
        return np.exp(rng.uniform(low, high, args.requests)).round().astype(int).tolist()

    sizes = zip(arrivals.tolist(), lengths(args.prompt), lengths(args.new), strict=True)
    return [Job(rng.integers(0, vocab, p).tolist(), n, at) for at, p, n in sizes]


def replay(llm: Any, args: Any, alone: bool) -> dict[str, float]:
    """Run the trace once and return its figures."""
    jobs = trace(args, llm.spec.vocab)
    took = run(llm, jobs, alone=alone)
    out = {"tokens_s": sum(len(j.tokens) for j in jobs) / took, "seconds": took}
    waits = {"first_ms": [j.first for j in jobs], "each_ms": [j.each for j in jobs]}
    for name, values in waits.items():
        for which, at in (("median", 50), ("p95", 95)):
            out[f"{name}_{which}"] = 1e3 * float(np.percentile(values, at))
    return out


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--kv", nargs="+", default=["bf16", "int4"])
    parser.add_argument("--act", nargs="+", default=["a8x2"])
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--rate", type=float, default=4.0, help="arrivals a second")
    parser.add_argument("--rows", type=int, nargs="+", default=[512, 128])
    parser.add_argument("--prompt", type=int, nargs=2, default=[32, 1024], metavar=("LOW", "HIGH"))
    parser.add_argument("--new", type=int, nargs=2, default=[16, 256], metavar=("LOW", "HIGH"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    about = machine()
    for threads in args.threads:
        with octavo.LLM(args.model, threads=threads, prefix=False, progress=False) as base:
            for act in args.act:
                rows = measure(base, act, threads, args)
                write("arrivals", rows, about, args.results)


def measure(base: Any, act: str, threads: int, args: Any) -> list[dict[str, Any]]:
    """Return a row per KV scheme, way of serving and size of steps, all interleaved."""
    ways = [("batched", rows) for rows in args.rows] + [("one by one", args.rows[0])]
    llms = {(kv, way, most): base.variant(kv=kv, act=act, max_rows=most)
            for kv in args.kv for way, most in ways}  # fmt: skip
    cases: dict[Any, Any] = {ROOFS: lambda: roofs(threads)}
    for key, llm in llms.items():
        cases[key] = lambda llm=llm, alone=key[1] == "one by one": replay(llm, args, alone)
    found, rows = interleaved(cases, args.rounds), []
    at = found.pop(ROOFS)
    for (kv, way, most), samples in found.items():
        row = {"model": base.name, "kv": kv, "act": act, "way": way, "rows": most}
        row |= {name: getattr(args, name) for name in ("requests", "rate", "prompt", "new", "seed")}
        row |= {name: spread([s[name] for s in samples]) for name in samples[0]}
        row |= {"isa": base.runtime.isa, "threads": threads, "roofs": roof_row(at)}
        shown = {name: row[name]["median"] for name in samples[0]}
        print(f"{kv:<6} {way:<10} {most:4} rows {shown['tokens_s']:7.1f} tok/s, first token "
              f"{shown['first_ms_median']:.0f} ms (p95 {shown['first_ms_p95']:.0f}), each "
              f"{shown['each_ms_median']:.1f} ms (p95 {shown['each_ms_p95']:.1f})")  # fmt: skip
        rows.append(row)
    for llm in llms.values():
        llm.close()
    return rows


if __name__ == "__main__":
    main()
