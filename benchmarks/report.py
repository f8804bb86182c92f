"""Write docs/performance.md and its figures from the newest row of each case in the results.

    python benchmarks/report.py [--results benchmarks/results] [--out docs/performance.md]

The page is of the processor that was measured last; each other has one of its own, named after it.
Bars are in `bars.py`, reasons for what falls short in `reasons.json`. Figures need matplotlib (the
extra `notebook`); without it the tables are written and the figures stay as they are.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bars import Row, bars, by_machine, load, newest, where
from common import RESULTS, ROOT

INTRO = """# Performance

Written by `benchmarks/report.py` from `benchmarks/results/*.jsonl`: the newest row of each case.
Roofs are measured in the same process, threads and minute as what is held against them; contenders
take turns, round by round. Figures are medians over rounds, in brackets the lowest and highest.
Absolute figures move with a machine's neighbours: percentages and ratios are what to compare.
Bytes are those stored, scales included; operations are 2 * m * n * k, without unpacking. The byte
peak is that of vectors (vpdpbusd), which tile products (the column amx) may exceed.
"""
ELSEWHERE = """Bars 9 (what integer attention adds to a scheme's divergence) and 10 (laws,
sanitizers, sizes of files) are not of time: [measurements.md](measurements.md), and the tests."""
PEER_KEYS = ("engine", "asked", "file", "phase", "depth", "kv_bits", "threads")


def table(head: list[str], body: Iterable[list[Any]]) -> str:
    """Return a Markdown table, or a sentence where there is nothing to show."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in body]
    if not lines:
        return "Not measured yet."
    return "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *lines])


def figure(value: float | None) -> str:
    """Return a number as people read it."""
    if value is None:
        return ""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def span(found: dict[str, Any]) -> str:
    return f"{figure(found['median'])} [{figure(found['min'])}, {figure(found['max'])}]"


def grid(rows: list[Row], across: str, down: tuple[str, ...], show: Callable[[Row], str]) -> str:
    """Return a table of one value by `across` for each combination of `down`."""
    columns = sorted({r[across] for r in rows})
    found: dict[tuple, dict[Any, str]] = {}
    for r in rows:
        found.setdefault(tuple(r[k] for k in down), {})[r[across]] = show(r)
    head = [*down, *(f"{across} {figure(c)}" for c in columns)]
    return table(head, [[*k, *(v.get(c, "") for c in columns)] for k, v in found.items()])


# ---- sections --------------------------------------------------------------------------------


def about(data: dict[str, list[Row]]) -> str:
    """Say which machines and commits the rows are of."""
    head = ["CPU", "cores", "last-level cache", "flags", "compiler", "commit"]
    keys = {}
    for rows in data.values():
        for row in rows:
            m = row["machine"]
            cache = f"{m['llc_bytes'] >> 20} MiB"
            key = (m["cpu"], m["cores"], cache, " ".join(m["flags"]), m["compiler"])
            keys[key] = (m["commit"] or "unknown")[:12]
    return table(head, [[*k, v] for k, v in keys.items()])


def verdicts(data: dict[str, list[Row]], machine: str) -> str:
    head = ["#", "what", "must", "measured", "", "note"]
    body = []
    for bar in bars(data):
        got = "" if bar.got is None else f"{figure(bar.got)} {bar.unit}"
        must = f"{figure(bar.must)} {bar.unit}"
        body.append([bar.number, bar.what, must, got, bar.verdict, bar.reason(machine)])
    return table(head, body) + "\n\n" + ELSEWHERE


def roofs(data: dict[str, list[Row]]) -> str:
    rows = newest(data.get("roofs", ()), "isa", "threads")
    names = ("stream_gbs", "int8_gops", "tile_gops", "f32_gops")
    head = ["column", "threads", "reading, GB/s", "byte products, Gop/s", "in tiles, Gop/s",
            "float fma, Gflop/s"]  # fmt: skip

    def cells(r: Row) -> list[str]:
        return [span(r[n]) if r.get(n, {}).get("median") else "" for n in names]

    return table(head, [[r["isa"], r["threads"], *cells(r)] for r in rows])


