"""Runtime version strings, parsed defensively: they carry hashes, dates and suffixes (facts 11.1)."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class RuntimeVersion:
    """Version of the RKNN runtime, ordered; suffixes such as ``b0`` do not count.

    Examples
    --------
    >>> RuntimeVersion.parse("2.3.2 (429f97ae6b@2025-04-09T09:09:27)") >= RuntimeVersion(2, 1, 0)
    True
    >>> RuntimeVersion.parse("2.0.0b0")
    RuntimeVersion(major=2, minor=0, patch=0)
    """

    major: int
    minor: int
    patch: int

    @classmethod
    def parse(cls, text: str) -> RuntimeVersion | None:
        """Version found in `text`, or None where there is none."""
        found = re.search(r"(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?", text)
        if found is None:
            return None
        return cls(int(found[1]), int(found[2]), int(found[3] or 0))

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"
