"""Octavo beside other engines on the same GGUF files, with the same threads, in the same minutes.

    python benchmarks/peers.py --gguf Q4_1.gguf Q4_0.gguf Q8_0.gguf
    python benchmarks/peers.py --gguf Q4_1.gguf --depth 4096 8000 --kv 16 8 8k 4

Every round runs each contender once, in turn, in a process of its own, roofs measured just before:
a prompt of 512 tokens and 128 single-token steps, or (--depth) steps behind so many tokens with
flash attention on. Contenders are ENGINE or ENGINE:CONFIG; octavo takes arguments of LLM, ik and
llama flags of their llama-bench (at a depth, llama runs in an environment with llama-cpp-python,
which can keep a filled cache from round to round, and takes no flags). An engine that is not here
is skipped, and the reason printed. KV types by bits: bf16, int8, int4 here; f16, q8_0, q4_0 there;
8k has ik's q8_KV for keys; openvino has f16 and u8.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from common import machine, options, percent, roof_row, roofs, spread, write
from counts import KV_BITS, gguf_facts

HERE = Path(__file__).resolve().parent
GGML_KV = {"16": ("f16", "f16"), "8": ("q8_0", "q8_0"), "4": ("q4_0", "q4_0")}
TYPES = {  # of keys and of values, by bits
    "llama": GGML_KV,
    "ik": {**GGML_KV, "8k": ("q8_KV", "q8_0")},
    "openvino": {"16": ("f16", "f16"), "8": ("u8", "u8")},
}
SHORT = ["octavo:act=a8x2", "octavo:act=a8g32", "ik:-rtr 1", "ik:", "llama:", "openvino:"]
DEEP = ["octavo:act=a8x2", "ik:-rtr 1", "llama:"]


@dataclass(frozen=True)
class Job:
    """What one process does."""

    model: str
    threads: int
    prefill: int
    decode: int
    depth: int
    kv: str
    config: str
    folder: str  # what a contender may leave for its next round


def locate(args: Any) -> dict[str, list[str]]:
    """Return the command that starts each engine; say which are absent, and why."""
    found = {"octavo": [sys.executable, str(HERE / "child_octavo.py")]}
    places = {"llama": "llama_bench", "ik": "ik_llama_bench", "openvino": "openvino_python"}
    places |= {"llama": "llama_python"} if args.depth else {}
    for name, place in places.items():
        given = getattr(args, place)
        if not given:
            flag = place.replace("_", "-")
            print(f"{name}: skipped: neither --{flag} nor {place.upper()} is set")
        elif not Path(given).is_file():
            print(f"{name}: skipped: there is no file {given}")
        else:
            child = [str(HERE / f"child_{name}.py")] if place.endswith("_python") else []
            found[name] = [given, *child]
    return found


def bench_flags(engine: str, job: Job) -> list[str]:
    """Return the flags of llama-bench for a job."""
    flags = ["-m", job.model, "-t", str(job.threads), "-r", "1", "-o", "json", *job.config.split()]
    if not job.depth:
        return [*flags, "-p", str(job.prefill), "-n", str(job.decode)]
    keys, values = TYPES[engine][job.kv]
    flags += ["-ctk", keys, "-ctv", values, "-fa", "1", "-p", "0", "-n", "0"]
    return [*flags, "-gp", f"{job.depth},{job.decode}"]


def bench_result(text: str) -> dict[str, Any]:
    """Read what llama-bench printed."""
    rows = json.loads(text[text.index("[") :])
    out = {("decode" if r["n_gen"] else "prefill"): r["avg_ts"] for r in rows}
    first = rows[0]
    names = ("type_k", "type_v", "flash_attn", "repack", "n_threads", "n_depth")
    shown = (f"{n}={first[n]}" for n in names if n in first)
    return {**out, "version": first["build_commit"], "config": " ".join(shown)}


def run(engine: str, command: list[str], job: Job) -> dict[str, Any]:
    """Run one process and return its figures."""
    child = command[-1].endswith(".py")
    more = [json.dumps(asdict(job))] if child else bench_flags(engine, job)
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-600:] or f"exit status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1]) if child else bench_result(done.stdout)


def contenders(args: Any, depth: int, found: dict[str, list[str]]) -> dict[tuple[str, Job], Any]:
    """Return commands by engine and job: files, KV types and configurations crossed."""
    out = {}
    kinds = args.kv if depth else ["16"]
    engines = args.engines or (DEEP if depth else SHORT)
    for model, kv, each in itertools.product(args.gguf, kinds, engines):
        engine, _, config = each.partition(":")
        if engine in found and kv in TYPES.get(engine, GGML_KV):
            prefill = 0 if depth else args.prefill
            job = Job(model, args.threads[0], prefill, args.decode, depth, kv, config, args.folder)
            out[engine, job] = found[engine]
    return out


def play(cases: dict[tuple[str, Job], list[str]], rounds: int) -> dict[tuple[str, Job], list[Any]]:
    """Return (roofs, figures) per contender and round; who fails is left out."""
    played: dict[tuple[str, Job], list[Any]] = {case: [] for case in cases}
    for i in range(rounds):
        for (engine, job), command in cases.items():
            if (engine, job) not in played:
                continue
            at = roofs(job.threads)
            try:
                played[engine, job].append((at, run(engine, command, job)))
            except (RuntimeError, ValueError, KeyError) as error:
                print(f"{engine} {job.config} on {Path(job.model).name}: left out: {error}")
                del played[engine, job]
        print(f"round {i + 1} of {rounds}", file=sys.stderr)
    return played


def rows_of(engine: str, job: Job, samples: list[Any], facts: dict[str, Any]) -> list[dict]:
    """Return a row per phase."""
    at, figures = [s[0] for s in samples], [s[1] for s in samples]
    bits = sum(KV_BITS[kind] for kind in TYPES.get(engine, GGML_KV)[job.kv]) / 2
    pages = facts["kv_elements"] * bits / 8 * (job.depth + job.decode / 2)
    common = {"engine": engine, "asked": job.config, "config": figures[0]["config"]}
    common |= {"version": figures[0]["version"], "isa": figures[0].get("isa"), "kv_bits": job.kv}
    common |= {"model": facts["name"], "file": Path(job.model).name, "form": facts["form"]}
    common |= {"threads": job.threads, "depth": job.depth, "roofs": roof_row(at)}
    rows = []
    for phase in ("prefill", "decode"):
        if phase not in figures[0]:
            continue
        rates = [f[phase] for f in figures]
        row = {**common, "phase": phase, "tokens": getattr(job, phase), "tokens_s": spread(rates)}
        if phase == "prefill":
            row["ops_token"] = 2 * facts["linear_weights"]
            gops = [rate * row["ops_token"] / 1e9 for rate in rates]
            row["percent_peak"] = percent(gops, at, "int8_gops")
        else:
            row["step_bytes"] = round(figures[0].get("step_bytes", facts["step_bytes"] + pages))
            gbs = [rate * row["step_bytes"] / 1e9 for rate in rates]
            row["percent_stream"] = percent(gbs, at, "stream_gbs")
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    for r in rows:
        share = r.get("percent_stream", r.get("percent_peak"))
        roof = "stream" if "percent_stream" in r else "int8 peak"
        name = f"{r['engine']} {r['asked']}".strip()
        print(f"{name:<22} {r['form']:<5} kv {r['kv_bits']:<3} depth {r['depth']:<5} "
              f"{r['phase']:<8} {r['tokens_s']['median']:8.1f} tok/s "
              f"({r['tokens_s']['min']:.1f} to {r['tokens_s']['max']:.1f}), "
              f"{share:.1f} % of {roof}")  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__)
    for place in ("llama_bench", "llama_python", "ik_llama_bench", "openvino_python"):
        flag = f"--{place.replace('_', '-')}"
        parser.add_argument(flag, default=os.environ.get(place.upper()), help=f"or {place.upper()}")
    parser.add_argument("--gguf", nargs="+", default=["smollm2-135m"], help="files, or known names")
    parser.add_argument("--engines", nargs="+", help=f"default: {SHORT}; with --depth: {DEEP}")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=128)
    parser.add_argument("--depth", type=int, nargs="+", help="decode behind so many tokens only")
    parser.add_argument("--kv", nargs="+", default=["16", "8", "8k", "4"], help="with --depth")
    args = parser.parse_args(argv)
    from octavo.hub import resolve

    if 0 in (args.depth or ()):
        parser.error("--depth: wants more than 0 tokens; without it prompt and decode are measured")
    args.gguf = [str(resolve(name)) for name in args.gguf]
    about = machine()
    found, facts = locate(args), {path: gguf_facts(path) for path in args.gguf}
    for depth in args.depth or [0]:
        with tempfile.TemporaryDirectory() as args.folder:
            played = play(contenders(args, depth, found), args.rounds)
        rows = [r for (e, j), s in played.items() for r in rows_of(e, j, s, facts[j.model])]
        show(rows)
        write("peers", rows, about, args.results)


if __name__ == "__main__":
    main()
