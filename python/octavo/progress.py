"""Progress bars that cost nothing until they are due: `tqdm` is imported when one is shown.

Short work under a bar with a delay, such as loading a small model, never pays for the import.
"""

import time
from types import TracebackType
from typing import Any


class Bar:
    """A context manager that counts `n` up to `total`, and shows it if and when it should.

    Parameters
    ----------
    total : int
    what, unit : str
        Shown before the bar, and after the rate.
    shown : bool
    delay : float
        Seconds of work before it shows.
    **options
        More of `tqdm`.
    """

    def __init__(
        self,
        total: int,
        what: str,
        unit: str = "it",
        *,
        shown: bool = True,
        delay: float = 0.0,
        **options: Any,
    ) -> None:
        self.n = 0
        self._options = {"total": total, "desc": what, "unit": unit, **options}
        self._shown, self._delay = shown, delay
        self._began = time.monotonic()
        self._drawn: Any = None

    def __enter__(self) -> "Bar":
        self.update(0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if self._drawn is not None:
            self._drawn.close()

    def update(self, count: int) -> None:
        """Count so many more."""
        self.n += count
        if self._drawn is not None:
            self._drawn.update(count)
            return
        past = time.monotonic() - self._began
        if self._shown and past >= self._delay:
            self._drawn = _draw(self._options)
            self._drawn.start_t -= past  # the rate is that of all the work
            self._drawn.update(self.n)


def _draw(options: dict[str, Any]) -> Any:
    from tqdm.auto import tqdm

    return tqdm(**options)