def linear(data: dict[str, list[Row]]) -> str:
    rows = newest(data.get("linear", ()), "weights", "act", "m", "n", "k", "isa", "threads")
    for r in rows:
        r["shape"] = f"{r['n']} x {r['k']}"

    def show(r: Row) -> str:
        return f"{r['percent_lower_roof']:.0f} % ({figure(r['gops']['median'])})"

    return grid(rows, "m", ("isa", "threads", "shape", "weights", "act"), show)


def experts(data: dict[str, list[Row]]) -> str:
    keys = ("act", "m", "experts", "top", "hidden", "inner", "isa", "threads")
    rows = newest(data.get("moe", ()), *keys)
    for r in rows:
        r["layer"] = f"{r['experts']} x 3 x {r['hidden']} x {r['inner']}"

    def show(r: Row) -> str:
        return f"{r['percent_lower_roof']:.0f} % ({figure(r['us']['median'] / 1e3)} ms)"

    return grid(rows, "m", ("isa", "threads", "layer", "weights", "act"), show)


def latent(data: dict[str, list[Row]]) -> str:
    rows = where(data.get("latent", ()), kind="decode")
    rows = newest(rows, "kv", "context", "heads", "rank", "rope", "threads", "isa")
    for r in rows:
        r["layer"] = f"{r['heads']} heads over {r['rank']} + {r['rope']}"

    def show(r: Row) -> str:
        ratio = f", {r['times_bf16']:.1f} x bf16" if "times_bf16" in r else ""
        return f"{r['percent_roof']:.0f} % ({figure(r['us']['median'] / 1e3)} ms{ratio})"

    return grid(rows, "context", ("isa", "threads", "layer", "kv"), show)


def slices(data: dict[str, list[Row]]) -> str:
    keys = ("kind", "m", "layers", "kv", "act", "context", "isa", "threads")
    head = ["step", "tokens", "layers", "context", "KV", "act", "threads", "ms", "of stream"]
    head += ["experts", "linears", "attention", "head"]
    body, kinds = [], ("expert", "linear", "attend", "head")
    for r in newest(data.get("slice", ()), *keys):
        shares = [f"{100 * r['share'][kind]:.0f} %" for kind in kinds]
        body.append([r["kind"], r["m"], r["layers"], figure(r["context"]), r["kv"], r["act"],
                     r["threads"], span(r["ms"]), f"{r['percent_stream']:.0f} %",
                     *shares])  # fmt: skip
    return table(head, body)


def attention(data: dict[str, list[Row]], kind: str) -> str:
    rows = where(data.get("attention", ()), kind=kind)
    keys = ("kv", "context", "m", "heads", "kv_heads", "head_dim", "threads", "isa")
    rows = newest(rows, *keys)
    field = "percent_stream" if kind == "decode" else "percent_peak"
    rate = "gbs" if kind == "decode" else "gops"
    for r in rows:
        r["heads x KV x width"] = f"{r['heads']} x {r['kv_heads']} x {r['head_dim']}"
    down = ("isa", "threads", "heads x KV x width", "kv")
    show = lambda r: f"{r[field]:.0f} % ({figure(r[rate]['median'])})"  # noqa: E731
    return grid(rows, "context", down, show)


def model(data: dict[str, list[Row]], phase: str, across: str) -> str:
    rows = where(data.get("model", ()), phase=phase)
    rows = newest(rows, "model", "kv", "act", "context", "batch", "threads", "isa")
    field = "percent_peak" if phase == "prefill" else "percent_stream"
    down = ("model", "act", "kv", *(["context"] if across == "batch" else []))
    show = lambda r: f"{figure(r['tokens_s']['median'])} ({r[field]:.0f} %)"  # noqa: E731
    return grid(rows, across, down, show)


