"""The bars that Octavo's speed is held to, each with what the results say of it.

Every bar is a number that a measured one must reach; what is not in the results is "not measured".
Where one falls short, `reasons.json` says why, by machine and under the bar's own words.
"""

import json
import re
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
REASONS = Path(__file__).resolve().parent / "reasons.json"

# What the ports allow of the peak of byte products, in %: (Intel, AMD), from unpacking, scaling and
# converting beside each dot product. Two terms of activations (a8x2) halve the useful operations.
CEILINGS = {
    ("q4g32", "a8"): (80, 89), ("w8g32", "a8"): (80, 89),
    ("q4g32", "a8g32"): (73, 80), ("w8g32", "a8g32"): (73, 80),
    ("q4g32m", "a8"): (73, 80), ("q4g32m", "a8g32"): (67, 73),
    ("q4g32", "a8x2"): (40, 47), ("q4g32m", "a8x2"): (38, 44), ("w8g32", "a8x2"): (40, 47),
    ("w8", "a8"): (100, 100),
}  # fmt: skip
STREAM = {"bf16": 75, "int8": 70, "int4": 70, "fp8": 60}  # decode attention, % of stream


@dataclass(frozen=True)
class Bar:
    """One bar; `got` is None where nothing was measured."""

    number: int
    what: str
    must: float
    got: float | None
    unit: str = "%"

    @property
    def verdict(self) -> str:
        """Met, not met, or not measured."""
        if self.got is None:
            return "not measured"
        return "met" if self.got >= self.must else "**not met**"

    def reason(self, machine: str) -> str:
        """Return why it falls short on a machine of this name, or what else there is to say."""
        found = json.loads(REASONS.read_text()).get(machine, {}) if REASONS.exists() else {}
        return found.get(f"{self.number} {self.what}", found.get(str(self.number), ""))


