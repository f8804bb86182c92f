"""Reading numbers out of metadata that strangers wrote: each with its legal range, or an error.

Serves GGUF keys (`general.…`, `<arch>.…`) and `config.json` alike. A value of the wrong type is
never converted.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from octavo.errors import CheckpointError, UnsupportedError

MAX_LAYERS = 4096
MAX_WIDTH = 1 << 24
_REQUIRED = object()


class Fields:
    """Metadata of one model under a common key prefix.

    Parameters
    ----------
    values : Mapping
        Parsed metadata.
    source : str
        What error texts call the file.
    prefix : str
        Put before every key.
    """

    def __init__(self, values: Mapping[str, Any], source: str, prefix: str = "") -> None:
        self.values = values
        self.source = source
        self.prefix = prefix

    def get(self, key: str, default: Any = None) -> Any:
        """Return the raw value; null counts as absent."""
        value = self.values.get(self.prefix + key)
        return default if value is None else value

    def text_part(self) -> "Fields":
        """Return the fields of ``text_config``, a text model inside; these where there is none."""
        nested = self.get("text_config")
        if nested is None:
            return self
        if not isinstance(nested, dict):
            raise self.bad("text_config", nested, "an object")
        return Fields(nested, f"{self.source}: text_config")

    def integer(self, key: str, most: int = MAX_WIDTH, default: Any = _REQUIRED, least=1) -> Any:
        """Return an integer within [least, most]; of an array, the one value all layers share."""
        value = self._value(key, default, f"an integer from {least} to {most}")
        if value is default:
            return default
        if isinstance(value, np.ndarray | list):
            value = self._shared(key, value)
        if type(value) is not int or not least <= value <= most:
            raise self.bad(key, value, f"an integer from {least} to {most}")
        return value

    def number(self, key: str, least: float, most: float, default: Any = _REQUIRED) -> Any:
        """Return a finite float with least < value <= most."""
        legal = f"a finite number above {least:g}, at most {most:g}"
        value = self._value(key, default, legal)
        if value is default:
            return default
        good = type(value) in (int, float) and math.isfinite(value) and least < value <= most
        if not good:
            raise self.bad(key, value, legal)
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """Return a boolean."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.bad(key, value, "true or false")
        return value

    def text(self, key: str, default: str = "") -> str:
        """Return a string."""
        value = self.get(key, default)
        if not isinstance(value, str):
            raise self.bad(key, value, "a string")
        return value

    def refuse(self, key: str, legal: tuple[Any, ...], why: str) -> None:
        """Raise `UnsupportedError` if the key is there with another value than `legal` lists."""
        value = self.get(key)
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if value is not None and value not in legal:
            raise UnsupportedError(
                f"{self.source}: {self.prefix}{key} is {value!r:.80}: {why} is not built; "
                f"supported: {', '.join(map(repr, legal)) or 'absent'}"
            )

    def bad(self, key: str, value: Any, legal: str) -> CheckpointError:
        """Build the error that names key, value and what is legal."""
        text = f"{value!r:.80}"
        return CheckpointError(f"{self.source}: {self.prefix}{key} is {text}; legal: {legal}")

    def _value(self, key: str, default: Any, legal: str) -> Any:
        value = self.get(key, default)
        if value is _REQUIRED:
            raise CheckpointError(f"{self.source}: {self.prefix}{key} is missing; legal: {legal}")
        return value

    def _shared(self, key: str, values: Any) -> Any:
        listed = values.tolist() if isinstance(values, np.ndarray) else values
        if not all(type(value) is int for value in listed):
            raise self.bad(key, listed, "an integer, or one of each layer")
        distinct = set(listed)
        if len(distinct) != 1:
            raise UnsupportedError(
                f"{self.source}: {self.prefix}{key} differs between layers "
                f"({sorted(distinct)[:8]}); supported: the same in every layer"
            )
        return distinct.pop()
