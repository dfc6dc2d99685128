"""Ranges of one dimension, and cutting an extent into them; pure."""

from __future__ import annotations

from dataclasses import dataclass

from npumatmul.chips.layout import round_up

__all__ = ["MAX_SPANS", "Span", "shown", "split", "split_groups"]

#: Most spans of one extent. The memory of an NPU ends before: so many tiles of the deepest slices are gigabytes.
MAX_SPANS = 1 << 13

#: Spans become equally long, so that they share contexts, where that pads an extent by no more than this part of it.
_EQUAL_WITHIN = 1 / 64


@dataclass(frozen=True)
class Span:
    """A range of one dimension.

    Attributes
    ----------
    start, length : int
        In the logical matrix.
    padded : int
        Length as the device sees it.
    """

    start: int
    length: int
    padded: int


def split(extent: int, multiple: int, longest: int, parts: int = 1) -> tuple[Span, ...]:
    """Cut an extent into as few spans as `longest` allows, but at least `parts`, as equal as `multiple` allows.

    Where it pads the extent by less than a 64th, all spans are made equally long.

    Raises
    ------
    ValueError
        If there would be more than `MAX_SPANS`.

    Examples
    --------
    >>> split(100, 32, 64)
    (Span(start=0, length=64, padded=64), Span(start=64, length=36, padded=64))
    >>> [span.padded for span in split(4096, 32, 2048, 3)]
    [1376, 1376, 1376]
    """
    units = round_up(extent, multiple) // multiple
    count = min(units, max(parts, -(-units // (longest // multiple))))
    _check_count(count, extent)
    whole = -(-units // count)
    excess = whole * count - units
    equal = excess < whole and excess <= units * _EQUAL_WITHIN
    spans = []
    start = 0
    for index in range(count):
        padded = (whole if equal else units // count + (index < units % count)) * multiple
        spans.append(Span(start, min(padded, extent - start), padded))
        start += padded
    return tuple(spans)


def split_groups(extent: int, group: int, multiple: int, longest: int) -> tuple[Span, ...]:
    """One span per group along K; a group that is longer than one context takes is cut further.

    Raises
    ------
    ValueError
        If there would be more than `MAX_SPANS`.
    """
    _check_count(-(-extent // group) * -(-min(group, extent) // longest), extent)
    spans = []
    for start in range(0, extent, group):
        inner = split(min(group, extent - start), multiple, longest)
        spans += [Span(start + span.start, span.length, span.padded) for span in inner]
    return tuple(spans)


def _check_count(count: int, extent: int) -> None:
    if count > MAX_SPANS:
        raise ValueError(
            f"an extent of {extent} would be cut into {count} spans; at most {MAX_SPANS} are planned, which is more "
            "than the memory of an NPU has room for: multiply by parts of it"
        )


def shown(spans: tuple[Span, ...]) -> str:
    """Spans in few words: equal ones together."""
    parts: list[str] = []
    index = 0
    while index < len(spans):
        span = spans[index]
        same = 1
        while index + same < len(spans) and (spans[index + same].length, spans[index + same].padded) == (
            span.length,
            span.padded,
        ):
            same += 1
        text = str(span.length) if span.length == span.padded else f"{span.length} as {span.padded}"
        parts.append(text if same == 1 else f"{same} x {text}")
        index += same
    return " + ".join(parts)
