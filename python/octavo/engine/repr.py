"""What notebooks and terminals show: small tables, as text and as HTML.

Every value is escaped; a repr never raises and never runs the model.
"""

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from octavo.table import size

if TYPE_CHECKING:
    from octavo.model import ModelSpec

    from .diff import CacheDiff
    from .kv import Ledger
    from .llm import LLM
    from .outputs import RequestOutput
    from .pages import PageView

Row = Sequence[str]


def text_table(head: Row, body: Iterable[Row]) -> str:
    """Return rows in aligned columns; numbers to the right."""
    rows = [list(head), *map(list, body)]
    widths = [max(len(r[i]) for r in rows) for i in range(len(head))]

    def line(row: Row) -> str:
        cells = [
            c.rjust(w) if _numeric(c) else c.ljust(w) for c, w in zip(row, widths, strict=True)
        ]
        return "  ".join(cells).rstrip()

    return "\n".join(map(line, rows))


def _numeric(cell: str) -> bool:
    return cell[:1].isdigit() or (cell[:1] in "-+" and cell[1:2].isdigit())


def html_table(head: Row, body: Iterable[Row], caption: str = "") -> str:
    """Return rows as a plain HTML table."""

    def row(cells: Row, tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    head_row = row(head, "th") if any(head) else ""
    return f"<table>{title}{head_row}{''.join(row(r, 'td') for r in body)}</table>"


# ---- LLM -----------------------------------------------------------------------------


def _cached(spec: "ModelSpec") -> str:
    if spec.latent is None:
        return f"{spec.kv_heads} KV heads of {spec.head_dim}"
    return f"a latent of {spec.latent.rank} and a rotated key of {spec.latent.rope}"


def _llm_rows(llm: "LLM") -> list[tuple[str, str]]:
    spec = llm.spec
    rows = [
        ("model", f"{llm.name} ({spec.family}, {spec.parameters / 1e6:.1f} M parameters)"),
        ("shape", f"{spec.layers} layers, {spec.heads} heads over {_cached(spec)}, "
                  f"context {llm.context:,}"),
        ("weights", f"{llm.weights}, act {llm.act}"),
        ("KV scheme", str(llm.kv)),
    ]  # fmt: skip
    if llm.closed:
        return [*rows, ("state", "closed")]
    pool = llm._pool
    ledger = pool.core.ledger()
    held = ledger["sealed"] + ledger["open"]
    fits = int(pool.budget / pool.token_bytes)
    pins = f", {ledger['pins']} pinned views" if ledger.get("pins") else ""
    return [
        *rows,
        ("weight bytes", size(llm.weight_bytes)),
        ("bytes/token", f"{pool.token_bytes:,.0f} sealed, {ledger['unit_bytes'] / 16:,.0f} open"),
        ("memory plan", f"{size(pool.budget)} of pages: about {fits:,} tokens"),
        ("pages", f"{size(held)} held by {ledger['sequences']} sequences{pins}"),
        ("runs on", f"{llm.runtime.isa}, {llm.runtime.threads} threads, {llm.runtime.cpu}"),
    ]


def llm_text(llm: "LLM") -> str:
    """The text repr of an LLM."""
    rows = _safe(lambda: _llm_rows(llm))
    width = max(len(k) for k, _ in rows)
    return "octavo.LLM\n" + "\n".join(f"  {k.ljust(width)}  {v}" for k, v in rows)


def llm_html(llm: "LLM") -> str:
    """The notebook repr of an LLM."""
    return html_table(("", ""), _safe(lambda: _llm_rows(llm)), "octavo.LLM")


def _safe(rows: Any) -> list[tuple[str, str]]:
    """Rows, or a word about why there are none (a busy cache cannot be asked)."""
    try:
        return rows()
    except RuntimeError as error:
        return [("state", f"busy: {error}")]


# ---- pages, ledgers, differences -----------------------------------------------------


def page_html(page: "PageView") -> str:
    """The notebook repr of a page."""
    body = [
        (side, s.format, "sealed" if s.sealed else "open", str(s.transform or "-"),
         str(s.tokens), f"{s.nbytes:,}")
        for side, s in page.segments.items()
    ]  # fmt: skip
    head = ("", "format", "state", "basis", "tokens", "bytes")
    return html_table(head, body, f"page {page.index} of layer {page.layer}")


def ledger_html(ledger: "Ledger") -> str:
    """The notebook repr of a ledger."""
    body = [
        ("sealed", f"{ledger.sealed:,}", f"{ledger.sealed_pages} pages"),
        ("open", f"{ledger.open:,}", f"{ledger.open_units} units of 16 rows"),
        ("tables", f"{ledger.tables:,}", ""),
        ("total", f"{ledger.total:,}", f"{ledger.sealed_token_bytes:,.0f} bytes/token sealed"),
    ]
    return html_table(("", "bytes", ""), body)


def _diff_rows(diff: "CacheDiff") -> tuple[Row, list[Row]]:
    k, v = (name.upper() if len(name) == 1 else name for name in diff.segments)
    head = ("layer", f"{k} snr dB", f"{v} snr dB", f"{k} max", f"{v} max")
    body = []
    pages = diff.sealed if diff.sealed.any() else ~diff.sealed
    for layer in range(len(diff.k_snr)):
        snr = [_mean_db(a[layer, pages]) for a in (diff.k_snr, diff.v_snr)]
        most = [f"{a[layer].max(initial=0.0):.3g}" for a in (diff.k_max, diff.v_max)]
        body.append((str(layer), *snr, *most))
    return head, body


def _mean_db(values: Any) -> str:
    finite = values[np.isfinite(values)]
    return f"{finite.mean():.1f}" if len(finite) else "exact"


def diff_text(diff: "CacheDiff") -> str:
    """The text repr of a cache comparison: means over sealed pages, maxima of all."""
    return f"{diff.other} against {diff.base}\n" + text_table(*_diff_rows(diff))


def diff_html(diff: "CacheDiff") -> str:
    """The notebook repr of a cache comparison."""
    return html_table(*_diff_rows(diff), caption=f"{diff.other} against {diff.base}")


def request_html(request: "RequestOutput") -> str:
    """The notebook repr of a request."""
    body = [
        (str(c.index), c.text, str(len(c.token_ids)), str(c.finish_reason)) for c in request.outputs
    ]
    return html_table(("", "text", "tokens", "finished"), body, (request.prompt or "")[:200])


# ---- kernels -------------------------------------------------------------------------


class Kernel(NamedTuple):
    """One slot of the kernel table and the column that serves it (None: no kernel)."""

    table: str
    name: str
    slot: str
    form: str
    isa: str | None
    bits: float


class KernelTable(list[Kernel]):
    """A list of `Kernel` that shows itself as a table."""

    HEAD = ("table", "name", "slot", "form", "column", "bits")

    def rows(self) -> list[Row]:
        """Return its rows as text."""
        return [
            (
                k.table,
                k.name,
                k.slot,
                k.form or "-",
                k.isa or "none",
                f"{k.bits:g}" if k.bits else "",
            )
            for k in self
        ]

    def __repr__(self) -> str:
        return text_table(self.HEAD, self.rows())

    def _repr_html_(self) -> str:
        return html_table(self.HEAD, self.rows())


def kernel_table(runtime: Any) -> KernelTable:
    """Return the kernels of a runtime."""
    return KernelTable(Kernel(*row) for row in runtime.kernels())
