"""Gated branches: every activation, biases of experts, and a norm of what a branch adds. A step
equals the same kernels called one by one; what is wrong is refused at the door.
"""

import numpy as np
import pytest
import tiny
from small import SANITIZED, live

from octavo import _core, _probe

pytestmark = pytest.mark.core
ISAS = [isa for isa in ("scalar", "avx2", "avx512", "amx") if _probe.runs_here(isa)]
HIDDEN, WIDE, INNER, VOCAB, EPS = 64, 128, 96, 50, 1e-5
EXPERTS, TOP = 6, 2
OPS = {"silu": "op_swiglu", "gelu_tanh": "op_geglu", "clamped_silu": "op_clamped_swiglu"}


class Model:
    """embed, one op on buffers x, wide and router's record, head; and what it is made of."""

    def __init__(self, runtime, fmt="q4g32", act="a8x2", seed=0):
        self.rng = np.random.default_rng(seed)
        self.runtime, self.fmt, self.act = runtime, fmt, act
        self.weights = _core.Weights(runtime)
        self.embed = tiny.matrix(self.weights, "f32", self.rng.standard_normal((VOCAB, HIDDEN)))
        self.spread = self.matrix(WIDE, HIDDEN, "f32")
        self.vectors = {}

    def matrix(self, n, k, fmt=None):
        values = self.rng.standard_normal((n, k)) * 3 / np.sqrt(k)
        return tiny.matrix(self.weights, fmt or self.fmt, values)

    def vector(self, n):
        values = (1 + self.rng.standard_normal(n) / 4).astype(np.float32)
        self.vectors[handle := self.weights.vector(values)] = values
        return handle

    def open(self, op):
        ops = [{"kind": "embed", "out": [0], "w": [self.embed]},
               {"kind": "norm_linear", "in": 0, "out": [1], "w": [self.spread]}, op,
               {"kind": "head", "in": 0, "w": [self.embed]}]  # fmt: skip
        return _core.Program(self.weights, widths=[HIDDEN, WIDE, EXPERTS + 2 * TOP], ops=ops,
                             ropes=[], act=self.act, max_rows=128)  # fmt: skip

    def run(self, op, ids):
        """x and wide before the op, what its output is after it, and the router's record."""
        layer = {"kv_heads": 1, "k_width": 16, "v_width": 16, "k_format": "f32", "v_format": "f32"}
        cache = _core.Cache(self.runtime, [layer], budget=1 << 20)
        taps = [(1, 0), (1, 1), (2, op["out"][0]), (2, 2)]
        items = [(cache.open(), ids, len(ids))]
        return _core.step(self.open(op), cache, items, captures=taps)["captures"]

    def linear(self, w, x, bias=-1):
        act = "a32" if self.fmt == "f32" else self.act
        y = self.weights.linear(w, np.ascontiguousarray(x), act)
        return y if bias < 0 else y + self.vectors[bias]

    def gated(self, activation, w, x, biases=(-1, -1, -1)):
        g, u = (self.linear(w[i], x, biases[i]) for i in (0, 1))
        getattr(_probe, OPS[activation])(self.runtime.isa, g, u, g)
        return self.linear(w[2], g, biases[2])

    def norm(self, x, handle):
        y = np.empty_like(x)
        _probe.op_rmsnorm(self.runtime.isa, x, x.shape[1], 1, self.vectors[handle], EPS, y)
        return y


def same(got, want):
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


def ids_of(n):
    return np.random.default_rng(n).integers(0, VOCAB, n).astype(np.int32)


@pytest.mark.parametrize("isa", ISAS[-1:] if SANITIZED else ISAS)
@pytest.mark.parametrize(("fmt", "act"), [("f32", "a32"), ("q4g32", "a8x2"), ("w8", "a8")])
@pytest.mark.parametrize("activation", OPS)
def test_a_gated_mlp_is_its_parts(isa, fmt, act, activation):
    for threads in (1, 3):
        model = Model(_core.Runtime(threads, isa), fmt, act)
        w = [model.matrix(*shape) for shape in ((INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER))]
        op = {"kind": "gated_mlp", "in": 0, "out": [0], "w": w, "norm": model.vector(HIDDEN),
              "activation": activation, "eps": EPS}  # fmt: skip
        for out_norm in (-1, model.vector(HIDDEN)):
            x, _, got, _ = model.run(op | {"out_norm": out_norm}, ids_of(37))
            y = model.gated(activation, w, model.norm(x, op["norm"]))
            same(got, x + (y if out_norm < 0 else model.norm(y, out_norm)))


@pytest.mark.parametrize("fmt", ["f32", "q4g32"])
@pytest.mark.parametrize("biased", [False, True])
def test_what_a_branch_adds_may_be_normed_first(fmt, biased):
    """Into an output wider than every input of a product, too."""
    model = Model(_core.Runtime(2), fmt)
    for source, out, n, k in ((1, 0, HIDDEN, WIDE), (0, 1, WIDE, HIDDEN)):
        bias = model.vector(n) if biased else -1
        op = {"kind": "linear_add", "in": source, "out": [out], "w": [model.matrix(n, k)],
              "out_norm": model.vector(n), "bias": [bias], "eps": EPS}  # fmt: skip
        x, wide, got, _ = model.run(op, ids_of(50))
        y = model.linear(op["w"][0], (x, wide)[source], bias)
        same(got, (x, wide)[out] + model.norm(y, op["out_norm"]))


