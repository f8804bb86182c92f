"""The first layers of Kimi K2.5, its embedding and its head, through `step`, on random weights.

    python benchmarks/slice.py [--layers 2] [--batch 1 8 64] [--prefill 512] [--context 1024]

The spec is made from the release's config, all 384 experts of a layer are there in int4 (9.5 GB;
16 GB in all) and the rest in bf16. A batch of b decodes one token of each of b sequences, forks of
one history of `context` tokens; a prefill runs so many tokens of an empty sequence. Bytes are what
the step counts, each expert once; tokens are random, so a router spreads them nearly evenly.
"""

import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import ml_dtypes
import numpy as np
from common import (
    ROOFS,
    interleaved,
    machine,
    options,
    percent,
    roof_row,
    roofs,
    spread,
    use,
    write,
)
from moe import random_int4

from octavo import _core
from octavo.model import ModelSpec, spec_of
from octavo.model.dense import program_of
from octavo.plan.configs import KNOWN
from octavo.scheme import KVScheme

POOL = 1 << 22


def spec_of_slice(args: Any) -> ModelSpec:
    """Return the release's spec with fewer layers, and with the numbers that are given."""
    text = {**KNOWN["kimi-k2.5"].config["text_config"], "num_hidden_layers": args.layers}
    given = dict(pair.split("=") for pair in args.set)
    text |= {key: int(value) for key, value in given.items()}
    return spec_of({**KNOWN["kimi-k2.5"].config, "text_config": text}, "slice")


def fill(runtime: Any, spec: ModelSpec) -> tuple[Any, dict[str, int]]:
    """Return weights for every role: experts in int4, other matrices in bf16, vectors in f32."""
    rng, weights, ids = np.random.default_rng(0), _core.Weights(runtime), {}
    pool = rng.standard_normal(POOL, dtype=np.float32)
    experts: dict[tuple[int, ...], Any] = {}
    for use_ in spec.uses:
        if len(use_.shape) == 1:
            near = 0.0 if use_.role.endswith("router.bias") else 1.0
            ids[use_.role] = weights.vector(np.full(use_.shape, near, np.float32))
            continue
        n, k = use_.shape
        if ".moe." in use_.role and not use_.role.endswith("router"):
            source = experts.get((n, k)) or experts.setdefault((n, k), random_int4(rng, n, k))
            (ids[use_.role],) = weights.matrices([source])
            continue
        values = np.resize((pool / math.sqrt(k)).astype(ml_dtypes.bfloat16).view(np.uint16), (n, k))
        ids[use_.role] = weights.matrix(
            "bf16", n, k, values, source="values", values_type="bf16", row_stride=2 * k
        )
    return weights, ids


class Slice:
    """The program over its weights, and a cache with one history to fork."""

    def __init__(self, runtime: Any, args: Any) -> None:
        self.spec = spec_of_slice(args)
        self.draw = np.random.default_rng(1)
        self.weights, ids = fill(runtime, self.spec)
        most = max(args.rows, *args.batch, *args.prefill)
        self.program = _core.Program(
            self.weights, **program_of(self.spec).lowered(ids), act=args.act, max_rows=most
        )
        layers = KVScheme.parse(args.kv).core_layers(self.spec.cache_layers)
        self.cache = _core.Cache(runtime, layers, budget=1 << 30)
        self.history = self.cache.open()
        for at in range(0, args.context, args.rows):
            self.run([(self.history, self.ids(min(args.rows, args.context - at)))], timed=False)

    def ids(self, n: int) -> Any:
        return self.draw.integers(0, self.spec.vocab, n).astype(np.int32)

    def run(self, items: list[tuple[int, Any]], timed: bool = True) -> Any:
        """Run a step that gives the last logits of each item; return its cost by kind of work."""
        asked = [(seq, ids, len(ids) - 1) for seq, ids in items]
        out = _core.step(self.program, self.cache, asked, argmax=True, timed=timed)
        if not all(out["ok"]):
            raise ArithmeticError("a step of the slice is not finite")
        return out["cost"]

    def decode(self, batch: int) -> Any:
        seqs = [self.cache.fork(self.history) for _ in range(batch)]
        cost = self.run([(seq, self.ids(1)) for seq in seqs])
        for seq in seqs:
            self.cache.release(seq)
        return cost

    def prefill(self, tokens: int) -> Any:
        seq = self.cache.open()
        cost = self.run([(seq, self.ids(tokens))])
        self.cache.release(seq)
        return cost


def measure(args: Any, threads: int) -> list[dict[str, Any]]:
    """Return a row per batch and per prefill, all interleaved with the roofs."""
    runtime = use(threads, args.isa)
    model = Slice(runtime, args)
    cases: dict[Any, Callable[[], Any]] = {ROOFS: lambda: roofs(threads, args.isa)}
    for kind, sizes in (("decode", args.batch), ("prefill", args.prefill)):
        for n in sizes:
            cases[kind, n] = lambda kind=kind, n=n: getattr(model, kind)(n)
    found, rows = interleaved(cases, args.rounds), []
    at = found.pop(ROOFS)
    for (kind, n), costs in found.items():
        took, read = ([sum(c[i] for c in cost.values()) for cost in costs] for i in (0, 1))
        gbs = [nbytes / t / 1e9 for nbytes, t in zip(read, took, strict=True)]
        row = {"kind": kind, "m": n, "layers": args.layers, "kv": args.kv, "act": args.act,
               "context": args.context if kind == "decode" else 0, "isa": runtime.isa,
               "threads": threads, "weight_bytes": model.weights.nbytes}  # fmt: skip
        row |= {"ms": spread([1e3 * t for t in took]), "gbs": spread(gbs)}
        row |= {"percent_stream": percent(gbs, at, "stream_gbs"), "roofs": roof_row(at)}
        both = list(zip(costs, took, strict=True))
        row["share"] = {
            name: round(statistics.median(c[name][0] / t for c, t in both), 4) for name in costs[0]
        }
        most = sorted(row["share"].items(), key=lambda item: -item[1])[:4]
        print(f"{kind:<7} m{n:<4} {row['ms']['median']:9.2f} ms {row['gbs']['median']:6.1f} GB/s "
              f"{row['percent_stream']:5.1f} % of stream; "
              + ", ".join(f"{name} {100 * share:.0f} %" for name, share in most))  # fmt: skip
        rows.append(row)
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--prefill", type=int, nargs="+", default=[512])
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=512, help="most tokens of a step")
    parser.add_argument("--kv", default="int8")
    parser.add_argument("--act", default="a8g32")
    parser.add_argument("--set", nargs="+", default=[], help="fields of the config, as key=number")
    parser.add_argument("--isa")
    args = parser.parse_args(argv)
    about = machine()
    for threads in args.threads:
        write("slice", measure(args, threads), about, args.results)


if __name__ == "__main__":
    main()
