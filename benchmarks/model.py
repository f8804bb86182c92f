"""Tokens per second of a whole model: prefill and decode, over KV schemes, activations, contexts.

    python benchmarks/model.py [--model smollm2-135m] [--kv bf16 int8 int4] [--context 0 1024 8000]

Schemes are interleaved, round by round. Decode rates also give the bytes that a step must read
(weights once, plus the KV cache at that context) as GB/s beside a read stream measured in the same
process just before.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from common import machine, write

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--kv", nargs="+", default=["bf16", "fp8", "int8", "k8v4", "int4"])
    parser.add_argument("--act", nargs="+", default=["a8x2"])
    parser.add_argument("--context", type=int, nargs="+", default=[0, 1024])
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    about, rows = machine(), []
    with octavo.LLM(args.model, threads=args.threads) as base:
        rng = np.random.default_rng(0)
        count = max(args.context) + args.prefill + args.decode
        ids = rng.integers(0, base.spec.vocab, count).tolist()
        threads = base.runtime.threads
        roofs = octavo.machine(threads, refresh=True)
        stream = roofs.read_bytes / 1e9
        print(roofs)
        for act in args.act:
            llms = {kv: base.variant(kv=kv, act=act) for kv in args.kv}
            rows += measure(llms, ids, args, {"act": act, "stream_gbs": stream})
            for llm in llms.values():
                llm.close()
    write("model", [row | {"threads": threads} for row in rows], about)


def measure(llms: dict[str, Any], ids: list[int], args: Any, common: dict) -> list[dict[str, Any]]:
    """Return one row per scheme and phase."""
    samples: dict[tuple[str, str, int], list[float]] = {}
    held = {(kv, n): context_of(llm, ids, n) for kv, llm in llms.items() for n in args.context}
    for i in range(args.rounds + 1):  # the first round warms up
        for kv, llm in llms.items():
            rates = {("prefill", 0): prefill_rate(llm, ids[: args.prefill])}
            for n in args.context:
                rates["decode", n] = decode_rate(held[kv, n], ids[-args.decode :])
            for (phase, n), rate in rates.items() if i else ():
                samples.setdefault((kv, phase, n), []).append(rate)
    rows = []
    for (kv, phase, n), rates in samples.items():
        row = {"bench": "model", "kv": kv, "phase": phase, "context": n, "rates": rates, **common}
        row["rate_median"] = statistics.median(rates)
        row |= {"model": llms[kv].name, "isa": llms[kv].runtime.isa}
        if phase == "decode":
            ledger = held[kv, n].kv.bytes()
            read = llms[kv].weight_bytes + ledger.sealed + ledger.open
            row |= {"step_bytes": read, "gbs": read * row["rate_median"] / 1e9}
        shown = f", {row['gbs']:.1f} GB/s" if "gbs" in row else ""
        print(f"{kv:<9} {phase:<8} context {n:<6} {row['rate_median']:8.1f} tok/s{shown}")
        rows.append(row)
    for sequence in held.values():
        sequence.close()
    return rows


if __name__ == "__main__":
    main()
