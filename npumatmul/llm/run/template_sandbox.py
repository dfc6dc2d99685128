"""Jinja for templates of strangers: a sandbox in which time, memory and the length of texts have limits.

A template is parsed by Jinja, changed, and compiled by Jinja. The changes: every run of the body of a loop, a macro or
a block pays for its nodes, and what the compiler would write as plain Python (comparisons, ``~``, slices, mappings)
becomes a call of the environment, as operators, filters, tests and calls are already. See `template_operations`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn, TypeVar, cast

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.visitor
from jinja2 import nodes

from npumatmul.files.reading import shown
from npumatmul.llm.run.template_budget import Budget, TooMuch, current_budget, spending
from npumatmul.llm.run.template_operations import (
    COMPARISONS,
    FILTERS,
    METHODS,
    TESTS,
    bounded_filter,
    bounded_test,
    call_text,
    charge_compare,
    operate,
)

__all__ = ["MAX_SOURCE", "BoundedTemplate", "Refused"]

MAX_SOURCE = 1 << 18
"""Characters of a template; the longest in use have a tenth of it."""
_MAX_NODES = 20_000
_MAX_PATTERN = 200
#: Characters of text between nodes that cost as much as a node.
_DATA = 16
#: What may be called as it is: macros, blocks, recursive loops, joiners.
_TEMPLATE_CODE = (
    jinja2.runtime.Macro,
    jinja2.runtime.BlockReference,
    jinja2.runtime.LoopContext,
    jinja2.utils.Joiner,
)
#: What Jinja itself passes to every call, for `Context.call`.
_OF_JINJA = ("_loop_vars", "_block_vars")
#: Objects of Jinja whose methods templates call.
_HELPERS = (jinja2.runtime.LoopContext, jinja2.utils.Cycler, jinja2.utils.Joiner)

AnyNode = TypeVar("AnyNode", bound=nodes.Node)
AnyBlock = TypeVar("AnyBlock", nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block)
_PAYING = (nodes.For, nodes.If, nodes.Macro, nodes.CallBlock, nodes.Block)


class Refused(jinja2.TemplateError):
    """Raised by a template through raise_exception()."""


class BoundedTemplate:
    """A compiled template.

    Parameters
    ----------
    source : str
    tojson : callable
        The filter of that name; called as Python's `json.dumps` within bounds.

    Raises
    ------
    jinja2.TemplateError
        If it is too long, or has a syntax error.
    Exception
        Of other kinds, where Jinja or Python cannot compile it.
    """

    def __init__(self, source: str, tojson: Callable[..., str]) -> None:
        if len(source) > MAX_SOURCE:
            raise TooMuch(f"it has {len(source)} characters; at most {MAX_SOURCE} are accepted")
        environment = _Environment(tojson)
        tree = environment.parse(source)
        changed = _Bounding(environment).visit(tree)
        self._cost = _cost(changed.body)
        code = environment.compile(changed)
        self._template = jinja2.Template.from_code(environment, code, environment.make_globals(None))

    def render(self, characters: int, variables: Mapping[str, Any]) -> str:
        """Run it.

        Parameters
        ----------
        characters : int
            Of the variables, as JSON.
        variables : mapping
            Plain data.

        Raises
        ------
        TooMuch
            If it takes too long or too much memory.
        Refused
            If it refuses the variables.
        Exception
            Of other kinds, where it fails.
        """
        with spending(Budget(characters)) as budget:
            budget.step(self._cost)
            text = self._template.render(variables)
            budget.fits(len(text))
            return text


class _Generation(jinja2.ext.Extension):
    """The ``{% generation %}`` block of transformers, which marks training data: rendered as its contents."""

    tags = {"generation"}  # noqa: RUF012 (declared so by the base class)

    def parse(self, parser: jinja2.parser.Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The names of transformers' templates, and nothing that is not bounded."""

    intercepted_binops = frozenset(jinja2.sandbox.SandboxedEnvironment.default_binop_table)

    def __init__(self, tojson: Callable[..., str]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # nothing is computed while a template is compiled
            finalize=_finalize,
            extensions=[_Generation, jinja2.ext.loopcontrols],
        )
        self.filters = {name: bounded_filter(name, self.filters[name]) for name in FILTERS if name in self.filters}
        self.filters["tojson"] = tojson
        self.tests = {
            name: bounded_test(name, cast("Callable[..., Any]", self.tests[name]))
            for name in TESTS
            if name in self.tests
        }
        functions = {
            "range": _range,
            "dict": _dict,
            "namespace": _namespace,
            "cycler": jinja2.utils.Cycler,
            "joiner": jinja2.utils.Joiner,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        self.globals.clear()
        self.globals.update(functions)
        self.bounded_step, self.bounded_concat = _step, _concat
        self.bounded_compare, self.bounded_slice, self.bounded_dict = _compare, _slice, _dict
        own = (_step, _concat, _compare, _slice)
        self._functions = {id(function): function for function in (*functions.values(), *own)}

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        return operate(current_budget(), operator, left, right)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if not isinstance(argument, (str, int)):
            current_budget().weigh(argument)
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> None:
        """Leave `str.format` as it is: only `call` calls it, and knows it."""
        return None

    def call(__self, __context: jinja2.runtime.Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        if id(__obj) not in __self._functions and not isinstance(__obj, _TEMPLATE_CODE):
            owner = getattr(__obj, "__self__", None)
            given = {name: value for name, value in kwargs.items() if name not in _OF_JINJA}
            if isinstance(owner, str):
                return call_text(__self, __obj, args, given)
            __self._check_call(__obj, owner, args, given)
        current_budget().step(3 + len(args))
        return __context.call(__obj, *args, **kwargs)

    def _check_call(self, obj: Any, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse calls of what is not known, and pay for the others."""
        budget = current_budget()
        if isinstance(obj, jinja2.Undefined):
            return  # which says what is undefined
        if not isinstance(owner, _HELPERS):
            names: frozenset[str] = next(
                (METHODS[kind] for kind in type(owner).__mro__ if kind in METHODS), frozenset()
            )
            if getattr(obj, "__name__", None) not in names:
                raise jinja2.exceptions.SecurityError(f"{shown(obj)} is not called in chat templates")
            if obj.__name__ in ("count", "index"):
                budget.weigh(owner)
            elif isinstance(owner, (list, dict)):
                budget.step(len(owner) if obj.__name__ == "copy" else 1)
        for each in (*args, *kwargs.values()):
            budget.weigh(each)


class _Bounding(jinja2.visitor.NodeTransformer):
    """Makes a template pay for what it does."""

    def __init__(self, environment: _Environment) -> None:
        self._environment = environment
        self._count = 0
        self._changes: dict[type[nodes.Node], Callable[..., nodes.Node]] = {
            nodes.For: self._loop,
            nodes.If: self._branches,
            **dict.fromkeys((nodes.Macro, nodes.CallBlock, nodes.Block), self._block),
            nodes.Compare: self._compare,
            nodes.Concat: lambda node: self._call("bounded_concat", node, *node.nodes),
            nodes.Dict: self._mapping,
            nodes.Getitem: self._item,
            nodes.ScopedEvalContextModifier: self._unknown,
            **dict.fromkeys((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends), self._unknown),
        }

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        self._count += 1
        if self._count > _MAX_NODES:
            raise TooMuch(f"it has more than {_MAX_NODES} parts")
        self.generic_visit(node)
        change = self._changes.get(type(node))
        return node if change is None else change(node)

    def _loop(self, node: nodes.For) -> nodes.For:
        if node.test is not None:
            step = self._call("bounded_step", node, nodes.Const(_cost([node.test])))
            node.test = self._new(nodes.And(step, node.test), node)
        node.else_ = self._paid(node, node.else_) if node.else_ else []
        return self._block(node)

    def _branches(self, node: nodes.If) -> nodes.If:
        node.body, node.else_ = (self._paid(node, body) if body else body for body in (node.body, node.else_))
        return node

    def _block(self, node: AnyBlock) -> AnyBlock:
        node.body = self._paid(node, node.body)
        return node

    def _paid(self, node: nodes.Node, body: list[nodes.Node]) -> list[nodes.Node]:
        """Statements that pay first, less what those in them pay."""
        step = self._call("bounded_step", node, nodes.Const(_cost(body)))
        return [self._new(nodes.ExprStmt(step), node), *body]

    def _compare(self, node: nodes.Compare) -> nodes.Expr:
        left, parts = node.expr, []
        for operand in node.ops:
            parts.append(self._call("bounded_compare", node, left, nodes.Const(operand.op), operand.expr))
            left = operand.expr
        found = parts[0]
        for part in parts[1:]:
            found = self._new(nodes.And(found, part), node)
        return found

    def _mapping(self, node: nodes.Dict) -> nodes.Expr:
        pairs: list[nodes.Expr] = [self._new(nodes.Tuple([pair.key, pair.value], "load"), node) for pair in node.items]
        return self._call("bounded_dict", node, self._new(nodes.List(pairs), node))

    def _item(self, node: nodes.Getitem) -> nodes.Expr:
        if not isinstance(node.arg, nodes.Slice):
            return node
        parts = (node.arg.start, node.arg.stop, node.arg.step)
        return self._call("bounded_slice", node, node.node, *(nodes.Const(None) if p is None else p for p in parts))

    def _unknown(self, node: nodes.Node) -> NoReturn:
        raise jinja2.TemplateAssertionError(f"{type(node).__name__} is not known in chat templates", node.lineno)

    def _call(self, name: str, node: nodes.Node, *args: nodes.Expr) -> nodes.Expr:
        function = self._new(nodes.EnvironmentAttribute(name), node)
        call = self._new(nodes.Call(function, list(args), [], None, None), node)
        for each in args:
            if not each.lineno:
                each.set_lineno(node.lineno)
        return call

    def _new(self, node: AnyNode, old: nodes.Node) -> AnyNode:
        node.lineno = old.lineno
        node.environment = self._environment
        return node


def _cost(parts: Sequence[nodes.Node]) -> int:
    """Nodes of a part of a template, and its text, without what is paid for when it is run; and paying itself."""
    count, rest = 4, list(parts)
    while rest:
        each = rest.pop()
        count += 1
        if isinstance(each, nodes.TemplateData):
            count += len(each.data) // _DATA
        rest.extend(each.iter_child_nodes(exclude=("body", "else_") if isinstance(each, _PAYING) else ()))
    return count


@jinja2.pass_context  # so that Jinja does not call it while it compiles
def _finalize(context: jinja2.runtime.Context, value: Any) -> str:
    return current_budget().text(value)


def _step(count: int) -> bool:
    current_budget().step(count)
    return True


def _concat(*values: Any) -> str:
    budget = current_budget()
    parts = [budget.text(value) for value in values]
    budget.fits(sum(map(len, parts)))
    made: str = budget.result("".join(parts))
    return made


def _compare(left: Any, name: str, right: Any) -> Any:
    charge_compare(current_budget(), left, name, right)
    return COMPARISONS[name](left, right)


def _slice(value: Any, start: Any, stop: Any, step: Any) -> Any:
    return current_budget().result(value[start:stop:step])


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    budget = current_budget()
    for each in args:
        if isinstance(each, dict):
            budget.step(len(each))
        else:
            for pair in budget.result(iter(each)):
                if isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], (str, int)):
                    budget.step(1)
                else:
                    budget.weigh(pair)
    return dict(*args, **kwargs)


def _namespace(*args: Any, **kwargs: Any) -> jinja2.utils.Namespace:
    return jinja2.utils.Namespace(_dict(*args, **kwargs))


def _range(*args: int) -> range:
    if any(abs(each) >= 1 << 31 for each in args):  # numbers without bound could all have one hash
        raise OverflowError("a range with a number above 2**31")
    return jinja2.sandbox.safe_range(*args)


def _raise_exception(message: Any) -> NoReturn:
    raise Refused(current_budget().text(message)[:1000])


def _strftime_now(pattern: str) -> str:
    if len(pattern) > _MAX_PATTERN or any(char.isdigit() for char in pattern):  # some systems know widths
        raise TooMuch("it asks for a date in an unusual form")
    return datetime.now().strftime(pattern)
