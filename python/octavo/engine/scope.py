"""What is in force inside a `with` block: captures, routes, profiles and flight recorders.

A model's steps look at lists of them. Entering puts one on its list, leaving takes it off, and what
it gathered stays; it may be entered again later, to gather more.
"""

from typing import Any, TypeVar

T = TypeVar("T", bound="Scope")


class Scope:
    """A context manager that is on its owner's list while it is entered.

    Raises
    ------
    RuntimeError
        On entering one that is in force already: it would see every step twice.
    """

    def __init__(self, owner: list[Any]) -> None:
        self._owner = owner

    def __enter__(self: T) -> T:
        if self._at() is not None:
            raise RuntimeError(f"{type(self).__name__}: it is in force already; make another")
        self._owner.append(self)
        return self

    def __exit__(self, *exc: object) -> None:
        at = self._at()
        if at is not None:
            del self._owner[at]

    def _at(self) -> int | None:
        """Its place on the list, by identity: captures are mappings, which `==` would compare."""
        return next((i for i, one in enumerate(self._owner) if one is self), None)
