"""Tiny models, opened once per module."""

import pytest
from oracle import fixtures

import octavo


@pytest.fixture(scope="module")
def llm(tiny_llama):
    """A random two-layer llama in bf16 pages; small steps, so that prompts take several."""
    with octavo.LLM(tiny_llama, act="a32", max_rows=48, threads=1, progress=False) as llm:
        yield llm


@pytest.fixture(scope="session")
def ids():
    """400 ids of the shipped text under the tiny tokenizer."""
    return fixtures.tokenizer().encode(fixtures.text()).ids[:400]
