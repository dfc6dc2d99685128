"""Models by name: what decides sizes in the config.json of each, and whose that is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from npumatmul.errors import ModelError
from npumatmul.llm.modelled.configured import shape_of_config
from npumatmul.llm.modelled.shape import ModelShape

__all__ = ["SHAPES", "published_config"]


def _table() -> Mapping[str, Mapping[str, Any]]:
    with (Path(__file__).parent / "published.json").open(encoding="utf-8") as file:
        found: Mapping[str, Mapping[str, Any]] = json.load(file)
    return found


_PUBLISHED = _table()


def published_config(name: str) -> tuple[str, Mapping[str, Any]]:
    """Whose config.json a model's dimensions are of, and what decides sizes in there."""
    entry = _PUBLISHED[name]
    return entry["of"], entry["config"]


class _Shapes(Mapping[str, ModelShape]):
    """Shapes by name, each made when it is asked for."""

    def __init__(self) -> None:
        self._made: dict[str, ModelShape] = {}

    def __getitem__(self, name: str) -> ModelShape:
        if name not in self._made:
            _, config = published_config(name)
            self._made[name] = shape_of_config(name, config, lambda problem: ModelError(f"{name}: {problem}"))
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in _PUBLISHED

    def __iter__(self) -> Iterator[str]:
        return iter(_PUBLISHED)

    def __len__(self) -> int:
        return len(_PUBLISHED)


#: Models by name, from configurations as they were published: check against a config.json where one is at hand.
SHAPES: Mapping[str, ModelShape] = _Shapes()
