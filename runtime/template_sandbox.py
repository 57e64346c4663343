"""A jinja2 environment for templates that nobody vouches for: nothing to read, no way to hang, no way to fill memory.

Syntax and whitespace are those of transformers' chat templates. What a template may do is listed, not what it may not:
filters, methods, functions. Every text and list that it makes is paid for out of a budget that grows with the texts it
was given; where a result can be far longer than what it is made of, before it is made.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final, NoReturn

from jinja2 import Template, TemplateError, nodes, pass_environment
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS
from jinja2.runtime import Context, LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_SOURCE: Final = 65_536
"""Characters of a template; the longest published ones have a few thousand."""

_FREE: Final = 1_000_000
_PER_CHARACTER: Final = 32
_STEP: Final = 16
_MAX_SECONDS: Final = 5.0
_MAX_BITS: Final = 4096


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_STR_METHODS: Final = _words(
    "capitalize count endswith find index isalnum isalpha isdecimal isdigit isnumeric isspace islower istitle isupper "
    "join lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip split "
    "splitlines startswith strip swapcase title upper"
)
_METHODS: Final[tuple[tuple[type, frozenset[str]], ...]] = (
    (str, _STR_METHODS),
    (Mapping, _words("get items keys values")),
    (list, _words("count index")),
    (tuple, _words("count index")),
)
_FILTERS: Final = _words(
    "abs capitalize count d default first float int items last length list lower map reject rejectattr reverse round "
    "select selectattr title trim unique upper"
)


@dataclass(slots=True)
class _Budget:
    """What is left of one rendering: characters, and the processor time of its thread when it must be over."""

    characters: int
    deadline: float


_budget: ContextVar[_Budget] = ContextVar("poolgraph_template_budget")


def _raise_too_much() -> NoReturn:
    raise SecurityError("the template makes too much text, or takes too many steps, for what it was given")


def _afford(characters: int) -> None:
    if characters > _budget.get().characters:
        _raise_too_much()


def _pay(value: Any) -> Any:
    """Pay for a value that was made, and return it."""
    budget = _budget.get()
    if isinstance(value, str):
        budget.characters -= _STEP + len(value)
    else:
        budget.characters -= _STEP * (1 + (len(value) if isinstance(value, list | tuple) else 0))
    if budget.characters < 0:
        _raise_too_much()
    return value


def _text(value: Any) -> str:
    """Return what is printed for a value; lists of lists of lists could grow without bound when printed."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool | int | float | Undefined):
        return str(value)
    raise SecurityError(f"a score template prints texts and numbers, not a {type(value).__name__}")


def _join(separator: str, parts: Iterable[Any]) -> str:
    texts = [_text(part) for part in parts]
    _afford(sum(map(len, texts)) + len(separator) * len(texts))
    return separator.join(texts)


def _replace(text: Any, old: Any, new: Any, count: int = -1) -> str:
    whole, part, other = _text(text), _text(old), _text(new)
    _afford(len(whole) + whole.count(part) * len(other))
    return whole.replace(part, other, -1 if count is None else count)


