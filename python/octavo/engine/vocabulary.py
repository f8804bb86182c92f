"""From a checkpoint's tokenizer files to one validated description that `tokenizer` can run.

Three sources: GGUF metadata (byte-level BPE, or SentencePiece BPE by scores), `tokenizer.json`, and
`tiktoken.model`. They are checked (ids, merges, patterns, element types), and then built by the
`tokenizers` package. Whatever is not understood exactly is refused by name; nothing is guessed.
"""

import json
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import tokenizers
from tokenizers import AddedToken, models, normalizers

from octavo.checkpoint.guarded_json import parse_json
from octavo.checkpoint.source import File, fail, read_whole
from octavo.errors import CheckpointError, UnsupportedError

from .pre_tokenizers import is_explosive, pre_tokenizer
from .tiktoken_model import core_of_ranks

TOKENIZER_BYTES = 64 << 20
MAX_PIECE = 1024
MAX_PATTERN = 8192
_NORMAL, _UNKNOWN, _CONTROL, _USER = 1, 2, 3, 4

_NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")

BYTE_LEVEL, SENTENCEPIECE = "byte-level", "sentencepiece"

# Control tokens that end a turn or a text in some family, whether or not the file says so.
_END_NAMES = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|eom_id|>",
    "<|endoftext|>", "<|end_of_text|>", "<EOT>", "[EOT]", "[EOS]", "<|end_of_sentence|>",
}  # fmt: skip


@dataclass
class Vocabulary:
    """Everything `Tokenizer` needs, checked. `texts[i]` is None where id i does not exist."""

    core: tokenizers.Tokenizer
    style: str
    texts: list
    special: frozenset
    literal: frozenset
    bos_id: int | None = None
    eos_id: int | None = None
    eos_ids: frozenset = frozenset()
    prefix: list = field(default_factory=list)
    suffix: list = field(default_factory=list)
    space_prefix: bool = False
    templates: dict = field(default_factory=dict)
    names: dict = field(default_factory=dict)


def from_gguf(metadata, path):
    """Build a `Vocabulary` from GGUF metadata that `octavo.checkpoint` has checked."""
    get = _Keys(metadata)
    if get("tokens") is None:
        raise fail(path, "tokenizer.ggml.tokens", "absent", "an array; or pass tokenizer=")
    texts = get("tokens").tolist()
    types = get("token_type")
    types = np.full(len(texts), _NORMAL) if types is None else types
    ids = _ids_by_text(texts, path)
    kind = get("model")
    if kind == "gpt2":
        pre = pre_tokenizer(get("pre", "default"), path)
        core, style, space = _byte_level_bpe(ids, get("merges"), pre, path), BYTE_LEVEL, False
        add_bos = get("add_bos_token", pre.add_bos)
    elif kind == "llama":
        space = get("add_space_prefix", True)
        core = _sentencepiece_bpe(ids, texts, types, get, space, path)
        style, add_bos = SENTENCEPIECE, get("add_bos_token", True)
    else:
        known = "gpt2 (byte-level BPE), llama (SentencePiece BPE)"
        raise UnsupportedError(
            f"{path}: tokenizer.ggml.model {kind!r:.80} is not read; known: {known}"
        )
    special = frozenset(np.flatnonzero(np.isin(types, (_CONTROL, _UNKNOWN))).tolist())
    literal = special.union(np.flatnonzero(types == _USER).tolist())
    _add_tokens(core, texts, special, literal)
    bos, eos = get("bos_token_id"), get("eos_token_id")
    extra = {get("eot_token_id"), get("eom_token_id"), eos} - {None}
    return Vocabulary(
        core, style, texts, special, literal, bos, eos, _ends(extra, texts, special),
        prefix=[bos] if add_bos and bos is not None else [],
        suffix=[eos] if get("add_eos_token", False) and eos is not None else [],
        space_prefix=space, templates=_gguf_templates(metadata),
        names={n: texts[i] for n, i in _named_ids(get) if i is not None},
    )  # fmt: skip


class _Keys:
    """Reads `tokenizer.ggml.*` by short name."""

    def __init__(self, metadata):
        self._metadata = metadata

    def __call__(self, key, default=None):
        return self._metadata.get(f"tokenizer.ggml.{key}", default)


def _named_ids(get):
    for name in ("bos", "eos", "padding", "unknown"):
        short = {"padding": "pad", "unknown": "unk"}.get(name, name)
        yield f"{short}_token", get(f"{name}_token_id")


def _gguf_templates(metadata):
    root = "tokenizer.chat_template"
    found = {k[len(root) + 1 :]: v for k, v in metadata.items() if k.startswith(f"{root}.")}
    if root in metadata:
        found["default"] = metadata[root]
    return {name: text for name, text in found.items() if isinstance(text, str)}


def _ids_by_text(texts, path):
    ids = dict(zip(texts, range(len(texts)), strict=True))
    if len(ids) != len(texts):
        twice = next(i for i, text in enumerate(texts) if ids[text] != i)
        legal = f"each token once; id {ids[texts[twice]]} is the same"
        raise fail(path, f"token {twice}", repr(texts[twice]), legal)
    return ids


