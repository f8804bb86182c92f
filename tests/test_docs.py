"""README and packaging promises that a machine can hold."""

import contextlib
import io
import re
from importlib.resources import files
from pathlib import Path

import pytest

from octavo import cli

ROOT = Path(__file__).resolve().parents[1]


def test_two_commands_are_two():
    text = (ROOT / "README.md").read_text()
    block = re.search(r"## Two commands\n.*?```sh\n(.*?)```", text, re.S)
    lines = block.group(1).splitlines()
    assert len(lines) == 2 and "octavo demo" in lines[0] and "pytest" in lines[1]


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/formats.md"]
)
def test_links_lead_somewhere(name):
    page = ROOT / name
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{name}: {target}"


@pytest.mark.model
def test_the_notebook_example_prints_what_it_says(smollm2):
    """The five lines of the README give the output printed under them (the same bits anywhere)."""
    code, shown = re.search(
        r"```python\n(.*?)```\n\n```text\n(.*?)```", (ROOT / "README.md").read_text(), re.S
    ).groups()
    assert len(code.splitlines()) == 5
    *body, last = code.splitlines()
    out, scope = io.StringIO(), {}
    with contextlib.redirect_stdout(out):
        exec("\n".join(body), scope)
        print(repr(eval(last, scope)))
    assert re.sub(r"\s+", "", out.getvalue()) == re.sub(r"\s+", "", shown)
    scope["a"].close()
    scope["llm"].close()


def test_the_plan_prints_what_the_readme_says(capsys):
    text = (ROOT / "README.md").read_text()
    example = r"`octavo (plan kimi[^`]*)`.*?```text\n(.*?)```"
    command, shown = re.search(example, text, re.S).groups()
    assert cli.main(command.split()) == 0
    assert shown in capsys.readouterr().out


def test_the_shipped_text_is_plain_ascii():
    data = (files("octavo") / "data" / "alice.txt").read_bytes()
    assert data.isascii() and 6000 < len(data) < 10_000 and b"\r" not in data