def mixture(model, activation, biased=True):
    shapes = ((INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER))
    w = [[model.matrix(*s) for s in shapes] for _ in range(EXPERTS)]
    biases = [[model.vector(n) for n, _ in shapes] for _ in range(EXPERTS)]
    biases[1][2] = -1  # one that has none
    op = {"kind": "moe", "in": 0, "out": [0, 2], "w": [model.matrix(EXPERTS, HIDDEN, "f32")],
          "matrices": np.array(w, np.int32), "experts": EXPERTS, "top": TOP, "score": "top",
          "bias": [model.vector(EXPERTS), -1], "activation": activation}  # fmt: skip
    return op | ({"biases": np.array(biases, np.int32)} if biased else {})


@pytest.mark.parametrize("isa", ISAS[-1:] if SANITIZED else ISAS)
@pytest.mark.parametrize("fmt", ["f32", "q4g32"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("activation", OPS)
def test_a_mixture_is_its_experts(isa, fmt, activation, biased):
    model = Model(_core.Runtime(2, isa), fmt)
    op = mixture(model, activation, biased)
    for n in (1, 60):
        x, _, got, record = model.run(op, ids_of(n))
        chosen = record[:, EXPERTS : EXPERTS + TOP].astype(int)
        gates = record[:, EXPERTS + TOP :]
        y = np.zeros_like(x)
        for e in range(EXPERTS):
            row, slot = np.nonzero(chosen == e)
            if not len(row):
                continue
            biases = op["biases"][e] if biased else (-1, -1, -1)
            part = model.gated(activation, op["matrices"][e].tolist(), x[row], biases)
            places, sums = np.arange(len(row), dtype=np.int32)[:, None], y[row]
            weight = np.ascontiguousarray(gates[row, slot][:, None])
            _probe.op_combine(isa, part, places, weight, 0, sums)
            y[row] = sums
        same(got, x + y)


def test_tables_of_biases_are_copied():
    model = Model(_core.Runtime(1))
    op = mixture(model, "silu")
    want = model.run(op, ids_of(9))[2]
    table = np.array(op["biases"])

    class Ropes:
        def __iter__(self):
            table[...] = 10**6
            return iter(())

    ops = [{"kind": "embed", "out": [0], "w": [model.embed]}, op | {"biases": table},
           {"kind": "head", "in": 0, "w": [model.embed]}]  # fmt: skip
    program = _core.Program(model.weights, widths=[HIDDEN, WIDE, EXPERTS + 2 * TOP], ops=ops,
                            ropes=Ropes(), act=model.act)  # fmt: skip
    layer = tiny.layers("f32", 1)
    cache = _core.Cache(model.runtime, layer, budget=1 << 20)
    step = _core.step(program, cache, [(cache.open(), ids_of(9), 9)], captures=[(1, 0)])
    same(step["captures"][0], want)


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("gated_mlp", {"activation": "relu"}, "'relu', legal are silu, gelu_tanh, clam"),
        ("gated_mlp", {"activation": None}, "activation is 'None'"),
        ("gated_mlp", {"out_norm": 99}, "out_norm is vector 99"),
        ("gated_mlp", {"out_norm": "wide"}, "out_norm is 128, must be 64"),
        ("linear_add", {"out_norm": "wide"}, "out_norm is 128, must be 64"),
        ("moe", {"out_norm": 0}, r"\(moe\): out_norm is 0; only linear_add and gated_mlp"),
        ("norm_linear", {"out_norm": 0}, r"\(norm_linear\): out_norm is 0; only"),
        ("moe", {"biases": np.full((EXPERTS, 3), 999, np.int32)}, "expert 0 is vector 999"),
        ("moe", {"biases": "wide"}, "gate of expert 0 is vector .*, of 128 values.* have 96"),
        ("moe", {"biases": np.zeros((5, 3), np.int32)}, "biases has 5 rows, must be experts = 6"),
        ("moe", {"biases": np.zeros((EXPERTS, 2), np.int32)}, "biases"),
        ("gated_mlp", {"biases": np.zeros((EXPERTS, 3), np.int32)}, "unknown fields"),
        ("attend", {"window": -1}, "window is -1, legal are 0"),
        ("attend", {"sinks": 99}, "sinks is vector 99"),
        ("attend", {"sinks": "wide"}, "sinks is 128, must be 4"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_at_the_door(kind, change, says):
    model = Model(_core.Runtime(1))
    wide, shapes = model.vector(WIDE), ((INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER))
    good = {
        "gated_mlp": {"kind": kind, "in": 0, "out": [0], "w": [model.matrix(*s) for s in shapes]},
        "linear_add": {"kind": kind, "in": 1, "out": [0], "w": [model.matrix(HIDDEN, WIDE)]},
        "norm_linear": {"kind": kind, "in": 1, "out": [0], "w": [model.matrix(HIDDEN, WIDE)]},
        "moe": mixture(model, "silu"),
        "attend": {"kind": kind, "in": 0, "in2": 1, "in3": 2, "out": [3], "layer": 0, "heads": 4},
    }[kind]
    if kind == "attend":
        model.open = lambda op: _core.Program(
            model.weights, widths=[HIDDEN] * 4, ropes=[],
            ops=[{"kind": "embed", "out": [0], "w": [model.embed]}, op,
                 {"kind": "head", "in": 3, "w": [model.embed]}])  # fmt: skip
    model.open(good).close()
    before = live()
    [(name, value)] = change.items()
    if isinstance(value, str) and value == "wide":
        change = {name: np.full((EXPERTS, 3), wide, np.int32) if name == "biases" else wide}
    with pytest.raises(ValueError, match=says):
        model.open(good | change)
    assert live() == before
