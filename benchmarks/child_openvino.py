"""One round of OpenVINO GenAI for `peers.py`, in a process and an environment of its own.

Needs that environment's `openvino`, `openvino_genai` and `numpy` only. It keeps a cache of
prefixes, which would answer a repeated prompt, so every call gets a new random one. Decode is the
mean time between tokens after the first.
"""

import json
import sys
import time

import numpy as np
import openvino as ov
import openvino_genai as genai

KV = {"16": "f16", "8": "u8"}
LOWEST, HIGHEST = 300, 16000  # ids that every model in question has, and none of which is special


def round_of(job):
    """Run what the job asks for."""
    config = {"INFERENCE_NUM_THREADS": job["threads"]}
    if job["depth"]:
        config["KV_CACHE_PRECISION"] = KV[job["kv"]]
    pipe = genai.LLMPipeline(job["model"], "CPU", **config)
    rng = np.random.default_rng(time.time_ns())

    def run(prompt, new):
        ids = rng.integers(LOWEST, HIGHEST, (1, prompt))
        options = genai.GenerationConfig(max_new_tokens=new, do_sample=False, ignore_eos=True)
        inputs = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        begin = time.perf_counter()
        out = pipe.generate(inputs, options)
        return time.perf_counter() - begin, out.perf_metrics

    out = {"version": f"openvino_genai {genai.__version__}", "config": str(config)}
    if job["prefill"]:
        run(job["prefill"], 2)
        out["prefill"] = job["prefill"] / run(job["prefill"], 1)[0]
    if job["decode"]:
        run(1, 8)
        metrics = run(max(1, job["depth"]), job["decode"] + 1)[1]
        out["decode"] = 1e3 / metrics.get_tpot().mean
    return out


if __name__ == "__main__":
    print(json.dumps(round_of(json.loads(sys.argv[1]))))
