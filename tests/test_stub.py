"""python/octavo/_core.pyi is the contract of the extension: names, signatures, docstrings."""

import ast
import inspect
from pathlib import Path

import pytest

from octavo import _core

STUB = ast.parse((Path(__file__).parents[1] / "python/octavo/_core.pyi").read_text())
FAULTS = {"fault", "fault_count", "cancel_after"}  # of OCTAVO_BUILD=faults alone
FUNCTIONS = {
    n.name: n
    for n in STUB.body
    if isinstance(n, ast.FunctionDef) and (n.name not in FAULTS or hasattr(_core, "fault"))
}
CLASSES = {n.name: n for n in STUB.body if isinstance(n, ast.ClassDef)}
NAMES = {n.target.id for n in STUB.body if isinstance(n, ast.AnnAssign)}


def is_property(node):
    return any(isinstance(d, ast.Name) and d.id == "property" for d in node.decorator_list)


def members(node):
    """(methods by name, names of attributes) that the stub gives a class."""
    functions = [m for m in node.body if isinstance(m, ast.FunctionDef)]
    methods = {m.name: m for m in functions if not is_property(m)}
    attributes = {m.name for m in functions if is_property(m)}
    return methods, attributes | {m.target.id for m in node.body if isinstance(m, ast.AnnAssign)}


def parameters(node, *, bound):
    """What the stub says, as inspect gives it: (name, kind, default)."""
    a = node.args
    assert not a.posonlyargs and not a.vararg and not a.kwarg
    defaults = [inspect.Parameter.empty] * (len(a.args) - len(a.defaults)) + [
        ast.literal_eval(d) for d in a.defaults
    ]
    out = [
        (p.arg, inspect.Parameter.POSITIONAL_OR_KEYWORD, d)
        for p, d in zip(a.args, defaults, strict=True)
    ]
    out += [
        (
            p.arg,
            inspect.Parameter.KEYWORD_ONLY,
            inspect.Parameter.empty if d is None else ast.literal_eval(d),
        )
        for p, d in zip(a.kwonlyargs, a.kw_defaults, strict=True)
    ]
    return out[1:] if bound else out


def real(callable_):
    return [
        (p.name, p.kind, p.default)
        for p in inspect.signature(callable_).parameters.values()
        if not (p.name == "self" and p.kind is inspect.Parameter.POSITIONAL_ONLY)
    ]


def public(thing):
    return {name for name in vars(thing) if not name.startswith("_")}


def test_the_module_has_the_stub_names_and_no_others():
    assert public(_core) | {"__version__"} == set(FUNCTIONS) | set(CLASSES) | NAMES
    assert isinstance(_core.__version__, str)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    assert real(getattr(_core, name)) == parameters(FUNCTIONS[name], bound=False)


@pytest.mark.parametrize("name", CLASSES)
def test_classes(name):
    cls = getattr(_core, name)
    methods, attributes = members(CLASSES[name])
    init = methods.pop("__init__", None)
    assert public(cls) == set(methods) | attributes
    for method, node in methods.items():
        assert real(getattr(cls, method)) == parameters(node, bound=True), method
    if init:
        assert real(cls) == parameters(init, bound=True)
    for attribute in attributes:
        assert inspect.isgetsetdescriptor(getattr(cls, attribute)), attribute
    assert cls.__module__ == "octavo._core"


def test_everything_public_has_a_docstring():
    for owner in [_core, *(getattr(_core, name) for name in CLASSES)]:
        for name in public(owner):
            assert inspect.getdoc(getattr(owner, name)), f"{owner.__name__}.{name}"


def test_only_what_the_stub_says_can_be_set():
    settable = {
        (name, m.target.id)
        for name, c in CLASSES.items()
        for m in c.body
        if isinstance(m, ast.AnnAssign)
    }
    runtime = _core.Runtime(threads=1)
    for attribute in members(CLASSES["Runtime"])[1]:
        if ("Runtime", attribute) in settable:
            setattr(runtime, attribute, getattr(runtime, attribute))
            with pytest.raises(AttributeError):
                delattr(runtime, attribute)
        else:
            with pytest.raises(AttributeError):
                setattr(runtime, attribute, 1)
    with pytest.raises(AttributeError):
        runtime.anything = 1
    with pytest.raises(TypeError):
        _core.Runtime.anything = 1