def peers(data: dict[str, list[Row]], deep: bool) -> str:
    rows = [r for r in data.get("peers", ()) if bool(r["depth"]) == deep]
    rows = newest(rows, *PEER_KEYS)
    head = ["model", "file", "engine", "KV bits", "depth", "phase", "tokens/s", "of its roof"]
    body = []
    for r in sorted(rows, key=lambda r: (r["model"], r["depth"], r["phase"], r["file"])):
        share = r.get("percent_stream", r.get("percent_peak"))
        name = f"{r['engine']} {r['asked']}".strip()
        body.append([r["model"], r["form"], name, r["kv_bits"], figure(r["depth"]), r["phase"],
                     span(r["tokens_s"]), f"{share:.0f} %"])  # fmt: skip
    return table(head, body)


def versions(data: dict[str, list[Row]]) -> str:
    found = {r["engine"]: r["version"] for r in data.get("peers", ())}
    return "Versions: " + ", ".join(f"{k} {v}" for k, v in found.items()) + "." if found else ""


def arrivals(data: dict[str, list[Row]]) -> str:
    keys = ("model", "kv", "act", "way", "rows", "threads", "requests", "rate")
    rows = newest([{"rows": 512} | r for r in data.get("arrivals", ())], *keys)
    names = ("tokens_s", "first_ms_median", "first_ms_p95", "each_ms_median", "each_ms_p95")
    head = ["model", "KV", "act", "served", "rows a step", "requests", "a second", "tokens/s"]
    head += ["first token, ms", "p95", "each token, ms", "p95"]
    cells = ("model", "kv", "act", "way", "rows", "requests", "rate")
    return table(head, [[*(r[c] for c in cells), *(span(r[n]) for n in names)] for r in rows])


def page(data: dict[str, list[Row]], figures: list[str], machine: str, others: str) -> str:
    """Return the whole page of a machine."""
    parts = {
        "Machines": about(data),
        "Bars": verdicts(data, machine),
        "Figures": "\n\n".join(f"![{Path(f).stem}]({f})" for f in figures),
        "Roofs": roofs(data),
        "Products: percent of the lower roof (Gop/s)": linear(data),
        "A layer of experts: percent of the lower roof (time)": experts(data),
        "Latent attention, decode: percent of the roof (time)": latent(data),
        "Two layers of Kimi K2.5 with embedding and head, through a step": slices(data),
        "Attention, decode: percent of stream (GB/s)": attention(data, "decode"),
        "Attention, prefill: percent of the peak (Gop/s)": attention(data, "prefill"),
        "Prefill: tokens/s (percent of the byte peak)": model(data, "prefill", "tokens"),
        "Decode over depth: tokens/s (percent of stream)": model(data, "decode", "context"),
        "Decode over batch: tokens/s (percent of stream)": model(data, "batch", "batch"),
        "A trace of arrivals": arrivals(data),
        "Other engines, short context": peers(data, False) + "\n\n" + versions(data),
        "Other engines, decode at depth": peers(data, True),
    }
    text = "".join(f"\n## {name}\n\n{body.strip()}\n" for name, body in parts.items() if body)
    return INTRO + others + text


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "performance.md")
    args = parser.parse_args(argv)
    found = by_machine(load(args.results))
    for path in args.out.parent.glob(f"{args.out.stem}-*.md"):
        path.unlink()  # of a machine that is the newest now, or has no rows any more
    args.out.parent.mkdir(parents=True, exist_ok=True)
    paths = {
        name: args.out.with_stem(f"{args.out.stem}-{name}") if i else args.out
        for i, name in enumerate(found)
    }
    for name, data in found.items():
        folder = args.out.parent / "figures" / name
        try:
            from figures import draw

            draw(data, folder)
        except ModuleNotFoundError as error:
            print(f"figures are not drawn: {error}", file=sys.stderr)
        drawn = sorted(f"figures/{name}/{p.name}" for p in folder.glob("*.svg"))
        links = [f"[{other}]({path.name})" for other, path in paths.items() if other != name]
        others = f"\nOther machines: {', '.join(links)}.\n" if links else ""
        paths[name].write_text(page(data, drawn, name, others), encoding="utf-8")
        print(f"{paths[name]}: {sum(map(len, data.values()))} rows", file=sys.stderr)


if __name__ == "__main__":
    main()
