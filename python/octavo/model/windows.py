"""Which layers see all tokens and which a sliding window, as configs say it."""

from octavo.errors import UnsupportedError

from .fields import MAX_LAYERS, Fields

_WINDOW, _ALL = "sliding_attention", "full_attention"


def windows_of(config: Fields, period: int) -> tuple[int, ...]:
    """Return the window of every layer, 0 where a query sees everything.

    Parameters
    ----------
    config : Fields
        ``layer_types`` names the kind of each layer, ``sliding_window`` counts tokens.
    period : int
        Without a list every so many-th layer sees everything.

    Raises
    ------
    CheckpointError
        If the list is not one of a kind per layer, or the window is missing or out of range.
    UnsupportedError
        If it names another kind.
    """
    layers = config.integer("num_hidden_layers", most=MAX_LAYERS)
    kinds = config.get("layer_types")
    if kinds is None:
        kinds = [_WINDOW if (n + 1) % period else _ALL for n in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise config.bad("layer_types", kinds, f"a list of {layers} kinds, one for each layer")
    for kind in kinds:
        if kind not in (_WINDOW, _ALL):
            raise UnsupportedError(
                f"{config.source}: layer_types has {kind!r:.80}, which is not built; "
                f"supported: {_WINDOW!r}, {_ALL!r}"
            )
    window = config.integer("sliding_window") if _WINDOW in kinds else 0
    return tuple(window if kind == _WINDOW else 0 for kind in kinds)