@pass_environment
def _filter_join(environment: Any, value: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    return _join(d, value if attribute is None else (environment.getitem(item, attribute) for item in value))


def _filter_tojson(value: Any) -> str:
    if isinstance(value, str | bool | int | float) or value is None:
        return json.dumps(value, ensure_ascii=False)
    raise SecurityError(f"tojson is for texts and numbers here, not for a {type(value).__name__}")


def _paid(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return _pay(function(*args, **kwargs))

    return run


class _RaisedError(TemplateError):
    """What a template raised itself."""


def _raise_exception(message: object) -> NoReturn:
    raise _RaisedError(str(message))


class _Guard(NodeTransformer):
    """Puts the environment's checks into a template's syntax tree, where jinja2 itself would compile plain Python."""

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        super().generic_visit(node, *args, **kwargs)
        return node

    def _refuse(self, node: nodes.Node, *_: Any, **__: Any) -> NoReturn:
        raise SecurityError(f"line {node.lineno}: a score template cannot use {type(node).__name__.lower()}")

    visit_Include = visit_Import = visit_FromImport = visit_Extends = visit_Block = _refuse  # noqa: N815

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("step", [], node), lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(_call("step", [], node), node.test, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("joined", node.nodes, node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        part = node.arg
        if not isinstance(part, nodes.Slice):
            return node
        edges = [edge or nodes.Const(None) for edge in (part.start, part.stop, part.step)]
        return _call("sliced", [node.node, *edges], node)

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("flat", [node], node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("flat", [node], node) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("flat", [node], node)


def _call(name: str, args: list[nodes.Expr], node: nodes.Node) -> nodes.Call:
    """A call of the environment's own method, which no variable of a template can take the place of."""
    return nodes.Call(nodes.EnvironmentAttribute(name), args, [], None, None, lineno=node.lineno)


class _Environment(ImmutableSandboxedEnvironment):
    """What templates run in; its public methods beyond jinja2's own are what ``_Guard`` puts calls of into the tree."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols"],
            finalize=_text,
            optimized=False,
        )
        own = {"join": _filter_join, "replace": _replace, "string": _text, "tojson": _filter_tojson}
        self.filters = {
            name: _paid(function) for name, function in (FILTERS | own).items() if name in (*_FILTERS, *own)
        }
        self.globals = {"range": safe_range, "namespace": Namespace, "raise_exception": _raise_exception}

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Allow the listed methods, and what loops and namespaces hold."""
        if not super().is_safe_attribute(obj, attr, value):
            return False
        names = next((names for kind, names in _METHODS if isinstance(obj, kind)), None)
        return isinstance(obj, LoopContext | Namespace) if names is None else attr in names

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Leave formatting to ``is_safe_attribute``, which refuses it: a width may be any number."""
        return None

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call with a step counted, and the result paid for."""
        self.step()
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str) and name in ("join", "replace"):
            return _pay(_join(owner, *args) if name == "join" else _replace(owner, *args, **_counted(kwargs)))
        return _pay(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute with operands whose result is of bounded size."""
        self.step()
        if operator != "+":
            _check_numbers(operator, left, right)
        elif isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            _afford(len(left) + len(right))
        return _pay(super().call_binop(context, operator, left, right))

    def concat(self, pieces: Iterable[str]) -> str:
        """Join what was printed; the budget holds for the pieces before they are joined."""
        return "".join([_pay(piece) for piece in pieces])

    def step(self) -> bool:
        """Count one step of a loop or call; always true, so that it can stand in a condition."""
        _pay(None)
        if time.thread_time() > _budget.get().deadline:
            _raise_too_much()
        return True

    def joined(self, *parts: Any) -> str:
        """Join the operands of ``~``."""
        return _join("", parts)

    def sliced(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """Slice a text or a list."""
        return value[start:stop:step]

    def flat(self, value: Any) -> Any:
        """Return a list, tuple or dict that is not nested: comparing what holds itself over and over takes forever."""
        items, refused = (value.values(), list | tuple | dict) if isinstance(value, dict) else (value, list | tuple)
        if any(isinstance(item, refused) for item in items):
            raise SecurityError("a score template cannot put lists into lists, or lists and dicts into dicts")
        return value


def _counted(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name == "count"}


def _check_numbers(operator: str, left: Any, right: Any) -> None:
    if not isinstance(left, int | float) or not isinstance(right, int | float):
        raise SecurityError(f"{operator} is for numbers in a score template")
    bits = [abs(number).bit_length() if isinstance(number, int) else 0 for number in (left, right)]
    size = bits[0] * abs(right) if operator == "**" and isinstance(right, int) else sum(bits)
    if size > _MAX_BITS:
        raise SecurityError(f"the numbers around {operator} are too large")


_environment: Final = _Environment()


def compile_template(source: str) -> Template:
    """Compile a template.

    Raises:
        TemplateError: a mistake in it, or something that it must not do.
        ValueError: it is too long.
        RecursionError: it is nested too deeply.
    """
    if len(source) > MAX_SOURCE:
        raise ValueError(f"it has {len(source)} characters; at most {MAX_SOURCE} are allowed")
    tree = _environment.parse(source)
    _Guard().visit(tree)
    tree.set_environment(_environment)
    return _environment.from_string(tree)


def render_template(template: Template, variables: Mapping[str, Any]) -> str:
    """Render a template within its budget.

    Raises:
        TemplateError: the template raised, or did something that it must not.
        Exception: what else its expressions raise, such as TypeError.
    """
    given = sum(len(value) for value in variables.values() if isinstance(value, str))
    budget = _Budget(_FREE + _PER_CHARACTER * given, time.thread_time() + _MAX_SECONDS)
    token = _budget.set(budget)
    try:
        return template.render(variables)
    finally:
        _budget.reset(token)
