"""Reading descriptions of packed weights: JSON that nobody has a reason to trust."""

from __future__ import annotations

from typing import Any

from npumatmul.errors import PackedFileError
from npumatmul.files.reading import parse_json, shown
from npumatmul.planning.product import Span

__all__ = ["AGAIN", "LARGEST", "Reader", "read_description"]

#: Extents are int32 in the C API.
LARGEST = 2**31 - 1


#: What to do with a description for another layout.
AGAIN = "pack the weight again on this device"


class Reader:
    """Values of a description, each checked; `where` names it in messages, `again` what helps in another layout."""

    def __init__(self, content: Any, where: str, again: str = AGAIN) -> None:
        if not isinstance(content, dict):
            raise PackedFileError(f"{where} is damaged: its description is no object")
        self.content, self.where, self.again = content, where, again

    def wrong(self, what: str) -> PackedFileError:
        """The error that says so."""
        return PackedFileError(f"{self.where} is damaged: {what}")

    def get(self, key: str) -> Any:
        """A value that has to be there."""
        if key not in self.content:
            raise self.wrong(f"it does not say {key!r}")
        return self.content[key]

    def integer(self, key: str, low: int, high: int = LARGEST) -> int:
        return self.checked_integer(self.get(key), key, low, high)

    def checked_integer(self, value: Any, key: str, low: int, high: int = LARGEST) -> int:
        """The value, if it is an integer within bounds."""
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(f"{key!r} is {shown(value)}, not an integer from {low} to {high}")
        return value

    def text(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str):
            raise self.wrong(f"{key!r} is no text")
        return value

    def dict(self, key: str) -> dict[str, Any]:
        value = self.get(key)
        if not isinstance(value, dict):
            raise self.wrong(f"{key!r} is no object")
        return value

    def list(self, key: str) -> list[Any]:
        value = self.get(key)
        if not isinstance(value, list):
            raise self.wrong(f"{key!r} is no list")
        return value

    def pair(self, key: str) -> tuple[Any, Any]:
        value = self.get(key)
        if not isinstance(value, list) or len(value) != 2:
            raise self.wrong(f"{key!r} is {shown(value)}; a weight has two dimensions")
        return value[0], value[1]

    def span(self, value: Any, key: str) -> Span:
        """A span from start, length and padded length."""
        if not isinstance(value, list) or len(value) != 3:
            raise self.wrong(f"{key!r} holds {shown(value)}, not start, length and padded length")
        start, length, padded = (
            self.checked_integer(each, key, low, LARGEST) for each, low in zip(value, (0, 1, 1), strict=True)
        )
        if padded < length:
            raise self.wrong(f"{key!r} has a span that is padded to less than its length")
        return Span(start, length, padded)

    def spans(self, key: str, extent: int) -> tuple[Span, ...]:
        """Spans that cover an extent without a gap."""
        spans = tuple(self.span(value, key) for value in self.list(key))
        end = 0
        for span in spans:
            if span.start != end:
                raise self.wrong(f"{key!r} leaves a gap or overlaps at {end}")
            end += span.length
        if end != extent:
            raise self.wrong(f"{key!r} ends at {end}, not at {extent}")
        return spans


def read_description(text: str, where: str) -> dict[str, Any]:
    """The object of a JSON text.

    Raises
    ------
    PackedFileError
        If it is none.
    """
    try:
        content = parse_json(text)
    except ValueError as error:
        raise PackedFileError(f"{where} is damaged: its description is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise PackedFileError(f"{where} is damaged: its description is no object")
    return content
