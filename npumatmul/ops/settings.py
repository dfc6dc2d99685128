"""Settings of a scope: what happens to products that the NPU cannot compute, and whether measured plans are used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

__all__ = ["Settings", "config", "settings"]


@dataclass(frozen=True)
class Settings:
    """What holds in the present scope.

    Attributes
    ----------
    fallback : str or None
        ``"numpy"``: dtypes that the NPU cannot multiply without losing information are computed by numpy, on the CPU.
        None: they raise `TypeError`.
    tuned : bool
        Whether weights are cut as `Matmul.autotune` found best on this machine, where it was asked.
    """

    fallback: str | None = None
    tuned: bool = False


class _Kept(Enum):
    """What a setting is given by who says nothing of it."""

    KEPT = "as it is around the block"


_settings: ContextVar[Settings] = ContextVar("npumatmul_settings", default=Settings())  # noqa: B039 - it is frozen


def settings() -> Settings:
    """Return the settings of the present scope.

    Examples
    --------
    >>> settings().fallback is None
    True
    """
    return _settings.get()


@contextmanager
def config(*, fallback: str | _Kept | None = _Kept.KEPT, tuned: bool | _Kept = _Kept.KEPT) -> Iterator[Settings]:
    """Change settings within a ``with`` block, for this thread or task; what is not given stays as it is around it.

    Parameters
    ----------
    fallback : {"numpy", None}, optional
        See `Settings`.
    tuned : bool, optional
        See `Settings`.

    Raises
    ------
    ValueError
        If there is no such fallback.

    Examples
    --------
    >>> import numpy as np
    >>> import npumatmul as npu
    >>> with npu.config(fallback="numpy"):
    ...     npu.matmul(np.array([[2.0]]), np.array([[3.0]]))  # float64: numpy computes it
    array([[6.]])
    """
    if fallback not in (None, "numpy", _Kept.KEPT):
        raise ValueError(f"config: fallback is {fallback!r}; it can be 'numpy' or None")
    given = {"fallback": fallback, "tuned": tuned}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not _Kept.KEPT}
    token = _settings.set(replace(settings(), **changes))
    try:
        yield _settings.get()
    finally:
        _settings.reset(token)
