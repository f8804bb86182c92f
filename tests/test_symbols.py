"""The built extensions export their init function and nothing else, and ask for little."""

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from octavo import _core, _probe


def dynamic_symbols(module, *flags):
    if not shutil.which("nm"):
        pytest.skip("nm is absent on this machine")
    out = subprocess.run(
        ["nm", "-D", *flags, module.__file__], capture_output=True, text=True, check=True
    ).stdout
    return {line.split()[-1].split("@")[0] for line in out.splitlines()}


@pytest.mark.parametrize("module", [_core, _probe], ids=lambda m: m.__name__)
def test_exports(module):
    name = module.__name__.rpartition(".")[2]
    ours = {s for s in dynamic_symbols(module, "--defined-only") if not s.startswith("__gcov")}
    assert ours - {"_init", "_fini", "__bss_start", "_edata", "_end"} == {f"PyInit_{name}"}


# What reliability.md forbids: each would end the process or trust a length that nobody checked.
BANNED = {"abort", "exit", "_exit", "sprintf", "strcpy", "strcat", "gets", "system", "alloca"}


def test_banned_calls():
    if "-fsanitize" in str(sysconfig.get_config_var("CFLAGS")):
        pytest.skip("a sanitized interpreter")
    assert not dynamic_symbols(_core, "--undefined-only") & BANNED


def test_file_is_the_one_that_was_built_here():
    assert Path(_core.__file__).suffix in {".so", ".pyd"}
