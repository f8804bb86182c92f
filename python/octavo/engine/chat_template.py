"""Chat templates from strangers, rendered in jinja2's immutable sandbox under a budget.

jinja2 caps one `range` but not nested loops, string doubling, or padding to a billion characters.
So the template's syntax tree is rewritten before it is compiled: every loop and macro body starts
with a tick, and every `~`, every printed text and every literal container goes through a check, as
do calls, filters and operators. All of them draw on one budget of time, steps and characters per
rendering, so whatever a template does ends in an exception, without threads or signals.
"""

import contextvars
import json
import re
import secrets
import time
from datetime import datetime

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.visitor import NodeTransformer

from octavo.errors import CheckpointError

MAX_SOURCE = 256 << 10
MAX_SECONDS = 1.0
MAX_TICKS = 1_000_000
MAX_TEXT = 16 << 20
MAX_CREATED = 8 * MAX_TEXT
MAX_INT = 100_000

_FILTERS = """abs capitalize count d default dictsort e escape first float groupby indent int items
join last length list lower map max min reject rejectattr replace reverse round safe select
selectattr sort string sum title tojson trim unique upper urlencode wordcount""".split()
_COUNTED_FILTERS = {"indent", "round", "tojson"}
_BAD_METHODS = {"encode", "expandtabs", "format_map", "to_bytes", "translate"}
_GLOBALS = ("range", "dict", "cycler", "joiner", "namespace")
_WIDE = re.compile(r"\d{5}")
_SIZED = (str, list, tuple, dict, bytes, range)
# Names that no template can spell, so the unguarded filters and the rewriter's own are unreachable.
_SECRET = secrets.token_hex(16)
_TICK, _CONCAT, _MADE = (f"{_SECRET}{n}" for n in ("tick", "concat", "made"))
_active = contextvars.ContextVar("octavo_chat_budget")


class _Budget:
    """What one rendering may still spend."""

    def __init__(self):
        self.deadline = time.monotonic() + MAX_SECONDS
        self.ticks = self.created = self.shown = 0

    def tick(self):
        self.ticks += 1
        if self.ticks > MAX_TICKS:
            raise SecurityError(f"more than {MAX_TICKS} loop steps")
        if self.ticks % 64 == 0:
            self.on_time()

    def on_time(self):
        if time.monotonic() > self.deadline:
            raise SecurityError(f"more than {MAX_SECONDS} s")

    def afford(self, size):
        """Refuse a result of `size` characters or items before it is made; count it."""
        self.on_time()
        self.created += size
        if size > MAX_TEXT or self.created > MAX_CREATED:
            raise SecurityError(f"more than {MAX_TEXT} characters of text")

    def show(self, value):
        """Count what is printed, also into a macro's or a set block's buffer."""
        self.shown += len(value) if isinstance(value, str) else 64
        if self.shown > MAX_TEXT:
            raise SecurityError(f"more than {MAX_TEXT} characters of output")
        return value

    def measure(self, value):
        """Bound what a container would print as: a list that holds itself twice grows as 2^n."""
        todo, size = [value], 0
        while todo and size <= MAX_TEXT:
            node = todo.pop()
            size += 16 + (len(node) if isinstance(node, str | bytes) else 0)
            if isinstance(node, dict):
                todo.extend(node.keys())
                todo.extend(node.values())
            elif isinstance(node, list | tuple):
                todo.extend(node)
        if size > MAX_TEXT:
            raise SecurityError(f"a container of more than {MAX_TEXT} characters")
        return value


def _joined_size(separator, items):
    return sum(len(i) if isinstance(i, str) else 64 for i in items) + len(separator) * len(items)


def _replaced_size(text, old, new):
    return len(text) + (text.count(old) if old else len(text) + 1) * len(new)


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox whose operators and calls draw on the active budget."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def call_binop(self, context, operator, left, right):
        budget = _active.get()
        if operator == "%" and isinstance(left, str | bytes):
            raise SecurityError("% formatting is not available in chat templates")
        sized = [x for x in (left, right) if isinstance(x, _SIZED)]
        if operator == "*" and sized:
            times = right if sized[0] is left else left
            budget.afford(len(sized[0]) * max(0, int(times)))
        elif sized:
            budget.afford(sum(map(len, sized)))
        else:
            _check_numbers(operator, left, right)
        out = super().call_binop(context, operator, left, right)
        return budget.measure(out) if isinstance(out, list | tuple) else out

    def call(self, context, function, *args, **kwargs):
        budget = _active.get()
        budget.on_time()
        method = getattr(function, "__wrapped__", function)  # jinja2 wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str | bytes | int | float):
            args = _checked_method(budget, owner, name, args, kwargs)
        out = super().call(context, function, *args, **kwargs)
        if isinstance(out, _SIZED):
            budget.afford(len(out))
        return budget.measure(out) if isinstance(out, dict) else out


def _check_numbers(operator, left, right):
    """Keep integers below 2^256, so that arithmetic takes constant time."""
    numbers = [x for x in (left, right) if isinstance(x, int)]
    if any(abs(x) >> 256 for x in numbers):
        raise SecurityError("integers beyond 2^256 are not available")
    if operator == "**" and numbers and abs(right) > 64:
        raise SecurityError("powers beyond 64 are not available")


