"""What a grammar is made of: expressions over bytes, which may refer to each other in circles."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

__all__ = [
    "NOTHING",
    "Bytes",
    "Choice",
    "Expression",
    "Later",
    "Repeat",
    "Sequence",
    "bounded",
    "literal",
    "one_of",
    "one_text",
    "optional",
]


MOST_NESTED = 100
MOST_PARTS = 300_000  # of one grammar, of about 100 bytes each


class _Budget(threading.local):
    """How many parts this thread may still make; None is no limit."""

    left: int | None = None


_budget = _Budget()


@contextmanager
def bounded(what: str) -> Iterator[None]:
    """Let a grammar have no more than `MOST_PARTS`: expressions, and places of one in another.

    A grammar that is made inside of another one is a part of it.

    Parameters
    ----------
    what : str
        What it is made of, for the message, with a verb.

    Raises
    ------
    ValueError
        If it would have more.
    """
    if _budget.left is not None:
        yield
        return
    _budget.left = MOST_PARTS
    try:
        yield
    except _TooManyError:
        raise ValueError(f"{what} too large: the grammar has more than {MOST_PARTS} parts") from None
    finally:
        _budget.left = None


class _TooManyError(Exception):
    pass


class Expression:
    """A set of byte strings. Expressions are told apart by identity.

    Attributes
    ----------
    finite : bool
        Whether it has a byte string at all; known after `settle`.
    """

    __slots__ = ("finite",)

    def __init__(self, places: int = 0) -> None:
        self.finite = False
        if _budget.left is not None:
            _budget.left -= 1 + places
            if _budget.left < 0:
                raise _TooManyError

    def parts(self) -> Iterable[Expression]:
        """What it is made of."""
        return ()

    def ends(self) -> bool:
        """Whether it has a byte string, as far as that is known of its parts."""
        return True


class Bytes(Expression):
    """One byte out of a set, which is a number of 256 bits."""

    __slots__ = ("members",)

    def __init__(self, members: int) -> None:
        super().__init__()
        self.members = members

    def ends(self) -> bool:
        return self.members != 0


class Sequence(Expression):
    """One after another."""

    __slots__ = ("items",)

    def __init__(self, *items: Expression) -> None:
        super().__init__(len(items))
        self.items = items

    def parts(self) -> Iterable[Expression]:
        return self.items

    def ends(self) -> bool:
        return all(each.finite for each in self.items)


class Choice(Expression):
    """One of several; of none there is no byte string."""

    __slots__ = ("items",)

    def __init__(self, *items: Expression) -> None:
        super().__init__(len(items))
        self.items = items

    def parts(self) -> Iterable[Expression]:
        return self.items

    def ends(self) -> bool:
        return any(each.finite for each in self.items)


class Repeat(Expression):
    """The same from `low` to `high` times; None is no limit."""

    __slots__ = ("high", "item", "low", "one_less")

    def __init__(self, item: Expression, low: int = 0, high: int | None = None) -> None:
        super().__init__()
        self.item, self.low, self.high = item, low, high
        self.one_less: Repeat | None = None

    def parts(self) -> Iterable[Expression]:
        return (self.item,)

    def ends(self) -> bool:
        return self.low == 0 or self.item.finite

    def after_one(self) -> Repeat:
        """What may follow when one has come."""
        if self.high is None and self.low == 0:
            return self
        if self.one_less is None:
            self.one_less = Repeat(self.item, max(self.low - 1, 0), None if self.high is None else self.high - 1)
            self.one_less.finite = True
        return self.one_less


class Later(Expression):
    """An expression that is said later, so that it may occur in itself."""

    __slots__ = ("target",)

    def __init__(self) -> None:
        super().__init__()
        self.target: Expression | None = None

    def parts(self) -> Iterable[Expression]:
        assert self.target is not None
        return (self.target,)

    def ends(self) -> bool:
        assert self.target is not None
        return self.target.finite


NOTHING = Sequence()
"""The empty byte string."""

_SINGLE = tuple(Bytes(1 << byte) for byte in range(256))


def one_of(characters: bytes) -> Bytes:
    """One of some bytes."""
    return Bytes(sum(1 << byte for byte in set(characters)))


def literal(data: bytes) -> Expression:
    """These bytes."""
    return Sequence(*(_SINGLE[byte] for byte in data))


def one_text(texts: Iterable[bytes], depth: int = 0) -> Expression:
    """One of some texts; what they begin with alike is looked at once, as far as that does not nest deeply."""
    by_first: dict[bytes, list[bytes]] = {}
    for text in dict.fromkeys(texts):
        by_first.setdefault(text[:1] if depth < MOST_NESTED else text, []).append(text)
    ways: list[Expression] = []
    for some in by_first.values():
        least, most = min(some), max(some)
        alike = next((i for i, (a, b) in enumerate(zip(least, most, strict=False)) if a != b), len(least))
        rest = [text[alike:] for text in some]
        ways.append(Sequence(literal(least[:alike]), NOTHING if len(some) == 1 else one_text(rest, depth + 1)))
    return ways[0] if len(ways) == 1 else Choice(*ways)


def optional(item: Expression) -> Expression:
    return Choice(item, NOTHING)


def settle(start: Expression) -> None:
    """Find out which expressions have byte strings at all, starting with those that have no parts."""
    found: dict[int, Expression] = {}
    todo = [start]
    while todo:
        each = todo.pop()
        if id(each) not in found:
            found[id(each)] = each
            todo.extend(each.parts())
    users: dict[int, list[Expression]] = {}
    for each in found.values():
        for part in each.parts():
            users.setdefault(id(part), []).append(each)
    todo = list(found.values())
    while todo:
        each = todo.pop()
        if not each.finite and each.ends():
            each.finite = True
            todo.extend(users.get(id(each), ()))
