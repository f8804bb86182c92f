"""The figures of docs/performance.md: percent of the roof, decode over depth, decode over batch.

Small SVG files whose bytes depend on the numbers alone: text stays text, and no date is written.
"""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

from bars import Row, best_column, newest, where
from matplotlib import pyplot as plt

STYLE = {"svg.fonttype": "none", "svg.hashsalt": "octavo", "font.size": 9, "axes.grid": True,
         "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False}  # fmt: skip
BITS = {"16": "16-bit KV", "8": "8-bit KV", "8k": "q8_KV", "4": "4-bit KV"}
DASHES = {"16": "-", "8": "--", "8k": "-.", "4": ":"}
COLOURS = {"octavo": "C0", "ik": "C1", "llama": "C2", "openvino": "C3"}


def save(name: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    plt.tight_layout()
    plt.savefig(folder / f"{name}.svg", metadata={"Date": None})
    plt.close()


def roof_bars(data: dict[str, list[Row]], folder: Path) -> None:
    """Draw every product's share of the lower roof, by rows."""
    rows = where(data.get("linear", ()), n=4096, k=4096, threads=2)
    rows = best_column(rows, "weights", "act", "m")
    sizes = [m for m in (1, 8, 512) if where(rows, m=m)]
    if not sizes:
        return
    names = sorted({(r["weights"], r["act"]) for r in rows})
    _, axes = plt.subplots(figsize=(6.5, 0.5 + 0.32 * len(names)))
    for i, m in enumerate(sizes):
        shares = [(where(rows, weights=w, act=a, m=m) or [{"percent_lower_roof": 0}])[-1]
                  for w, a in names]  # fmt: skip
        at = [j + 0.27 * (i - 1) for j in range(len(names))]
        axes.barh(at, [s["percent_lower_roof"] for s in shares], 0.25, label=f"{m} rows")
    axes.set_yticks(range(len(names)), [f"{w} x {a}" for w, a in names])
    axes.invert_yaxis()
    axes.set_xlabel("% of the lower roof, 4096 x 4096")
    axes.legend(frameon=False)
    save("linear", folder)


def model_bars(data: dict[str, list[Row]], folder: Path) -> None:
    """Draw each engine's share of its roof, prefill and decode, per file."""
    rows = newest(where(data.get("peers", ()), depth=0), "engine", "asked", "file", "phase")
    if not rows:
        return
    names = sorted({(r["model"], r["form"], r["engine"], r["asked"]) for r in rows})
    keys = ("model", "form", "engine", "asked")
    _, axes = plt.subplots(figsize=(6.5, 0.8 + 0.3 * len(names)))
    shares = {"prefill": "percent_peak", "decode": "percent_stream"}
    for i, (phase, share) in enumerate(shares.items()):
        found = [where(rows, phase=phase, **dict(zip(keys, n, strict=True))) for n in names]
        values = [f[-1][share] if f else 0 for f in found]
        roof = "byte peak" if phase == "prefill" else "stream"
        axes.barh([j + 0.36 * i for j in range(len(names))], values, 0.34, label=f"{phase}: {roof}")
    short = [f"{m[:12]} {form} {e} {a}".strip() for m, form, e, a in names]
    axes.set_yticks([j + 0.18 for j in range(len(names))], short)
    axes.invert_yaxis()
    axes.set_xlabel("% of the roof")
    axes.legend(frameon=False)
    save("engines", folder)


def lines(rows: list[Row], across: str, legend: Any, style: Any) -> None:
    """Plot tokens a second over `across`, one line per legend."""
    found: dict[str, list[Row]] = {}
    for r in rows:
        found.setdefault(legend(r), []).append(r)
    for name, line in found.items():
        line.sort(key=lambda r: r[across])
        rates = [r["tokens_s"]["median"] for r in line]
        plt.plot([r[across] for r in line], rates, label=name, marker="o", ms=3, **style(line[0]))
    plt.xlabel(across)
    plt.ylabel("tokens/s")
    plt.legend(frameon=False, ncol=2)


def depth(data: dict[str, list[Row]], folder: Path) -> None:
    """Draw decode over depth, engines by KV bits."""
    rows = [r for r in data.get("peers", ()) if r["depth"] and r["form"] == "Q4_1"]
    rows = newest(rows, "engine", "asked", "model", "depth", "kv_bits")
    if not rows:
        return
    plt.figure(figsize=(6.5, 3.6))
    lines(
        rows, "depth",
        lambda r: f"{r['engine']}, {BITS[r['kv_bits']]}",
        lambda r: {"color": COLOURS[r["engine"]], "linestyle": DASHES[r["kv_bits"]]},
    )  # fmt: skip
    plt.ylim(bottom=0)
    save("depth", folder)


def batch(data: dict[str, list[Row]], folder: Path) -> None:
    """Draw tokens a second over batch."""
    rows = where(data.get("model", ()), phase="batch", act="a8x2")
    rows = newest(rows, "model", "kv", "context", "batch")
    if not rows:
        return
    plt.figure(figsize=(6.5, 3.2))
    lines(rows, "batch", lambda r: f"{r['kv']}, {r['context']} tokens", lambda r: {})
    plt.xscale("log", base=2)
    plt.yscale("log", base=2)
    save("batch", folder)


def draw(data: dict[str, list[Row]], folder: Path) -> None:
    """Draw all figures that there are rows for."""
    with plt.rc_context(STYLE):
        for one in (roof_bars, model_bars, depth, batch):
            one(data, folder)
