"""Tokens per second of a whole model: prefill, decode over depth, and decode over batch.

    python benchmarks/model.py [--model smollm2-135m] [--kv bf16 int8 int4] [--context 0 4096]
    python benchmarks/model.py --batch 1 2 4 8 16 32 --context 32 1024 --kv bf16 int4

Schemes, depths and batches are interleaved, round by round. Bytes of a step are the weights once
(the embedding only where it is the head too) and the pages of every sequence, counted at the middle
of the measured tokens; ops of a prefill are 2 * weights of the layers * tokens, attention left out.
"""

import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from common import ROOFS, interleaved, machine, options, percent, roof_row, roofs, spread, write
from counts import kv_bytes, linear_weights, read_per_step
from serving import Job, run

import octavo


def prefill_rate(llm: Any, ids: list[int]) -> float:
    with llm.sequence(prefix=False) as sequence:
        begin = time.perf_counter()
        sequence.append(ids)
        return len(ids) / (time.perf_counter() - begin)


def decode_rate(sequence: Any, ids: list[int]) -> float:
    """Time single-token steps on a fork, so that every round starts from the same context."""
    with sequence.fork() as fork:
        begin = time.perf_counter()
        for token in ids:
            fork.append([token])
        return len(ids) / (time.perf_counter() - begin)


def context_of(llm: Any, ids: list[int], context: int) -> Any:
    sequence = llm.sequence(prefix=False)
    sequence.append(ids[: max(1, context)])
    return sequence


def batch_rate(llm: Any, batch: int, context: int, new: int) -> float:
    """Return tokens a second of `batch` sequences in the steps that decode them all."""
    rng = np.random.default_rng(0)
    prompts = -(-batch * context // llm._max_rows) + 1  # steps that prefill, when some decode
    jobs = [Job(rng.integers(0, llm.spec.vocab, context).tolist(), new + prompts)
            for _ in range(batch)]  # fmt: skip
    run(llm, jobs)
    begin = max(j.tokens[0] for j in jobs)
    end = min(j.tokens[-1] for j in jobs)
    return sum(begin < t <= end for j in jobs for t in j.tokens) / (end - begin)


def cases_of(llms: dict[str, Any], args: Any) -> tuple[dict[Any, Callable[[], float]], list[Any]]:
    """Return the calls to be timed by (scheme, phase, context, batch), and sequences to close."""
    rng = np.random.default_rng(0)
    cases: dict[Any, Callable[[], float]] = {}
    held = []
    count = max(args.context) + max(args.prefill, args.decode)
    for kv, llm in llms.items():
        ids = rng.integers(0, llm.spec.vocab, count).tolist()
        if args.batch:
            for batch, n in itertools.product(args.batch, args.context):
                cases[kv, "batch", n, batch] = (
                    lambda llm=llm, batch=batch, n=n: batch_rate(llm, batch, max(1, n), args.decode)
                )  # fmt: skip
            continue
        cases[kv, "prefill", 0, 1] = lambda llm=llm, ids=ids: prefill_rate(llm, ids[: args.prefill])
        for n in args.context:
            held.append(one := context_of(llm, ids, n))
            tail = ids[-args.decode :]
            cases[kv, "decode", n, 1] = lambda one=one, tail=tail: decode_rate(one, tail)
    return cases, held


def measure(llms: dict[str, Any], args: Any, common: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row per scheme, phase, depth and batch."""
    cases, held = cases_of(llms, args)
    found = interleaved({ROOFS: lambda: roofs(common["threads"]), **cases}, args.rounds)
    at, rows = found.pop(ROOFS), []
    for (kv, phase, n, batch), rates in found.items():
        llm = llms[kv]
        row = {**common, "kv": kv, "phase": phase, "context": n, "batch": batch}
        row |= {"tokens_s": spread(rates), "roofs": roof_row(at)}
        if phase == "prefill":
            row |= {"tokens": args.prefill, "ops_token": 2 * linear_weights(llm.spec)}
            gops = [rate * row["ops_token"] / 1e9 for rate in rates]
            row["percent_peak"] = percent(gops, at, "int8_gops")
        else:
            with context_of(llm, [0] * llm.context, n + args.decode // 2) as middle:
                row["step_bytes"] = read_per_step(llm) + batch * kv_bytes(middle)
            gbs = [rate / batch * row["step_bytes"] / 1e9 for rate in rates]
            row |= {"gbs": spread(gbs), "percent_stream": percent(gbs, at, "stream_gbs")}
        rows.append(row)
        share = row.get("percent_stream", row.get("percent_peak"))
        print(f"{kv:<9} {common['act']:<6} {phase:<8} context {n:<6} batch {batch:<3} "
              f"{row['tokens_s']['median']:8.1f} tok/s, {share:.1f} % of the roof")  # fmt: skip
    for sequence in held:
        sequence.close()
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--kv", nargs="+", default=["bf16", "fp8", "int8", "k8v4", "int4"])
    parser.add_argument("--act", nargs="+", default=["a8x2"])
    parser.add_argument("--context", type=int, nargs="+", default=[0, 1024])
    parser.add_argument("--batch", type=int, nargs="+", help="time these, nothing else")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--memory", default="2 GiB", help="of each scheme's pages")
    args = parser.parse_args(argv)
    about = machine()
    for threads in args.threads:
        with octavo.LLM(
            args.model, threads=threads, memory=args.memory, prefix=False, progress=False
        ) as base:
            for act in args.act:
                common = {"model": base.name, "isa": base.runtime.isa, "threads": threads}
                llms = {kv: base.variant(kv=kv, act=act) for kv in args.kv}
                rows = measure(llms, args, {**common, "act": act})
                for llm in llms.values():
                    llm.close()
                write("model", rows, about, args.results)


if __name__ == "__main__":
    main()
