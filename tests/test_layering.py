"""The rooms of docs/architecture.md: who may include or import whom. Held by reading the files."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INCLUDE = re.compile(r'^\s*#\s*include\s+(?:"([^"]+)"|<([^>]+)>)', re.M)
C_STANDARD = {
    *("assert.h", "complex.h", "ctype.h", "errno.h", "fenv.h", "float.h", "inttypes.h"),
    *("iso646.h", "limits.h", "locale.h", "math.h", "setjmp.h", "signal.h", "stdalign.h"),
    *("stdarg.h", "stdatomic.h", "stdbool.h", "stddef.h", "stdint.h", "stdio.h", "stdlib.h"),
    *("stdnoreturn.h", "string.h", "tgmath.h", "threads.h", "time.h", "uchar.h", "wchar.h"),
}
# Nothing that allocates, prints, blocks or reports through a global.
KERNEL_STANDARD = C_STANDARD - {"stdio.h", "errno.h", "threads.h", "signal.h", "setjmp.h", "time.h"}
INTRINSICS = {
    "immintrin.h",
    "xmmintrin.h",
    "cpuid.h",
    "arm_neon.h",
    "cuda_runtime.h",
    "cuda_fp16.h",
    "cuda_bf16.h",
}


def sources(folder, *suffixes):
    found = (p for p in (ROOT / folder).rglob("*") if p.suffix in suffixes)
    return sorted(p for p in found if not p.stem.endswith("zz_stubs"))


def c_files(folder):
    return sources(folder, ".c", ".h", ".inc", ".def", ".cu", ".cuh")


def includes(path):
    """(quoted, angled) names that a file includes."""
    found = INCLUDE.findall(path.read_text())
    return [q for q, _ in found if q], [a for _, a in found if a]


def relative(path):
    return path.relative_to(ROOT).as_posix()


def ids(path):
    return relative(path)


ALL_C = [*c_files("kernels"), *c_files("csrc")]


@pytest.mark.parametrize("path", ALL_C, ids=ids)
def test_includes_are_relative_to_the_root_and_exist(path):
    for name in includes(path)[0]:
        assert (ROOT / name).is_file(), f"{relative(path)} includes {name}"


@pytest.mark.parametrize("path", c_files("kernels"), ids=ids)
def test_kernels_include_kernels_and_the_standard(path):
    quoted, angled = includes(path)
    assert all(name.startswith("kernels/") for name in quoted), quoted
    allowed = KERNEL_STANDARD | INTRINSICS
    assert set(angled) <= allowed, set(angled) - allowed


@pytest.mark.parametrize("path", c_files("csrc"), ids=ids)
def test_intrinsics_stay_in_kernels(path):
    assert not set(includes(path)[1]) & INTRINSICS
    assert not re.search(r"\b_mm(256|512)?_\w+|\b__builtin_(ia32|prefetch)\w*", path.read_text())


def is_format_header(name):
    return re.match(r"kernels/(weight|page|op)/", name) is not None


@pytest.mark.parametrize("path", c_files("csrc/core"), ids=ids)
def test_core_knows_neither_python_nor_a_format(path):
    quoted, angled = includes(path)
    for name in quoted:
        assert name.startswith(("csrc/core/", "kernels/")) or name == "csrc/octavo.h", name
        assert not is_format_header(name), name
    assert not [a for a in angled if a.startswith(("Python", "numpy", "cuda"))], angled


@pytest.mark.parametrize("path", c_files("csrc/py"), ids=ids)
def test_the_binding_includes_itself_and_the_c_api(path):
    quoted, angled = includes(path)
    probe = path.name.startswith("probe")
    for name in quoted:
        allowed = name.startswith("csrc/py/") or (
            name.startswith("kernels/") if probe else name == "csrc/octavo.h"
        )
        assert allowed, f"{relative(path)} includes {name}"
    if path.name != "numpy_api.h":
        assert not [a for a in angled if a.startswith(("Python", "numpy"))], angled


def test_the_c_api_stands_alone():
    quoted, angled = includes(ROOT / "csrc/octavo.h")
    assert not quoted and set(angled) <= C_STANDARD


def code_of(path):
    """A C file without comments and strings."""
    text = re.sub(r"/\*.*?\*/", " ", path.read_text(), flags=re.S)
    return re.sub(r'"(?:\\.|[^"\\])*"', '""', text)


@pytest.mark.parametrize("path", c_files("csrc/py"), ids=ids)
def test_the_gil_is_released_in_one_place(path):
    if path.name in {"gil.h", "gil.c"} or path.name.startswith("probe"):
        return
    words = r"PyEval_(Save|Restore)Thread|Py_(BEGIN|END)_ALLOW_THREADS|PyGILState|Py_UNBLOCK"
    assert not re.search(words, code_of(path))


@pytest.mark.parametrize("path", c_files("csrc/py"), ids=ids)
def test_no_static_objects(path):
    if path.name.startswith("probe"):
        return
    assert not re.search(
        r"^static\s+(PyObject|PyTypeObject|oct_py_\w+)\s+\w+\s*[=;]|"
        r"^static\s+PyObject\s*\*\s*\w+\s*[=;]",
        code_of(path),
        flags=re.M,
    )


def test_statuses_become_exceptions_in_one_file():
    named = [
        p.name
        for p in c_files("csrc/py")
        if re.search(r"case OCT_E_", code_of(p)) and not p.name.startswith("probe")
    ]
    assert named == ["errors.c"]


@pytest.mark.parametrize("path", c_files("csrc/py"), ids=ids)
def test_binding_files_are_short_and_open_with_a_promise(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    assert text.startswith("/*"), "a file opens by saying what it does"


# ---- Python ---------------------------------------------------------------------------------

PURE = {"model", "plan", "scheme"}  # stdlib, numpy, each other; never the extension
ASKS_FOR_TABLES = {"python/octavo/plan/machine.py"}
# What `octavo.plan` calls: it opens the config, or the header, of what it is told to plan.
OPENS_FILES = {"python/octavo/plan/door.py"}
# What checkpoints and plans read alike; it knows neither.
READ_ALIKE = ("module_patterns", "quantization_config")
PURE_OURS = {f"octavo.{r}" for r in (*PURE, *READ_ALIKE, "errors", "table")}
PURE_THIRD_PARTY = {"numpy", "ml_dtypes"}


def imports(path):
    """Absolute names of what a Python file imports, wherever in the file."""
    package = path.relative_to(ROOT / "python").with_suffix("").parts
    package = package[:-1]
    out = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            out |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            out |= {module} | {f"{module}.{a.name}" for a in node.names}
    return out


def room(path):
    parts = path.relative_to(ROOT / "python/octavo").parts
    return parts[0].removesuffix(".py")


PYTHON = sources("python/octavo", ".py")


def under(name, *packages):
    return any(name == p or name.startswith(p + ".") for p in packages)


@pytest.mark.parametrize("path", [p for p in PYTHON if room(p) in PURE], ids=ids)
def test_pure_rooms_never_see_the_extension(path):
    for name in imports(path):
        if relative(path) in ASKS_FOR_TABLES and under(name, "octavo._core"):
            continue
        top = name.partition(".")[0]
        if relative(path) in OPENS_FILES and under(name, "octavo.checkpoint", "octavo.hub"):
            continue
        ours = under(name, *PURE_OURS) or name == "octavo"
        assert ours or top in sys.stdlib_module_names or top in PURE_THIRD_PARTY, name


# Who stands above the study: what a user starts. The package and its __main__ import lazily.
FRONT_DOORS = {"study", "cli", "demo", "__init__", "__main__"}


@pytest.mark.parametrize("path", [p for p in PYTHON if room(p) not in FRONT_DOORS], ids=ids)
def test_nothing_imports_the_study(path):
    above = ("octavo.study", "octavo.cli", "octavo.demo")
    assert not [n for n in imports(path) if under(n, *above)]


@pytest.mark.parametrize("path", [p for p in PYTHON if room(p) == "checkpoint"], ids=ids)
def test_checkpoints_do_not_know_engines(path):
    assert not [n for n in imports(path) if under(n, "octavo._core", "octavo.engine")]


@pytest.mark.parametrize("path", PYTHON, ids=ids)
def test_nobody_ships_the_probe(path):
    assert not [n for n in imports(path) if under(n, "octavo._probe")]


@pytest.mark.parametrize("name", READ_ALIKE)
def test_what_rooms_read_alike_knows_none_of_them(name):
    for found in imports(ROOT / f"python/octavo/{name}.py"):
        known = under(found, "octavo.errors") or found.partition(".")[0] in sys.stdlib_module_names
        assert known, found


def test_errors_import_nothing():
    assert imports(ROOT / "python/octavo/errors.py") == set()
