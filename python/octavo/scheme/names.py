"""How a user's name is looked up: known names, aliases, and errors that say what is near."""

import difflib
from collections.abc import Iterable

from octavo.errors import UnsupportedError

MAX_NAME = 400


def unknown(what: str, name: str, known: Iterable[str]) -> ValueError:
    """Build the error for a name that nobody knows; it lists the known ones and the nearest."""
    known = list(known)
    near = difflib.get_close_matches(name[:MAX_NAME], known, n=1, cutoff=0.4)
    hint = f"; nearest: {near[0]!r}" if near else ""
    return ValueError(f"unknown {what} {name!r:.80}{hint}; known: {', '.join(known)}")


def not_built(what: str, name: str, missing: str, nearest: str) -> UnsupportedError:
    """Build the error for a planned name whose kernels do not exist."""
    return UnsupportedError(
        f"{what} {name!r} is not built: {missing}; nearest that works: {nearest!r}"
    )


def checked_name(what: str, name: object) -> str:
    """Return a stripped, lower-case name, or refuse what cannot be one."""
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a name (str), not {type(name).__name__}")
    text = name.strip().lower()
    if not text or len(text) > MAX_NAME:
        raise ValueError(f"{what}: a name has 1 to {MAX_NAME} characters, this one {len(text)}")
    return text
