"""JSON as expressions: strings, numbers, and values of any kind (RFC 8259)."""

from __future__ import annotations

import json

from npumatmul.llm.constrain.expressions import (
    NOTHING,
    Bytes,
    Choice,
    Expression,
    Later,
    Repeat,
    Sequence,
    literal,
    one_of,
    one_text,
    optional,
)
from npumatmul.llm.constrain.integers import MOST_DIGITS, integers

__all__ = ["JSONValues", "spelled"]

MOST_SPACES = 20  # a model that indents for ever does not end


def spelled(*values: object) -> Expression:
    """One of some values, as `json.dumps` writes them.

    Raises
    ------
    ValueError
        If it is no text in UTF-8.
    """
    return one_text(json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8") for value in values)


class JSONValues:
    """The expressions of JSON.

    Attributes
    ----------
    space : Expression
        Nothing, a space, or one or two ends of lines and what the next one is indented by.
    character : Expression
        A character inside a string, as it stands or escaped; halves of surrogate pairs come in pairs.
    plain : Expression
        One that stands as it is.
    string, integer, number, boolean, null, object, array, value : Expression
        Values, by their types.
    unsigned : Expression
        A number without a minus.
    sets : dict
        Sets of characters that were made before, so that each is made once.
    """

    def __init__(self) -> None:
        self.space = optional(
            Choice(
                one_of(b" "),
                Sequence(Repeat(one_of(b"\n"), 1, 2), Repeat(one_of(b" \t"), 0, MOST_SPACES)),
            )
        )
        self.quote = one_of(b'"')
        self.plain = Choice(_but(range(0x20, 0x80), b'"\\'), *_utf8())
        self.character = Choice(self.plain, _escape())
        self.string: Expression = self.quoted(Repeat(self.character))
        self.integer = integers(None, None)
        self.unsigned = _unsigned()
        self.number = Sequence(optional(one_of(b"-")), self.unsigned)
        self.boolean = Choice(literal(b"true"), literal(b"false"))
        self.null = literal(b"null")
        self.sets: dict[object, Expression] = {}
        self._rest = Sequence(Repeat(self.plain), self.quote)
        self.value = Later()
        self.array = self.array_of(self.value)
        self.object = self.object_of([(self.string, self.value)])
        self.value.target = Choice(self.string, self.number, self.boolean, self.null, self.array, self.object)

    def quoted(self, inside: Expression) -> Expression:
        return Sequence(self.quote, inside, self.quote)

    def member(self, key: Expression, value: Expression) -> Expression:
        """A member of an object, with the space around it but no comma."""
        return Sequence(self.space, key, self.space, one_of(b":"), self.space, value, self.space)

    def array_of(self, item: Expression, low: int = 0, high: int | None = None) -> Expression:
        """An array of `low` to `high` items."""
        return Sequence(one_of(b"["), self.listed(Sequence(self.space, item, self.space), low, high), one_of(b"]"))

    def listed(self, item: Expression, low: int = 0, high: int | None = None) -> Expression:
        """Items with commas between them; of none, space."""
        if high == 0:
            return self.space
        some = Sequence(item, self.repeated(item, max(low - 1, 0), None if high is None else high - 1))
        return some if low > 0 else Choice(self.space, some)

    def repeated(self, item: Expression, low: int = 0, high: int | None = None) -> Expression:
        """Items with a comma before each."""
        return Repeat(Sequence(one_of(b","), item), low, high)

    def object_of(self, kinds: list[tuple[Expression, Expression]]) -> Expression:
        """An object of any number of members, each of one of some kinds of key and value."""
        member = Choice(*(self.member(key, value) for key, value in kinds))
        return Sequence(one_of(b"{"), self.listed(member), one_of(b"}"))

    def string_of(self, low: int, high: int | None) -> Expression:
        """A string of `low` to `high` characters."""
        return self.quoted(Repeat(self.character, low, high))

    def key_but(self, names: list[str]) -> Expression:
        """A string without escapes that is none of some."""
        tree: dict[str, object] = {}
        for name in names:
            at = tree
            for character in name:
                at = at.setdefault(character, {})  # type: ignore[assignment]
            at[""] = True
        return Sequence(self.quote, self._other(tree))

    def _other(self, tree: dict[str, object]) -> Expression:
        """The rest of a string, with its quote, that leaves a tree of names or ends where none does."""
        ways: list[Expression] = [] if "" in tree else [self.quote]
        bytes_of = {character: character.encode("utf-8") for character in tree if character}
        ways.append(Sequence(self._character_but(bytes_of), self._rest))
        for character, data in bytes_of.items():
            if character not in '"\\' and character >= " ":  # what needs an escape is not written here
                ways.append(Sequence(literal(data), self._other(tree[character])))  # type: ignore[arg-type]
        return Choice(*ways)

    def _character_but(self, bytes_of: dict[str, bytes]) -> Expression:
        key = "but", frozenset(bytes_of)
        if key not in self.sets:
            self.sets[key] = _character_but(list(bytes_of.values()))
        return self.sets[key]


def _unsigned() -> Expression:
    digit = one_of(b"0123456789")
    return Sequence(
        integers(0, None),
        optional(Sequence(one_of(b"."), Repeat(digit, 1, MOST_DIGITS))),
        optional(Sequence(one_of(b"eE"), optional(one_of(b"+-")), Repeat(digit, 1, 2))),
    )


def _but(codes: range, without: bytes = b"") -> Bytes:
    return Bytes(sum(1 << code for code in codes if code not in without))


def _utf8() -> list[Expression]:
    """Characters of two to four bytes: no longer ones than needed, no halves of surrogate pairs."""
    more = _but(range(0x80, 0xC0))
    return [
        Sequence(_but(range(0xC2, 0xE0)), more),
        Sequence(_but(range(0xE0, 0xE1)), _but(range(0xA0, 0xC0)), more),
        Sequence(_but(range(0xE1, 0xF0), b"\xed"), more, more),
        Sequence(_but(range(0xED, 0xEE)), _but(range(0x80, 0xA0)), more),
        Sequence(_but(range(0xF0, 0xF1)), _but(range(0x90, 0xC0)), more, more),
        Sequence(_but(range(0xF1, 0xF4)), more, more, more),
        Sequence(_but(range(0xF4, 0xF5)), _but(range(0x80, 0x90)), more, more),
    ]


def _character_but(without: list[bytes]) -> Expression:
    """A plain character in UTF-8 that is none of some."""
    ascii_only = b"".join(data for data in without if len(data) == 1)
    ways: list[Expression] = [_but(range(0x20, 0x80), b'"\\' + ascii_only)]
    for sequence in _utf8():
        assert isinstance(sequence, Sequence)
        ways.append(_bytes_but(list(sequence.items), [data for data in without if len(data) == len(sequence.items)]))
    return Choice(*ways)


def _bytes_but(items: list[Expression], without: list[bytes]) -> Expression:
    """As many bytes as there are items, which are none of some."""
    if not items:
        return Choice() if without else NOTHING
    first = items[0]
    assert isinstance(first, Bytes)
    heads = {data[0] for data in without if first.members >> data[0] & 1}
    free = Bytes(first.members & ~sum(1 << head for head in heads))
    ways = [Sequence(free, *items[1:])]
    for head in sorted(heads):
        rest = [data[1:] for data in without if data[0] == head]
        ways.append(Sequence(one_of(bytes([head])), _bytes_but(items[1:], rest)))
    return Choice(*ways)


def _escape() -> Expression:
    hexadecimal = one_of(b"0123456789abcdefABCDEF")
    d = one_of(b"dD")
    high = Sequence(d, one_of(b"89abAB"), hexadecimal, hexadecimal)
    low = Sequence(d, one_of(b"cdefCDEF"), hexadecimal, hexadecimal)
    code = Choice(
        Sequence(one_of(b"0123456789abcefABCEF"), hexadecimal, hexadecimal, hexadecimal),
        Sequence(d, one_of(b"01234567"), hexadecimal, hexadecimal),
        Sequence(high, literal(b"\\u"), low),
    )
    return Sequence(one_of(b"\\"), Choice(one_of(b'"\\/bfnrt'), Sequence(one_of(b"u"), code)))
