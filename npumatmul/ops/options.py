"""Options of a `Matmul`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

__all__ = ["MatmulOptions"]

logger = logging.getLogger("npumatmul.Matmul")


@dataclass(frozen=True)
class MatmulOptions:
    """Options of a `Matmul`.

    Attributes
    ----------
    logger : logging.Logger, optional
        Where the phases are logged; ``logging.getLogger("npumatmul.Matmul")`` by default.
    level : int
        At which level; ``logging.INFO`` by default.
    """

    logger: logging.Logger = logger
    level: int = logging.INFO

    @classmethod
    def of(cls, given: MatmulOptions | Mapping[str, Any] | None) -> MatmulOptions:
        """Options from what a caller gave.

        Raises
        ------
        TypeError
            If there is no such option.
        """
        if isinstance(given, MatmulOptions):
            return given
        known = [field.name for field in fields(cls)]
        for name in given or ():
            if name not in known:
                raise TypeError(f"Matmul: there is no option {name!r}; there is {', '.join(known)}")
        return cls(**(given or {}))
