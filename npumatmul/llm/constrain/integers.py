"""Whole numbers between two others, as expressions over their digits."""

from __future__ import annotations

from npumatmul.llm.constrain.expressions import Choice, Expression, Repeat, Sequence, literal, one_of, optional

__all__ = ["MOST_DIGITS", "integers"]

MOST_DIGITS = 15  # every whole number of so many is exact in a float64


def integers(low: int | None, high: int | None) -> Expression:
    """Whole numbers from `low` to `high`, of at most `MOST_DIGITS` digits.

    Parameters
    ----------
    low, high : int or None
        None is no limit.

    Returns
    -------
    Expression
        Their decimal digits, with a minus where they are negative.
    """
    most = 10**MOST_DIGITS - 1
    first, last = max(-most, low if low is not None else -most), min(most, high if high is not None else most)
    if (first, last) == (-most, most):
        return Sequence(optional(one_of(b"-")), _any())
    ways: list[Expression] = []
    if first < 0:
        ways.append(Sequence(one_of(b"-"), _between(max(1, -last), -first)))
    if last >= 0:
        ways.append(_between(max(0, first), last))
    return Choice(*ways)


def _any() -> Expression:
    return Choice(one_of(b"0"), Sequence(_digits(1, 9), Repeat(_digits(0, 9), 0, MOST_DIGITS - 1)))


def _digits(first: int, last: int) -> Expression:
    return one_of(bytes(range(ord("0") + first, ord("0") + last + 1)))


def _between(low: int, high: int) -> Expression:
    """Those from `low` to `high`, neither negative: by how many digits they have."""
    ways = []
    for count in range(len(str(low)), len(str(high)) + 1):
        first, last = max(low, 10 ** (count - 1) if count > 1 else 0), min(high, 10**count - 1)
        if first <= last:
            ways.append(_of_length(str(first), str(last)))
    return Choice(*ways)


def _of_length(low: str, high: str) -> Expression:
    """Numbers of as many digits as both bounds have."""
    rest = len(low) - 1
    if not low:
        return literal(b"")
    first, last = int(low[0]), int(high[0])
    if low[1:] == "0" * rest and high[1:] == "9" * rest:
        return Sequence(_digits(first, last), Repeat(_digits(0, 9), rest, rest))
    if first == last:
        return Sequence(_digits(first, first), _of_length(low[1:], high[1:]))
    ways = [
        Sequence(_digits(first, first), _of_length(low[1:], "9" * rest)),
        Sequence(_digits(last, last), _of_length("0" * rest, high[1:])),
    ]
    if last - first > 1:
        ways.append(Sequence(_digits(first + 1, last - 1), Repeat(_digits(0, 9), rest, rest)))
    return Choice(*ways)
