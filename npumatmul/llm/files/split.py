"""Models that are split over several GGUF files, as gguf-split of llama.cpp does it: which ones belong together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from npumatmul.llm.files.gguf_header import GGUFValue, HeaderError

__all__ = ["part_number", "part_paths"]

_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def part_number(metadata: Mapping[str, GGUFValue]) -> tuple[int, int] | None:
    """Which part of how many a file says that it is, counted from 1; None for a whole model.

    Raises
    ------
    HeaderError
        If it says nonsense.
    """
    index, count = metadata.get("split.no", 0), metadata.get("split.count", 1)
    if type(index) is not int or type(count) is not int or not 0 <= index < max(count, 1):
        raise HeaderError(f"its split.no is {index!r} and its split.count {count!r}; they belong to no part of a model")
    return None if count < 2 else (index + 1, count)


def part_paths(path: Path, number: int, count: int) -> list[Path]:
    """Where all parts are, by the name of one of them.

    Raises
    ------
    HeaderError
        If the name is none that such a part has, or a part is not beside it.
    """
    part = f"it is part {number} of {count} of a split model"
    found = _NAME.fullmatch(path.name)
    if found is None or (int(found["number"]), int(found["count"])) != (number, count):
        raise HeaderError(
            f"{part}, but its name does not end in -{number:05d}-of-{count:05d}.gguf, by which the others would be "
            "found; give all parts the names that they were made with"
        )
    paths = [path.with_name(f"{found['stem']}-{each:05d}-of-{count:05d}.gguf") for each in range(1, count + 1)]
    missing = [each.name for each in paths if not each.exists()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise HeaderError(f"{part}, and {missing[0]}{more} is not beside it: fetch all parts into one folder")
    return paths
