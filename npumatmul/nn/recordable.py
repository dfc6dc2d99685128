"""What layers say to a recorder of steps: which of them can be recorded, and when their parts have changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from npumatmul.host.layers import RECORDER

__all__ = ["CHANGES", "Changes", "passed"]


class Changes:
    """How often an attribute of a module was set: what was recorded before holds no more.

    Attributes
    ----------
    count : int
    """

    count = 0


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
    if recorder is None or module.recordable or x.dtype != np.float32:
        return call(x, given)
    return recorder.called(call, x, given)
