"""`tiktoken.model`, a vocabulary without merges: its guard, and the merges that its ranks mean.

A line is a token in base64, a space, and its rank, which is its id. tiktoken merges the adjacent
pair whose concatenation has the lowest rank; the `tokenizers` package wants the pairs by name. What
follows the ranks are reserved ids, some of them named by `tokenizer_config.json`.
"""

import base64
import binascii
import io
from itertools import pairwise

from tokenizers import AddedToken

from octavo.checkpoint.source import fail, read_whole
from octavo.errors import UnsupportedError

from .pre_tokenizers import KNOWN, spelled

MAX_BYTES = 16 << 20
MAX_TOKENS = 1 << 18
MAX_TOKEN_BYTES = 1024
MAX_WORK = 1 << 28  # the sum of squared lengths, which bounds the time of `merges`
RESERVED = 256

_CLASS = "TikTokenTokenizer"
_ENTRY = "a token in base64, a space, and its rank"
_NO_MERGE = 1 << 31  # beyond any rank


def core_of_ranks(folder, config, rows):
    """Build the `tokenizers` object for the ``tiktoken.model`` in `folder`.

    It is what Kimi's own code makes of that file; no code of a checkpoint is run.

    Parameters
    ----------
    folder : pathlib.Path
    config : dict
        ``tokenizer_config.json``, or empty.
    rows : int or None
        The model's vocabulary, where known: ids that it has no row for are left out.

    Raises
    ------
    CheckpointError
        If the file, or what `config` says of the reserved ids, is malformed.
    UnsupportedError
        If it belongs to a tokenizer class that is not known.
    """
    path, origin = folder / "tiktoken.model", folder / "tokenizer_config.json"
    # The file holds no pattern; only the class that reads it tells which one it goes with.
    kind = config.get("tokenizer_class", _CLASS)
    if kind != _CLASS:
        raise UnsupportedError(
            f"{path}: tokenizer_class {kind!r:.80} is not read; known: {_CLASS} (Kimi)"
        )
    tokens = parse_ranks(read_whole(path, MAX_BYTES), path)
    count = RESERVED if rows is None else max(0, min(RESERVED, rows - len(tokens)))
    named = config.get("added_tokens_decoder", {})
    added = reserved_tokens(named, range(len(tokens), len(tokens) + count), origin)
    ids = {spelled(token): i for i, token in enumerate(tokens)}
    if taken := next((text for text, _ in added if text in ids), None):
        legal = f"a name that is not the token of id {ids[taken]}"
        raise fail(origin, "added_tokens_decoder", repr(taken), legal)
    pairs = [(spelled(a), spelled(b)) for a, b in merges(tokens)]
    # tiktoken looks a word up before it merges.
    core = KNOWN["kimi-k2"]._replace(ignore_merges=True).byte_level_bpe(ids, pairs)
    core.add_tokens([AddedToken(t, special=special, normalized=False) for t, special in added])
    return core


def parse_ranks(data, path):
    """Return the tokens of a ``tiktoken.model`` file, in the order of their ranks.

    Parameters
    ----------
    data : bytes
    path : path-like
        Where it came from, for messages.

    Returns
    -------
    list of bytes

    Raises
    ------
    CheckpointError
        If a line is no entry, a token or a rank comes twice, ranks leave a gap, a single byte has
        no token, or the file is beyond a limit of this module. It names the line.
    """
    if data.count(b"\n") > MAX_TOKENS:
        raise fail(path, "lines", data.count(b"\n"), f"at most {MAX_TOKENS}")
    ranks, lines = {}, {}
    for number, line in enumerate(io.BytesIO(data), 1):
        if line.isspace():
            continue
        token, rank = _entry(line, number, path)
        if token in ranks:
            legal = f"each token once; line {lines[ranks[token]]} has the same"
            raise fail(path, f"token on line {number}", repr(token), legal)
        if rank in lines:
            legal = f"each rank once; line {lines[rank]} has the same"
            raise fail(path, f"rank on line {number}", rank, legal)
        ranks[token], lines[rank] = rank, number
    _check_whole(ranks, lines, path)
    return sorted(ranks, key=ranks.__getitem__)


