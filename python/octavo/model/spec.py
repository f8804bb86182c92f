"""What a model is, as plain data: its numbers, the tensors it consumes, and its program.

A family file (`llama`, `qwen3`) makes a `ModelSpec` from a checkpoint's metadata; `program_of`
in `dense` turns it into a flat list of semantic ops over named buffers and named weights. Nothing
here knows of the C core: `octavo.engine` resolves names to handles.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class Rope:
    """Rotary positions: angle of pair ``i`` at position ``p`` is ``p * freq[i]``.

    Attributes
    ----------
    freq : numpy.ndarray of float64, shape (dim / 2,)
        Each computed in float64 and rounded once to float32, as model code holds it, so that the
        angles are those the model was trained with; kept as float64 for the product.
    mscale : float
        Factor of cosine and sine.
    half_split : bool
        Pairs are ``(x[i], x[i + dim/2])``; otherwise ``(x[2i], x[2i+1])``.
    """

    freq: npt.NDArray[np.float64]
    mscale: float = 1.0
    half_split: bool = True

    @property
    def dim(self) -> int:
        """Rotated width of a head."""
        return 2 * len(self.freq)


@dataclass(frozen=True, slots=True)
class Cut:
    """Rows [first, end) of a stored matrix of shape `stored`, as they are or transposed."""

    stored: tuple[int, int]
    first: int
    end: int
    transposed: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class TensorUse:
    """One tensor that the model consumes.

    Attributes
    ----------
    role : str
        Our name, the same for every file format: ``"layers.3.attn.q"``.
    tensor : str
        Name in the checkpoint.
    shape : tuple of int
        Shape in the model: (n, k) of a matrix, (n,) of a vector.
    row_map : numpy.ndarray of int32, shape (n,), optional
        Stored row of each row of the model, where the file holds rows in another order.
    cut : Cut, optional
        Where the model's matrix is a piece of the stored one.
    offset : float
        Added to each value of a vector as it is read, in float32.
    """

    role: str
    tensor: str
    shape: tuple[int, ...]
    row_map: npt.NDArray[np.int32] | None = None
    cut: Cut | None = None
    offset: float = 0.0

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape that the tensor must have in the file."""
        return self.shape if self.cut is None else self.cut.stored


@dataclass(frozen=True, slots=True)
class Mixture:
    """The experts of a model's MoE layers, and how a row chooses among them.

    What each number does, and in which order, is written at ``oct_route_args`` in
    ``kernels/kernels.h``.

    Attributes
    ----------
    experts, top, inner : int
        Experts of a layer, those that a row chooses, and the width inside of one.
    score : {"sigmoid", "softmax", "top"}
        What a router's logits become; "top" is a softmax over the chosen ones alone.
    renorm : bool
        Gates are divided by their sum.
    scale : float
        Factor of the gates.
    groups, groups_kept : int
        Experts are chosen from so many of so many groups.
    dense : frozenset of int
        Layers whose MLP is a plain one.
    bias, logit_bias, expert_bias : bool
        Each router has a bias that only selects, or one of its logits; each matrix of an expert
        has one.
    shared : int
        Width inside of the expert that every row takes beside those chosen, 0 if there is none.
    """

    experts: int
    top: int
    inner: int
    score: str = "softmax"
    renorm: bool = True
    scale: float = 1.0
    groups: int = 1
    groups_kept: int = 1
    dense: frozenset[int] = frozenset()
    bias: bool = False
    logit_bias: bool = False
    expert_bias: bool = False
    shared: int = 0

    @property
    def record(self) -> int:
        """Width of a router's record: scores, ids of the chosen, their gates."""
        return self.experts + 2 * self.top


@dataclass(frozen=True, slots=True)
class Latent:
    """Widths of multi-head latent attention; `nope`, `rope` and `v` are of one head.

    Attributes
    ----------
    q_rank : int
        Width of the query's own latent, 0 where queries are projected at once.
    rank : int
        Width of the latent that is cached.
    nope, rope, v : int
        Width of a query's part without position, of the part with it (and of the one rotated key
        that all heads share), and of a head's value.
    eps : float
        Of the norms of both latents.
    """

    q_rank: int
    rank: int
    nope: int
    rope: int
    v: int
    eps: float


