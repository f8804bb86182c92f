"""Octavo: large language models on paged, quantized key/value caches that can be looked at.

``octavo.LLM("smollm2-135m")`` is the door; see its docstring. Heavy parts are imported when they
are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import errors
from .errors import (
    BusyError,
    CheckpointError,
    ClosedError,
    NumericalError,
    OutOfPages,
    StaleHandleError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from .engine.arrays import Cache
    from .engine.linear import Linear
    from .engine.llm import LLM
    from .engine.outputs import CompletionOutput, RequestOutput
    from .engine.params import SamplingParams
    from .engine.sequence import Sequence
    from .hub import pull
    from .plan.door import plan
    from .scheme import KVScheme, WeightScheme
    from .survey import Machine, kernels, machine, memory, profile
else:
    from . import plan  # a package that can be called: imports inside of it cannot hide it

# Name to the module that has it.
_LAZY = {
    "LLM": "engine.llm", "SamplingParams": "engine.params", "Sequence": "engine.sequence",
    "RequestOutput": "engine.outputs", "CompletionOutput": "engine.outputs",
    "Cache": "engine.arrays", "Linear": "engine.linear",
    "KVScheme": "scheme", "WeightScheme": "scheme",
    "pull": "hub", "kernels": "survey", "memory": "survey",
    "machine": "survey", "profile": "survey", "Machine": "survey", "__version__": "_core",
}  # fmt: skip

__all__ = [
    "LLM",
    "BusyError",
    "Cache",
    "CheckpointError",
    "ClosedError",
    "CompletionOutput",
    "KVScheme",
    "Linear",
    "Machine",
    "NumericalError",
    "OutOfPages",
    "RequestOutput",
    "SamplingParams",
    "Sequence",
    "StaleHandleError",
    "UnsupportedError",
    "WeightScheme",
    "errors",
    "kernels",
    "machine",
    "memory",
    "plan",
    "profile",
    "pull",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'octavo' has no attribute {name!r}")
    value = getattr(import_module(f".{_LAZY[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
