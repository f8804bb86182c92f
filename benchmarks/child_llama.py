"""One round of llama.cpp behind a prompt for `peers.py`, in its own process and environment.

Needs that environment's `llama_cpp` (llama-cpp-python) only. Filling a cache to such a depth takes
llama.cpp minutes: the first round leaves its state in the job's folder, the others load it. Then as
llama-bench does: one warm-up, and single-token steps of random tokens one after the other.
"""

import ctypes
import json
import random
import sys
import time
import zlib
from pathlib import Path

from llama_cpp import __version__
from llama_cpp import llama_cpp as C

KV = {"16": 1, "8": 8, "4": 2}  # ggml's types f16, q8_0 and q4_0, of keys and values
BATCH = 512
FLASH = 1  # enabled


def context_of(model, job):
    """Return a context with room for the job."""
    params = C.llama_context_default_params()
    params.n_ctx = (job["depth"] + job["decode"] + 1 + 255) // 256 * 256
    params.n_batch = params.n_ubatch = BATCH
    params.n_threads = params.n_threads_batch = job["threads"]
    params.type_k = params.type_v = KV[job["kv"]]
    params.flash_attn_type = FLASH
    return C.llama_init_from_model(model, params)


def decode(context, ids):
    """Run one batch, and wait for it."""
    array = (C.llama_token * len(ids))(*ids)
    if C.llama_decode(context, C.llama_batch_get_one(array, len(ids))):
        raise RuntimeError("llama_decode failed")
    C.llama_synchronize(context)


def fill(context, ids, path):
    """Bring the context to its depth: from the file, or by computing and leaving the file."""
    tokens, count = (C.llama_token * len(ids))(*ids), ctypes.c_size_t()
    if path.exists():
        name = str(path).encode()
        if not C.llama_state_load_file(context, name, tokens, len(ids), ctypes.byref(count)):
            raise RuntimeError("llama_state_load_file failed")
        return
    for at in range(0, len(ids), BATCH):
        decode(context, ids[at : at + BATCH])
    part = path.with_suffix(".part")
    if not C.llama_state_save_file(context, str(part).encode(), tokens, len(ids)):
        raise RuntimeError("llama_state_save_file failed")
    part.rename(path)


def round_of(job):
    """Run what the job asks for."""
    if job["config"]:
        raise ValueError(f"at a depth llama takes no flags: {job['config']!r}")
    C.llama_log_set(QUIET, None)
    C.llama_backend_init()
    model_params = C.llama_model_default_params()
    model = C.llama_model_load_from_file(job["model"].encode(), model_params)
    context = context_of(model, job)
    draw, words = random.Random(0), C.llama_vocab_n_tokens(C.llama_model_get_vocab(model))
    ids = [draw.randrange(words) for _ in range(job["depth"] + job["decode"] + 1)]
    name = f"{zlib.crc32(job['model'].encode()):08x}-{job['kv']}.state"
    fill(context, ids[: job["depth"]], Path(job["folder"]) / name)
    decode(context, [ids[job["depth"]]])
    begin = time.perf_counter()
    for token in ids[job["depth"] + 1 :]:
        decode(context, [token])
    rate = job["decode"] / (time.perf_counter() - begin)
    config = f"type {KV[job['kv']]} for keys and values, flash attention, batch {BATCH}"
    return {"decode": rate, "version": f"llama_cpp_python {__version__}", "config": config}


QUIET = C.llama_log_callback(lambda level, text, data: None)

if __name__ == "__main__":
    print(json.dumps(round_of(json.loads(sys.argv[1]))))
