"""Text to token ids and back, exactly as the checkpoint's own tokenizer does it.

Encoding runs in the `tokenizers` package; `vocabulary` builds it from untrusted files. Decoding is
done here, byte by byte, so that a stream never shows half a character and any id sequence decodes.
"""

import codecs
import operator
from pathlib import Path

import tokenizers

from octavo.errors import UnsupportedError

from .pre_tokenizers import BYTE_OF
from .vocabulary import BYTE_LEVEL, Vocabulary, from_folder, from_gguf


class Tokenizer:
    """A checkpoint's tokenizer.

    Made by `from_checkpoint`. Safe to use from several threads.

    Attributes
    ----------
    vocab_size : int
        One more than the largest id; there may be gaps, and models may have more rows.
    bos_id, eos_id : int or None
        Begin and end of text.
    eos_ids : frozenset of int
        Every id that ends a generation: end of text, of turn, of message.
    special_ids : frozenset of int
        Control tokens: never produced from text unless ``parse_special=True``.
    """

    def __init__(self, vocabulary: Vocabulary, path):
        v = self._vocabulary = vocabulary
        self.path = Path(path)
        self.vocab_size = len(v.texts)
        self.bos_id, self.eos_id, self.eos_ids = v.bos_id, v.eos_id, v.eos_ids
        self.special_ids = v.special
        self._parsing = v.core
        self._plain = _without_special(v.core)
        self._longest = None
        self._templates = {}

    @classmethod
    def from_checkpoint(cls, checkpoint):
        """Build the tokenizer that lies in a checkpoint.

        Parameters
        ----------
        checkpoint : octavo.checkpoint.Checkpoint
            GGUF: from its metadata. safetensors: from ``tokenizer.json`` in its folder, or else
            from ``tiktoken.model``.

        Raises
        ------
        CheckpointError
            If its vocabulary, merges, ranks or patterns are malformed.
        UnsupportedError
            If its kind of tokenizer or its pre-tokenizer is unknown; known ones are listed.
        """
        if checkpoint.kind == "gguf":
            return cls(from_gguf(checkpoint.metadata, checkpoint.path), checkpoint.path)
        path = checkpoint.path
        folder = path if path.is_dir() else path.parent
        return cls(from_folder(folder, checkpoint.metadata), folder)

    @classmethod
    def from_folder(cls, folder):
        """Build a tokenizer from a folder with ``tokenizer.json``, or else ``tiktoken.model``.

        Whatever else is in it. Errors are those of `from_checkpoint`.
        """
        from octavo.checkpoint.guarded_json import read_json

        folder, metadata = Path(folder), {}
        for name in ("config", "generation_config", "tokenizer_config"):
            if (folder / f"{name}.json").exists():
                metadata[name] = read_json(folder / f"{name}.json", limit_bytes=16 << 20)
        return cls(from_folder(folder, metadata), folder)

    def __repr__(self):
        v = self._vocabulary
        ends = ", ".join(repr(v.texts[i]) for i in sorted(self.eos_ids))
        return f"<{v.style} tokenizer of {self.path.name!r}: {self.vocab_size} tokens, ends {ends}>"

    def encode(self, text, add_special=None, parse_special=False, *, limit=None):
        """Return the token ids of `text`.

        Parameters
        ----------
        text : str
        add_special : bool, optional
            None: begin and end tokens as the checkpoint says. True: a begin token in any case.
            False: none.
        parse_special : bool
            Whether control tokens written out in `text` become those tokens. Leave it off for
            text from strangers.
        limit : int, optional
            Refuse, before any work, a text that must give more tokens than this.

        Returns
        -------
        list of int

        Raises
        ------
        TypeError, ValueError
            If `text` is no str, holds a lone surrogate, is beyond `limit`, or `add_special` is
            True and the model has no begin token.
        """
        size = self._checked(text)
        if limit is not None and size > limit and size > limit * self._longest_piece():
            least = -(-size // self._longest_piece())
            raise ValueError(
                f"encode: {size} bytes of text are at least {least} tokens, and at most {limit} fit"
            )
        core = self._parsing if parse_special else self._plain
        ids = core.encode(text, add_special_tokens=False).ids
        prefix, suffix = self._frame(add_special)
        return [*prefix, *ids, *suffix]

    @staticmethod
    def _checked(text):
        if not isinstance(text, str):
            raise TypeError(f"encode: text must be str, not {type(text).__name__}")
        try:
            return len(text) if text.isascii() else len(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise ValueError(
                f"encode: text has a lone surrogate at character {error.start}, which no encoding "
                "can hold; decode its bytes with errors='replace'"
            ) from None

    def _longest_piece(self):
        """Bytes of the longest piece, at least 1. No piece is longer than its token's text."""
        if self._longest is None:
            sizes = [len(text.encode("utf-8")) if text else 0 for text in self._vocabulary.texts]
            longest = 1
            for i in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
                if sizes[i] <= longest:
                    break
                longest = max(longest, len(self._piece(i)))
            self._longest = longest
        return self._longest

    def _frame(self, add_special):
        v = self._vocabulary
        if add_special is None:
            return v.prefix, v.suffix
        if not add_special:
            return [], []
        if self.bos_id is None:
            raise ValueError("encode: add_special=True, but this model has no begin token")
        return v.prefix or [self.bos_id], v.suffix

    def token_to_piece(self, token_id):
        """Return the bytes that a token stands for: possibly part of a character, or empty."""
        return self._piece(self._index(token_id))

    def token_to_id(self, text):
        """Return the id of the token spelled `text` in the vocabulary, or None."""
        return self._parsing.token_to_id(text)

    def _index(self, token_id):
        if isinstance(token_id, bool):
            raise TypeError("a token id must be an integer, not bool")
        i = operator.index(token_id)
        if not 0 <= i < self.vocab_size:
            raise ValueError(f"token id {i} is out of range; legal: 0 to {self.vocab_size - 1}")
        return i

    def _piece(self, i):
        v = self._vocabulary
        text = v.texts[i]
        if text is None:
            return b""
        if i in v.literal:
            return text.encode("utf-8")
        if v.style == BYTE_LEVEL:
            return b"".join(
                bytes([BYTE_OF[c]]) if c in BYTE_OF else c.encode("utf-8") for c in text
            )
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            return bytes([int(text[3:5], 16)])
        return text.replace("▁", " ").encode("utf-8")

    def decode(self, ids, skip_special=False, *, continuation=False):
        """Return the text of token ids.

        Parameters
        ----------
        ids : iterable of int
        skip_special : bool
            Leave control tokens out.
        continuation : bool
            The ids go on from earlier text: keep a leading space that the tokenizer would else
            have added itself (SentencePiece models).

        Returns
        -------
        str
            Bytes that are not UTF-8 become U+FFFD.
        """
        stream = self.decode_stream(skip_special, continuation=continuation)
        return "".join([*map(stream.push, ids), stream.finish()])

    def decode_stream(self, skip_special=True, *, continuation=True):
        """Return a `DecodeStream`: ids in one by one, complete characters out."""
        return DecodeStream(self, skip_special, not continuation and self._vocabulary.space_prefix)

    @property
    def chat_template(self):
        """The checkpoint's chat template (jinja2 text), or None."""
        templates = self._vocabulary.templates
        return templates.get("default", next(iter(templates.values()), None))

    def apply_chat_template(self, messages, add_generation_prompt=True, **variables):
        """Render the checkpoint's own chat template.

        Parameters
        ----------
        messages : list of dict
            With "role" and "content", as the template expects.
        add_generation_prompt : bool
            End with the header of the assistant's turn.
        **variables
            More names for the template (tools, thinking, ...). ``template="name"`` chooses among
            several, or gives jinja2 text.

        Returns
        -------
        str
            Encode it with ``add_special=False, parse_special=True``: it holds all control tokens.

        Raises
        ------
        ValueError
            If the template rejects the messages.
        CheckpointError
            If it fails or exceeds its budget (see `octavo.engine.chat_template`).
        UnsupportedError
            If the checkpoint has no template.
        """
        template = self._template(variables.pop("template", None))
        names = self._vocabulary.names
        return template.render(
            {
                **names,
                **variables,
                "messages": messages,
                "add_generation_prompt": add_generation_prompt,
            }
        )

    def _template(self, name):
        source = self._vocabulary.templates.get(name, name) if name else self.chat_template
        if source is None:
            raise UnsupportedError(
                f"{self.path}: the checkpoint has no chat template; pass template= jinja2 text, "
                "or format the prompt yourself"
            )
        if source not in self._templates:
            from .chat_template import ChatTemplate  # needs jinja2, which few runs do

            self._templates[source] = ChatTemplate(source, self.path)
        return self._templates[source]


class DecodeStream:
    """An incremental detokenizer that holds back bytes until their character is complete."""

    def __init__(self, tokenizer, skip_special, strip_space):
        self._tokenizer = tokenizer
        self._skip = skip_special
        self._strip = strip_space
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id):
        """Take one id; return the text that became complete with it, often empty."""
        i = self._tokenizer._index(token_id)
        if self._skip and i in self._tokenizer.special_ids:
            return ""
        piece = self._tokenizer._piece(i)
        if self._strip and piece and i not in self._tokenizer.special_ids:
            self._strip = False
            piece = piece.removeprefix(b" ")
        return self._decoder.decode(piece)

    def finish(self):
        """Return what is left: U+FFFD for an incomplete character."""
        return self._decoder.decode(b"", final=True)


def _without_special(core):
    """Return a twin that shares the model but leaves control tokens in a text unparsed.

    The switch is a property of a tokenizer object, so two objects keep threads apart.
    """
    twin = tokenizers.Tokenizer(core.model)
    for part in ("normalizer", "pre_tokenizer"):
        if getattr(core, part) is not None:
            setattr(twin, part, getattr(core, part))
    added = core.get_added_tokens_decoder()
    twin.add_tokens([added[i] for i in sorted(added)])
    if twin.get_added_tokens_decoder().keys() != added.keys():  # ids that only the file can set
        twin = tokenizers.Tokenizer.from_str(core.to_str())
        twin.no_padding()
        twin.no_truncation()
    twin.encode_special_tokens = True
    return twin
