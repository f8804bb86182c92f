"""Tokenizers from `tiktoken.model`: ids, words, reserved ids, streams, templates, refusals.

The oracle is `oracle.tiktoken_bpe`, plain merging by rank over words cut without a regular
expression, on vocabularies that this file trains or shuffles itself.
"""

import json
import random
import re
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import tiktoken_bpe
from safetensors.numpy import save_file
from streams import check_survives

from octavo.checkpoint import open_checkpoint
from octavo.engine import tiktoken_model
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import CheckpointError, UnsupportedError

BYTES = {bytes([b]): b for b in range(256)}
NAMES = ["[BOS]", "[EOS]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>", None, "[EOT]",
         "<|im_system|>", "<think>", "</think>", "<|im_middle|>"]  # fmt: skip
PLAIN = {"<think>", "</think>"}
SIGNS = "'''\n\r\t   ..,-_()<|>[]~/\u00a0\u3000\u2028\u0085\x0b\x1c\u200b\u2019\ue000"
LETTERS = "abcdeXYZsStTlLdDmMrReEvVſéÉßǅʰªאかカ한ضдЖ\u0301\u093f\u0915"
OTHERS = "世界語的々〇⺀019²Ⅷ٣½😀🏽👩\u200d🎉©"

# What the release does, in as little jinja2 as shows it; the release's own file is rendered alike.
TEMPLATE = """
{%- for m in messages -%}
  {%- set role = m['role'] if m['role'] in ('user', 'assistant') else 'system' -%}
  <|im_{{ role }}|>{{ m.get('name') or m['role'] }}<|im_middle|>
  {%- if role == 'assistant' -%}<think>{{ m.get('reasoning_content', '') }}</think>{%- endif -%}
  {{ m['content'] }}<|im_end|>
{%- endfor -%}
{%- if add_generation_prompt -%}
  <|im_assistant|>assistant<|im_middle|>{{ '<think></think>' if thinking is false else '<think>' }}
{%- endif -%}
"""


def corpus(seed=1, words=1500):
    """Text of a few hundred made-up words in several scripts, frequent ones first."""
    r = random.Random(seed)
    scripts = "etaoinshr ETAOIN привет 世界語言模型 かなカナ 012345 한국말 ضصث".split()
    known = ["".join(r.choices(r.choice(scripts), k=r.randint(1, 7))) for _ in range(300)]
    ends = [" ", " ", " ", ", ", ".\n", "'s ", "'LL ", "\n\n", "  ", "😀 "]
    weights = [1 / (1 + i) for i in range(len(known))]
    return "".join(w + r.choice(ends) for w in r.choices(known, weights, k=words))


def write(folder, ranks, names=NAMES, config=None, **tokenizer_config):
    """Write a checkpoint folder's tokenizer files; `names` follow the ranks, None is unnamed."""
    data = ranks if isinstance(ranks, bytes) else tiktoken_bpe.lines(ranks)
    (folder / "tiktoken.model").write_bytes(data)
    named = {
        str(len(ranks) + i): {"content": name, "special": name not in PLAIN}
        for i, name in enumerate(names)
        if name
    }
    base = {"tokenizer_class": "TikTokenTokenizer", "added_tokens_decoder": named}
    text = json.dumps(base | tokenizer_config)
    (folder / "tokenizer_config.json").write_text(text)
    (folder / "config.json").write_text(json.dumps(config or {}))
    return folder


@pytest.fixture(scope="module")
def ranks():
    return tiktoken_bpe.train(corpus(), 400)


