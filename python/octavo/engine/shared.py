"""What the variants of one model share: file, tokenizer, threads, and weights by scheme."""

import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from octavo import _core, hub
from octavo.checkpoint import open_checkpoint
from octavo.errors import BusyError
from octavo.model import check_tensors, model_of
from octavo.scheme import WeightScheme

from .packing import Packed
from .tokenizer import Tokenizer


class Shared:
    """An open checkpoint and everything made from it that does not depend on a KV scheme.

    Attributes
    ----------
    users : int
        LLMs that are open on it; the last one to leave closes it.
    packed : dict of WeightScheme to Packed
    """

    def __init__(self, model: Any, threads: int, tokenizer: Any = None) -> None:
        self.users = 0
        self.packed: dict[WeightScheme, Packed] = {}
        self._lock = threading.RLock()
        path = Path(hub.resolve(model))
        self.checkpoint = open_checkpoint(path)
        try:
            self.spec, self.program = model_of(self.checkpoint)
            self.name = self.spec.name or path.stem
            self.tokenizer = _tokenizer(self.checkpoint, tokenizer)
            self.eos_ids = frozenset(self.tokenizer.eos_ids)
            self.runtime = _core.Runtime(threads)
        except BaseException:
            self.checkpoint.close()
            raise

    def weights(self, scheme: WeightScheme, progress: bool) -> Packed:
        """Return the packed weights of a scheme, packing them if nobody has; counts a user."""
        with self._lock:
            if scheme not in self.packed:
                packed = Packed(self.runtime, self.checkpoint, self.spec, scheme, progress)
                tensors = self.checkpoint.tensors
                packed.report.skipped = check_tensors(self.spec, tensors, str(self.checkpoint.path))
                self.packed[scheme] = packed
            self.packed[scheme].users += 1
            return self.packed[scheme]

    def drop(self, scheme: WeightScheme) -> None:
        """Count a user of these weights less; the last one frees them."""
        with self._lock:
            packed = self.packed[scheme]
            packed.users -= 1
            if not packed.users:
                self.packed.pop(scheme).core.close()

    def leave(self) -> None:
        """Count an LLM less; the last one closes file and threads."""
        with self._lock:
            self.users -= 1
            self.close_if_idle()

    def close_if_idle(self) -> None:
        """Close file and threads unless an LLM is open on them."""
        if self.users == 0:
            self.checkpoint.close()
            with suppress(BusyError):  # views keep a cache, and the cache its runtime
                self.runtime.close()


def _tokenizer(checkpoint: Any, given: Any) -> Any:
    if given is None:
        return Tokenizer.from_checkpoint(checkpoint)
    return given if isinstance(given, Tokenizer) else Tokenizer.from_folder(given)
