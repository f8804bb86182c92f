"""What steps cost: time measured, bytes and operations counted, and the roofs they stand under.

Bytes are stored bytes of weights and of the cache's pages, each once a step; operations are the
useful ones, two per multiply-add. Both follow from shapes and the experts chosen
(csrc/core/cost.c), so they are the same on every machine; only seconds are measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.table import Shown, Table

from .scope import Scope

KINDS = ("embed", "norm", "linear", "gate", "route", "expert", "store", "seal", "attend", "head",
         "pick")  # fmt: skip


@dataclass
class Cost:
    """Time, bytes and operations of some work.

    Attributes
    ----------
    seconds : float
        Wall time.
    bytes : float
        Stored bytes of weights and pages that had to be read.
    int8_ops, f32_ops : float
        Useful operations by the arithmetic that does them: dots of 8-bit codes, and float32.
    """

    seconds: float = 0.0
    bytes: float = 0.0
    int8_ops: float = 0.0
    f32_ops: float = 0.0

    def add(self, seconds: float, nbytes: float, int8_ops: float, f32_ops: float) -> None:
        """Add one piece of work."""
        self.seconds += seconds
        self.bytes += nbytes
        self.int8_ops += int8_ops
        self.f32_ops += f32_ops

    @property
    def ops(self) -> float:
        """Useful operations of either kind."""
        return self.int8_ops + self.f32_ops

    @property
    def gbs(self) -> float:
        """Gigabytes per second; nan where no time passed."""
        return self.bytes / self.seconds / 1e9 if self.seconds else float("nan")

    @property
    def gops(self) -> float:
        """Giga-operations per second; nan where no time passed."""
        return self.ops / self.seconds / 1e9 if self.seconds else float("nan")

    def floor(self, machine: Any) -> float:
        """Return the least seconds that a machine's roofs allow: reading, or computing.

        Byte operations count at the machine's highest rate, in tiles where it has them.
        """
        most = max(machine.int8_ops, machine.tile_ops)
        compute = self.int8_ops / most + self.f32_ops / machine.f32_ops
        return max(self.bytes / machine.read_bytes, compute)

    def of_roof(self, machine: Any = None) -> float:
        """Return the share of the roof that was reached, 0 to 1: `floor` over `seconds`.

        Parameters
        ----------
        machine : Machine, optional
            Default: `octavo.machine()`, measured once per process.
        """
        if machine is None:
            from octavo.survey import machine as measure

            machine = measure()
        return self.floor(machine) / self.seconds if self.seconds else float("nan")


@dataclass
class Phase(Cost):
    """The steps of a prefill, or of a decode.

    Attributes
    ----------
    steps, tokens : int
        Steps, and tokens that they fed. A step that several requests share counts whole for each,
        with its time and bytes, but `tokens` are the request's own.
    """

    steps: int = 0
    tokens: int = 0

    def add_step(self, step: Mapping[str, Any], tokens: int) -> None:
        """Add what `Stepper.step` returned."""
        self.steps += 1
        self.tokens += tokens
        self.add(step["seconds"], *totals(step["cost"]))

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second; nan where no time passed."""
        return self.tokens / self.seconds if self.seconds else float("nan")

    def __str__(self) -> str:
        return (
            f"{self.tokens} tokens in {self.steps} steps, {self.seconds:.3f} s: "
            f"{self.tokens_per_s:,.1f} tok/s, {self.gbs:.1f} GB/s, {self.gops:,.0f} Gop/s"
        )


@dataclass
class Phases:
    """Prefill (steps of several tokens of a history) and decode (one at a time)."""

    prefill: Phase = field(default_factory=Phase)
    decode: Phase = field(default_factory=Phase)

    def add_step(self, step: Mapping[str, Any], tokens: int, decoding: bool) -> None:
        """Add a step to the phase that it is of."""
        (self.decode if decoding else self.prefill).add_step(step, tokens)

    def __str__(self) -> str:
        return f"prefill {self.prefill}\ndecode  {self.decode}"


@dataclass
class RequestMetrics(Phases):
    """When things happened to a request, and what its steps cost.

    Attributes
    ----------
    arrival_time, first_token_time, finished_time : float or None
        On `time.perf_counter`'s clock, in seconds; None until then.
    """

    arrival_time: float = 0.0
    first_token_time: float | None = None
    finished_time: float | None = None

    @property
    def first_token_s(self) -> float | None:
        """Seconds from arrival to the first token."""
        return None if self.first_token_time is None else self.first_token_time - self.arrival_time


class Profile(Scope, Shown):
    """Time per kind of work, collected from all steps inside a `with` block; see `LLM.profile`.

    Attributes
    ----------
    kinds : dict of str to Cost
        Kind of work: embed, norm (with the quantizing of rows), linear, gate (SwiGLU), route and
        expert (of mixtures), store (RoPE, rows into open pages), seal, attend, head, pick (what
        was asked of the logits).
    whole : Phase
        All steps; what their time exceeds the kinds' sum by is spent around them.
    """

    def __init__(self, owner: list["Profile"], threads: int, isa: str, title: str) -> None:
        super().__init__(owner)
        self._threads, self._isa, self.title = threads, isa, title
        self.kinds: dict[str, Cost] = {}
        self.whole = Phase()

    def record(self, step: Mapping[str, Any]) -> None:
        """Take one step."""
        self.whole.add_step(step, step["tokens"])
        for kind, cost in step["cost"].items():
            self.kinds.setdefault(kind, Cost()).add(*cost)

    def table(self, machine: Any = None) -> Table:
        """Return a table with a row per kind, longest first.

        Parameters
        ----------
        machine : Machine, optional
            Roofs to compare with; default: `octavo.machine` of these threads and this column.
        """
        if machine is None:
            from octavo.survey import machine as measure

            machine = measure(self._threads, self._isa)
        whole = self.whole
        rest = Cost(whole.seconds - sum(c.seconds for c in self.kinds.values()))
        out = Table(
            f"{self.title}: {whole}",
            ["work", "ms per step", "share", "GB/s", "Gop/s", "of roof"],
            notes=[f"roofs: {machine}", "of roof: the least time the roofs allow / time taken"],
        )
        rows = sorted(self.kinds.items(), key=lambda kv: -kv[1].seconds)
        for name, cost in [*rows, ("around", rest), ("all", whole)]:
            out.add(name, *_cells(cost, whole, machine))
        return out


def _cells(cost: Cost, whole: Phase, machine: Any) -> list[str | None]:
    worked = cost.floor(machine) > 0
    return [
        f"{1e3 * cost.seconds / max(1, whole.steps):.3f}",
        f"{100 * cost.seconds / whole.seconds:.1f} %" if whole.seconds else None,
        f"{cost.gbs:.1f}" if cost.bytes else None,
        f"{cost.gops:,.0f}" if cost.ops else None,
        f"{100 * cost.of_roof(machine):.0f} %" if worked else None,
    ]


def totals(cost: Mapping[str, tuple[float, float, float, float]]) -> tuple[float, float, float]:
    """Return the bytes, int8 and float32 operations of a step's kinds together."""
    columns = list(zip(*cost.values(), strict=True)) or [()] * 4
    return sum(columns[1]), sum(columns[2]), sum(columns[3])