@pytest.fixture(scope="module")
def kimi(ranks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kimi")
    first = len(ranks)
    config = {"vocab_size": first + 256, "eos_token_id": first + 2}
    write(folder, ranks, config=config, bos_token="[BOS]", eos_token="[EOS]")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return Tokenizer.from_folder(folder)


def some_texts(seed, count, stable):
    """Random texts: words of the corpus, odd characters, and control tokens written out."""
    r = random.Random(seed)
    words = corpus().split(" ")
    for _ in range(count):
        parts = []
        for _ in range(r.randint(1, 12)):
            odd = r.choice((SIGNS, LETTERS, OTHERS, stable))
            some = ["".join(r.choices(odd, k=r.randint(1, 6))), r.choice(words)]
            some += [r.choice(SIGNS), r.choice([n for n in NAMES if n not in {None, *PLAIN}])]
            parts.append(r.choices(some, (6, 4, 3, 1))[0])
        yield "".join(parts)


@pytest.fixture(scope="module")
def stable():
    return list(tiktoken_bpe.stable())


def words_of(tokenizer, text):
    cut = tokenizer._parsing.pre_tokenizer.pre_tokenize_str(text)
    return [text[a:b] for _, (a, b) in cut]


def test_words_are_cut_as_the_pattern_says(kimi, stable):
    assert words_of(kimi, "abc東京DEf's 12345  x\n\n y") == [
        "abc", "東京", "DEf's", " ", "123", "45", " ", " x", "\n\n", " y",
    ]  # fmt: skip
    for text in some_texts(2, 4000, stable):
        assert words_of(kimi, text) == tiktoken_bpe.cut(text), repr(text)


def test_every_character_has_the_class_that_the_pattern_gives_it(kimi, stable):
    assert len(stable) > 200_000
    text = "".join(random.Random(1).sample(stable, len(stable)))
    assert words_of(kimi, text) == tiktoken_bpe.cut(text)


def test_ids_are_those_of_plain_merging(kimi, ranks, stable):
    for text in some_texts(3, 3000, stable):
        ids = kimi.encode(text, add_special=False)
        assert ids == tiktoken_bpe.encode(text, ranks), repr(text)
        assert kimi.decode(ids) == text
    ids = kimi.encode(corpus(), add_special=False)
    assert ids == tiktoken_bpe.encode(corpus(), ranks)
    assert len({i for i in ids if i > 255}) > 150, "many merges were at work"


def test_control_tokens_are_parsed_where_asked_for(kimi, ranks, stable):
    names = {name: len(ranks) + i for i, name in enumerate(NAMES) if name}
    names["<|reserved_token_900|>"] = 900
    pattern = re.compile(f"({'|'.join(map(re.escape, names))})")
    for text in some_texts(4, 1000, stable):
        text += "<|reserved_token_900|><think>"
        parts = [p for p in pattern.split(text) if p]
        want = ([names[p]] if p in names else tiktoken_bpe.encode(p, ranks) for p in parts)
        assert kimi.encode(text, False, parse_special=True) == [*chain.from_iterable(want)]
        assert kimi.special_ids.isdisjoint(kimi.encode(text, add_special=False))


@pytest.mark.parametrize("seed", range(12))
def test_any_order_of_ranks_is_merged_by_rank(tmp_path, seed):
    """Ranks that no trainer gives: wholes before their parts, tokens that no merging reaches."""
    r = random.Random(seed)
    pool = [b"a", b"b", b"c"]
    while len(pool) < 80:
        pool.append((r.choice(pool) + r.choice(pool))[:12])
    lone = [bytes(r.choices(b"abc", k=r.randint(2, 6))) for _ in range(20)]
    tokens = sorted({*BYTES, *pool, *lone})
    r.shuffle(tokens)
    ranks = {token: rank for rank, token in enumerate(tokens)}
    ours = Tokenizer.from_folder(write(tmp_path, ranks))
    for size in [*range(1, 12)] * 20 + [200] * 5:
        text = "".join(r.choices("abc", k=size))
        assert ours.encode(text) == tiktoken_bpe.encode(text, ranks), text


def test_a_token_that_no_merging_reaches_is_a_word_of_its_own(tmp_path):
    ranks = BYTES | {b"bc": 256, b"abc": 257, b"abcd": 258, b"ab": 259, b"cd": 260}
    assert tiktoken_model.merges(list(ranks)) == [
        (b"b", b"c"), (b"a", b"bc"), (b"abc", b"d"), (b"a", b"b"), (b"c", b"d"),
    ]  # fmt: skip
    ranks = BYTES | {b"abcd": 256, b"bc": 257}
    assert tiktoken_model.merges(list(ranks)) == [(b"b", b"c")]
    ours = Tokenizer.from_folder(write(tmp_path, ranks))
    assert ours.encode("abcd") == [256] and ours.encode("abcde") == [97, 257, 100, 101]


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_text_survives_and_streams_agree(kimi, text):
    check_survives(kimi, text)


def test_pieces_are_the_bytes_of_the_file(kimi, ranks):
    assert all(kimi.token_to_piece(i) == token for token, i in ranks.items())
    r = random.Random(5)
    for _ in range(300):
        ids = r.choices(range(len(ranks)), k=20)
        raw = b"".join(kimi.token_to_piece(i) for i in ids)
        assert kimi.decode(ids) == raw.decode("utf-8", "replace")


def test_reserved_ids_follow_the_ranks(kimi, ranks):
    first = len(ranks)
    assert kimi.vocab_size == first + 256
    for i, name in enumerate(NAMES):
        text = name or f"<|reserved_token_{first + i}|>"
        assert kimi.token_to_id(text) == first + i
        assert kimi.decode([first + i]) == text
        assert kimi.decode([first + i], skip_special=True) == (text if name in PLAIN else "")
    assert kimi.decode([first + 255]) == f"<|reserved_token_{first + 255}|>"
    assert len(kimi.special_ids) == 256 - len(PLAIN)
    assert (kimi.bos_id, kimi.eos_id) == (first, first + 1)
    assert kimi.encode("a") == [ord("a")], "no begin token unless asked for"
    assert kimi.encode("a", add_special=True) == [first, ord("a")]


def test_ends_are_what_the_files_name(tmp_path, ranks):
    def ends(names=NAMES, config=None, generation=None, **more):
        folder = write(tmp_path, ranks, names, config, **more)
        (folder / "generation_config.json").write_text(json.dumps(generation or {}))
        return {i - len(ranks) for i in Tokenizer.from_folder(folder).eos_ids}

    first = len(ranks)
    assert ends() == {1, 2, 6}
    assert ends(["[PAD]", "[BOS]", "[EOT]"]) == {2}, "by name, wherever the file puts it"
    assert ends([]) == set()
    assert ends([], {"eos_token_id": first + 9}) == {9}
    assert ends([], {"text_config": {"eos_token_id": [first + 3, first + 4]}}) == {3, 4}
    assert ends([], generation={"eos_token_id": first + 7}, eos_token="[X]") == {7}
    assert ends(["[X]"], eos_token={"content": "[X]"}) == {0}


@pytest.mark.parametrize("nested", [False, True])
def test_ids_without_a_row_in_the_model_are_left_out(tmp_path, ranks, nested):
    config = {"vocab_size": len(ranks) + 32}
    write(tmp_path, ranks, config={"text_config": config} if nested else config)
    ours = Tokenizer.from_folder(tmp_path)
    assert ours.vocab_size == len(ranks) + 32
    beyond = f"<|reserved_token_{len(ranks) + 32}|>"
    assert max(ours.encode(beyond, parse_special=True)) < len(ranks)


def test_a_checkpoint_finds_it_and_tokenizer_json_goes_first(tmp_path, ranks):
    write(tmp_path, ranks, eos_token="[EOS]")
    save_file({"x": np.zeros(4, np.float32)}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        ours = Tokenizer.from_checkpoint(checkpoint)
    text = corpus(7, 50)
    assert ours.encode(text) == tiktoken_bpe.encode(text, ranks)
    assert repr(ours).startswith("<byte-level tokenizer of") and "'[EOT]'" in repr(ours)
    ours._parsing.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tiktoken.model").write_bytes(b"not read")
    assert Tokenizer.from_folder(tmp_path).encode(text) == tiktoken_bpe.encode(text, ranks)


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "你好 <x>"},
    {"role": "assistant", "content": "hi", "reasoning_content": "so"},
    {"role": "tool", "name": "f", "content": "1\n2"},
]
TURNS = (
    "<|im_system|>system<|im_middle|>Be brief.<|im_end|>"
    "<|im_user|>user<|im_middle|>你好 <x><|im_end|>"
    "<|im_assistant|>assistant<|im_middle|><think>so</think>hi<|im_end|>"
    "<|im_system|>f<|im_middle|>1\n2<|im_end|>"
)
PROMPT = "<|im_assistant|>assistant<|im_middle|><think>"


