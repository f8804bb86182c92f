"""What a cache takes: bytes of pages by scheme, and how many tokens a budget holds.

What a head of a layer takes, the core is asked. How a history's bytes follow is the reading law of
docs/architecture.md, as in `_core.Cache.bytes_for`.
"""

from contextlib import suppress
from dataclasses import dataclass

from octavo.model import ModelSpec
from octavo.scheme import KVScheme

from .machine import head_bytes, tables

PAGE_TOKENS = 64
_UNIT_TOKENS = 16


@dataclass(frozen=True)
class KVCost:
    """Bytes of keys and values under one scheme.

    Attributes
    ----------
    scheme : str
    page_bytes : int
        Of a sealed page of 64 tokens over all layers.
    row_bytes : int
        Of a token over all layers while its page is open.
    kept_pages, sink_pages : int
        Pages that the scheme keeps as open rows, sinks and recent ones; of these the sinks.
    windows : tuple of (int, int, int)
        Layers of which a query sees a window alone, by window: tokens, and their share of
        `page_bytes` and `row_bytes`. Pages are kept all the same.
    """

    scheme: str
    page_bytes: int
    row_bytes: int
    kept_pages: int = 0
    sink_pages: int = 0
    windows: tuple[tuple[int, int, int], ...] = ()

    @property
    def token_bytes(self) -> int:
        """Of a sealed token, scales included."""
        return self.page_bytes // PAGE_TOKENS

    def nbytes(self, tokens: int) -> int:
        """Return what a history of so many tokens holds."""
        full, rest = divmod(tokens, PAGE_TOKENS)
        sealed = max(0, full - self.kept_pages)
        rows = (full - sealed) * PAGE_TOKENS + -(-rest // _UNIT_TOKENS) * _UNIT_TOKENS
        return sealed * self.page_bytes + rows * self.row_bytes

    def read(self, tokens: int) -> int:
        """Return the bytes that the token after so many reads: all pages that a window touches."""
        full, out = tokens // PAGE_TOKENS, self.nbytes(tokens)
        for window, page, row in self.windows:
            first = max(0, tokens - window + 1) // PAGE_TOKENS
            hidden = min(first, full - (self.kept_pages - self.sink_pages)) - self.sink_pages
            sealed = max(0, hidden)
            out -= sealed * page + (first - sealed) * PAGE_TOKENS * row
        return out

    def needed(self, tokens: int) -> int:
        """Return what it takes to get there: whole pages, and an open one beside them."""
        return self.nbytes(tokens // PAGE_TOKENS * PAGE_TOKENS) + PAGE_TOKENS * self.row_bytes

    def tokens_in(self, budget: int) -> int:
        """Return the longest history, in whole pages, that fits into so many bytes."""
        open_page = PAGE_TOKENS * self.row_bytes
        pages = max(0, budget // open_page - 1)
        if pages >= self.kept_pages and budget >= open_page:
            left = budget - (self.kept_pages + 1) * open_page
            pages = self.kept_pages + left // self.page_bytes
        return pages * PAGE_TOKENS


def kv_cost(spec: ModelSpec, scheme: KVScheme) -> KVCost:
    """Return what a scheme costs on a model.

    Raises
    ------
    ValueError
        If it cannot hold the model's rows: a width that its formats do not take, a layer that is
        not there, two formats for a latent, which is keys and values at once.
    """
    page = row = 0
    shapes = spec.cache_layers
    windows: dict[int, tuple[int, int]] = {}
    for shape, layer in zip(shapes, scheme.core_layers(shapes), strict=True):
        heads = layer.pop("kv_heads")
        head = head_bytes(**layer)
        sealed, opened = heads * head.sealed, heads * head.open_row
        page, row = page + sealed, row + opened
        if shape.window:
            pages, rows = windows.get(shape.window, (0, 0))
            windows[shape.window] = pages + sealed, rows + opened
    kept = scheme.sink_pages + scheme.recent_pages
    seen = tuple((window, *both) for window, both in sorted(windows.items()))
    return KVCost(scheme.name, page, row, kept, scheme.sink_pages, seen)


def all_costs(spec: ModelSpec) -> tuple[KVCost, ...]:
    """Return the cost of every page format that can hold the model's rows."""
    out = []
    for name in tables().pages:
        with suppress(ValueError):  # a width that its group does not divide
            out.append(kv_cost(spec, KVScheme(name)))
    return tuple(out)


def head_widths(spec: ModelSpec) -> tuple[int, int]:
    """Return the widths of a query head's key and value where every head has its own."""
    latent = spec.latent
    return (spec.head_dim, spec.head_dim) if latent is None else (spec.head_dim, latent.v)


def full_token_bytes(spec: ModelSpec) -> int:
    """Return bf16 bytes per token of a cache that keeps every query head's key and value."""
    return 2 * spec.layers * spec.heads * sum(head_widths(spec))


def attention_ops(spec: ModelSpec, tokens: int = 1) -> int:
    """Return the operations of one query over so many tokens, in all layers and heads.

    Two for each multiply-add, of scores and of sums of values; latent attention is absorbed. Layers
    with a window see that many tokens at most.
    """
    seen = ((s.q_width + s.out_width) * min(tokens, s.window or tokens) for s in spec.cache_layers)
    return 2 * spec.heads * sum(seen)
