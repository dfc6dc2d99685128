"""The filters, tests, methods and operators of chat templates, each asked first what it may cost.

Only those that are here exist: a template has no other way to compute. What can grow beyond what it is given (widths,
repetitions, separators, formats, powers) is worked out before it is done.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jinja2.exceptions
import jinja2.sandbox

from npumatmul.llm.run.template_budget import COPIED, ELEMENTS, LOOKED_UP, Budget, TooMuch, current_budget

__all__ = [
    "COMPARISONS",
    "FILTERS",
    "METHODS",
    "TESTS",
    "bounded_filter",
    "bounded_test",
    "call_text",
    "charge_compare",
    "operate",
]

_WIDEST = 10_000
_MOST_DIGITS = 30
#: An inverse of how much dearer sorting and the like are than looking at each element.
_SORTED = 20
#: Characters of an escaped, quoted or spelled-out one.
_ESCAPED = 10
_NUMBER_TEXT = 400

Check = Callable[..., None]


def _integer(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _length(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 0


# --- filters


def _cheap(budget: Budget, value: Any = None, *_: Any, **__: Any) -> None:
    budget.step(1 + _length(value) // ELEMENTS)


def _each(budget: Budget, value: Any = None, *_: Any, **__: Any) -> None:
    budget.step(1 + _length(value))


def _weighed(budget: Budget, *values: Any, **named: Any) -> None:
    for value in (*values, *named.values()):
        budget.weigh(value)


def _text(budget: Budget, value: Any = None, *_: Any, **__: Any) -> None:
    budget.step(budget.weigh(value) // LOOKED_UP)


def _sorted(budget: Budget, value: Any = None, *_: Any, **__: Any) -> None:
    budget.step(_SORTED * budget.weigh(value))


def _escaped(budget: Budget, value: Any = None, *_: Any, **__: Any) -> None:
    size = budget.weigh(value)
    budget.step(size)
    budget.fits(size)


def _center(budget: Budget, value: Any = None, width: Any = 80, *_: Any, **__: Any) -> None:
    budget.fits(budget.weigh(value) + _integer(width))


def _indent(budget: Budget, value: Any = None, width: Any = 4, *_: Any, **__: Any) -> None:
    text = value if isinstance(value, str) else ""
    budget.weigh(value)
    size = len(width) if isinstance(width, str) else _integer(width)
    budget.step(len(text) // LOOKED_UP)
    budget.fits(len(text) + (len(text.splitlines()) + 1) * size)


def _wordwrap(budget: Budget, value: Any = None, width: Any = 79, *rest: Any, **named: Any) -> None:
    size = budget.weigh(value)
    lines = size // max(1, _integer(width)) + 1
    string = named.get("wrapstring", rest[1] if len(rest) > 1 else None)
    budget.fits(size + lines * (budget.weigh(string) if isinstance(string, str) else 1))
    budget.step(size + lines * size // COPIED)


def _replace(budget: Budget, value: Any = "", old: Any = "", new: Any = "", *_: Any, **__: Any) -> None:
    budget.weigh(value)
    _fits_replaced(budget, budget.text(value), budget.text(old), budget.text(new))


def _fits_replaced(budget: Budget, text: str, old: str, new: str) -> None:
    budget.step(len(text) // LOOKED_UP)
    times = text.count(old) if old else len(text) + 1
    budget.fits(len(text) + times * max(0, len(new) - len(old)))


def _join(budget: Budget, value: Any = (), d: Any = "", *_: Any, **__: Any) -> None:
    budget.fits(budget.weigh(value) + budget.weigh(d) * _length(value))


def _batch(budget: Budget, value: Any = (), count: Any = 1, *_: Any, **__: Any) -> None:
    budget.step(_length(value) + abs(_integer(count)))


def _trim(budget: Budget, value: Any = "", chars: Any = None) -> None:
    _searched(budget, budget.text(value), chars)


def _sum(budget: Budget, value: Any = (), attribute: Any = None, start: Any = 0) -> None:
    budget.step(1 + _length(value))
    if not isinstance(start, (int, float)):
        raise TooMuch("it adds up what are no numbers")


def _round(budget: Budget, value: Any = 0, precision: Any = 0, *_: Any, **__: Any) -> None:
    if abs(_integer(precision)) > _MOST_DIGITS:
        raise TooMuch(f"it rounds to {precision} digits")
    budget.step(1)


def _int(budget: Budget, value: Any = 0, *_: Any, **__: Any) -> None:
    if isinstance(value, str) and len(value) > 1000:
        raise TooMuch(f"it reads a number of {len(value)} characters")
    budget.step(1)


def _format(budget: Budget, value: Any = "", *args: Any, **kwargs: Any) -> None:
    if isinstance(value, str):
        _fits_printf(budget, value, kwargs or args)
    else:
        budget.weigh(value)


#: By name, what a filter may cost; those that are missing do not exist in chat templates.
FILTERS: Mapping[str, Check] = {
    **dict.fromkeys(
        ("abs", "attr", "count", "d", "default", "first", "float", "items", "last", "length", "random", "reverse"),
        _cheap,
    ),
    **dict.fromkeys(("list", "map", "reject", "rejectattr", "select", "selectattr"), _each),
    **dict.fromkeys(("capitalize", "lower", "string", "title", "truncate", "upper", "wordcount"), _text),
    "safe": _text,
    **dict.fromkeys(("e", "escape", "forceescape", "urlencode"), _escaped),
    **dict.fromkeys(("dictsort", "groupby", "max", "min", "sort", "unique"), _sorted),
    "batch": _batch,
    "center": _center,
    "filesizeformat": _int,
    "format": _format,
    "indent": _indent,
    "int": _int,
    "join": _join,
    "replace": _replace,
    "round": _round,
    "slice": _batch,
    "sum": _sum,
    "trim": _trim,
    "wordwrap": _wordwrap,
}


def bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that asks first."""
    check, first = FILTERS[name], 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        budget = current_budget()
        check(budget, *args[first:], **kwargs)
        return budget.result(function(*args, **kwargs))

    return bounded


