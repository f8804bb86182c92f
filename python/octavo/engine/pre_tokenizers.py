"""How text is cut before byte-pair merging: the `pre` names of GGUF files, as regular expressions.

The names are llama.cpp's, the patterns those of the models' own tokenizers (formats.md C2). An
unknown name is refused: a wrong cut gives plausible ids and quietly worse text. Here too is how the
pieces are spelled: byte-level BPE writes each byte as a character.
"""

import difflib
import re
from typing import NamedTuple

import tokenizers
from tokenizers import Regex, models, pre_tokenizers

from octavo.errors import UnsupportedError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_WORDS}\p{{N}}{{1,3}}{_TAIL}"
_QWEN2 = rf"{_WORDS}\p{{N}}{_TAIL}"

_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"


def _cased(without):
    """Words by case: upper* lower+ or upper+ lower*, each with an English ending."""
    upper, lower = f"[{_UPPER}{without}]", f"[{_LOWER}{without}]"
    first = r"[^\r\n\p{L}\p{N}]?"
    return f"{first}{upper}*{lower}+{_ENDING}|{first}{upper}+{lower}*{_ENDING}"


_O200K = rf"{_cased('')}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED_NOT_HAN = _cased(r"&&[^\p{Han}]")
_KIMI = rf"[\p{{Han}}]+|{_CASED_NOT_HAN}|\p{{N}}{{1,3}}{_TAIL}"
_DEEPSEEK = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)


class PreTokenizer(NamedTuple):
    """Patterns applied one after another, each isolating its matches.

    `ignore_merges`: a word that is a token is that token, whatever the merges say.
    `add_bos`: what holds when the file does not say.
    """

    patterns: tuple
    ignore_merges: bool = False
    add_bos: bool = False

    def byte_level_bpe(self, ids, merges):
        """Build the `tokenizers` object that cuts so and merges `merges`, pairs in their order."""
        core = tokenizers.Tokenizer(models.BPE(ids, merges, ignore_merges=self.ignore_merges))
        splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in self.patterns]
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        core.pre_tokenizer = pre_tokenizers.Sequence([*splits, level])
        return core


_TABLE = {
    PreTokenizer((_GPT2,)): "gpt-2 mpt olmo jais phi-2",
    PreTokenizer((r"\p{N}", _GPT2)): "smollm starcoder refact command-r codeshell",
    PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True): "llama-bpe llama3 llama-v3 falcon3",
    PreTokenizer((_LLAMA3,)): "dbrx smaug-bpe glm4",
    PreTokenizer((_QWEN2,)): "qwen2 stablelm2 deepseek-r1-qwen megrez",
    PreTokenizer(_DEEPSEEK): "deepseek-v3",
    PreTokenizer((_O200K,)): "gpt-4o llama4",
    PreTokenizer((_KIMI,)): "kimi-k2",
}
KNOWN = {name: pre for pre, names in _TABLE.items() for name in names.split()}


def _byte_characters():
    """Map the characters that byte-level BPE writes for bytes back to them (GPT-2's table)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(rest)}


BYTE_OF = _byte_characters()
_SPELLING = {b: c for c, b in BYTE_OF.items()}


def spelled(data):
    """Return bytes as byte-level BPE writes them, one character for each."""
    return data.decode("latin-1").translate(_SPELLING)


def pre_tokenizer(name, path):
    """Return the `PreTokenizer` called `name`, or refuse with the list of known names."""
    if name in KNOWN:
        return KNOWN[name]
    near = difflib.get_close_matches(str(name), KNOWN, n=1)
    hint = f"; nearest: {near[0]!r}" if near else ""
    raise UnsupportedError(
        f"{path}: unknown pre-tokenizer {name!r:.80} (tokenizer.ggml.pre){hint}; "
        f"known: {', '.join(sorted(KNOWN))}. Pass tokenizer= a folder with its tokenizer.json"
    )


_TOKEN = re.compile(r"\\.|\[\^?\]?|\]|\(|\)|[*+]|\{\d*,\d*\}|.", re.DOTALL)
_MANY = 64


def is_explosive(pattern):
    """Tell whether a pattern repeats without bound something that repeats without bound.

    Such nesting, `(a+)+`, is what makes a backtracking matcher exponential. No tokenizer needs it,
    so a file that has it is refused.
    """
    groups, depth, closed = [False], 0, False
    for token in _TOKEN.findall(pattern):
        if token.startswith("[") or (token == "]" and depth):
            depth += 1 if token.startswith("[") else -1
            closed = False
        elif depth or token.startswith("\\"):
            closed = False
        elif token == "(":
            groups.append(False)
        elif token == ")" and len(groups) > 1:
            closed = groups.pop()
            groups[-1] |= closed
        elif _repeats(token):
            if closed:
                return True
            groups[-1] = True
        else:
            closed = False
    return False


def _repeats(token):
    if token in ("*", "+"):
        return True
    if len(token) > 2 and token[0] == "{" and "," in token:
        most = token[1:-1].split(",")[1]
        return not most or len(most) > 4 or int(most) > _MANY
    return False
