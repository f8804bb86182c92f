"""One round of this package for `peers.py`, in a process of its own: JSON in, JSON out.

As llama-bench does: a prompt of random ids after a warm-up of the same kind, then single-token
steps behind `depth` tokens; loading and the prompt before the steps are not timed.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from counts import kv_bytes, linear_weights, read_per_step

import octavo

KV = {"16": "bf16", "8": "int8", "4": "int4"}


def prefill(llm: Any, ids: list[int]) -> float:
    with llm.sequence(prefix=False) as sequence:
        begin = time.perf_counter()
        sequence.append(ids)
        _ = sequence.logits
        return len(ids) / (time.perf_counter() - begin)


def decode(sequence: Any, ids: list[int]) -> tuple[float, int]:
    """Return tokens a second, and the bytes of pages halfway."""
    begin = time.perf_counter()
    for token in ids:
        sequence.append([token])
        _ = sequence.logits
    rate = len(ids) / (time.perf_counter() - begin)
    sequence.truncate(len(sequence) - len(ids) // 2)
    sequence.append([0])
    return rate, kv_bytes(sequence)


def round_of(job: dict[str, Any]) -> dict[str, Any]:
    """Run what the job asks for."""
    options = dict(pair.split("=") for pair in job["config"].split())
    options = {"kv": KV[job["kv"]], **options}
    rng = np.random.default_rng(time.time_ns())
    with octavo.LLM(job["model"], threads=job["threads"], progress=False, **options) as llm:
        longest = max(job["prefill"], job["depth"]) + job["decode"]
        ids = rng.integers(0, llm.spec.vocab, longest).tolist()
        out = {"version": octavo.__version__, "isa": llm.runtime.isa}
        out["config"] = f"kv={llm.kv} act={llm.act}"
        if job["prefill"]:
            prefill(llm, ids[: job["prefill"]])
            out["prefill"] = prefill(llm, ids[: job["prefill"]])
            out["ops_token"] = 2 * linear_weights(llm.spec)
        if job["decode"]:
            with llm.sequence(prefix=False) as sequence:
                if job["depth"]:
                    sequence.append(ids[: job["depth"]])
                with sequence.fork() as warm:
                    decode(warm, ids[:8])
                out["decode"], pages = decode(sequence, ids[-job["decode"] :])
            out["step_bytes"] = read_per_step(llm) + pages
        return out


if __name__ == "__main__":
    print(json.dumps(round_of(json.loads(sys.argv[1]))))
