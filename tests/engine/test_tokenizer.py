"""Tokenizers from GGUF metadata and tokenizer.json: ids, bytes, streams, templates, refusals.

Oracles: llama.cpp's ids on SmolLM2 (recorded below), a plain implementation of SentencePiece's
merging by score, and the `tokenizers` package's own decoder.
"""

import json
import threading
from itertools import pairwise

import gguf
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import check_survives

from octavo.checkpoint import open_checkpoint
from octavo.engine.chat_template import ChatTemplate
from octavo.engine.pre_tokenizers import BYTE_OF, KNOWN, is_explosive
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import CheckpointError, UnsupportedError

# llama.cpp, add_special=false, parse_special=false.
LLAMA_CPP = {
    "Hello world": [19556, 905],
    "  leading spaces": [216, 2899, 5600],
    "1234567 numbers 3.14": [33, 34, 35, 36, 37, 38, 39, 2966, 216, 35, 30, 33, 36],
    "don't I'll WE'RE": [12420, 982, 339, 3060, 26587, 23, 3256],
    "naïve café 東京 🎉": [3546, 46494, 37366, 17097, 247, 126, 16736, 122, 15107, 232, 227],
    "tabs\tand\nnewlines\n\n\nend": [100, 7366, 197, 397, 198, 2241, 5110, 1116, 198, 486],
    "x = a_b + c->d;  // code": [
        104, 446, 253, 79, 82, 1232, 265, 22690, 84, 43, 216, 13241, 2909,
    ],
}  # fmt: skip

CHATML = (
    "{% for m in messages %}{{ '<s>' + m['role'] + '\n' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token }}{% endif %}"
)


def byte_level(tmp_path, pre="gpt-2", **keys):
    """A GGUF whose tokenizer knows all bytes, a few merges, two control tokens, one user token."""
    tokens = [*BYTE_OF, "he", "ll", "hell", "hello", "Ġw", "<s>", "</s>", "<|tool|>"]
    types = [1] * (len(tokens) - 3) + [3, 3, 4]
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w"]
    base = {
        "model": "gpt2", "pre": pre, "bos_token_id": tokens.index("<s>"),
        "eos_token_id": tokens.index("</s>"), "add_bos_token": True,
    } | keys  # fmt: skip
    return write(tmp_path, base, tokens, types, merges=merges)


