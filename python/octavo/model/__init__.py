"""Model families: from a checkpoint's metadata to a spec and a program, as plain data.

A new family is one file here (`from_gguf` and `from_hf`, or one of them, and `program_of`) and one
line of `FAMILIES`.
"""

import difflib
import re
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

from octavo.errors import CheckpointError, UnsupportedError
from octavo.module_patterns import TEXT_PREFIX

from .dense import HF_NAMES
from .fields import Fields
from .spec import LayerShape, Mixture, ModelSpec, Op, Program, Rope, TensorUse

__all__ = [
    "FAMILIES",
    "LayerShape",
    "Mixture",
    "ModelSpec",
    "Op",
    "Program",
    "Rope",
    "TensorUse",
    "model_of",
    "spec_of",
]

# file of the family: (GGUF general.architecture, Hugging Face architectures)
FAMILIES = {
    "llama": (("llama",), ("LlamaForCausalLM",)),
    "qwen3": (("qwen3",), ("Qwen3ForCausalLM",)),
    "qwen3_moe": ((), ("Qwen3MoeForCausalLM",)),
    "mixtral": ((), ("MixtralForCausalLM",)),
    "gpt_oss": ((), ("GptOssForCausalLM",)),
    "gemma3": ((), ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration")),
    "deepseek": ((), ("DeepseekV3ForCausalLM", "KimiK25ForConditionalGeneration")),
}


def model_of(checkpoint: Any) -> tuple[ModelSpec, Program]:
    """Recognise the family of a checkpoint and check every tensor against it.

    Parameters
    ----------
    checkpoint : octavo.checkpoint.Checkpoint
        Open; only metadata, shapes and RoPE divisors are read.

    Returns
    -------
    ModelSpec, Program

    Raises
    ------
    UnsupportedError
        If no family knows the architecture, or the file asks for something that is not built.
    CheckpointError
        If numbers are out of range, or tensors are missing, misshapen or left over.
    """
    source, tensors = str(checkpoint.path), checkpoint.tensors
    if checkpoint.kind == "gguf":
        arch = str(checkpoint.metadata.get("general.architecture", ""))
        family = _family(arch, 0, source)
        spec = family.from_gguf(Fields(checkpoint.metadata, source, f"{arch}."), tensors)
    else:
        config = checkpoint.metadata["config"]
        family = _family(_hf_architecture(config), 1, source)
        spec = family.from_hf(Fields(config, f"{source}: config.json"), tensors)
    check_tensors(spec, tensors, source)
    return spec, family.program_of(spec)


class _Shape(NamedTuple):
    shape: tuple[int, int]


def spec_of(config: Mapping[str, Any], source: str) -> ModelSpec:
    """Make the spec of a ``config.json`` without its tensors: the numbers say their shapes.

    Parameters
    ----------
    config : Mapping
        Parsed; a text model may lie in its ``text_config``.
    source : str
        What error texts call it.

    Raises
    ------
    UnsupportedError, CheckpointError
        As `model_of`, but for what only tensors can show.
    """
    family = _family(_hf_architecture(config), 1, source)
    text, prefix = config.get("text_config"), TEXT_PREFIX
    if not isinstance(text, dict):
        text, prefix = config, ""
    fields = Fields(getattr(family, "DEFAULTS", {}) | text, source)
    embedding = _Shape((fields.integer("vocab_size"), fields.integer("hidden_size")))
    tensors = {f"{prefix}{HF_NAMES['embed']}.weight": embedding}
    return family.from_hf(Fields(config, source), tensors)


def _hf_architecture(config: Mapping[str, Any]) -> str:
    listed = config.get("architectures")
    return str(listed[0]) if isinstance(listed, list) and listed else ""


def _family(arch: str, column: int, source: str) -> ModuleType:
    known = {name: file for file, names in FAMILIES.items() for name in names[column]}
    if arch in known:
        return import_module(f".{known[arch]}", __name__)
    near = difflib.get_close_matches(arch, known, n=1)
    hint = f"; nearest: {near[0]!r}" if near else ""
    raise UnsupportedError(
        f"{source}: architecture {arch!r:.60} is not built{hint}; known: {', '.join(sorted(known))}"
    )


def check_tensors(spec: ModelSpec, tensors: Mapping[str, Any], source: str) -> dict[str, str]:
    """Hold the loader's contract: every tensor is consumed, or skipped by a named rule.

    Returns
    -------
    dict of str to str
        Skipped tensors and the reason of each.

    Raises
    ------
    CheckpointError
        At the first tensor that is missing, misshapen, or neither consumed nor skipped.
    """
    left = dict.fromkeys(tensors)
    for use in spec.uses:
        tensor = tensors.get(use.tensor)
        if tensor is None:
            raise CheckpointError(
                f"{source}: tensor {use.tensor!r} ({use.role}) is missing; "
                f"legal: one of shape {list(use.stored_shape)}"
            )
        if tuple(tensor.shape) != use.stored_shape:
            raise CheckpointError(
                f"{source}: tensor {use.tensor!r} ({use.role}) has shape {list(tensor.shape)}; "
                f"legal: {list(use.stored_shape)}, as the metadata says"
            )
        left.pop(use.tensor, None)
    skipped = {}
    for name in left:
        reason = _reason(spec, name)
        if reason is None:
            raise CheckpointError(
                f"{source}: tensor {name!r} is not part of family {spec.family!r}; legal: only "
                f"tensors that the model consumes or a rule skips ({len(left)} left over)"
            )
        skipped[name] = reason
    return skipped


def _reason(spec: ModelSpec, name: str) -> str | None:
    if name in spec.consumed:
        return "its values are in the model's constants"
    return next((why for rule, why in spec.skips if re.fullmatch(rule, name)), None)