def _checked_method(budget, owner, name, args, kwargs):
    """Refuse methods of text and numbers whose result could be vastly larger than their input."""
    _check_counts((*args, *kwargs.values()))
    if name in _BAD_METHODS or (name == "format" and _WIDE.search(str(owner))):
        raise SecurityError(f"{type(owner).__name__}.{name} is not available in this form")
    if name == "format":
        budget.afford(owner.count("{") * MAX_INT)
    elif name == "join" and args:
        args = (list(args[0]), *args[1:])
        budget.afford(_joined_size(owner, args[0]))
    elif name == "replace" and len(args) >= 2:
        budget.afford(_replaced_size(owner, *args[:2]))
    return args


def _check_counts(values):
    for value in values:
        if isinstance(value, int) and abs(value) > MAX_INT:
            raise SecurityError(f"argument {str(value)[:20]} is beyond {MAX_INT}")


def _guarded(name):
    """Wrap jinja2's filter `name`: bounded counts in, bounded text out."""

    @jinja2.pass_context
    def run(context, value, *args, **kwargs):
        budget = _active.get()
        if name in _COUNTED_FILTERS:
            _check_counts((*args, *kwargs.values()))
        elif name == "join":
            value = list(value)
            budget.afford(_joined_size(str(args[0]) if args else str(kwargs.get("d", "")), value))
        elif name == "replace" and len(args) >= 2:
            budget.afford(_replaced_size(str(value), str(args[0]), str(args[1])))
        call = context.environment.call_filter
        out = call(_SECRET + name, value, args, kwargs, context=context)
        if isinstance(out, _SIZED):
            budget.afford(len(out))
        return out

    return run


@jinja2.pass_context
def _tick(context, _):
    _active.get().tick()


@jinja2.pass_context
def _concat(context, parts):
    _active.get().afford(_joined_size("", parts))
    return "".join(map(str, parts))


@jinja2.pass_context
def _made(context, value):
    return _active.get().measure(value)


@jinja2.pass_context
def _shown(context, value):
    return _active.get().show(value)


class _Rewriter(NodeTransformer):
    """Puts the budget's checks into a parsed template."""

    def _with_tick(self, node):
        self.generic_visit(node)
        call = nodes.Filter(nodes.Const(0), _TICK, [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(call))
        return node

    visit_For = visit_Macro = visit_CallBlock = _with_tick

    def visit_TemplateData(self, node):
        return nodes.Const(node.data)  # a constant is printed through `_shown`; raw text is not

    def visit_Concat(self, node):
        self.generic_visit(node)
        return nodes.Filter(nodes.List(node.nodes), _CONCAT, [], [], None, None)

    def _made(self, node):
        self.generic_visit(node)
        if getattr(node, "ctx", "load") != "load":
            return node
        return nodes.Filter(node, _MADE, [], [], None, None)

    visit_List = visit_Tuple = visit_Dict = _made


class _Generation(Extension):
    """`{% generation %}`, a training mark in newer templates: its body, as it is."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 wants a plain class attribute)

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.Scope(body, lineno=line)


class TemplateMessage(ValueError):
    """What a template itself complains about through `raise_exception`: the messages are wrong."""


def _raise_exception(message):
    raise TemplateMessage(str(message)[:1000])


def _strftime_now(pattern):
    return datetime.now().strftime(str(pattern)[:200])


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _environment():
    env = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,  # constants would be folded, and multiplied, outside the budget
        finalize=_shown,
        extensions=[LoopControlExtension, _Generation],
    )
    plain = {**env.filters, "tojson": _tojson}
    env.filters = {name: _guarded(name) for name in _FILTERS}
    env.filters |= {_SECRET + name: plain[name] for name in _FILTERS}
    env.filters |= {_TICK: _tick, _CONCAT: _concat, _MADE: _made}
    env.globals = {name: env.globals[name] for name in _GLOBALS}
    env.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    return env


class ChatTemplate:
    """A checkpoint's chat template, compiled once.

    Parameters
    ----------
    source : str
        jinja2 text, at most 256 KiB.
    path : path-like
        Where it came from, for messages.

    Raises
    ------
    CheckpointError
        If it is too long or does not compile.
    """

    def __init__(self, source, path):
        self.source, self._path = source, path
        if len(source) > MAX_SOURCE:
            raise CheckpointError(
                f"{path}: chat template of {len(source)} characters; legal: at most {MAX_SOURCE}"
            )
        env = _environment()
        try:
            tree = _Rewriter().visit(env.parse(source))
            tree.set_environment(env)
            code = env.compile(tree, filename="<chat template>")
        except (jinja2.TemplateError, SyntaxError, RecursionError, MemoryError) as error:
            raise CheckpointError(f"{path}: chat template does not compile: {error}") from error
        self._template = env.template_class.from_code(env, code, env.globals)

    def render(self, variables):
        """Return the text for `variables`.

        Raises
        ------
        ValueError
            If the template rejects the messages (`raise_exception`).
        CheckpointError
            If it fails, leaves the sandbox, or exceeds 1 s, 10^6 loop steps or 16 Mi characters.
        """
        token = _active.set(_Budget())
        try:
            return "".join(self._template.generate(variables))
        except TemplateMessage as error:
            raise ValueError(f"chat template of {self._path}: {error}") from None
        except Exception as error:  # a template can raise whatever Python can
            kind = type(error).__name__
            raise CheckpointError(f"{self._path}: chat template failed: {kind}: {error}") from error
        finally:
            _active.reset(token)
