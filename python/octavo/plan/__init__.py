"""What the machine offers and what a model costs on it: ``octavo.plan("kimi-k2.5")``.

The package itself can be called. What that does is `door.plan`; `machine` is what the machine has,
`amounts` what users type, `quantization` and `weights` the bytes of matrices, `kv` those of pages,
and `report` puts them together.
"""

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo.scheme import KVScheme, WeightScheme

    from .report import Plan


class _Callable(ModuleType):
    """A package whose name is also the function that it is about.

    A function in its place would hide the package: importing a part of a package binds the
    package's name in its parent.
    """

    def __call__(
        self,
        model: Any,
        context: int | None = None,
        kv: "str | KVScheme | None" = None,
        weights: "str | WeightScheme | None" = None,
        *,
        memory: int | str | Sequence[int | str] = (),
        bandwidth: Any = None,
    ) -> "Plan":
        """Plan a model; see `octavo.plan.door.plan`."""
        from .door import plan  # later: schemes look into `machine`, and plans into schemes

        return plan(model, context, kv, weights, memory=memory, bandwidth=bandwidth)


sys.modules[__name__].__class__ = _Callable
