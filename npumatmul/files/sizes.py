"""Numbers of bytes as people write and read them."""

from __future__ import annotations

import re

__all__ = ["parsed_size", "size_in_words"]

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
_SIZE = re.compile(r"(?P<number>\d{1,15}(\.\d{1,6})?) *(?P<unit>[a-z]*)", re.IGNORECASE | re.ASCII)


def parsed_size(text: str) -> int:
    """Bytes, from a number with or without a unit.

    Raises
    ------
    ValueError
        If it is something else.

    Examples
    --------
    >>> parsed_size("1.5 GB"), parsed_size("2MiB")
    (1500000000, 2097152)
    """
    found = _SIZE.fullmatch(text.strip())
    unit = None if found is None else _UNITS.get(found["unit"].lower())
    if found is None or unit is None:
        raise ValueError(f"{text[:40]!r} is no size: write a number of bytes, or such as 500MB, 20GB or 8GiB")
    return int(float(found["number"]) * unit)


def size_in_words(nbytes: int) -> str:
    """Such as 1.5 GB or 20.3 MB.

    Examples
    --------
    >>> size_in_words(1_500_000_000), size_in_words(20_300_000)
    ('1.5 GB', '20.3 MB')
    """
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 10**9 else f"{nbytes / 1e6:.1f} MB"
