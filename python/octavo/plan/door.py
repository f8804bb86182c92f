"""`plan`: what a model would cost, from a config alone; nothing is loaded and nothing runs.

The one file of this folder that opens what it is told to: a config or the header of a GGUF file.
"""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from octavo import hub
from octavo.checkpoint import open_checkpoint
from octavo.checkpoint.guarded_json import read_json
from octavo.errors import CheckpointError
from octavo.model import ModelSpec, model_of, spec_of
from octavo.scheme import CHECKPOINT, KVScheme, WeightScheme

from .amounts import parse_bytes, parse_rate
from .configs import KNOWN
from .kv import all_costs, attention_ops, full_token_bytes, kv_cost
from .report import Plan, Roofs, ceiling, fit
from .weights import (
    Bytes,
    Weights,
    config_bytes,
    file_bytes,
    held_weights,
    scheme_bytes,
    weights_of,
)

_CONFIG_BYTES = 16 << 20
_MOST_MEMORIES = 16


def plan(
    model: Any,
    context: int | None = None,
    kv: str | KVScheme | None = None,
    weights: str | WeightScheme | None = None,
    *,
    memory: int | str | Sequence[int | str] = (),
    bandwidth: Any = None,
) -> Plan:
    """Plan a model: parameters, bytes of weights and cache, what fits, and how fast it can get.

    Parameters
    ----------
    model : str, path-like or LLM
        A name (``"kimi-k2.5"``, ``"kimi-k2"``, ``"deepseek-v3"``, or one that `octavo.pull` knows),
        a ``config.json`` or a folder with one, a ``.gguf`` file, or an open LLM, of which the bytes
        are those it holds. No weight is read.
    context : int, optional
        Tokens of a history; by default, and at most, what the model was made for.
    kv : str or KVScheme, optional
        How keys and values are stored; by default bf16, or as the LLM has it.
    weights : str or WeightScheme, optional
        How matrices are held; by default as the checkpoint stores them.
    memory : int, str or sequence of them
        Memories to fit it into: ``"24GiB"``, ``"24GiB,512GiB"``, ``["24GiB", 2**39]``.
    bandwidth : number, str or Machine, optional
        Bytes per second that memory gives (``"400GB/s"``), for ceilings of tokens per second; or
        what `octavo.machine` measured, whose rate of operations then counts too.

    Returns
    -------
    Plan
        With a table as its text.

    Raises
    ------
    ValueError, TypeError
        For arguments out of range; known names are listed.
    CheckpointError, UnsupportedError
        If a config or a file is malformed, or asks for something that is not built.
    FileNotFoundError, OSError
        If there is nothing to open.

    Examples
    --------
    >>> octavo.plan("kimi-k2.5", kv="int4").kv_bytes
    6396313600
    """
    memories, roofs = _memories(memory), _roofs(bandwidth)
    if isinstance(getattr(model, "spec", None), ModelSpec):
        name, spec, most, counted, notes = _of_llm(model, weights)
        kv = model.kv if kv is None else kv
    else:
        scheme = WeightScheme.parse(CHECKPOINT if weights is None else weights)
        name, spec, stored, notes = _of_name(model)
        most, counted = spec.context, weights_of(spec, str(scheme), scheme_bytes(scheme, stored))
    context = _context(context, most)
    cost = kv_cost(spec, KVScheme.parse("bf16" if kv is None else kv))
    ops = attention_ops(spec)
    notes += (f"roofs: {roofs.source}",) if roofs else ()
    return Plan(
        name, context, counted, cost, all_costs(spec), full_token_bytes(spec), ops,
        fits=tuple(fit(m, counted, cost, context) for m in memories),
        ceilings=tuple(ceiling(n, counted, cost, attention_ops(spec, n), roofs)
                       for n in (0, context)) if roofs else (),
        notes=notes,
    )  # fmt: skip


# ---- arguments -----------------------------------------------------------------------


def _context(context: Any, most: int) -> int:
    if context is None:
        return most
    if isinstance(context, bool) or not isinstance(context, int):
        raise TypeError(f"plan: context must be an int, not {type(context).__name__}")
    if not 1 <= context <= most:
        raise ValueError(f"plan: context is {context}; legal: 1 to {most}, as the model was made")
    return context