def _ends(ids, texts, special):
    return frozenset(ids) | {i for i in special if texts[i] in _END_NAMES}


def _byte_level_bpe(ids, merges, pre, path):
    if merges is None:
        raise fail(path, "tokenizer.ggml.merges", "absent", "an array of strings")
    pairs = list(map(_pair, merges.tolist()))
    _check_merges(pairs, ids, path)
    return pre.byte_level_bpe(ids, pairs)


def _pair(merge):
    # The first character may itself be a space in odd vocabularies, hence the search from 1.
    at = merge.find(" ", 1)
    return merge[:at], merge[at + 1 :]


def _check_merges(pairs, ids, path):
    """Refuse a merge of what is no token. The library would panic over some of them."""
    parts = chain(chain.from_iterable(pairs), map("".join, pairs))
    if all(map(ids.__contains__, parts)):
        return
    for rank, (left, right) in enumerate(pairs):
        if left not in ids or right not in ids or left + right not in ids:
            legal = "two tokens whose concatenation is a token"
            raise fail(path, f"merge {rank}", repr(f"{left} {right}"), legal)


def _sentencepiece_bpe(ids, texts, types, get, space, path):
    """SentencePiece BPE merges by score: every split of a piece into two pieces is a merge."""
    scores = get("scores")
    if scores is None:
        raise fail(path, "tokenizer.ggml.scores", "absent", "one float per token")
    scores, types = scores.tolist(), types.tolist()
    longest = max(map(len, texts))
    if longest > MAX_PIECE:
        raise fail(path, "longest token", f"{longest} characters", f"at most {MAX_PIECE}")
    pairs = []
    for i, text in enumerate(texts):
        if types[i] == _NORMAL:
            found = ((text[:k], text[k:]) for k in range(1, len(text)))
            pairs += [(-scores[i], i, p) for p in found if p[0] in ids and p[1] in ids]
    pairs.sort(key=lambda item: item[:2])
    unknown = get("unknown_token_id", 0)
    merges = [p for _, _, p in pairs]
    options = {"unk_token": texts[unknown], "fuse_unk": True, "byte_fallback": True}
    core = tokenizers.Tokenizer(models.BPE(ids, merges, **options))
    replace = normalizers.Replace(" ", "▁")
    start = [normalizers.Prepend("▁")] if space else []
    core.normalizer = normalizers.Sequence([*start, replace])
    return core


def _add_tokens(core, texts, special, literal):
    """Register the tokens that are matched as they are; all exist already, so ids stay."""
    core.add_tokens(
        [AddedToken(texts[i], special=i in special, normalized=False) for i in sorted(literal)]
    )


def from_folder(folder, metadata):
    """Build a `Vocabulary` from ``tokenizer.json``, or ``tiktoken.model``, and its companions."""
    core, style, space = _core_of_folder(folder, metadata)
    added = core.get_added_tokens_decoder()
    texts = [None] * (1 + max(core.get_vocab().values(), default=-1))
    for token, i in core.get_vocab().items():
        texts[i] = token
    special = frozenset(i for i, t in added.items() if t.special)
    # SentencePiece decoders also turn the word marks of added tokens into spaces.
    literal = special if style == SENTENCEPIECE else frozenset(added)
    config = metadata.get("tokenizer_config", {})
    named = {n: _content(config.get(n)) for n in _NAMED}
    names = {n: t for n, t in named.items() if t is not None}
    bos, ends = _ends_of_folder(core, names, metadata)
    prefix, suffix = _frame(core, config, bos)
    return Vocabulary(
        core, style, texts, special, literal, bos, ends[0] if ends else None,
        _ends(ends, texts, special), prefix, suffix, space,
        templates=_folder_templates(folder, config), names=names,
    )  # fmt: skip


def _core_of_folder(folder, metadata):
    """Return (core, style, whether the first space is the tokenizer's own)."""
    path = folder / "tokenizer.json"
    if path.exists():
        text, spec = _read(path)
        style, space = _decoder_style(path, spec)
        core = _build(path, text)
        core.no_padding()
        core.no_truncation()
        return core, style, space
    if (folder / "tiktoken.model").exists():
        sizes = [size for c in _configs(metadata) if type(size := c.get("vocab_size")) is int]
        config = metadata.get("tokenizer_config", {})
        return core_of_ranks(folder, config, sizes[0] if sizes else None), BYTE_LEVEL, False
    note = ", and tokenizer.model is not read" if (folder / "tokenizer.model").exists() else ""
    raise UnsupportedError(
        f"{folder}: no tokenizer.json and no tiktoken.model{note}; save the tokenizer as the first"
    )


def _configs(metadata):
    """Yield ``config.json`` and what a model of several kinds of input says of its text."""
    config = metadata.get("config", {})
    yield config
    if isinstance(text := config.get("text_config"), dict):
        yield text


