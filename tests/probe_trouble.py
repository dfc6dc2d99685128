"""Questions that crash, hang and raise, for `test_probe.py`; run as a module in place of `npumatmul.probe.question`."""

from __future__ import annotations

import os
import signal
import sys
import time

from npumatmul.probe.answer import Answer, Question, question
from npumatmul.probe.instrument import Instrument
from npumatmul.probe.question import main


@question("T1", "crash", "none")
def crash(bench: Instrument) -> Answer:
    bench.step("about to crash")
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError("still alive")


@question("T2", "hang", "none")
def hang(bench: Instrument) -> Answer:
    bench.step("about to hang")
    time.sleep(600)
    raise AssertionError("awake again")


@question("T3", "raise", "none")
def fail(bench: Instrument) -> Answer:
    raise ZeroDivisionError("of course")


@question("T4", "exit", "none")
def leave(bench: Instrument) -> Answer:
    os._exit(3)


@question("T5", "answer, then crash", "any")
def late(bench: Instrument) -> Answer:
    import atexit

    atexit.register(os.abort)
    return Answer("said in time", cells={"contexts": 5})


TROUBLE = {made.number: made for made in list(globals().values()) if isinstance(made, Question)}

if __name__ == "__main__":
    main(sys.argv[1:], TROUBLE)