def _memories(memory: Any) -> tuple[int, ...]:
    if isinstance(memory, str):
        memory = memory.split(",")
    listed = memory if isinstance(memory, list | tuple) else [memory]
    if len(listed) > _MOST_MEMORIES:
        raise ValueError(f"plan: {len(listed)} memories; legal: at most {_MOST_MEMORIES}")
    return tuple(parse_bytes(m, "plan: memory") for m in listed)


def _roofs(bandwidth: Any) -> Roofs | None:
    if bandwidth is None:
        return None
    measured = getattr(bandwidth, "read_bytes", None)
    if isinstance(measured, float):  # a Machine
        most = max(bandwidth.int8_ops, bandwidth.tile_ops, bandwidth.f32_ops)
        return Roofs(measured, most, str(bandwidth))
    rate = parse_rate(bandwidth, "plan: bandwidth")
    return Roofs(rate, None, f"read {rate / 1e9:g} GB/s, as given; operations are not bounded")


# ---- models --------------------------------------------------------------------------

_Found = tuple[str, ModelSpec, Bytes, tuple[str, ...]]


def _of_llm(llm: Any, weights: Any) -> tuple[str, ModelSpec, int, Weights, tuple[str, ...]]:
    if weights is not None and WeightScheme.parse(weights) != llm.weights:
        raise ValueError(
            f"plan: weights is {str(weights)!r:.80}, and {llm.name!r} holds {str(llm.weights)!r}; "
            "legal: None, or the path of the model in place of the LLM"
        )
    counted = held_weights(llm.spec, f"{llm.weights}, as held", llm.report.rows)
    return llm.name, llm.spec, llm.context, counted, ()


def _of_name(model: Any) -> _Found:
    if not isinstance(model, str | os.PathLike):
        legal = "a name, a path or an LLM"
        raise TypeError(f"plan: model must be {legal}, not {type(model).__name__}")
    text = os.fsdecode(model)
    if text.lower() in KNOWN:  # before paths, as `hub.resolve` does
        return _of_known(text.lower())
    path = Path(hub.resolve(text) if text in hub.MODELS else os.path.expanduser(text))
    if not text or "\0" in text or not path.exists():
        raise _missing(text, path)
    if path.is_dir():
        path /= "config.json"
        if not path.exists():
            raise CheckpointError(f"{path.parent}: no config.json; legal: a folder with one")
    if path.suffix == ".json":
        return _of_config(path)
    if path.suffix.lower() == ".gguf":
        return _of_gguf(path)
    raise CheckpointError(f"{path}: not a model; legal: .gguf, config.json, or a folder with one")


def _missing(text: str, path: Path) -> Exception:
    known = [*KNOWN, *hub.MODELS]
    if not text or len(path.parts) > 1 or path.suffix in (".json", ".gguf"):
        return FileNotFoundError(
            f"plan: {text!r:.400}: no such file or folder. Known names: {', '.join(known)}"
        )
    near = difflib.get_close_matches(text.lower()[:80], known, n=1, cutoff=0.4)
    hint = f"; nearest: {near[0]!r}" if near else ""
    return ValueError(f"plan: unknown model {text!r:.80}{hint}; known: {', '.join(known)}")


def _of_known(name: str) -> _Found:
    known = KNOWN[name]
    notes: tuple[str, ...] = (f"{name}: {known.release}",)
    if known.unverified:
        fields = ", ".join(known.unverified)
        notes += (f"not confirmed on the published config, and without effect here: {fields}",)
    return name, spec_of(known.config, name), config_bytes(known.config, name), notes


def _of_config(path: Path) -> _Found:
    config = read_json(path, limit_bytes=_CONFIG_BYTES)
    spec = spec_of(config, str(path))
    name = spec.name or path.resolve().parent.name
    return name, spec, config_bytes(config, str(path)), ()


def _of_gguf(path: Path) -> _Found:
    with open_checkpoint(path) as checkpoint:
        spec, _ = model_of(checkpoint)
        return spec.name or path.stem, spec, file_bytes(checkpoint.tensors), ()
