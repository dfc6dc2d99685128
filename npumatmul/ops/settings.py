"""Settings of a scope: what happens to products that the NPU cannot compute, and whether measured plans are used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Literal

from npumatmul.device.scope import Scope

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


_settings: ContextVar[Settings] = ContextVar("npumatmul_settings", default=Settings())  # noqa: B039 - it is frozen


def settings() -> Settings:
    """Return the settings of the present scope.

    Examples
    --------
    >>> settings().fallback is None
    True
    """
    return _settings.get()


def config(
    *,
    fallback: Literal["numpy", "unchanged"] | None = "unchanged",
    tuned: bool | Literal["unchanged"] = "unchanged",
) -> Scope[Settings]:
    """Change settings within a ``with`` block, for this thread or task.

    Parameters
    ----------
    fallback : {"numpy", None, "unchanged"}
        See `Settings`. ``"unchanged"``, as for the others: what holds around the block.
    tuned : bool or "unchanged"
        See `Settings`.

    Returns
    -------
    context manager
        Of the `Settings` that hold. Dropped without ``with`` it warns that it did nothing.

    Raises
    ------
    ValueError
        If there is no such fallback.
    TypeError
        If `tuned` is neither True nor False.

    Examples
    --------
    >>> import numpy as np
    >>> import npumatmul as npu
    >>> with npu.config(fallback="numpy"):
    ...     npu.matmul(np.array([[2.0]]), np.array([[3.0]]))  # float64: numpy computes it
    array([[6.]])
    """
    if fallback not in (None, "numpy", "unchanged"):
        raise ValueError(f"config: fallback is {fallback!r}; it can be 'numpy' or None")
    if tuned not in ("unchanged", True, False):
        raise TypeError(f"config: tuned is {tuned!r}; it can be True or False")
    changes: dict[str, Any] = {"fallback": fallback, "tuned": tuned}
    changes = {name: value for name, value in changes.items() if value != "unchanged"}
    return Scope(lambda: _changed(changes), "npumatmul.config")


@contextmanager
def _changed(changes: dict[str, Any]) -> Iterator[Settings]:
    token = _settings.set(replace(settings(), **changes))
    try:
        yield _settings.get()
    finally:
        _settings.reset(token)
