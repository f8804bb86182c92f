"""One small table, shown alike as text, as HTML in notebooks and through rich in a terminal."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any


@dataclass
class Table:
    """Rows of text under column names; the first column is a label, the others are figures."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, *cells: Any) -> None:
        """Append a row; a cell that is None shows as an empty one."""
        if len(cells) != len(self.columns):
            raise ValueError(f"table: {len(cells)} cells for {len(self.columns)} columns")
        self.rows.append(["" if c is None else str(c) for c in cells])

    def __str__(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(len(row[i]) for row in lines) for i in range(len(self.columns))]

        def line(row: Sequence[str]) -> str:
            cells = (f"{c:{'>' if i else '<'}{widths[i]}}" for i, c in enumerate(row))
            return "  ".join(cells).rstrip()

        rule = "  ".join("-" * w for w in widths)
        body = [line(row) for row in self.rows]
        return "\n".join([self.title, line(self.columns), rule, *body, *self.notes])

    def _repr_html_(self) -> str:
        def row(cells: Sequence[str], tag: str) -> str:
            style = ' style="text-align:right"'
            inner = (f"<{tag}{style if i else ''}>{escape(c)}</{tag}>" for i, c in enumerate(cells))
            return f"<tr>{''.join(inner)}</tr>"

        head, body = row(self.columns, "th"), "".join(row(r, "td") for r in self.rows)
        notes = "".join(f"<div><small>{escape(n)}</small></div>" for n in self.notes)
        return (
            f"<div><b>{escape(self.title)}</b></div>"
            f"<table><thead>{head}</thead><tbody>{body}</tbody></table>{notes}"
        )

    def rich(self) -> Any:
        """Return a `rich.table.Table`; the notes become its caption."""
        from rich.table import Table as RichTable
        from rich.text import Text

        out = RichTable(title=Text(self.title), caption=Text("\n".join(self.notes)) or None)
        for i, name in enumerate(self.columns):
            out.add_column(Text(name), justify="right" if i else "left", overflow="fold")
        for cells in self.rows:
            out.add_row(*(Text(c) for c in cells))
        return out

    def show(self, console: Any) -> None:
        """Print to a `rich.console.Console`: with borders on a terminal, else as plain text."""
        if console.is_terminal:
            console.print(self.rich())
        else:
            console.print(str(self), highlight=False, markup=False, soft_wrap=True)


class Shown:
    """What shows itself as its `table`, in notebooks and as text."""

    def table(self) -> Table:
        """Return what is shown."""
        raise NotImplementedError

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def size(nbytes: float) -> str:
    """Return bytes in binary units."""
    if nbytes != nbytes:
        return "-"
    for unit in ("B", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.2f} GiB"


def figure(x: float, digits: int = 3) -> str:
    """Format a figure: `digits` significant ones, plain where that is short, else with exponent."""
    if x != x:
        return "-"
    if x == 0:
        return "0"
    return f"{x:.{digits}g}" if 1e-3 <= abs(x) < 1e5 else f"{x:.{digits - 1}e}"


def percent(share: float) -> str:
    """Format a share of 1 in per cent."""
    return f"{100 * share:.1f} %" if share == share else "-"


def interval(value: float, low: float, high: float, digits: int = 3) -> str:
    """Format a value with its 95 % interval."""
    if low != low:
        return figure(value, digits)
    return f"{figure(value, digits)} [{figure(low, digits)}, {figure(high, digits)}]"