def write(tmp_path, keys, tokens, types, **arrays):
    writer = gguf.GGUFWriter(tmp_path / "t.gguf", "llama")
    for key, value in keys.items():
        full = f"tokenizer.{'' if key == 'chat_template' else 'ggml.'}{key}"
        kinds = {bool: writer.add_bool, str: writer.add_string, int: writer.add_uint32}
        kinds[type(value)](full, value)
    arrays |= {"tokens": tokens, "token_type": types}
    for key, value in arrays.items():
        writer.add_array(f"tokenizer.ggml.{key}", value)
    writer.add_tensor("t", np.zeros(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_checkpoint(tmp_path / "t.gguf") as checkpoint:
        return Tokenizer.from_checkpoint(checkpoint)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return byte_level(tmp_path_factory.mktemp("tiny"), chat_template=CHATML)


def pieces(tokenizer, ids):
    return [tokenizer.token_to_piece(i) for i in ids]


def test_merges_and_bytes(tiny):
    assert pieces(tiny, tiny.encode("hello wé", add_special=False)) == [
        b"hello", b" w", b"\xc3", b"\xa9",
    ]  # fmt: skip
    assert tiny.vocab_size == 264 and tiny.eos_ids == {tiny.eos_id}
    assert tiny.special_ids == {tiny.bos_id, tiny.eos_id}


def test_special_tokens_are_text_unless_asked_for(tiny):
    assert tiny.encode("</s>", add_special=False, parse_special=True) == [tiny.eos_id]
    assert tiny.eos_id not in tiny.encode("</s>", add_special=False)
    tool = tiny.token_to_id("<|tool|>")
    assert tool in tiny.encode("a<|tool|>b"), "user tokens are always parsed"
    ids = tiny.encode("hello")
    assert ids[0] == tiny.bos_id and tiny.encode("hello", add_special=True) == ids
    assert tiny.encode("hello", add_special=False) == ids[1:]
    assert tiny.decode(ids) == "<s>hello" and tiny.decode(ids, skip_special=True) == "hello"


@pytest.mark.parametrize("add_eos", [False, True])
def test_the_file_says_which_ends_are_added(tmp_path, add_eos):
    t = byte_level(tmp_path, add_bos_token=False, add_eos_token=add_eos)
    assert t.encode("a", add_special=False) == [t.token_to_id("a")]
    assert t.encode("a")[1:] == ([t.eos_id] if add_eos else [])
    assert t.encode("a", add_special=True)[0] == t.bos_id


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_text_survives_and_streams_agree(tiny, text):
    check_survives(tiny, text)


@given(st.lists(st.integers(0, 263)))
@settings(max_examples=200, deadline=None)
def test_any_ids_decode_as_their_bytes_do(tiny, ids):
    raw = b"".join(pieces(tiny, ids))
    assert tiny.decode(ids) == raw.decode("utf-8", "replace")


@pytest.mark.parametrize("bad", [-1, 264, 1 << 70])
def test_ids_out_of_range_are_refused(tiny, bad):
    with pytest.raises(ValueError, match="0 to 263"):
        tiny.decode([bad])


def test_wrong_arguments_are_refused(tiny):
    for bad in (b"bytes", None, 5):
        with pytest.raises(TypeError, match="str"):
            tiny.encode(bad)
    for bad in (True, 1.0, "1"):
        with pytest.raises(TypeError):
            tiny.token_to_piece(bad)
    with pytest.raises(ValueError, match="surrogate at character 1"):
        tiny.encode("a\ud800")
    with pytest.raises(ValueError, match="at most 8 fit"):
        tiny.encode("a" * 10_000, limit=8)
    assert tiny.decode(np.array([1, 2], np.int64)) == tiny.decode([1, 2])


def test_the_longest_piece_is_that(tiny, spm):
    for t in (tiny, spm[0]):
        longest = max(len(t.token_to_piece(i)) for i in range(t.vocab_size))
        assert t._longest_piece() == longest > 1


def test_threads_share_a_tokenizer(tiny):
    want, got = tiny.encode("hello " * 50), []
    threads = [
        threading.Thread(target=lambda: got.extend(tiny.encode("hello " * 50) for _ in range(20)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 80 and all(ids == want for ids in got)


CUTS = [
    ("gpt-2", "ab12 cd", ["ab", "12", " cd"]),
    ("smollm", "ab12 cd", ["ab", "1", "2", " cd"]),
    ("llama-bpe", "ab12345 I'LL\n\n x", ["ab", "123", "45", " I", "'LL", "\n\n", " x"]),
    ("qwen2", "ab123 x", ["ab", "1", "2", "3", " x"]),
    ("deepseek-v3", "ab1234東京 x", ["ab", "123", "4", "東京", " x"]),
    ("gpt-4o", "helloWorld's 12//\n", ["hello", "World's", " ", "12", "//\n"]),
    ("kimi-k2", "abc東京DEf", ["abc", "東京", "DEf"]),
]


@pytest.mark.parametrize(("pre", "text", "want"), CUTS)
def test_text_is_cut_as_the_model_learned(tmp_path, pre, text, want):
    core = byte_level(tmp_path, pre=pre)._parsing
    cuts = [text[a:b] for _, (a, b) in core.pre_tokenizer.pre_tokenize_str(text)]
    assert cuts == want


def test_no_known_pattern_counts_as_explosive():
    assert not any(is_explosive(p) for pre in KNOWN.values() for p in pre.patterns)
    for bad in ("(a+)+", "(?:a|b*c)*", "([ab]+x)+", "((a*))*", r"(\w+\s?)*$", "(a{3,})+"):
        assert is_explosive(bad), bad
    for fine in ("(ab)+", "a+b+", "[(a+)]+", r"\(a+\)+", "(a+){1,3}", "(a{1,3})+"):
        assert not is_explosive(fine), fine


def test_unknown_pre_tokenizers_are_refused_with_the_known(tmp_path):
    with pytest.raises(UnsupportedError, match=r"'qwen-2'.*nearest: 'qwen2'.*smollm"):
        byte_level(tmp_path, pre="qwen-2")


def spm_reference(text, scores):
    """SentencePiece BPE: merge the pair of best score, leftmost first, until none is left."""
    parts = list(text)
    while True:
        best = [(-scores[a + b], i) for i, (a, b) in enumerate(pairwise(parts))
                if a + b in scores]  # fmt: skip
        if not best:
            return parts
        i = min(best)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


@pytest.fixture(scope="module")
def spm(tmp_path_factory):
    words = ["▁a", "ab", "ba", "▁ab", "aba", "bab", "▁b", "aa", "abab", "▁▁"]
    tokens = ["<unk>", "<s>", "</s>", *[f"<0x{b:02X}>" for b in range(256)], *"▁abc", *words]
    types = [2, 3, 3, *[6] * 256, *[1] * (4 + len(words))]
    scores = [0.0] * 263 + [-float(i) for i in range(len(words))]
    keys = {"model": "llama", "bos_token_id": 1, "eos_token_id": 2}
    made = write(tmp_path_factory.mktemp("spm"), keys, tokens, types, scores=scores)
    return made, dict(zip(words, scores[263:], strict=True))


@given(text=st.text(alphabet="ab c", min_size=1))
@settings(max_examples=200, deadline=None)
def test_sentencepiece_merges_by_score(spm, text):
    tokenizer, scores = spm
    ids = tokenizer.encode(text, add_special=False)
    want = spm_reference("▁" + text.replace(" ", "▁"), scores)
    assert [tokenizer._vocabulary.texts[i] for i in ids] == want
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, continuation=True) == " " + text


def test_sentencepiece_falls_back_to_bytes(spm):
    tokenizer, _ = spm
    ids = tokenizer.encode("aé東")
    assert ids[0] == tokenizer.bos_id and tokenizer.decode(ids, skip_special=True) == "aé東"
    assert pieces(tokenizer, ids[2:]) == [bytes([b]) for b in "é東".encode()]


def folder(tmp_path, core, **config):
    core.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.from_folder(tmp_path)


def trained(tmp_path, **config):
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<s>", "<|im_end|>"], initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    core.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 3, trainer)
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return core, folder(tmp_path, core, **config)


def test_tokenizer_json_encodes_and_decodes_as_the_library(tmp_path):
    core, ours = trained(tmp_path, bos_token="<s>", eos_token={"content": "<|im_end|>"})
    for text in ("the quick fox", " naïve 東京 🎉", "", "a\n\n b"):
        ids = core.encode(text).ids
        assert ours.encode(text) == ids
        assert ours.decode(ids) == core.decode(ids, skip_special_tokens=False)
        assert ours.decode(ids, skip_special=True) == text
    assert (ours.bos_id, ours.eos_id, ours.eos_ids) == (0, 1, {1})
    assert ours.encode("<s>", add_special=False, parse_special=True) == [0]
    assert 0 not in ours.encode("<s>", add_special=False)


def test_tokenizer_config_may_drop_the_begin_token(tmp_path):
    core, ours = trained(tmp_path, bos_token="<s>", add_bos_token=False)
    assert ours.encode("the") == core.encode("the", add_special_tokens=False).ids


def test_a_folder_without_tokenizer_json_is_refused(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(UnsupportedError, match=r"tokenizer\.model is not read"):
        Tokenizer.from_folder(tmp_path)


def test_chat_templates_come_from_wherever_the_checkpoint_has_them(tiny, tmp_path):
    messages = [{"role": "user", "content": "hi"}]
    assert tiny.apply_chat_template(messages) == "<s>user\nhi</s><s>"
    assert tiny.apply_chat_template(messages, False) == "<s>user\nhi</s>"
    assert tiny.apply_chat_template(messages, template="{{ x }}", x=5) == "5"
    _, ours = trained(tmp_path)
    with pytest.raises(UnsupportedError, match="template="):
        ours.apply_chat_template(messages)
    named = [{"name": "default", "template": "D"}, {"name": "tool", "template": "T"}]
    _, ours = trained(tmp_path, chat_template=named)
    assert ours.apply_chat_template([]) == "D"
    assert ours.apply_chat_template([], template="tool") == "T"
    (tmp_path / "chat_template.jinja").write_text("J{{ messages|length }}")
    assert Tokenizer.from_folder(tmp_path).apply_chat_template(messages) == "J1"


RENDERED = [
    ("{{ [1, 'é']|tojson }}", '[1, "é"]'),
    ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "a1"),
    ("{% for x in range(5) %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}", "01"),
    ("{% generation %}G{% endgeneration %}", "G"),
    ("{% macro m() %}[{{ caller(3) }}]{% endmacro %}{% call(x) m() %}{{ x }}{% endcall %}", "[3]"),
    ("{{ 'a b'.split()[-1] }}{{ ','.join(['x', 'y']) }}{{ 'a' ~ 1 ~ none }}", "bx,ya1None"),
    ("{% set a, b = 1, 2 %}{{ a + b }}{{ 'x' * 3 }}{{ 7 // 2 }}{{ 7 % 4 }}", "3xxx33"),
    ("  {% if true %}\n<b>\n  {% endif %}\nz", "<b>\nz"),
    ("{{ strftime_now('%Y')|length }}{{ '{:.1f}'.format(0.25) }}", "40.2"),
    ("{% set ns = namespace(n=0) %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}{% endfor %}"
     "{{ ns.n }}{{ messages[1:]|map(attribute='r')|list }}", "3[2]"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "want"), RENDERED)
def test_what_real_templates_use_works(source, want):
    assert ChatTemplate(source, "f").render({"messages": [{"r": 1}, {"r": 2}]}) == want


def test_templates_reject_messages_and_fail_by_name():
    with pytest.raises(ValueError, match="roles must alternate") as error:
        ChatTemplate("{{ raise_exception('roles must alternate') }}", "f").render({})
    assert not isinstance(error.value, CheckpointError)
    with pytest.raises(CheckpointError, match="the_file"):
        ChatTemplate("{{ x.y.z }}", "the_file").render({})


@pytest.mark.model
def test_ids_of_smollm2_equal_llama_cpps():
    from octavo import hub

    with open_checkpoint(hub.resolve("smollm2-135m")) as checkpoint:
        tokenizer = Tokenizer.from_checkpoint(checkpoint)
    for text, ids in LLAMA_CPP.items():
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids) == text
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (1, 2, 49152)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])
    assert prompt.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.encode(prompt, add_special=False, parse_special=True)[:2] == [1, 9690]
