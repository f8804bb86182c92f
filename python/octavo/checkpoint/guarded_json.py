"""JSON from strangers: bounded size, depth and digits, no duplicate keys, no NaN, no surrogates.

The parser is the standard library's; this module decides what may reach it and what may leave.
"""

import json
import math

from .source import fail, read_whole

MAX_DEPTH = 64
MAX_DIGITS = 32


class _Refused(Exception):
    """Carries (what, value, legal) from a parser hook to the caller who knows the file."""


def read_json(path, *, limit_bytes, root=dict):
    """Parse a JSON file under the rules of this module.

    Parameters
    ----------
    path : path-like
        A regular file.
    limit_bytes : int
        Larger files are refused before they are read.
    root : type
        The type that the outermost value must have.

    Raises
    ------
    CheckpointError
        If a rule is broken.
    """
    return parse_json(read_whole(path, limit_bytes), path, root=root)


def parse_json(data, path, *, root=dict, pairs_hook=None):
    """Parse `data` (bytes) as `read_json` does; `path` is for messages only."""
    try:
        text = data.decode("utf-8")
        del data
        value = json.loads(
            text,
            object_pairs_hook=pairs_hook or _unique,
            parse_int=_int,
            parse_float=_float,
            parse_constant=_constant,
        )
    except _Refused as refused:
        raise fail(path, *refused.args) from None
    except UnicodeDecodeError as error:
        raise fail(path, "text", "not UTF-8", "UTF-8 JSON", error.start) from None
    except json.JSONDecodeError as error:
        raise fail(path, "JSON", f"malformed ({error.msg})", "valid JSON", error.pos) from None
    except RecursionError:
        raise fail(path, "JSON nesting", "too deep", f"at most {MAX_DEPTH} levels") from None
    if not isinstance(value, root):
        raise fail(path, "outermost JSON value", type(value).__name__, root.__name__)
    _check_tree(value, path)
    return value


def _unique(pairs):
    out = dict(pairs)
    if len(out) != len(pairs):
        seen = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))
        raise _Refused("JSON key", f"{twice!r} twice", "each key once")
    return out


def _int(text):
    if len(text) > MAX_DIGITS:
        raise _Refused(
            "JSON number", f"{text[:16]}... of {len(text)} digits", f"{MAX_DIGITS} digits"
        )
    return int(text)


def _float(text):
    value = float(text) if len(text) <= 400 else math.inf
    if math.isinf(value):
        raise _Refused("JSON number", text[:40], "a finite double of at most 400 characters")
    return value


def _constant(text):
    raise _Refused("JSON number", text, "finite numbers (NaN and Infinity are not JSON)")


def _check_tree(value, path):
    """Walk without recursion: depth within bounds, every string encodable as UTF-8."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise fail(path, "JSON nesting", f"{depth} levels", f"at most {MAX_DEPTH} levels")
        below = []
        for node in level:
            if isinstance(node, dict):
                below.extend(node.keys())
                below.extend(node.values())
            elif isinstance(node, list | tuple):
                below.extend(node)
            elif isinstance(node, str) and not node.isascii():
                _check_text(node, path)
        level = below


def _check_text(text, path):
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise fail(path, "JSON string", f"{text[:40]!a}", "no lone surrogate") from error
