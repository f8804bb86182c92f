"""What a model must read and compute at least, counted from its shapes and its stored bytes.

Ours from an open `octavo.LLM`, other engines' from the GGUF file that they read (they repack it, in
the same number of bytes) and from the bits of their KV types.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

# Bits per element of other engines' KV types, with the scales of blocks of 32; the rarer scales of
# q8_KV and u8 are left out.
KV_BITS = {"f16": 16, "q8_0": 8.5, "q8_KV": 8, "u8": 8, "q4_0": 4.5}


def read_per_step(llm: Any) -> int:
    """Return the bytes of weights that one step reads: no embedding that is not the head."""
    rows = llm.report.rows
    return sum(r.nbytes for r in rows if llm.spec.tied or r.kind != "embed")


def linear_weights(spec: Any) -> int:
    """Return the number of weights in the layers' matrices, without the head."""
    matrices = (u.shape for u in spec.uses if len(u.shape) == 2 and u.role.startswith("layers."))
    return sum(int(np.prod(shape)) for shape in matrices)


def kv_bytes(sequence: Any) -> int:
    """Return the bytes of keys and values that the next step of a sequence reads."""
    ledger = sequence.kv.bytes()
    return ledger.sealed + ledger.open


def gguf_facts(path: Path | str) -> dict[str, Any]:
    """Return form (type of most bytes), name, bytes a step reads, elements of KV a token."""
    from gguf import GGUFReader

    reader = GGUFReader(str(path))
    sizes = {t.name: int(t.n_bytes) for t in reader.tensors}
    tied = "output.weight" not in sizes
    forms: Counter[str] = Counter()
    for t in reader.tensors:
        if t.name.startswith("blk."):
            forms[t.tensor_type.name] += int(t.n_bytes)
    arch = reader.fields["general.architecture"].contents()

    def number(key: str, default: Any = None) -> Any:
        found = reader.fields.get(f"{arch}.{key}")
        return default if found is None else found.contents()

    heads = number("attention.head_count")
    width = number("attention.key_length", number("embedding_length") // heads)
    kv_heads = number("attention.head_count_kv", heads)
    return {
        "form": forms.most_common(1)[0][0],
        "name": reader.fields["general.name"].contents(),
        "step_bytes": sum(n for t, n in sizes.items() if tied or t != "token_embd.weight"),
        "kv_elements": 2 * number("block_count") * kv_heads * width,
        "linear_weights": sum(
            int(np.prod(t.shape))
            for t in reader.tensors
            if t.name.startswith("blk.") and len(t.shape) == 2
        ),
    }
