"""Looking into a running model: captures, steered routers, flight records, and times.

Each method returns a context manager that is in force over the steps inside its `with` block.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .capture import Taps
from .cost import Profile
from .flight import Recorder
from .routing import Route, Steer

if TYPE_CHECKING:
    from .sequence import Sequence
    from .shared import Shared
    from .stepper import Stepper


class Watching:
    """The part of `LLM` that looks into its steps."""

    if TYPE_CHECKING:
        name: str
        kv: Any
        weights: Any
        act: str
        runtime: Any
        _shared: Shared
        _stepper: Stepper

        def sequence(self, *, prefix: bool = True) -> Sequence: ...
        def check_length(self, what: str, tokens: int) -> None: ...
        def _ids(self, what: str, prompt: Any) -> Any: ...

    def capture(self, *names: str) -> Taps:
        """Return a context manager that collects activations by name.

        Parameters
        ----------
        *names : str
            With ``*``: ``"layers.*.attn.out"``, ``"layers.3.out"``, ``"norm"``, ``"embed"``; where
            a model has experts ``"layers.*.router"``, which gives ids, gates and scores.

        Examples
        --------
        ``with llm.capture("layers.*.out") as taps: llm.prefill(text)`` and then
        ``taps["layers.3.out"]``.
        """
        return Taps(self._shared.program, names, self._stepper.taps)

    def route(self, function: Steer, layers: int | Iterable[int] | None = None) -> Route:
        """Return a context manager under which `function` may change what routers choose.

        Parameters
        ----------
        function : callable
            ``function(layer, routing)`` is called between a layer's router and its experts with a
            `Routing` of copies, a row per token of the step. It changes ``ids`` and ``gates`` in
            place or returns new ones ``(ids, gates)``, of the same shapes; ids of a row must be
            distinct, gates finite.
        layers : int or iterable of int, optional
            Layers that it sees; all that have experts if None.

        Notes
        -----
        What the function raises comes out of the call that ran the step, with nothing changed. It
        must not use the same LLM. Tokens that were fed under it never enter the prefix index.

        Examples
        --------
        ``with llm.route(lambda layer, r: r.gates.fill(0.125)): llm.generate(prompt)``
        """
        return Route(self._shared.program, function, layers, self._stepper.routes)

    def routing(self, prompt: Any = None) -> Recorder:
        """Return a flight recorder: which token chose which experts, and the bytes that took.

        Parameters
        ----------
        prompt : str or sequence of int, optional
            Run the model over it and return its record. Without it, the recorder is a context
            manager that sees every step inside its block: of `generate`, `stream`, `prefill`,
            `score` and of sequences, batches too.

        Returns
        -------
        Recorder
            A `Flight`; its ``array`` has a row per token, layer and chosen expert.

        Raises
        ------
        UnsupportedError
            If the model has no experts.
        ValueError
            If the prompt is longer than the context.
        OutOfPages, NumericalError
            As `Sequence.append`.

        Notes
        -----
        Tokens that run under a recorder neither enter the prefix index nor are served from it: all
        of them are in the record. Experts that every token takes (shared ones) are not.

        Examples
        --------
        ``with llm.routing() as flight: llm.generate(prompt)`` and then ``flight.load()``,
        ``flight.replay("lru", [4, 8])``, ``flight.plan("24 GiB")``.
        """
        self._stepper.check_open("routing")
        packed = self._shared.packed[self.weights]
        flight = Recorder(self._shared.program, packed, self.name, self._stepper.taps)
        if prompt is not None:
            ids = self._ids("routing", prompt)
            self.check_length("routing", len(ids))
            with self.sequence(prefix=False) as sequence, flight:
                sequence.append(ids)
        return flight

    def profile(self) -> Profile:
        """Return a context manager that times every kind of work in the steps inside it.

        Examples
        --------
        ``with llm.profile() as p: llm.generate(prompt)`` and then ``print(p)``, or
        ``p.kinds["attend"].gbs``.
        """
        title = f"{self.name}, kv={self.kv}, weights={self.weights}, act={self.act}"
        return Profile(self._stepper.profiles, self.runtime.threads, self.runtime.isa, title)