def test_the_template_beside_the_config_writes_the_turns(kimi):
    assert kimi.apply_chat_template(CHAT, False) == TURNS
    assert kimi.apply_chat_template(CHAT) == TURNS + PROMPT
    assert kimi.apply_chat_template(CHAT, thinking=True) == TURNS + PROMPT
    assert kimi.apply_chat_template(CHAT, thinking=False) == f"{TURNS}{PROMPT}</think>"
    ids = kimi.encode(kimi.apply_chat_template(CHAT[1:2]), add_special=False, parse_special=True)
    named = {i: kimi.decode([i]) for i in ids if kimi.decode([i]) in NAMES}
    user, middle, end, assistant, _, think = [i for i in ids if i in named]
    assert [named[i] for i in (user, middle, end, assistant, think)] == [
        "<|im_user|>", "<|im_middle|>", "<|im_end|>", "<|im_assistant|>", "<think>",
    ]  # fmt: skip
    assert kimi.decode(ids[ids.index(middle) + 1 : ids.index(end)]) == "你好 <x>"


def test_the_template_of_the_config_is_used_where_no_file_is(tmp_path, ranks):
    write(tmp_path, ranks, chat_template="{{ messages|length }}{{ thinking }}")
    ours = Tokenizer.from_folder(tmp_path)
    assert ours.apply_chat_template(CHAT, thinking="no") == "4no"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert Tokenizer.from_folder(tmp_path).apply_chat_template(CHAT) == "file"


