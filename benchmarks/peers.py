"""Octavo beside llama.cpp (and OpenVINO GenAI, where importable) on one GGUF file.

    python benchmarks/peers.py --llama-bench PATH [--model smollm2-135m] [--rounds 5]

Each round runs every engine once, in turn, in a process of its own with the same threads: prefill
of 512 tokens, then 128 single-token steps from an empty context, as `llama-bench -p 512 -n 128`
does. Reported are medians over rounds and the median of each round's ratio. Loading is not timed;
every engine warms up first. Nothing else should be running.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

PREFILL, DECODE = 512, 128


def octavo_round(model: str, threads: int) -> dict[str, Any]:
    """One round of this package: random ids, bf16 KV, default activations."""
    import numpy as np

    import octavo

    rng = np.random.default_rng(time.time_ns())
    with octavo.LLM(model, threads=threads) as llm:
        ids = rng.integers(0, llm.spec.vocab, PREFILL + DECODE).tolist()

        def prefill(count: int) -> float:
            with llm.sequence(prefix=False) as sequence:
                begin = time.perf_counter()
                sequence.append(ids[:count])
                _ = sequence.logits
                return count / (time.perf_counter() - begin)

        def decode(count: int) -> float:
            with llm.sequence(prefix=False) as sequence:
                begin = time.perf_counter()
                for token in ids[PREFILL : PREFILL + count]:
                    sequence.append([token])
                    _ = sequence.logits
                return count / (time.perf_counter() - begin)

        prefill(PREFILL), decode(8)
        return {
            "prefill": prefill(PREFILL),
            "decode": decode(DECODE),
            "version": octavo.__version__,
            "isa": llm.runtime.isa,
            "config": f"kv={llm.kv} act={llm.act}",
        }


def llama_round(binary: str, model: str, threads: int) -> dict[str, Any]:
    """One round of llama-bench, which warms up by itself."""
    command = [binary, "-m", model, "-p", PREFILL, "-n", DECODE, "-t", threads, "-r", 1]
    done = subprocess.run(
        [*map(str, command), "-o", "json"], capture_output=True, text=True, check=True
    )
    rows = json.loads(done.stdout)
    rate = {("prefill" if r["n_prompt"] else "decode"): r["avg_ts"] for r in rows}
    first = rows[0]
    version = f"llama.cpp {first['build_commit']}"
    config = f"kv={first['type_k']}:{first['type_v']} fa={first['flash_attn']}"
    return rate | {"version": version, "config": config}


def openvino_round(model: str, threads: int) -> dict[str, Any]:
    """One round of OpenVINO GenAI; a new random prompt each time, for it caches prefixes."""
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    pipe = genai.LLMPipeline(model, "CPU", INFERENCE_NUM_THREADS=threads)
    rng = np.random.default_rng(time.time_ns())

    def run(prompt: int, new: int) -> tuple[float, Any]:
        ids = rng.integers(17, 49152, (1, prompt))
        config = genai.GenerationConfig(max_new_tokens=new, do_sample=False, ignore_eos=True)
        inputs = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        begin = time.perf_counter()
        out = pipe.generate(inputs, config)
        return time.perf_counter() - begin, out.perf_metrics

    run(PREFILL, 2), run(1, 8)
    wall, _ = run(PREFILL, 1)
    _, metrics = run(1, DECODE + 1)
    return {
        "prefill": PREFILL / wall,
        "decode": 1e3 / metrics.get_tpot().mean,
        "version": f"openvino_genai {genai.__version__}",
        "config": "defaults",
    }


def in_process(engine: str, model: str, threads: int) -> dict[str, Any]:
    """Run a round of a Python engine in a process of its own."""
    command = [sys.executable, __file__, "--worker", engine, "--model", model]
    command += ["--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{engine} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--llama-bench", default=os.environ.get("LLAMA_BENCH"))
    parser.add_argument("--model", default="smollm2-135m", help="a name or a .gguf file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-openvino", action="store_true")
    parser.add_argument("--worker", choices=["octavo", "openvino"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        run = {"octavo": octavo_round, "openvino": openvino_round}[args.worker]
        print(json.dumps(run(args.model, args.threads)))
        return
    compare(args)


def compare(args: argparse.Namespace) -> None:
    """Interleave the engines, print medians and ratios, append the rows."""
    import importlib.util

    from common import machine, write

    from octavo.hub import resolve

    model = str(resolve(args.model))
    engines = {"octavo": lambda: in_process("octavo", model, args.threads)}
    if args.llama_bench:
        engines["llama.cpp"] = lambda: llama_round(args.llama_bench, model, args.threads)
    if importlib.util.find_spec("openvino_genai") and not args.no_openvino:
        engines["openvino"] = lambda: in_process("openvino", model, args.threads)
    about, rounds = machine(), []
    for i in range(args.rounds):
        rounds.append({name: run() for name, run in engines.items()})
        shown = (f"{k} {v['prefill']:.0f}/{v['decode']:.1f}" for k, v in rounds[-1].items())
        print(f"round {i + 1}: prefill/decode tok/s: {', '.join(shown)}", file=sys.stderr)
    rows = []
    print(f"{'engine':<10} {'phase':<8} {'tok/s':>8} {'min':>8} {'max':>8}  octavo/engine")
    for name in engines:
        for phase, count in (("prefill", PREFILL), ("decode", DECODE)):
            rates = [r[name][phase] for r in rounds]
            ratios = [r["octavo"][phase] / r[name][phase] for r in rounds]
            row = {
                "bench": "peers",
                "engine": name,
                "phase": phase,
                "tokens": count,
                "rate_median": statistics.median(rates),
                "rates": rates,
                "octavo_ratio": statistics.median(ratios),
                "ratios": ratios,
                "threads": args.threads,
                "model": Path(model).name,
                **{
                    k: rounds[0][name][k]
                    for k in ("version", "config", "isa")
                    if k in rounds[0][name]
                },
            }
            rows.append(row)
            print(
                f"{name:<10} {phase:<8} {row['rate_median']:>8.1f} {min(rates):>8.1f} "
                f"{max(rates):>8.1f}  {row['octavo_ratio']:.2f}"
            )
    write("peers", rows, about)


if __name__ == "__main__":
    main()
