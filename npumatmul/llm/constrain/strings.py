r"""Regular expressions and formats of strings, as expressions over the bytes of a JSON string.

Of ECMAScript's regular expressions those without memory are read: characters, sets, groups, alternatives and
repetitions, with ``^`` and ``$`` at the ends of the whole. Where Python and ECMAScript differ (``\d`` and ``\w`` beyond
ASCII) only what both agree on is taken.
"""

from __future__ import annotations

import json

from npumatmul.llm.constrain.expressions import NOTHING, Bytes, Choice, Expression, Repeat, Sequence, literal
from npumatmul.llm.constrain.json_values import JSONValues

__all__ = ["FORMATS", "pattern"]

MOST_REPEATS = 100_000
MOST_LENGTH = 4096
MOST_DEPTH = 64

Ranges = list[tuple[int, int]]

_DAYS = "((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
_TIME = "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]([.][0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_NAME = "[A-Za-z0-9_+-]{1,32}"
#: Formats that can be kept to, as regular expressions; the 29th of February is not among the days.
FORMATS = {
    "date": f"^[1-9][0-9]{{3}}-{_DAYS}$",
    "time": f"^{_TIME}$",
    "date-time": f"^[1-9][0-9]{{3}}-{_DAYS}T{_TIME}$",
    "uuid": "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
    "ipv4": f"^{_BYTE}([.]{_BYTE}){{3}}$",
    "email": f"^{_NAME}([.]{_NAME}){{0,3}}@([a-z0-9]([a-z0-9-]{{0,30}}[a-z0-9])?[.]){{1,3}}[a-z]{{2,12}}$",
}

_ALL: Ranges = [(0, 0xD7FF), (0xE000, 0x10FFFF)]
_ASCII: Ranges = [(0, 0x7F)]
_DIGITS: Ranges = [(0x30, 0x39)]
_WORD: Ranges = [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)]
_SPACE: Ranges = [(0x09, 0x0D), (0x20, 0x20)]
_SETS = {"d": _DIGITS, "w": _WORD, "s": _SPACE}
_CONTROLS = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "0": 0}


def pattern(text: str, values: JSONValues) -> Expression:
    """The strings that a regular expression finds something in, without their quotes.

    Raises
    ------
    ValueError
        If it is none, or has something that is not supported; the message goes on from "a pattern that".
    """
    if len(text) > MOST_LENGTH:
        raise ValueError(f"has {len(text)} characters; at most {MOST_LENGTH} are read")
    return _Reader(text, values).whole()


