"""What a chat template may cost: steps, bytes it makes, and the size of any one value.

Counted, not timed, so that a template that is refused is refused on every machine.
"""

from __future__ import annotations

import sys
from contextvars import ContextVar
from typing import Any

import jinja2

__all__ = ["Budget", "TooMuch", "current_budget", "spending"]

#: Steps are nodes of the template that are evaluated, elements that are looked at, or some characters that C code goes
#: through: about a tenth of a microsecond each. Real templates take hundreds for each message.
_STEPS, _STEPS_PER_CHARACTER = 4_000_000, 64
#: Bytes of all texts that are made, whether they are kept or not.
_BYTES, _BYTES_PER_CHARACTER = 1 << 27, 128
#: Characters and elements of one value, and of the prompt.
_LARGEST, _LARGEST_PER_CHARACTER = 1 << 22, 4
_LARGEST_BITS = 64
#: Values in values; C code that hashes tuples goes down as far as they do, whatever the stack has room for.
_DEEPEST = 500
#: Characters that C code copies, compares or searches, and that it looks up one by one, in one step.
COPIED, LOOKED_UP = 64, 4
#: Elements that are copied in one step.
ELEMENTS = 4


class TooMuch(jinja2.TemplateError):
    """A template wants more than it may have."""


class Budget:
    """What is left of it.

    Parameters
    ----------
    characters : int
        Of what the template is given, as JSON: more messages may cost more.

    Attributes
    ----------
    largest : int
        Characters and elements of one value.
    """

    def __init__(self, characters: int) -> None:
        self._steps = _STEPS + _STEPS_PER_CHARACTER * characters
        self._bytes = _BYTES + _BYTES_PER_CHARACTER * characters
        self.largest = _LARGEST + _LARGEST_PER_CHARACTER * characters

    def step(self, count: int) -> None:
        self._steps -= count
        if self._steps < 0:
            raise TooMuch("it takes too many steps")

    def fits(self, size: int) -> None:
        """Refuse a value of more characters or elements than one may have; to be asked before it is made."""
        if size > self.largest:
            raise TooMuch(f"it makes a value of {size} characters or elements; at most {self.largest} are accepted")

    def make(self, nbytes: int) -> None:
        self._bytes -= nbytes
        if self._bytes < 0:
            raise TooMuch("it makes too many texts")

    def weigh(self, value: Any) -> int:
        """Characters and elements of a value, with all that is in it, as often as it is; each is a step."""
        total, level = 0, [value]
        for _ in range(_DEEPEST):
            below: list[Any] = []
            for each in level:
                total += self._weigh(each, below)
                if total + len(below) > self.largest:
                    raise TooMuch(f"it uses a value of more than {self.largest} characters or elements")
            if not below:
                return total
            level = below
        raise TooMuch("it uses a value that is nested too deeply")

    def _weigh(self, value: Any, below: list[Any]) -> int:
        """A value itself; what is in it is added to `below`."""
        if isinstance(value, str):
            self.step(1 + len(value) // COPIED)
            return 1 + len(value)
        if isinstance(value, _NAMESPACE):
            raise TooMuch("it makes a text of a namespace")
        self.step(1)
        if isinstance(value, dict):
            below.extend(value.keys())
            below.extend(value.values())
        elif isinstance(value, _CONTAINERS):
            below.extend(value)
        elif isinstance(value, range):
            self.step(len(value) // ELEMENTS)
            return 1 + len(value)
        elif isinstance(value, int):
            return 1 + value.bit_length() // 3
        return 1

    def text(self, value: Any) -> str:
        """A value as `str` gives it, once it is known not to be too long."""
        if not isinstance(value, (str, int, float, type(None), jinja2.Undefined)):
            self.weigh(value)
        made = str(value)
        self.fits(len(made))
        self.make(sys.getsizeof(made))
        return made

    def result(self, value: Any) -> Any:
        """Pay for what an operation made; iterators become lists."""
        if isinstance(value, str):
            self.fits(len(value))
            self.step(len(value) // COPIED)
            self.make(sys.getsizeof(value))
        elif isinstance(value, (list, tuple)):
            self.fits(len(value))
            self.step(len(value) // ELEMENTS)
        elif isinstance(value, int):
            if value.bit_length() > _LARGEST_BITS:
                raise TooMuch("it makes a number of more than 64 bits")
        elif hasattr(value, "__next__"):
            return self._listed(value)
        return value

    def _listed(self, iterator: Any) -> list[Any]:
        found = []
        for each in iterator:
            self.step(1)
            found.append(each)
        return found


_NAMESPACE = jinja2.utils.Namespace
_CONTAINERS: tuple[type[Any], ...] = (list, tuple, set, frozenset, type({}.keys()), type({}.values()), type({}.items()))

_current: ContextVar[Budget | None] = ContextVar("npumatmul_template_budget", default=None)


def current_budget() -> Budget:
    """The budget of the rendering that is going on.

    Raises
    ------
    TooMuch
        If there is none: nothing is evaluated while a template is compiled.
    """
    budget = _current.get()
    if budget is None:
        raise TooMuch("it is evaluated while it is compiled")
    return budget


class spending:  # noqa: N801 - a context manager
    """Spend of a budget, within a ``with`` block."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def __enter__(self) -> Budget:
        self._token = _current.set(self._budget)
        return self._budget

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)
