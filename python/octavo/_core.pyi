"""The Python side of the C extension: its whole contract.

Arrays are NumPy, C-contiguous, native byte order; another dtype or layout is a `TypeError` that
says what was passed. Long calls release the GIL. Every status maps to one exception
(`octavo.errors`): VALUE ValueError, MEMORY MemoryError, PAGES OutOfPages (attributes needed,
available, evictable), BUSY BusyError, CLOSED ClosedError, STALE StaleHandleError, PINNED
BufferError, NUMERIC NumericalError, UNSUPPORTED UnsupportedError; CANCELLED, of `step`,
`append`, `attend` and `reencode`, re-raises what the signal handler raised (KeyboardInterrupt).
A method of a closed object raises ClosedError.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__version__: str

def default_threads() -> int: ...
def memory() -> dict[str, tuple[int, int]]:
    """Live (bytes, allocations) of this process by tag of the allocation seam."""

def uniform(seed: int, sequence: int, position: int) -> float: ...

# Only in builds with OCTAVO_BUILD=faults (and only for tests).
def fault(nth: int, mode: str = "once") -> None:
    """Fail the nth fallible allocation from now, "once" or "from" then on; 0 disarms."""

def fault_count() -> int: ...
def cancel_after(nth: int) -> None:
    """Cancel a step at its nth tile boundary from now; 0 disarms."""

class Runtime:
    def __init__(self, threads: int = 0, isa: str | None = None) -> None: ...
    threads: int  # settable
    @property
    def isa(self) -> str: ...
    @property
    def cpu(self) -> str: ...
    def kernels(self) -> list[tuple[str, str, str, str, str | None, float]]:
        """Rows (table, name, slot, form, isa, bits)."""
    def roofs(self, nbytes: int, seconds: float = 0.2) -> dict[str, float]:
        """Best rates of the pool, per second: int8_ops, tile_ops, f32_ops, read_bytes."""
    def kl(
        self, base: npt.NDArray[np.float32], other: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float64]: ...
    def lse(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]: ...
    def argmax(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]: ...
    def topk(
        self, x: npt.NDArray[np.float32], count: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]: ...
    def sample(
        self,
        x: npt.NDArray[np.float32],
        u: npt.NDArray[np.float64],
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
    ) -> npt.NDArray[np.int32]: ...
    def close(self) -> None: ...

class Weights:
    def __init__(self, runtime: Runtime) -> None: ...
    def matrix(
        self,
        format: str,
        n: int,
        k: int,
        codes: Any,
        *,
        source: str = "bytes",
        values_type: str | None = None,
        row_stride: int,
        group_stride: int = 0,
        scales: Any = None,
        mins: Any = None,
        scale_type: str | None = None,
        scale_offset: int = 0,
        min_offset: int = 0,
        code_offset: int = 0,
        scale_row_stride: int = 0,
        scale_group_stride: int = 0,
        zeros: Any = None,
        zero_row_stride: int = 0,
        row_map: npt.NDArray[np.int32] | None = None,
    ) -> int:
        """Pack a matrix and return its id.

        `codes`, `scales`, `mins`, `zeros` are objects with the buffer protocol (read as bytes);
        the offsets are bytes from each buffer's start, the strides bytes as in kernels.h's
        oct_source. Every address that packing will touch is checked against its buffer first.
        Interleaved blocks (GGUF) pass the same buffer three times with different offsets.
        """
    def matrices(self, sources: Sequence[dict[str, Any]]) -> list[int]:
        """Pack many matrices in one parallel pass, all or none, and return their ids. Each of
        `sources` holds the arguments of matrix(), all by name."""
    def vector(self, values: npt.NDArray[np.float32]) -> int: ...
    def info(self, id: int) -> dict[str, Any]: ...
    def unpack(self, id: int) -> dict[str, npt.NDArray[Any]]:
        """Logical arrays by name: codes [n, k] (uint8; int8 for w8 and w8g32), scales, mins
        (float16 or uint16 bits of bfloat16; w8: float32), zeros; or values [n, k] (float32,
        float16, uint16 bits)."""
    def rows(self, id: int, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]: ...
    def linear(
        self,
        id: int,
        x: npt.NDArray[np.float32],
        act: str = "a8x2",
        out: npt.NDArray[np.float32] | None = None,
    ) -> npt.NDArray[np.float32]: ...
    @property
    def nbytes(self) -> int: ...
    def close(self) -> None: ...

class Program:
    """`ops` are mappings with the fields of octavo.h's oct_op_desc ("kind" by name: "embed" "norm"
    "norm_linear" "attend" "head_linear" "linear_add" "gated_mlp" "moe" "head"; "activation":
    "silu" "gelu_tanh" "clamped_silu"); absent fields take -1 or 0, or the first name. A moe has
    those of oct_moe_desc too (score: "sigmoid" "softmax" "top"; absent: "sigmoid", groups 1, scale
    1). `matrices` is int32 [experts, 3] of a moe (`biases` too, if any), [heads, 1] of a
    head_linear. An attend without in3 is of a latent layer.
    `ropes` are mappings {freq: float64 array, dim, mscale, half_split}."""

    def __init__(
        self,
        weights: Weights,
        *,
        widths: Sequence[int],
        ops: Sequence[Mapping[str, Any]],
        ropes: Sequence[Mapping[str, Any]],
        act: str = "a8x2",
        max_rows: int = 512,
    ) -> None: ...
    @property
    def vocab(self) -> int: ...
    def close(self) -> None: ...

class Cache:
    """`layers` are mappings {latent, kv_heads, k_width, v_width, k_format, v_format, k_transform,
    v_transform, form}. Sequences are plain ints (slot and generation)."""

    def __init__(
        self,
        runtime: Runtime,
        layers: Sequence[Mapping[str, Any]],
        *,
        budget: int,
        sink_pages: int = 0,
        recent_pages: int = 0,
        prefix: bool = True,
        saturate: bool = False,
    ) -> None: ...
    def open(self) -> int: ...
    def release(self, seq: int, force: bool = False) -> None: ...
    def length(self, seq: int) -> int: ...
    def fork(self, seq: int) -> int: ...
    def reencode(self, seq: int, into: Cache) -> int: ...
    def truncate(self, seq: int, n: int) -> int:
        """Returns how many tokens were kept (<= n)."""
    def match(self, seq: int, tokens: npt.NDArray[np.int32], salt: int = 0) -> int: ...
    def needs(self, seqs: Sequence[int], counts: Sequence[int]) -> tuple[int, int]:
        """(bytes needed, bytes available with eviction)."""
    def bytes_for(self, tokens: int) -> int: ...
    def ledger(self, seq: int | None = None) -> dict[str, int]: ...
    def check(self) -> None:
        """Raises AssertionError naming the invariant that does not hold."""
    def drop_prefix(self) -> None: ...
    def page(self, seq: int, layer: int, index: int, segment: str) -> Page:
        """`segment` "k" or "v"."""
    def edit(self, seq: int, layer: int, index: int, segment: str) -> Page:
        """A writable page. Until its `close()`, calls that change, attend to or copy the sequence
        raise BusyError; other sequences go on."""
    def decode(
        self, seq: int, layer: int, index: int, segment: str, model_basis: bool = False
    ) -> npt.NDArray[np.float32]:
        """Copy, [kv_heads, tokens, width]."""
    def append(
        self,
        seq: int,
        k: npt.NDArray[np.float32],
        v: npt.NDArray[np.float32],
        n: int,
        q: npt.NDArray[np.float32] | None = None,
        heads: int = 0,
        scale: float = 1.0,
        window: int = 0,
        sinks: npt.NDArray[np.float32] | None = None,
    ) -> npt.NDArray[np.float32] | None:
        """Flat float32 arrays in the order of octavo.h's oct_rows_desc; returns the flat output.
        `window`, if not 0: a query sees itself and the window - 1 tokens before it. `sinks`
        [heads]: one more logit of each head in the softmax, of a token without a value."""
    def attend(
        self,
        seq: int,
        layer: int,
        q: npt.NDArray[np.float32],
        heads: int,
        scale: float,
        window: int = 0,
        sinks: npt.NDArray[np.float32] | None = None,
    ) -> npt.NDArray[np.float32]:
        """q [m, heads, k_width] -> [m, heads, v_width]."""
    def close(self) -> None: ...
    @property
    def closed(self) -> bool: ...

class Page:
    """One segment of one page. Of a sealed page the arrays are read-only zero-copy views; each view
    pins the page until it is collected. `edit` gives writable ones. An open page has no arrays."""

    @property
    def sealed(self) -> bool: ...
    @property
    def format(self) -> str: ...
    @property
    def tokens(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def group(self) -> int: ...
    @property
    def page(self) -> int: ...
    @property
    def generation(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def parts(self) -> list[dict[str, Any]]:
        """The stored parts: name, dtype, offset, shape, split, split_axis, axes, rows, cols,
        bias."""
    def array(self, name: str) -> npt.NDArray[Any]:
        """View [kv_heads, *shape] of part `name` in memory order; dtype uint8, int8, uint16 (bf16,
        f16 bits), float32. StaleHandleError if the page was reused meanwhile."""
    def close(self) -> None: ...

def step(
    program: Program,
    cache: Cache,
    items: Sequence[tuple[int, npt.NDArray[np.int32], int]],
    *,
    logits: bool = False,
    targets: Sequence[npt.NDArray[np.int32] | None] | None = None,
    argmax: bool = False,
    topk: int = 0,
    captures: Sequence[tuple[int, int]] = (),
    quiet: bool = False,
    timed: bool = False,
    route: Mapping[int, Callable[..., object]] | None = None,
) -> dict[str, Any]:
    """Run one step over items (seq, tokens, first).

    Returns a dict: "ok": list[bool] per item (False: non-finite, that sequence is unchanged), and,
    as asked, lists with one array per item: "logits" float32 [n-first, vocab], "logprob" float32
    [n-first] (targets given; -1 gives nan), "argmax" int32 [n-first], "topk" (int32 ids, float32
    log-probabilities) [n-first, topk]; "captures": list of float32 [rows, width]; "cost": per
    kind of work (seconds if timed, bytes read, int8 and float32 operations). `route` maps ops of
    kind moe to functions of copies (scores float32 [rows, experts], ids int32 [rows, top], gates
    float32 [rows, top]), which may change ids and gates in place before the experts run.
    """
