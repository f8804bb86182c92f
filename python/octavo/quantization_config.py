"""A checkpoint's `quantization_config`, as loaders and plans read it alike: its place, its groups.

Which methods and settings are read is theirs to say: a loader takes what it has kernels for, and a
plan sees no tensors.
"""

from collections.abc import Mapping
from typing import Any

from octavo.errors import CheckpointError

_NAME = "quantization_config"


def quantization_in(config: Mapping[str, Any], source: object) -> dict[str, Any] | None:
    """Return the ``quantization_config`` of a file, or of the text model inside it.

    Parameters
    ----------
    config : Mapping
        A whole ``config.json``.
    source : str or path-like
        What error texts call it.

    Returns
    -------
    dict or None
        None where nothing is quantized: it is absent, null or empty.

    Raises
    ------
    CheckpointError
        If it is no object.
    """
    text = config.get("text_config")
    nested = text if isinstance(text, dict) else {}
    found = config.get(_NAME) or nested.get(_NAME)
    if not found:
        return None
    if not isinstance(found, dict):
        raise _fail(source, _NAME, found, "an object")
    return found


def groups_in(quantization: Mapping[str, Any], source: object) -> dict[str, dict[str, Any]]:
    """Return the ``config_groups`` of compressed-tensors by name, one or more.

    Raises
    ------
    CheckpointError
        If they are no object of objects, or none.
    """
    groups = quantization.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise _fail(source, f"{_NAME}.config_groups", groups, "an object of one group or more")
    for name, group in groups.items():
        if not isinstance(group, dict):
            raise _fail(source, f"{_NAME}.config_groups.{name:.40}", group, "an object")
    return groups


def _fail(source: object, field: str, value: Any, legal: str) -> CheckpointError:
    return CheckpointError(f"{source}: {field} is {value!r:.80}; legal: {legal}")