def lines(*more, without=()):
    """A file of the 256 bytes, less some of their lines, and more lines."""
    good = tiktoken_bpe.lines(BYTES).splitlines()
    return b"\n".join([line for i, line in enumerate(good) if i not in without] + [*more])


HOSTILE = [
    (lines(b"YWI="), "line 257 is b'YWI='; legal: a token in base64, a space"),
    (lines(b"YWI= 256 1"), "line 257 is b'YWI= 256 1'"),
    (lines(b"YWI 256"), "token on line 257 is b'YWI'; legal: a token in base64"),
    (lines(b"Y*I= 256"), r"token on line 257 is b'Y\*I='"),
    (lines(b"=== 256"), "token on line 257"),
    (lines(b"\xff\xfe= 256"), "token on line 257"),
    (lines(b"YWI= x"), "rank on line 257 is b'x'; legal: an integer"),
    (lines(b"YWI= 256.0"), "rank on line 257 is b'256.0'"),
    (lines(b"YWI= -1"), "rank on line 257 is b'-1'"),
    (lines(b"YWI= 1_0"), "rank on line 257 is b'1_0'"),
    (lines(b"YWI= " + b"9" * 5000), "rank on line 257"),
    (lines(b"YWI= 255"), "rank on line 257 is 255; legal: each rank once; line 256"),
    (lines(b"YWI= 257"), "rank on line 257 is 257; legal: 0 to 256, each once"),
    (lines(b"YWI= 256", b"YWI= 257"), r"token on line 258 is b'ab'; legal: .*line 257"),
    (lines(b"YQ== 256"), "token on line 257 is b'a'; legal: each token once; line 98"),
    (lines(without=[5]), "rank on line 255 is 255; legal: 0 to 254"),
    (lines(b"YWI= 5", without=[5]), "token of byte 0x05 is absent"),
    (lines(b"QUFB" * 342 + b" 256"), "1368 characters of base64; legal: 1 to 1024 bytes"),
    (lines(b"QUFB" * 100_000 + b" 256"), "400000 characters of base64"),
    (b"", "token of byte 0x00 is absent"),
    (b"\n" * 1_000_000, "lines is 1000000; legal: at most 262144"),
    (b"\0" * 1000, "line 1 is"),
    (b"a" * (17 << 20), "size is 17825792 bytes; legal: at most 16777216"),
    (lines(b"\xc2\xb2 256"), "token on line 257"),
]


