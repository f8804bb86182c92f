"""Steering the router: functions that see what each row chose, and may choose otherwise.

`Route` is the context manager that `LLM.route` returns. Its function runs inside the step, between
the router and the experts, with the model's pool waiting for it.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.model import Program

from .capture import Routing
from .scope import Scope

Steer = Callable[[int, Routing], "tuple[Any, Any] | None"]


class Route(Scope):
    """A function in force over the routers of some layers.

    Attributes
    ----------
    layers : tuple of int
        Layers whose routers it sees.
    """

    def __init__(
        self, program: Program, function: Steer, layers: int | Iterable[int] | None,
        owner: list["Route"],
    ) -> None:  # fmt: skip
        super().__init__(owner)
        if not callable(function):
            raise TypeError(f"route: a function is needed, not {type(function).__name__}")
        ops = program.routers
        if not ops:
            raise ValueError("route: this model has no experts")
        asked = ops if layers is None else (layers,) if isinstance(layers, int) else tuple(layers)
        for layer in asked:
            if layer not in ops:
                raise ValueError(f"route: layer {layer!r:.40} has no router; legal: {list(ops)}")
        self.layers = tuple(asked)
        self.ops = {ops[layer]: layer for layer in self.layers}
        self._function = function

    def __call__(
        self, op: int, scores: npt.NDArray[np.float32], ids: npt.NDArray[np.int32],
        gates: npt.NDArray[np.float32],
    ) -> None:  # fmt: skip
        """Ask the function, and put what it gives into `ids` and `gates`, ascending."""
        layer = self.ops[op]
        got = self._function(layer, Routing(ids, gates, scores))
        if got is not None:
            for name, to, value in zip(("ids", "gates"), (ids, gates), got, strict=True):
                _take(to, np.asarray(value), f"route: layer {layer}: {name}")
        if (np.diff(ids, axis=1) < 0).any():
            order = np.argsort(ids, axis=1, kind="stable")
            ids[...] = np.take_along_axis(ids, order, axis=1)
            gates[...] = np.take_along_axis(gates, order, axis=1)


def _take(to: npt.NDArray[Any], value: npt.NDArray[Any], what: str) -> None:
    kinds = "iu" if to.dtype.kind == "i" else "iuf"
    if value.shape != to.shape or value.dtype.kind not in kinds:
        raise ValueError(
            f"{what} are {value.dtype} {list(value.shape)}; legal: {to.dtype} {list(to.shape)}"
        )
    to[...] = value


def functions(routes: Iterable[Route]) -> dict[int, Callable[..., None]] | None:
    """Return what `_core.step` takes: by op a function, of several the last entered sees last."""
    out: dict[int, Callable[..., None]] = {}
    for route in routes:
        for op in route.ops:
            out[op] = _after(out.get(op), route, op)
    return out or None


def _after(first: Callable[..., None] | None, route: Route, op: int) -> Callable[..., None]:
    def call(scores: Any, ids: Any, gates: Any) -> None:
        if first is not None:
            first(scores, ids, gates)
        route(op, scores, ids, gates)

    return call
