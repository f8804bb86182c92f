"""What the whole suite shares: the model, the text, tiny models, and how absent ones are skipped.

Importing from here is never needed: pytest puts this folder on the path, so tests import
`oracle.forward` and `oracle.fixtures` directly.
"""

import gc
import os
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A shell starts background jobs with SIGINT ignored, and Python then installs no handler. The tests
# of Ctrl-C (and their children, who inherit it) need the one that a user at a terminal has.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Thousands of collected tests live as long as the run, so no later collection walks them: a
    `gc.collect()` of a test would take a tenth of a second, and a second and more under TSan.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def wikitext() -> str:
    """WikiText-2's raw test file, or a named skip."""
    given = os.environ.get("OCTAVO_WIKITEXT")
    path = Path(given) if given else ROOT.parent / "shared" / "data" / "wiki.test.raw"
    if not path.is_file():
        pytest.skip("wiki.test.raw is absent: set OCTAVO_WIKITEXT to its path")
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The SmolLM2 checkpoint, pulled on first use, or a named skip where that fails."""
    from octavo.hub import PullError, pull

    try:
        return pull("smollm2-135m", progress=False)
    except PullError as error:
        pytest.skip(f"smollm2-135m cannot be pulled here: {error}")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer llama GGUF (F32)."""
    from oracle import fixtures

    return fixtures.write_gguf(tmp_path_factory.mktemp("tiny") / "llama.gguf")


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Qwen3 folder (F32 safetensors)."""
    from oracle import fixtures

    path = tmp_path_factory.mktemp("tiny") / "qwen3"
    fixtures.write_folder(path, fixtures.QWEN3)
    return path