@pytest.mark.parametrize(("data", "match"), HOSTILE, ids=[m[:40] for _, m in HOSTILE])
def test_a_malformed_file_is_refused_by_line(tmp_path, data, match):
    write(tmp_path, data, names=[])
    with pytest.raises(CheckpointError, match=match) as error:
        Tokenizer.from_folder(tmp_path)
    assert str(tmp_path / "tiktoken.model") in str(error.value)
    assert len(str(error.value)) < 600


def test_too_much_work_is_refused_before_it_is_done(tmp_path):
    tokens = [b"a" * 600 + bytes([i // 256, i % 256]) * 200 for i in range(300)]
    write(tmp_path, BYTES | {t: 256 + i for i, t in enumerate(tokens)}, names=[])
    with pytest.raises(CheckpointError, match="squared token lengths is 300000256; legal: at most"):
        Tokenizer.from_folder(tmp_path)


def test_lines_may_end_and_lie_as_they_like(tmp_path, ranks):
    entries = tiktoken_bpe.lines(ranks).splitlines()
    random.Random(1).shuffle(entries)
    (write(tmp_path, ranks) / "tiktoken.model").write_bytes(b"\r\n\r\n".join(entries))
    text = corpus(9, 100)
    assert Tokenizer.from_folder(tmp_path).encode(text) == tiktoken_bpe.encode(text, ranks)


NAMED = [
    ([], "added_tokens_decoder is list; legal: an object"),
    ({"x": {"content": "a"}}, "is 'x'; legal: an id from 256, after the ranks, and below 512"),
    ({"255": {"content": "<a>"}}, "is '255'"),
    ({"512": {"content": "<a>"}}, "is '512'"),
    ({"0256": {"content": "<a>"}}, "is '0256'"),
    ({"256": "<a>"}, r"added_tokens_decoder\['256'\] is <a>; legal: an object"),
    ({"256": {"content": ""}}, "legal: an object whose content is a text of 1 to 1024"),
    ({"256": {"content": 5}}, "legal: an object whose content"),
    ({"256": {"content": "x" * 1025}}, "legal: an object whose content"),
    ({"256": {"content": "<a>", "special": 1}}, "special of .* is 1; legal: true or false"),
    ({"256": {"content": "<a>"}, "257": {"content": "<a>"}}, "name of id 256 is '<a>'; .*id 257"),
    ({"256": {"content": "<|reserved_token_300|>"}}, "name of id 256 .*id 300"),
    ({"256": {"content": "a"}}, "is 'a'; legal: a name that is not the token of id 97"),
]


@pytest.mark.parametrize(("named", "match"), NAMED, ids=[m[:40] for _, m in NAMED])
def test_malformed_names_are_refused(tmp_path, named, match):
    write(tmp_path, BYTES, added_tokens_decoder=named)
    with pytest.raises(CheckpointError, match=match) as error:
        Tokenizer.from_folder(tmp_path)
    assert str(tmp_path / "tokenizer_config.json") in str(error.value)


def test_ranks_of_another_class_are_refused(tmp_path):
    for kind in ("PreTrainedTokenizerFast", None, 5):
        write(tmp_path, BYTES, tokenizer_class=kind)
        with pytest.raises(UnsupportedError, match=r"is not read; known: TikTokenTokenizer"):
            Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    assert Tokenizer.from_folder(tmp_path).encode("ab") == [97, 98]
