"""What layers say to a recorder of steps: which of them can be recorded, and when their parts have changed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from npumatmul.host.layers import RECORDER

__all__ = ["CHANGES", "Changes", "Holding", "passed"]


class Changes:
    """How often an attribute of a module was set: what was recorded before holds no more, and is given up at once.

    Attributes
    ----------
    count : int
    holding : WeakSet
        Who holds what was recorded, and with it weights of layers that may have others now.
    """

    def __init__(self) -> None:
        self.count = 0
        self.holding: weakref.WeakSet[Holding] = weakref.WeakSet()

    def made(self) -> None:
        """Something was changed."""
        self.count += 1
        if self.holding:
            for each in tuple(self.holding):
                self.holding.discard(each)
                each.forget()


class Holding(Protocol):
    """Who holds what was recorded."""

    def forget(self) -> None:
        """Give it up."""
        ...


CHANGES = Changes()


def passed(module: Any, x: Any, call: Callable[[Any, Any], Any], given: Any = None) -> Any:
    """What a module makes of rows; for a recorder, of one that cannot be recorded, one step that calls it again.

    Parameters
    ----------
    module : Module
    x : ndarray
    call : callable
        From rows, and from what stands in the place of `given` later, to rows.
    given : object
        What differs from call to call, such as a cache.
    """
    recorder = RECORDER.get()
    if recorder is None or x.dtype != np.float32:
        return call(x, given)
    stranger = _stranger(module)
    if stranger is not None:
        recorder.refuse(f"nobody knows what a {stranger} does beside its result")
    elif not module.recordable:
        return recorder.called(call, x, given)
    return call(x, given)


def _stranger(module: Any) -> str | None:
    """Of a module and all within it, the class of one that may count its calls, say, or keep a state.

    A program calls such a module less often, or once more to be compared. Known are those of this package, and others
    whose class itself says whether it is `recordable`, where no method of the one object was replaced; and of products
    those whose class says it.
    """
    for _, each in module.named_modules():
        kind, product = type(each), vars(each).get("_product")
        is_known = kind.__module__.startswith("npumatmul.") or "recordable" in vars(kind)
        if not is_known or any(callable(getattr(kind, name, None)) for name in vars(each)):
            return kind.__name__
        if product is not None and "recordable" not in vars(type(product)):
            return type(product).__name__
    return None
