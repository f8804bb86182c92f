"""Attention over a paged cache: KV schemes by context by query rows, in GB/s and Gop/s.

    python benchmarks/attention.py [--kv bf16 int8 int4] [--context 1024 8192]

One layer on random keys and values. Bytes are the pages' as stored; ops are 4*m*heads*d*tokens
(scores and mix, full, not causal: queries stand after the last token).
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from common import machine, timed, write

import octavo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--kv", nargs="+", default=["bf16", "fp8", "int8", "k8v4", "int4"])
    parser.add_argument("--context", type=int, nargs="+", default=[1024, 8192])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--heads", type=int, nargs=2, default=[32, 8], metavar=("Q", "KV"))
    parser.add_argument("--head-dim", type=int, default=128)
    args = parser.parse_args()
    heads, kv_heads = args.heads
    d, rng = args.head_dim, np.random.default_rng(0)
    about, rows = machine(), []
    for kv in args.kv:
        for context in args.context:
            with octavo.Cache(1, kv_heads, d, kv=kv) as cache:
                shape = (1, context, kv_heads, d)
                cache.append(*(rng.standard_normal(shape, dtype=np.float32) for _ in "kv"))
                ledger = cache.bytes()
                stored = ledger.sealed + ledger.open
                for m in args.rows:
                    q = rng.standard_normal((m, heads, d), dtype=np.float32)
                    row = timed(lambda q=q, cache=cache: cache.attend(q, layer=0))
                    seconds = row["median_s"]
                    row |= {"bench": "attention", "kv": kv, "context": context, "m": m}
                    row |= {"heads": heads, "kv_heads": kv_heads, "head_dim": d}
                    row |= {"stored_bytes": stored, "gbs": stored / seconds / 1e9}
                    row |= {"gops": 4 * m * heads * d * context / seconds / 1e9}
                    stream = octavo.machine(seconds=0.1, refresh=True).read_bytes / 1e9
                    row |= {"stream_gbs": stream}
                    shown = f"{row['gbs']:7.1f} GB/s {100 * row['gbs'] / stream:5.1f} % of stream"
                    shown += f" {row['gops']:8.1f} Gop/s"
                    print(f"{kv:<9} context {context:<6} m{m:<4} {shown}")
                    rows.append(row)
    write("attention", rows, about)


if __name__ == "__main__":
    main()