def load(folder: Path) -> dict[str, list[Row]]:
    """Return all rows by benchmark, oldest first."""
    out = {}
    for path in sorted(folder.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        out[path.stem] = sorted(rows, key=lambda r: r["machine"]["time"])
    return out


def name_of(machine: Row) -> str:
    """Return a processor's name as files and `reasons.json` write it.

    Virtual machines give one name to many, so those that multiply by tiles say so.
    """
    name = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(\w+\)", "", machine["cpu"].lower())).strip("-")
    return f"{name}-amx" if "amx_int8" in machine["flags"] else name


def by_machine(data: dict[str, list[Row]]) -> dict[str, dict[str, list[Row]]]:
    """Return the rows of each kind of processor by its name, the one of the newest row first."""
    found: dict[str, dict[str, list[Row]]] = {}
    last: dict[str, str] = {}
    for bench, rows in data.items():
        for row in rows:
            name = name_of(row["machine"])
            found.setdefault(name, {}).setdefault(bench, []).append(row)
            last[name] = max(last.get(name, ""), row["machine"]["time"])
    return {name: found[name] for name in sorted(found, key=lambda n: last[n], reverse=True)}


def best_column(rows: Iterable[Row], *keys: str) -> list[Row]:
    """Return the last row of each case, of the highest column of kernels that it has."""
    columns = ("scalar", "avx2", "avx512", "amx")
    return newest(sorted(rows, key=lambda r: columns.index(r["isa"])), *keys)


def newest(rows: Iterable[Row], *keys: str) -> list[Row]:
    """Return the last row of each case, which the values of `keys` name."""
    last = {tuple(str(r.get(k)) for k in keys): r for r in rows}
    return list(last.values())


def where(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """Return the rows that have these values; of a set or a tuple, one of them."""

    def fits(row: Row) -> bool:
        return all(
            row.get(k) in v if isinstance(v, set | tuple) else row.get(k) == v
            for k, v in wanted.items()
        )

    return [r for r in rows if fits(r)]


def ratio(a: Row, b: Row, field: str = "tokens_s") -> float | None:
    """Return the median over rounds of a / b, if both are of one run."""
    x, y = a[field]["samples"], b[field]["samples"]
    if a["machine"]["time"] != b["machine"]["time"] or len(x) != len(y):
        return None
    return statistics.median(i / j for i, j in zip(x, y, strict=True))


def lowest(values: Iterable[float | None]) -> float | None:
    """Return the lowest of what was measured, or None."""
    return min((v for v in values if v is not None), default=None)


def of(rows: list[Row], field: str) -> float | None:
    """Return a field of the last row, or None."""
    return rows[-1][field] if rows else None


# ---- the bars --------------------------------------------------------------------------------


def of_lower_roof(row: Row, amd: bool) -> float:
    """Percent of the lower roof; that of arithmetic is what the ports allow the pair."""
    ceiling = CEILINGS[row["weights"], row["act"]][amd]
    return max(row["percent_stream"], 100 * row["percent_peak"] / ceiling)


def linear(data: dict[str, list[Row]]) -> Iterator[Bar]:
    """Bars 1 and 2: products of 4096 x 4096 on the best column."""
    rows = where(data.get("linear", ()), n=4096, k=4096, threads=2)
    rows = best_column(rows, "weights", "act", "m")
    amd = bool(rows) and rows[-1]["machine"]["vendor"] == "AuthenticAMD"
    for (weights, act), ceilings in CEILINGS.items():
        found = [r for r in where(rows, weights=weights, act=act) if r["m"] >= 64]
        must = ceilings[amd] * 0.85
        got = lowest(r["percent_peak"] for r in found)
        yield Bar(1, f"{weights} x {act}, M >= 64, of the byte peak", must, got)
    for weights in ("q4g32", "q4g32m", "w8g32"):
        found = where(rows, weights=weights)
        got = lowest(r["percent_stream"] for r in where(found, m=1))
        yield Bar(1, f"{weights}, M = 1, of stream", 85, got)
        got = lowest(of_lower_roof(r, amd) for r in where(found, m=(2, 4, 8)))
        what = f"{weights}, M = 2 to 8, of the lower of stream and the pair's ceiling"
        yield Bar(1, what, 70, got)
    for weights in ("bf16", "f32"):
        found = [r for r in where(rows, weights=weights) if r["m"] >= 64]
        got = lowest(r["percent_peak"] for r in found)
        yield Bar(2, f"{weights}, M >= 64, of the fma peak", 70, got)


def best_peer(mine: Row | None, rows: list[Row], **wanted: Any) -> float | None:
    """Return the ratio to the best of the other engines' rows."""
    if mine is None:
        return None
    others = [r for r in where(rows, **wanted) if r["engine"] != "octavo"]
    return lowest(ratio(mine, r) for r in others)


def last(rows: list[Row], **wanted: Any) -> Row | None:
    found = where(rows, **wanted)
    return found[-1] if found else None


def short(data: dict[str, list[Row]]) -> Iterator[Bar]:
    """Bars 3 and 4: SmolLM2 at short context."""
    rows = [r for r in data.get("peers", ()) if r["model"].startswith("Smollm2")]
    rows = where(rows, depth=0, threads=2)
    fill, step = where(rows, phase="prefill"), where(rows, phase="decode")
    for act, must in (("a8x2", 1.15), ("a8g32", 1.6)):
        mine = last(fill, asked=f"act={act}", form="Q4_1")
        got = best_peer(mine, fill)
        yield Bar(3, f"Q4_1 prefill, {act}, against the best peer in any form", must, got, "x")
    mine = last(fill, asked="act=a8g32", form="Q4_1")
    got = mine and mine["percent_peak"]
    yield Bar(3, "Q4_1 prefill, a8g32, of the byte peak", 28, got)
    for form, must in (("Q4_1", 1.3), ("Q4_0", 1.15)):
        mine = last(step, asked="act=a8x2", form=form)
        yield Bar(4, f"{form} decode, of stream", 80, mine and mine["percent_stream"])
        got = best_peer(mine, step, form=form)
        yield Bar(4, f"{form} decode, against the best peer", must, got, "x")


def deep(data: dict[str, list[Row]]) -> Iterator[Bar]:
    """Bars 5: SmolLM2's decode behind many tokens."""
    rows = [r for r in data.get("peers", ()) if r["model"].startswith("Smollm2")]
    rows = where(rows, phase="decode", threads=2)
    names = {"16": "bf16", "8": "int8", "4": "int4"}
    for depth in (4096, 8000):
        mine = {b: last(rows, engine="octavo", depth=depth, kv_bits=b) for b in names}
        for bits, name in names.items():
            own = mine[bits]
            for engine, must in (("llama", 3.0), ("ik", 1.8)):
                same = {"engine": engine, "depth": depth, "kv_bits": (bits, f"{bits}k")}
                what = f"decode at {depth:,}, {name}, against {engine} at equal bits"
                yield Bar(5, what, must, best_peer(own, rows, **same), "x")
            got = own and own["percent_stream"]
            yield Bar(5, f"decode at {depth:,}, {name}, of stream", 65, got)
    for bits, must in (("8", 1.3), ("4", 1.6)):
        pair = mine[bits], mine["16"]
        got = ratio(*pair) if all(pair) else None
        yield Bar(5, f"decode at 8,000, {names[bits]} against our bf16", must, got, "x")


def attention(data: dict[str, list[Row]]) -> Iterator[Bar]:
    """Bars 6: the attention kernels alone."""
    rows = data.get("attention", [])
    big = where(rows, kind="decode", context=131072, heads=32, kv_heads=8, head_dim=128, m=1)
    big = newest(big, "kv", "threads")
    for kv, must in STREAM.items():
        got = of(where(big, kv=kv, threads=2), "percent_stream")
        yield Bar(6, f"decode, {kv}, 128K tokens, 2 threads, of stream", must, got)
        one, two = (where(big, kv=kv, threads=t) for t in (1, 2))
        got = None
        if one and two and (gain := ratio(two[0], one[0], "gbs")):
            got = gain / (two[0]["roofs"]["stream_gbs"] / one[0]["roofs"]["stream_gbs"])
        yield Bar(6, f"decode, {kv}, 2 threads against 1, of what stream gains", 0.9, got, "x")
    fill = newest(where(rows, kind="prefill", context=4096, threads=2), "kv", "head_dim")
    for d, bar8 in ((64, 45), (128, 60)):
        got = of(where(fill, kv="bf16", head_dim=d), "percent_peak")
        yield Bar(6, f"prefill 4K, bf16, d = {d}, of the fma peak", 55, got)
        got = of(where(fill, kv="int8,attention=q8", head_dim=d), "percent_peak")
        yield Bar(6, f"prefill 4K, int8 in q8, d = {d}, of the byte peak", bar8, got)


def llama(data: dict[str, list[Row]]) -> Iterator[Bar]:
    """Bars 7: the shape of Llama-3-8B."""
    rows = [r for r in data.get("peers", ()) if "Llama-3-8B" in r["model"]]
    fill, step = where(rows, phase="prefill"), where(rows, phase="decode")
    mine = last(fill, asked="act=a8g32")
    yield Bar(7, "prefill, a8g32, against the best peer", 2.2, best_peer(mine, fill), "x")
    yield Bar(7, "prefill, a8g32, of the byte peak", 45, mine and mine["percent_peak"])
    mine = last(step, asked="act=a8x2")
    yield Bar(7, "decode, of stream", 90, mine and mine["percent_stream"])
    yield Bar(7, "decode, against the best peer", 1.0, best_peer(mine, step), "x")


def batch(data: dict[str, list[Row]]) -> Iterator[Bar]:
    """Bars 8: several sequences a step."""
    rows = where(data.get("model", ()), phase="batch", act="a8x2", threads=2)
    for kv, context, must in (("bf16", 32, 8.0), ("int4", 1024, 5.0)):
        many, one = (last(rows, kv=kv, context=context, batch=b) for b in (16, 1))
        got = ratio(many, one) if many and one else None
        yield Bar(8, f"batch 16 against 1, {kv}, {context:,} tokens of context", must, got, "x")


def bars(data: dict[str, list[Row]]) -> list[Bar]:
    """Return all bars, in order."""
    parts = (linear, short, deep, attention, llama, batch)
    return [bar for part in parts for bar in part(data)]
