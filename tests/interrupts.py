"""A KeyboardInterrupt at any point of some work."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any


def interrupted_at(position: int, work: Callable[[], object], caught: list[BaseException] | None = None) -> bool:
    """Do something with a KeyboardInterrupt at one of the points where Python looks for signals; whether there is one.

    Those are the start of functions and the end of calls of C functions, which a profiler is told of. An interrupt that
    comes while Python cleans up an object is dropped, and the work goes on. Those that are `caught` keep all that their
    frames hold, as one that a user looks at does.
    """
    events = 0
    here = threading.get_ident()

    def profile(frame: Any, event: str, _: object) -> None:
        nonlocal events
        if "npumatmul" not in frame.f_code.co_filename or threading.get_ident() != here:
            return
        if event in ("call", "c_return"):
            events += 1
            if events == position + 1:
                sys.setprofile(None)
                raise KeyboardInterrupt

    try:
        sys.setprofile(profile)
        work()
    except KeyboardInterrupt as error:
        if caught is not None:
            caught.append(error)
    finally:
        sys.setprofile(None)
    return events > position