@dataclass(frozen=True, slots=True, eq=False)
class ModelSpec:
    """A model's numbers and tensors; everything is checked before any weight is read.

    Attributes
    ----------
    scale : float, optional
        Factor of attention's logits where it is not ``head_dim ** -0.5``.
    windows : tuple of int
        Tokens that a query of each layer sees, itself counted, 0 for all; empty: all in every one.
    local_rope : Rope, optional
        What layers with a window rotate by, where it is not `rope`.
    sinks : bool
        Each head has a learned logit that takes its share of the softmax and gives nothing.
    activation : {"silu", "gelu_tanh", "clamped_silu"}
        How MLPs and experts gate; see ``oct_activation`` in ``csrc/octavo.h``.
    norm_offset : float
        What norms multiply by is this more than what a file holds.
    out_norms : bool
        What attention and MLP give is normed before it is added to the residual stream.
    embed_scale : float
        Factor of embeddings.
    skips : tuple of (pattern, reason)
        Regular expressions of tensors that the model knows and leaves alone.
    consumed : tuple of str
        Tensors whose values are already in this spec (RoPE divisors).
    """

    family: str
    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int
    eps: float
    rope: Rope
    tied: bool
    qk_norm: bool = False
    scale: float | None = None
    windows: tuple[int, ...] = ()
    local_rope: Rope | None = None
    sinks: bool = False
    activation: str = "silu"
    norm_offset: float = 0.0
    out_norms: bool = False
    embed_scale: float = 1.0
    moe: Mixture | None = None
    latent: Latent | None = None
    biases: frozenset[str] = frozenset()
    uses: tuple[TensorUse, ...] = ()
    skips: tuple[tuple[str, str], ...] = ()
    consumed: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Number of weights (a tied matrix counted once)."""
        return sum(math.prod(use.shape) for use in self.uses)

    def mixture(self, layer: int) -> Mixture | None:
        """Return the mixture of experts of this layer, None where its MLP is a plain one."""
        return None if self.moe is None or layer in self.moe.dense else self.moe

    def is_moe(self, layer: int) -> bool:
        """Tell whether this layer's MLP is a mixture of experts."""
        return self.mixture(layer) is not None

    def window_of(self, layer: int) -> int:
        """Return the tokens that a query of this layer sees, 0 for all."""
        return self.windows[layer] if self.windows else 0

    @property
    def softmax_scale(self) -> float:
        """Factor of attention's logits."""
        return self.head_dim**-0.5 if self.scale is None else self.scale

    @property
    def cache_layers(self) -> tuple["LayerShape", ...]:
        """Shape of each layer's segments."""
        if self.latent is not None:
            one = LayerShape(1, self.latent.rank, self.latent.rope, latent=True)
        else:
            one = LayerShape(self.kv_heads, self.head_dim, self.head_dim)
        return tuple(replace(one, window=self.window_of(n)) for n in range(self.layers))


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Widths of one layer's cache, of one head: keys and values, or latent and rotated key.

    `window` is how many tokens of it a query sees, 0 for all; pages are kept all the same.
    """

    kv_heads: int
    k_width: int
    v_width: int
    latent: bool = False
    window: int = 0

    @property
    def q_width(self) -> int:
        """Width of a query."""
        return self.k_width + self.v_width if self.latent else self.k_width

    @property
    def out_width(self) -> int:
        """Width of what a query gathers."""
        return self.k_width if self.latent else self.v_width

    @property
    def segments(self) -> tuple[str, str]:
        """Names of the two segments."""
        return ("latent", "rope") if self.latent else ("k", "v")


@dataclass(frozen=True, slots=True)
class Op:
    """One semantic op. Buffers and weights are names; ``None`` means absent.

    ``kind`` is a name of the core's `oct_op_kind`; what each field means is written there.
    """

    kind: str
    inputs: tuple[str, ...] = ()
    out: tuple[str, ...] = ()
    w: tuple[str, ...] = ()
    bias: tuple[str | None, ...] = ()
    norm: str | None = None
    q_norm: str | None = None
    k_norm: str | None = None
    out_norm: str | None = None
    sinks: str | None = None
    eps: float = 0.0
    scale: float = 1.0
    activation: str = "silu"
    layer: int = 0
    heads: int = 0
    rope: int = -1
    window: int = 0
    moe: Mixture | None = None
    matrices: tuple[tuple[str, ...], ...] = ()
    biases: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A flat list of ops over float32 row buffers.

    Attributes
    ----------
    buffers : dict of str to int
        Width of each buffer, in order.
    taps : dict of str to (int, str)
        What `capture` can see: name to (index of the op, buffer just after it).
    moe : Mixture, optional
        What the buffer ``router`` is a record of.
    """

    buffers: dict[str, int]
    ops: tuple[Op, ...]
    ropes: tuple[Rope, ...]
    taps: dict[str, tuple[int, str]] = field(default_factory=dict)
    moe: Mixture | None = None

    @property
    def routers(self) -> dict[int, int]:
        """Index of the op that routes in each layer that has experts."""
        return {
            int(name.split(".")[1]): at
            for name, (at, _) in self.taps.items()
            if name.endswith(".router")
        }

    def lowered(self, ids: dict[str, int]) -> dict[str, Any]:
        """Return the core's own description, with weight names replaced by handles.

        Parameters
        ----------
        ids : dict of str to int
            Handle of every matrix and vector by role.

        Returns
        -------
        dict
            Keyword arguments ``widths``, ``ops`` and ``ropes`` of ``_core.Program``.
        """
        at = {name: i for i, name in enumerate(self.buffers)}
        ropes = [
            {"freq": r.freq, "dim": r.dim, "mscale": r.mscale, "half_split": r.half_split}
            for r in self.ropes
        ]
        ops = [_lower(op, at, ids) for op in self.ops]
        return {"widths": list(self.buffers.values()), "ops": ops, "ropes": ropes}


def _lower(op: Op, at: dict[str, int], ids: dict[str, int]) -> dict[str, Any]:
    def handle(name: str | None) -> int:
        return -1 if name is None else ids[name]

    inputs = [at[name] for name in op.inputs] + [-1] * (3 - len(op.inputs))
    out: dict[str, Any] = {"kind": op.kind, "in": inputs[0], "in2": inputs[1], "in3": inputs[2]}
    out["out"] = [at[name] for name in op.out]
    out["n_out"] = len(op.out)
    out["w"] = [handle(name) for name in op.w]
    out["bias"] = [handle(name) for name in op.bias]
    for name in ("norm", "q_norm", "k_norm", "out_norm", "sinks"):
        out[name] = handle(getattr(op, name))
    for name in ("eps", "scale", "activation", "layer", "heads", "rope", "window"):
        out[name] = getattr(op, name)
    if op.moe is not None:
        for name in ("experts", "top", "score", "renorm", "groups", "groups_kept"):
            out[name] = getattr(op.moe, name)
        out["scale"] = op.moe.scale
    for name in ("matrices", "biases"):
        if table := getattr(op, name):
            out[name] = np.array([[ids[w] for w in row] for row in table], np.int32)
    return out
