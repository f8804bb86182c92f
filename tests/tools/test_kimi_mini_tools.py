"""The corpus and the files of `kimi-mini`, without JAX: questions have one right answer, which the
prompt gives; the same seed gives the same text; packing keeps every code, and names and dtypes are
the release's."""

import re
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import kimi_mini_files as files

from octavo.study import kimi_mini as tasks


@pytest.mark.parametrize("distance", [128, 1024])
def test_recall_asks_for_the_first_pair_at_its_distance(distance):
    for question in tasks.questions(tasks.recall_question, 20, 1, distance):
        name = question.prompt[:5]
        assert question.prompt.endswith(name)
        assert question.prompt.count(name) == 2
        assert question.prompt.startswith(name + question.answer)
        between = tasks.count(question.prompt) - 3
        assert distance <= between < distance + 16


def test_sums_are_sums_and_some_are_never_trained():
    trained, kept = (
        {
            re.fullmatch(r" sum:(\d\d)\+(\d\d)=(\d+)\.", q.prompt + q.answer).groups()
            for q in tasks.questions(tasks.sum_task, 300, 1, held_out)
        }
        for held_out in (False, True)
    )
    assert all(int(a) + int(b) == int(c) for a, b, c in trained | kept)
    assert not trained & kept


def test_brackets_close_and_copies_repeat():
    for q in tasks.questions(tasks.bracket_task, 100, 1):
        opened, text = [], q.prompt.removeprefix(" match:").removesuffix(" ->") + q.answer
        for mark in text.removesuffix(".").split():
            if mark in "([{<":
                opened.append(mark)
            else:
                assert opened.pop() + mark in ("()", "[]", "{}", "<>")
        assert not opened
    for q in tasks.questions(tasks.copy_task, 100, 1):
        assert q.prompt == f" copy:{q.answer.removesuffix('.')} ->"


def test_rows_keep_one_value_for_a_name_and_weigh_what_can_be_known():
    for parts in tasks.held_out_rows(20, 200, 3, recall=1.0):
        value, known = {}, 0
        for name, number in pairwise(parts):
            if name.text not in tasks.NAMES:
                continue
            assert number.weight == (tasks.ANSWER if name.text in value else tasks.NOISE)
            assert value.setdefault(name.text, number.text) == number.text
            known += number.weight == tasks.ANSWER
        assert known


def test_a_seed_fixes_the_text():
    once, again = (list(tasks.questions(tasks.copy_task, 5, 7)) for _ in range(2))
    assert once == again
    assert once != list(tasks.questions(tasks.copy_task, 5, 8))


def test_tokenizer_gives_back_the_text():
    tokenizer = files.train_tokenizer(
        "".join(p.text for p in row) for row in tasks.held_out_rows(150, 400, 2)
    )
    assert sorted(tokenizer.ranks.values()) == list(range(files.BASE_TOKENS))
    token = {i: t for t, i in tokenizer.ranks.items()}
    token |= {i: name.encode() for i, name in files.SPECIAL_TOKENS.items()}
    for row in tasks.held_out_rows(5, 300, 9):
        text = "".join(p.text for p in row)
        ids = tokenizer.encode(text)
        assert b"".join(token[i] for i in ids).decode() == text
        assert ids == [i for p in row for i in tokenizer.encode(p.text)]


def test_plain_text_is_too_little_for_a_tokenizer():
    with pytest.raises(ValueError, match="train_tokenizer"):
        files.train_tokenizer(["aa bb"])


def test_experts_survive_packing(tmp_path):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 64)).astype(np.float32)
    weight[2, :32] = 0
    codes, scale = files.quantize(weight)
    assert np.abs(codes).max() == 7
    assert np.array_equal(files.unpack(files.pack(codes)), codes)
    assert files.pack(codes)[0, 0] & 15 == codes[0, 0] + 8
    name = "model.layers.1.mlp.experts.0.up_proj.weight"
    files.save_tensors(tmp_path / "m.safetensors", {name: weight})
    back = files.load_tensors(tmp_path / "m.safetensors")
    assert list(back) == [name]
    half = np.repeat(scale.astype(np.float32), files.GROUP, axis=1) / 2
    assert np.all(np.abs(back[name] - weight) <= half * 1.01)
