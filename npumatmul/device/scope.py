"""What holds within a ``with`` block, and says so where the ``with`` was forgotten."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

__all__ = ["Scope"]

T = TypeVar("T")
_Function = TypeVar("_Function", bound=Callable[..., Any])


class Scope(Generic[T]):
    """A context manager that warns when it is dropped without having been entered, since then it did nothing.

    It decorates functions, too: each call runs within.

    Parameters
    ----------
    make : callable
        Makes the context manager that does the work; called when the block begins.
    call : str
        What the user called.
    advice : str, optional
        What to call for something that holds everywhere.
    """

    def __init__(self, make: Callable[[], AbstractContextManager[T]], call: str, advice: str = "") -> None:
        self._used = False
        self._make, self._call, self._advice = make, call, advice
        self._inside: AbstractContextManager[T] | None = None

    def __enter__(self) -> T:
        self._used = True
        self._inside = self._make()
        return self._inside.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        assert self._inside is not None
        return self._inside.__exit__(kind, error, traceback)

    def __call__(self, function: _Function) -> _Function:
        self._used = True

        @functools.wraps(function)
        def within(*arguments: Any, **named: Any) -> Any:
            with self._make():
                return function(*arguments, **named)

        return cast("_Function", within)

    def __del__(self) -> None:
        if not self._used:
            warnings.warn(
                f"{self._call}(...) did nothing: it holds within a `with` block only{self._advice}",
                stacklevel=2,  # a reference count drops to 0 where the call stands
            )
