"""Patterns of module lists against Python's own `re.match`, and against patterns that explode."""

import random
import re

import pytest

from octavo.errors import CheckpointError, UnsupportedError
from octavo.module_patterns import MAX_PLACES, ModulePatterns, text_name

NAMES = ["lm_head", "model.layers.0.mlp.gate", "model.layers.10.mlp.experts.3.gate_proj",
         "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.shared_experts.up_proj", "a", "ab",
         "abc", "aab", "model.layers.0.mlp.gate_up_proj", "x-y", "b]c", "language_modelx", "",
         "vision_tower.blocks.0.wqkv", "xlm_head", "A.B", "é", "mlpxgate_proj"]  # fmt: skip
PATTERNS = [
    ".*self_attn.*", ".*shared_experts.*", r".*mlp\.(gate|up|gate_up|down)_proj.*", "lm_head",
    ".*mlp.gate$", "^lm_head$", r"model\.layers\.\d+\.mlp\.gate$", "(?:a|b)+c$", "a*", "a+b$",
    "a?b", "", "()", "(a|)b", "[a-c]+$", "[^a]", "[^]a]+$", r"[\d.]*x", "(a(b(c)?)?)?$", "x|y|",
    r".*\.(0|1)\.(?:mlp|self_attn)\..*", ".*?head$", r"[b\]]+c", "(a*)*b", "(a+)+$", r"\Dm", "}",
    r".*layers\.[0-9]+\.mlp.*_proj$", "vision_tower.*", r"\S+\s?$", "((a|b)*c|abc)$", "]",
    "(ab|a)(c|bc)$", r"\w+-\w$", "$$", "a$b*$", "((a|$)b*$)+$",
]  # fmt: skip


def meant(pattern, name):
    """What `re.match` says of the name, or of its rest behind the prefix."""
    short = name.removeprefix("language_model.")
    return bool(re.match(pattern, name) or re.match(pattern, short))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_means_what_re_match_means(pattern):
    ignored = ModulePatterns("config.json: ignore", [f"re:{pattern}"])
    for name in [*NAMES, *(f"language_model.{n}" for n in NAMES)]:
        assert (name in ignored) == meant(pattern, name), name


def random_pattern(rng, depth=3):
    kind = rng.randrange(6) if depth else 0
    if kind <= 1:
        return rng.choice(["a", "b", ".", "[ab]", "[^a]", r"\."])
    if kind == 2:
        return f"({random_pattern(rng, depth - 1)}|{random_pattern(rng, depth - 1)})"
    if kind == 3:
        return f"(?:{random_pattern(rng, depth - 1)}){rng.choice('*+?')}"
    return random_pattern(rng, depth - 1) + random_pattern(rng, depth - 1)


def test_random_patterns_alone_and_together():
    rng = random.Random(5)
    for _ in range(150):
        patterns = [random_pattern(rng) + rng.choice(["", "$"]) for _ in range(3)]
        alone = [ModulePatterns("f", [f"re:{p}"]) for p in patterns]
        together = ModulePatterns("f", [f"re:{p}" for p in patterns])
        for _ in range(20):
            name = "".join(rng.choice("ab.") for _ in range(rng.randrange(7)))
            want = [bool(re.match(p, name)) for p in patterns]
            assert [name in a for a in alone] == want, (patterns, name)
            assert (name in together) == any(want), (patterns, name)


def test_an_absent_list_covers_nothing():
    assert not any(name in ModulePatterns("f", None) for name in NAMES)
    for entries in ("lm_head", {}, [1], [None]):
        with pytest.raises(CheckpointError, match=r"f: targets is .*legal: a list of names"):
            ModulePatterns("f: targets", entries)


def test_the_class_linear_and_names_that_a_format_adds():
    every, kept = ModulePatterns("f", ["Linear"]), ModulePatterns("f", ["re:a$"], also=["lm_head"])
    assert every.covers("x", linear=True) and not every.covers("x", linear=False)
    for name in ("a", "lm_head", "language_model.lm_head"):
        assert kept.covers(name, linear=True) and kept.covers(name, linear=False), name
    assert not kept.covers("x", linear=True)


def test_the_prefix_counts_once():
    """However many patterns may stand behind it."""
    ignored = ModulePatterns("f", [f"re:x{i}$" for i in range(200)])
    assert all(f"{prefix}x{i}" in ignored for i in range(200) for prefix in ("", "language_model."))
    twice = "language_model." * 2 + "x1"
    assert twice not in ignored and text_name(twice) == "language_model.x1"


def test_names_are_whole_or_behind_the_prefix():
    ignored = ModulePatterns("f", ["lm_head", "model.layers.0.mlp"])
    covered = ["lm_head", "language_model.lm_head", "model.layers.0.mlp"]
    assert all(name in ignored for name in covered)
    others = ["lm_head.x", "xlm_head", "x.lm_head", "model.layers.0", ""]
    assert not any(name in ignored for name in others)


@pytest.mark.parametrize("pattern", ["a(", "a)", "(a", "[a", "*a", "a|*", "a\\", "[z-a]", "(?:a",
                                     "a$*", "$+?", "$?"])  # fmt: skip
def test_malformed_patterns_are_refused(pattern):
    with pytest.raises(re.error):
        re.compile(pattern)
    with pytest.raises(CheckpointError, match=r"config\.json: ignore is 're:.*legal: a pattern"):
        ModulePatterns("config.json: ignore", [f"re:{pattern}"])


@pytest.mark.parametrize("pattern", [
    "(?=a)", "(?!a).*", "(?P<n>a)", r"(a)\1", r"\bgate", "a{2}", r"a\Z", "b^a", "(^a)", "(?i)a",
    "(" * 40 + "a" + ")" * 40,
])  # fmt: skip
def test_patterns_that_are_not_known_are_refused_by_name(pattern):
    re.compile(pattern)
    with pytest.raises(UnsupportedError, match=r"ignore is 're:.*not read; read: literals"):
        ModulePatterns("config.json: ignore", [f"re:{pattern}"])


@pytest.mark.parametrize("pattern", [
    "(a+)+$", "(a|a)*$", "(a|aa)+$", "(.*a)" * 12 + "$", "((a*)*)*$",
    "a?" * 60 + "a" * 60 + "$", "(.*a)(.*a)(.*a)(.*a)[^b]*$",
])  # fmt: skip
def test_patterns_that_explode_elsewhere_are_matched(pattern):
    """`re.match` takes years for these; group Q2 of tests/hostile holds the time."""
    ignored = ModulePatterns("f", [f"re:{pattern}"])
    assert "a" * 100 in ignored
    assert not any("a" * 100 + "b" * (i + 1) in ignored for i in range(200))


def test_too_much_work_is_an_error():
    with pytest.raises(CheckpointError, match=f"at most {MAX_PLACES} characters"):
        ModulePatterns("f", ["re:" + "a" * (MAX_PLACES + 1)])
    ignored = ModulePatterns("f", ["re:.*a" + "." * 40 + "b$"])
    rng = random.Random(0)
    with pytest.raises(CheckpointError, match="too many states"):
        for _ in range(2000):
            assert "".join(rng.choice("ac") for _ in range(1000)) not in ignored
