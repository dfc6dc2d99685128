"""Counting calls of functions written in Python."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["calls_of"]


def calls_of(function: Callable[[], object]) -> int:
    """Python functions that a call enters, itself included."""
    count = 0
    gc.collect()  # what others left ends now, not meanwhile

    def seen(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    gc.disable()
    sys.setprofile(seen)
    try:
        function()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count