def _read(path):
    data = read_whole(path, TOKENIZER_BYTES)
    spec = parse_json(data, path)
    _check_patterns(path, spec)
    _check_model(path, spec.get("model"), spec.get("added_tokens") or [])
    return data.decode("utf-8"), spec


def _build(path, text):
    """Let the library parse; a panic in it is an error of the file, not of the process."""
    try:
        return tokenizers.Tokenizer.from_str(text)
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise CheckpointError(f"{path}: the tokenizers library refuses it: {error}") from error
        raise


def _check_patterns(path, spec):
    """Refuse regular expressions that a backtracking matcher can take exponential time for."""
    todo = [spec.get("normalizer"), spec.get("pre_tokenizer"), spec.get("decoder")]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            pattern = node.get("Regex")
            if isinstance(pattern, str) and (len(pattern) > MAX_PATTERN or is_explosive(pattern)):
                legal = "patterns without a repetition inside a repetition"
                raise fail(path, "regular expression", repr(pattern), legal)
            todo.extend(node.values())
        elif isinstance(node, list):
            todo.extend(node)


def _check_model(path, model, added):
    if not isinstance(model, dict) or not isinstance(added, list):
        raise fail(path, "model", type(model).__name__, "an object, with added_tokens a list")
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        ids = list(vocab.values())
    elif isinstance(vocab, list):
        ids = list(range(len(vocab)))
    else:
        raise fail(path, "model.vocab", type(vocab).__name__, "an object or a list")
    most = 2 * (len(ids) + len(added)) + 65536
    extra = [t.get("id") if isinstance(t, dict) else None for t in added]
    for i in (*ids, *extra):
        if type(i) is not int or not 0 <= i < most:
            raise fail(path, "token id", i, f"an integer from 0 to {most - 1}")
    if len(set(ids)) != len(ids):
        raise fail(path, "token ids", f"{len(ids) - len(set(ids))} used twice", "each id once")
    if isinstance(vocab, dict) and model.get("type") in (None, "BPE"):
        _check_merges(list(_pairs(path, model.get("merges"))), vocab, path)


def _pairs(path, merges):
    for rank, merge in enumerate(merges if isinstance(merges, list) else ()):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or [type(p) for p in pair] != [str, str]:
            raise fail(path, f"merge {rank}", merge, "two tokens")
        yield pair


def _decoder_style(path, spec):
    """Tell how tokens spell bytes, and whether the first space is the tokenizer's own."""
    text = json.dumps([spec.get("decoder"), spec.get("pre_tokenizer")])
    if '"ByteLevel"' in text:
        return BYTE_LEVEL, False
    if '"ByteFallback"' in text or '"Metaspace"' in text:
        decoder = json.dumps(spec.get("decoder"))
        never = '"prepend_scheme": "never"' in decoder
        return SENTENCEPIECE, '"Strip"' in decoder or ('"Metaspace"' in decoder and not never)
    kind = (spec.get("decoder") or {}).get("type")
    raise UnsupportedError(
        f"{path}: decoder {kind!r:.80} is not read; known: ByteLevel, ByteFallback, Metaspace"
    )


def _content(token):
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _ends_of_folder(core, names, metadata):
    """Return (bos id, end ids with the main one first) from every file that names them."""
    configs = [*_configs(metadata)]
    ends = [core.token_to_id(names["eos_token"])] if "eos_token" in names else []
    for source in (metadata.get("generation_config", {}), *configs):
        value = source.get("eos_token_id")
        ends += value if isinstance(value, list) else [value]
    size = 1 + max(core.get_vocab().values(), default=-1)
    ends = [i for i in ends if type(i) is int and 0 <= i < size]
    bos = next((c["bos_token_id"] for c in configs if c.get("bos_token_id") is not None), None)
    if "bos_token" in names:
        bos = core.token_to_id(names["bos_token"])
    return bos if type(bos) is int and 0 <= bos < size else None, list(dict.fromkeys(ends))


def _frame(core, config, bos):
    """Find which ids the file puts around a text, by encoding one; the config may overrule."""
    full = core.encode("a", add_special_tokens=True).ids
    bare = core.encode("a", add_special_tokens=False).ids
    at = next((k for k in range(len(full)) if full[k : k + len(bare)] == bare), 0)
    prefix, suffix = full[:at], full[at + len(bare) :]
    add_bos = config.get("add_bos_token")
    if add_bos is True and not prefix and bos is not None:
        prefix = [bos]
    if add_bos is False and prefix == [bos]:
        prefix = []
    return prefix, suffix


def _folder_templates(folder, config):
    found = {}
    value = config.get("chat_template")
    if isinstance(value, str):
        found["default"] = value
    elif isinstance(value, list):
        pairs = [(t.get("name"), t.get("template")) for t in value if isinstance(t, dict)]
        found = {n: t for n, t in pairs if isinstance(n, str) and isinstance(t, str)}
    path = folder / "chat_template.jinja"
    if path.exists():
        file = File(path, mmap=False)
        try:
            raw = file.read(0, min(file.size, 1 << 20))
        finally:
            file.close()
        found["default"] = raw.decode("utf-8", "replace")
    return found
