"""Reading the fields of a request: each by its type and range, and none that nobody read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from npumatmul.files.reading import shown
from npumatmul.llm.tokenizers.protocol import not_characters
from npumatmul.server.errors import ApiError

__all__ = ["Fields"]


class Fields:
    """The fields of an object in a request. One that is null counts as left out.

    Parameters
    ----------
    given : dict
        The object.
    where : str
        What it is called in front of its fields; empty for the request itself.
    """

    def __init__(self, given: Mapping[str, Any], where: str = "") -> None:
        self._given = {name: value for name, value in given.items() if value is not None}
        self._where = where
        self._read: set[str] = set()

    def any(self, name: str, default: Any = None) -> Any:
        """Whatever it is."""
        self._read.add(name)
        return self._given.get(name, default)

    def has(self, name: str) -> bool:
        return name in self._given

    def text(self, name: str, default: str | None = None) -> str | None:
        value = self.any(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(name, f"is {shown(value)}; it must be a text")
        problem = not_characters(value)
        if problem:
            raise self.wrong(name, problem)
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.any(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, f"is {shown(value)}; it must be true or false")
        return value

    def count(self, name: str, default: int | None, low: int, high: int) -> int | None:
        value = self.any(name)
        if value is None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(name, f"is {shown(value)}; it must be a whole number")
        if not low <= value <= high:
            raise self.wrong(name, f"is {shown(value)}; it must be from {low} to {high}")
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self.any(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(name, f"is {shown(value)}; it must be a number")
        if not low <= value <= high:  # of any size: what is compared is no float yet
            raise self.wrong(name, f"is {shown(value)}; it must be from {low:g} to {high:g}")
        return float(value)

    def entries(self, name: str, most: int) -> list[Any] | None:
        value = self.any(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self.wrong(name, f"is {shown(value)}; it must be a list")
        if len(value) > most:
            raise self.wrong(name, f"has {len(value)} entries; at most {most} are taken")
        return value

    def mapping(self, name: str) -> dict[str, Any] | None:
        value = self.any(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, f"is {shown(value)}; it must be an object")
        return value

    def texts(self, name: str, most: int) -> list[str]:
        """A text or a list of texts, as a list."""
        value = self.any(name)
        listed = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
            raise self.wrong(name, f"is {shown(value)}; it must be a text or a list of texts")
        if len(listed) > most:
            raise self.wrong(name, f"has {len(listed)} texts; at most {most} are taken")
        for each in listed:
            problem = not_characters(each)
            if problem:
                raise self.wrong(name, f"has a text that {problem}")
        return listed

    def pass_over(self, *names: str) -> None:
        """Fields that change nothing of the answer."""
        self._read.update(names)

    def refuse(self, name: str, why: str, *, unless: tuple[object, ...] = ()) -> None:
        """A field that cannot be done as it says."""
        value = self.any(name)
        if value is not None and not any(value == each and type(value) is type(each) for each in unless):
            raise self.wrong(name, why)

    def finish(self) -> None:
        """Refuse what nobody read."""
        left = [name for name in self._given if name not in self._read]
        if left:
            raise self.wrong(left[0][:60], "is not known here, and is not passed over silently: leave it out")

    def wrong(self, name: str, what: str) -> ApiError:
        called = f"{self._where}.{name}" if self._where else name
        return ApiError(400, f"{called} {what}", param=called)


def json_numbers(text: str) -> float:
    """What a number of a request is: JSON has none that are not finite."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value