# --- tests


def _number(budget: Budget, value: Any = 0, other: Any = 1, *_: Any) -> None:
    if not (isinstance(value, (int, float)) and isinstance(other, (int, float))):
        raise TypeError("numbers are odd, even and divisible, nothing else")


def _compared(name: str) -> Check:
    def check(budget: Budget, left: Any = None, right: Any = None, *_: Any) -> None:
        charge_compare(budget, left, name, right)

    return check


#: By name, what a test may cost.
TESTS: Mapping[str, Check] = {
    **dict.fromkeys(
        (
            "boolean", "callable", "defined", "escaped", "false", "filter", "float", "integer", "iterable", "mapping",
            "none", "number", "sameas", "sequence", "string", "test", "true", "undefined",
        ),
        lambda budget, *_: budget.step(1),
    ),
    **dict.fromkeys(("lower", "upper"), _text),
    **dict.fromkeys(("divisibleby", "even", "odd"), _number),
    **{
        name: _compared("in" if name == "in" else "eq")
        for name in (
            "!=", "<", "<=", "==", ">", ">=", "eq", "equalto", "ge", "greaterthan", "gt", "in", "le", "lessthan", "lt",
            "ne",
        )
    },
}  # fmt: skip


def bounded_test(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A test that asks first."""
    check, first = TESTS[name], 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        check(current_budget(), *args[first:], **kwargs)
        return function(*args, **kwargs)

    return bounded


# --- operators


def charge_compare(budget: Budget, left: Any, name: str, right: Any) -> None:
    """Pay for a comparison, or for looking whether something is in something."""
    if name in ("in", "notin"):
        if isinstance(right, str):
            budget.step(1 + len(right) // LOOKED_UP // 4)
            return
        if not isinstance(left, (str, int, float, type(None))):
            budget.weigh(left)
        budget.step(1 + _length(right) * (1 + (len(left) // COPIED if isinstance(left, str) else 0)))
        if not isinstance(right, (dict, range)) and isinstance(left, (list, tuple, dict)):
            budget.weigh(right)
    elif isinstance(left, str) and isinstance(right, str):
        budget.step(1 + min(len(left), len(right)) // COPIED)
    else:
        for each in (left, right):
            if isinstance(each, (list, tuple, dict, set, frozenset)):
                budget.weigh(each)


def operate(budget: Budget, sign: str, left: Any, right: Any) -> Any:
    """The result of a binary operator."""
    if sign == "%" and isinstance(left, str):
        _fits_printf(budget, left, right)
    elif sign == "*" and not (_is_number(left) and _is_number(right)):
        text, times = (left, right) if _is_number(right) else (right, left)
        size = _length(text) * max(0, _integer(times))
        budget.fits(size)
        budget.step(0 if isinstance(text, str) else size // ELEMENTS)
    elif sign == "+" and not (_is_number(left) and _is_number(right)):
        budget.fits(_length(left) + _length(right))
    elif sign == "**" and isinstance(left, int) and isinstance(right, int):
        if left.bit_length() * max(0, right) > 2 * COPIED:
            raise TooMuch("it makes a number of more than 64 bits")
    elif sign != "+" and not all(_is_number(each) or isinstance(each, jinja2.Undefined) for each in (left, right)):
        raise TypeError(f"{type(left).__name__} {sign} {type(right).__name__} is not computed in chat templates")
    return budget.result(jinja2.sandbox.SandboxedEnvironment.default_binop_table[sign](left, right))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _fits_printf(budget: Budget, text: str, values: Any) -> None:
    """Refuse ``text % values`` where widths, precisions or values make it too long."""
    budget.step(len(text) // LOOKED_UP)
    size, count, position = len(text), 0, text.find("%")
    while position >= 0:
        position += 1
        count += 1
        if text.startswith("(", position):
            depth = 1
            while depth and position + 1 < len(text):
                position += 1
                depth += {"(": 1, ")": -1}.get(text[position], 0)
            position += 1
        start = position
        while position < len(text) and text[position] in "0123456789-+ #.":
            position += 1
        if text.startswith("*", position):
            raise TooMuch("it takes the width of a format from a value")
        size += sum(int(part) if len(part) < 8 else budget.largest + 1 for part in _digits(text[start:position]))
        position = text.find("%", position + 1)
    each = _ESCAPED * budget.weigh(values)
    size += each * count if isinstance(values, Mapping) else each
    budget.fits(size + _NUMBER_TEXT * count if count else size)


def _digits(text: str) -> list[str]:
    return "".join(char if char.isdigit() else " " for char in text).split()


# --- methods


def _linear(budget: Budget, text: str, *args: Any, **kwargs: Any) -> None:
    budget.step(1 + len(text) // LOOKED_UP // 4)
    for each in (*args, *kwargs.values()):
        budget.weigh(each)


def _searched(budget: Budget, text: str, part: Any = None, *_: Any, **__: Any) -> None:
    """What is searched for from the end, or any of whose characters is, takes the product of both lengths."""
    size = budget.weigh(part) if part is not None else 1
    budget.step(1 + len(text) // LOOKED_UP // 4 + len(text) * size // (4 * COPIED))


def _split_from_the_end(budget: Budget, text: str, sep: Any = None, *_: Any, **__: Any) -> None:
    _searched(budget, text, sep)
    _split(budget, text, sep)


def _split(budget: Budget, text: str, sep: Any = None, *_: Any, **__: Any) -> None:
    budget.step(1 + len(text) // LOOKED_UP)
    pieces = text.count(sep) if isinstance(sep, str) and sep else len(text) // 2
    budget.make(64 * pieces)


def _joined(budget: Budget, text: str, values: Any = (), *_: Any) -> None:
    budget.fits(budget.weigh(values) + len(text) * _length(values))


def _padded(budget: Budget, text: str, width: Any = 0, *_: Any) -> None:
    budget.fits(len(text) + _integer(width))


def _expanded(budget: Budget, text: str, tabsize: Any = 8) -> None:
    budget.step(len(text) // LOOKED_UP)
    budget.fits(len(text) + text.count("\t") * max(0, _integer(tabsize)))


def _replaced(budget: Budget, text: str, old: Any = "", new: Any = "", *_: Any, **__: Any) -> None:
    if isinstance(old, str) and isinstance(new, str):  # else it is refused by the method
        _fits_replaced(budget, text, old, new)


_TEXT_METHODS: Mapping[str, Check] = {
    **dict.fromkeys(
        (
            "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii",
            "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle",
            "isupper", "lower", "partition", "removeprefix", "removesuffix", "startswith", "swapcase", "title", "upper",
        ),
        _linear,
    ),
    **dict.fromkeys(("lstrip", "rfind", "rindex", "rpartition", "rstrip", "strip"), _searched),
    "rsplit": _split_from_the_end,
    "split": _split,
    "splitlines": lambda budget, text, *_, **__: _split(budget, text),
    "join": _joined,
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _padded),
    "expandtabs": _expanded,
    "replace": _replaced,
}  # fmt: skip

#: Names of methods by the type that they belong to, but for those of texts.
METHODS: Mapping[type[Any], frozenset[str]] = {
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    range: frozenset({"count", "index"}),
    int: frozenset({"bit_length"}),
    float: frozenset({"is_integer"}),
}


def call_text(environment: jinja2.sandbox.SandboxedEnvironment, method: Any, args: Any, kwargs: Any) -> Any:
    """The result of a method of a text."""
    budget, text, name = current_budget(), method.__self__, method.__name__
    if name == "format":
        return budget.result(_Formatter(environment, budget).vformat(text, args, kwargs))
    if name == "format_map":
        (values,) = args
        return budget.result(_Formatter(environment, budget).vformat(text, (), values))
    if name not in _TEXT_METHODS:
        raise jinja2.exceptions.SecurityError(f"texts have no method {name!r} in chat templates")
    _TEXT_METHODS[name](budget, text, *args, **kwargs)
    return budget.result(method(*args, **kwargs))


class _Formatter(jinja2.sandbox.SandboxedFormatter):
    """`str.format` that asks first."""

    def __init__(self, environment: jinja2.sandbox.SandboxedEnvironment, budget: Budget) -> None:
        super().__init__(environment)
        self._budget, self._made = budget, 0

    def format_field(self, value: Any, format_spec: str) -> str:
        if not format_spec:
            return self._paid(self._budget.text(value))
        if any(len(part) > 5 or int(part) > _WIDEST for part in _digits(format_spec)):
            raise TooMuch(f"it formats to a width or precision above {_WIDEST}")
        self._budget.weigh(value)
        return self._paid(str(super().format_field(value, format_spec)))

    def convert_field(self, value: Any, conversion: Any) -> Any:
        if conversion is None:
            return value
        self._budget.weigh(value)
        return self._budget.result(super().convert_field(value, conversion))

    def _paid(self, text: str) -> str:
        self._made += len(text)
        self._budget.step(1)
        self._budget.fits(self._made)
        return text


COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "gteq": operator.ge,
    "lt": operator.lt,
    "lteq": operator.le,
    "in": lambda left, right: left in right,
    "notin": lambda left, right: left not in right,
}
