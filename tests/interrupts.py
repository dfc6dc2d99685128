"""Interrupts: at any point of some work, and by signals."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import npumatmul as npu
from npumatmul import sim


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


@contextmanager
def handling(number: signal.Signals, handler: Callable[..., Any]) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def raising(before: Callable[[], object]) -> Callable[..., None]:
    """A handler that raises `KeyboardInterrupt`."""

    def handle(*_: object) -> None:
        before()
        raise KeyboardInterrupt

    return handle


def interrupted_until_given_up(device: npu.Device, work: Callable[[], object], after: int = 0) -> None:
    """Do work whose runs hang after some, with a SIGINT when the first one does, and another when that was heard."""
    heard = threading.Event()

    def press() -> None:
        while sim.counters(device).run_calls <= after:
            time.sleep(0.001)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            assert heard.wait(60)
            heard.clear()

    sim.reset_counters(device)
    with handling(signal.SIGINT, raising(heard.set)):
        pressing = threading.Thread(target=press)
        pressing.start()
        try:
            with pytest.raises(KeyboardInterrupt):
                work()
        finally:
            pressing.join()