class _Reader:
    def __init__(self, text: str, values: JSONValues) -> None:
        self._text, self._at, self._values = text, 0, values

    def whole(self) -> Expression:
        anything = Repeat(self._values.character)
        ways = []
        while True:
            first: Expression = anything
            if self._next("^"):
                first = NOTHING
            middle = self._sequence(0)
            ways.append(Sequence(first, middle, NOTHING if self._next("$") else anything))
            if not self._next("|"):
                break
        if self._at < len(self._text):
            raise self._wrong("is not expected there")
        return Choice(*ways)

    def _choice(self, depth: int) -> Expression:
        if depth > MOST_DEPTH:
            raise self._wrong(f"is deeper than {MOST_DEPTH} groups")
        ways = [self._sequence(depth)]
        while self._next("|"):
            ways.append(self._sequence(depth))
        return Choice(*ways)

    def _sequence(self, depth: int) -> Expression:
        items = []
        while self._at < len(self._text) and self._text[self._at] not in "|)$":
            items.append(self._repeated(self._atom(depth)))
        return Sequence(*items)

    def _atom(self, depth: int) -> Expression:
        character = self._take()
        if character == "(":
            if self._next("?") and not self._next(":"):
                raise self._wrong("begins a group of a kind that is not supported")
            inside = self._choice(depth + 1)
            if not self._next(")"):
                raise self._wrong("is where a ')' is missing")
            return inside
        if character == "[":
            return self._characters(self._set())
        if character == ".":
            return self._characters(_without(_ALL, [(10, 10), (13, 13), (0x2028, 0x2029)]))
        if character == "\\":
            return self._characters(self._escaped())
        if character in "^*+?{":
            self._at -= 1
            raise self._wrong("is not supported there")
        return self._characters([(ord(character), ord(character))])

    def _repeated(self, atom: Expression) -> Expression:
        low, high = 1, 1
        if self._next("*"):
            low, high = 0, -1
        elif self._next("+"):
            low, high = 1, -1
        elif self._next("?"):
            low, high = 0, 1
        elif self._next("{"):
            low = self._count()
            high = low
            if self._next(","):
                high = -1 if self._at < len(self._text) and self._text[self._at] == "}" else self._count()
            if not self._next("}"):
                raise self._wrong("is where a '}' is missing")
            if 0 <= high < low:
                raise self._wrong("ends a repetition whose limits are the wrong way round")
        else:
            return atom
        self._next("?")  # whether it takes few or many makes no difference to what is possible
        if self._at < len(self._text) and self._text[self._at] in "*+?{":
            raise self._wrong("repeats a repetition")
        return Repeat(atom, low, None if high < 0 else high)

    def _count(self) -> int:
        begin = self._at
        while self._at < len(self._text) and self._text[self._at] in "0123456789":
            self._at += 1
        digits = self._text[begin : self._at]
        if not digits or len(digits) > 6 or int(digits) > MOST_REPEATS:
            raise self._wrong(f"is where a count up to {MOST_REPEATS} is missing")
        return int(digits)

    def _set(self) -> Ranges:
        """What stands in square brackets."""
        negated, kinds = self._next("^"), False
        found: Ranges = []
        first = True
        while first or not self._next("]"):
            first = False
            if self._text.startswith("]", self._at) and not found:
                raise self._wrong("makes an empty set")
            low, is_kind = self._member()
            kinds = kinds or is_kind
            if not is_kind and self._text.startswith("-", self._at) and not self._text.startswith("-]", self._at):
                self._at += 1
                high, is_kind = self._member()
                if is_kind or high[0][0] < low[0][0]:
                    raise self._wrong("ends a range that is none")
                low = [(low[0][0], high[0][0])]
            found += low
        return _without(_ASCII if kinds else _ALL, found) if negated else found

    def _member(self) -> tuple[Ranges, bool]:
        character = self._take()
        if character != "\\":
            return [(ord(character), ord(character))], False
        kind = self._text[self._at : self._at + 1]
        if kind == "b":
            raise self._wrong("is an escape that is not supported")
        return self._escaped(), kind in ("d", "w", "s", "D", "W", "S")

    def _escaped(self) -> Ranges:
        character = self._take()
        if character.lower() in _SETS:
            found = _SETS[character.lower()]
            return found if character.islower() else _without(_ASCII, found)
        if character in _CONTROLS:
            if character == "0" and self._text[self._at : self._at + 1].isdecimal():
                self._at -= 1
                raise self._wrong("is an octal number, which is not supported")
            return [(_CONTROLS[character], _CONTROLS[character])]
        if character in "xu":
            count = 2 if character == "x" else 4
            digits = self._text[self._at : self._at + count]
            if len(digits) < count or any(each not in "0123456789abcdefABCDEF" for each in digits):
                raise self._wrong("is where hexadecimal digits are missing")
            self._at += count
            return [(int(digits, 16), int(digits, 16))]
        if character.isalnum():
            self._at -= 1
            raise self._wrong("is an escape that is not supported")
        return [(ord(character), ord(character))]

    def _take(self) -> str:
        if self._at >= len(self._text):
            raise ValueError("ends too early")
        self._at += 1
        return self._text[self._at - 1]

    def _next(self, character: str) -> bool:
        if self._text.startswith(character, self._at):
            self._at += 1
            return True
        return False

    def _wrong(self, what: str) -> ValueError:
        shown = self._text[self._at : self._at + 8] or "the end"
        return ValueError(f"cannot be kept to: {shown!r} (character {self._at}) {what}")

    def _characters(self, ranges: Ranges) -> Expression:
        key = tuple(sorted(ranges))
        if key not in self._values.sets:
            self._values.sets[key] = _characters(ranges)
        return self._values.sets[key]


def _without(every: Ranges, some: Ranges) -> Ranges:
    left: Ranges = []
    for low, high in every:
        for first, last in sorted(some):
            if last < low or first > high:
                continue
            if first > low:
                left.append((low, first - 1))
            low = last + 1
        if low <= high:
            left.append((low, high))
    return left


def _characters(ranges: Ranges) -> Expression:
    """One of some characters, as it is written in a JSON string."""
    escaped = [(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C)]
    ways: list[Expression] = []
    for low, high in _without(ranges, [*escaped, (0xD800, 0xDFFF)]):
        ways += _utf8_range(low, high)
    for code in (*range(0x20), 0x22, 0x5C):
        if any(low <= code <= high for low, high in ranges):
            ways.append(literal(json.dumps(chr(code))[1:-1].encode()))
    return ways[0] if len(ways) == 1 else Choice(*ways)


def _utf8_range(low: int, high: int) -> list[Expression]:
    """Characters from one to another, where the bytes of both have the same number and one range at each place."""
    for last in (0x7F, 0x7FF, 0xFFFF):
        if low <= last < high:
            return [*_utf8_range(low, last), *_utf8_range(last + 1, high)]
    for bits in (6, 12, 18):  # the last bytes take all values, or the bytes before them are the same
        size = 1 << bits
        if high < 0x80 or low >> bits == high >> bits:
            break
        if low % size:
            return [*_utf8_range(low, low | (size - 1)), *_utf8_range((low | (size - 1)) + 1, high)]
        if high % size != size - 1:
            return [*_utf8_range(low, high - high % size - 1), *_utf8_range(high - high % size, high)]
    first, last_bytes = chr(low).encode("utf-8"), chr(high).encode("utf-8")
    return [Sequence(*(_span(a, b) for a, b in zip(first, last_bytes, strict=True)))]


def _span(first: int, last: int) -> Bytes:
    return Bytes((1 << (last + 1)) - (1 << first))