def _entry(line, number, path):
    fields = line.split()
    if len(fields) != 2:
        raise fail(path, f"line {number}", repr(line[:80]), _ENTRY)
    text, rank = fields
    if not rank.isdigit() or len(rank) > 9:
        raise fail(path, f"rank on line {number}", repr(rank[:80]), "an integer from 0 on")
    try:
        token = base64.b64decode(text[: 2 * MAX_TOKEN_BYTES], validate=True)
    except binascii.Error:
        raise fail(path, f"token on line {number}", repr(text[:80]), _ENTRY) from None
    if not 0 < len(token) <= MAX_TOKEN_BYTES:
        legal = f"1 to {MAX_TOKEN_BYTES} bytes"
        raise fail(path, f"token on line {number}", f"{len(text)} characters of base64", legal)
    return token, int(rank)


def _check_whole(ranks, lines, path):
    """What no single line shows: ranks without gaps, every byte a token, bounded work."""
    count = len(ranks)
    beyond = next((rank for rank in lines if rank >= count), None)
    if beyond is not None:
        legal = f"0 to {count - 1}, each once: the file has {count} tokens"
        raise fail(path, f"rank on line {lines[beyond]}", beyond, legal)
    for b in range(256):
        if bytes([b]) not in ranks:
            raise fail(path, f"token of byte {b:#04x}", "absent", "a token for each single byte")
    work = sum(len(token) ** 2 for token in ranks)
    if work > MAX_WORK:
        raise fail(path, "sum of squared token lengths", work, f"at most {MAX_WORK}")


def merges(tokens):
    """Return the merges that `tokens`, in the order of their ranks, stand for.

    Let plain merging run on the bytes of a token. It passes through the token's own pair, or never
    makes the token. Inside a longer text the same bytes go through the same states, as long as no
    merge crosses their border. So one pair per token says what the ranks say, in their order.

    Returns
    -------
    list of (bytes, bytes)
        In the order of the tokens that they make. A token that merging never makes has none: only
        a word that equals it becomes it.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    pairs = (_last_pair(token, ranks) for token in tokens if len(token) > 1)
    return [pair for pair in pairs if pair]


def _last_pair(token, ranks):
    """Merge the pair of lowest rank, leftmost first, until two parts are left; None if more are."""
    parts = [token[i : i + 1] for i in range(len(token))]
    costs = [ranks.get(a + b, _NO_MERGE) for a, b in pairwise(parts)]
    while len(parts) > 2:
        cost = min(costs)
        if cost == _NO_MERGE:
            return None
        i = costs.index(cost)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
        del costs[i]
        for k in (i - 1, i):
            if 0 <= k < len(costs):
                costs[k] = ranks.get(parts[k] + parts[k + 1], _NO_MERGE)
    return tuple(parts)


def reserved_tokens(named, ids, path):
    """Return what the reserved `ids` are called, and whether each is a control token.

    Parameters
    ----------
    named : dict
        ``added_tokens_decoder``: {"id": {"content": text, "special": bool}}.
    ids : range
    path : path-like
        The file that `named` is from, for messages.

    Returns
    -------
    list of (str, bool)
        For each id its text, and whether it is a control token, as unnamed ones are.

    Raises
    ------
    CheckpointError
        If `named` is malformed, names other ids, or gives two ids one text.
    """
    if not isinstance(named, dict):
        raise fail(path, "added_tokens_decoder", type(named).__name__, "an object")
    out = {str(i): (f"<|reserved_token_{i}|>", True) for i in ids}
    for key, entry in named.items():
        if key not in out:
            legal = f"an id from {ids.start}, after the ranks, and below {ids.stop}"
            raise fail(path, "id in added_tokens_decoder", repr(key), legal)
        out[key] = _named(entry, f"added_tokens_decoder[{key!r}]", path)
    holder = {text: key for key, (text, _) in out.items()}
    for key, (text, _) in out.items():
        if holder[text] != key:
            legal = f"a name of its own; id {holder[text]} has the same"
            raise fail(path, f"name of id {key}", repr(text), legal)
    return [*out.values()]


def _named(entry, what, path):
    content = entry.get("content") if isinstance(entry, dict) else None
    if not isinstance(content, str) or not 0 < len(content) <= MAX_TOKEN_BYTES:
        legal = f"an object whose content is a text of 1 to {MAX_TOKEN_BYTES} characters"
        raise fail(path, what, entry, legal)
    special = entry.get("special", True)
    if not isinstance(special, bool):
        raise fail(path, f"special of {what}", special, "true or false")
    return content, special
