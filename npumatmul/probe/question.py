"""The process that asks: ``python -m npumatmul.probe.question Q8 --library librknnrt.so --soc rk3588``.

It writes one JSON object per line: what it loaded, every step before it is taken, and each answer. Whoever started it
can then tell from the last line what a crash or a hang happened with.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from npumatmul.chips.table import build
from npumatmul.errors import NpuError
from npumatmul.probe.answer import Question
from npumatmul.probe.catalogue import QUESTIONS
from npumatmul.probe.instrument import NORMAL, Instrument
from npumatmul.rknn import MatmulInfo, MatmulTypeCode, Runtime, RuntimeVersion

__all__ = ["identify", "main"]


def identify(runtime: Runtime, soc: str | None) -> dict[str, Any]:
    """Chip and versions of a loaded library; the version is that which `rknn_query` tells, else by its symbols."""
    simulated = runtime.simulated_soc()
    # K and N of the smallest shape that every chip takes; the first context has the library tell its version
    info = MatmulInfo(M=1, K=64, N=64, type=MatmulTypeCode.INT8_MM_INT8_TO_INT32, B_layout=NORMAL)
    handle, _ = runtime.matmul_create(info)
    runtime.matmul_destroy(handle)
    return {
        "soc": simulated[0] if simulated else soc,
        "simulated": simulated is not None,
        "library": str(runtime.path),
        "runtime": str(runtime.version),
        "api_version": runtime.api_version,
        "driver_version": runtime.driver_version,
    }


def main(arguments: Sequence[str] | None = None, more: dict[str, Question] | None = None) -> None:
    """Ask; `more` questions than the catalogue's can be given, for trying the machinery."""
    parser = argparse.ArgumentParser(prog="npumatmul.probe.question", description=__doc__)
    parser.add_argument("numbers", nargs="*", help="question numbers; without any, only what was loaded is told")
    parser.add_argument("--library", required=True, help="the runtime library")
    parser.add_argument("--soc", help="the chip; a simulator knows its own")
    parser.add_argument("--result", type=Path, help="file to write to instead of standard output")
    parser.add_argument("--all", action="store_true", help="also try what may crash or hang")
    parser.add_argument("--quick", action="store_true", help="fewer sizes and repetitions")
    options = parser.parse_args(arguments)
    if options.result is None:
        _ask(options, sys.stdout, QUESTIONS | (more or {}))
    else:
        with options.result.open("a", encoding="utf-8") as out:
            _ask(options, out, QUESTIONS | (more or {}))


def _ask(options: argparse.Namespace, out: TextIO, questions: dict[str, Question]) -> None:
    def tell(**line: Any) -> None:
        print(json.dumps(line, default=_plain), file=out, flush=True)

    tell(step=f"load {options.library}")
    try:
        runtime = Runtime(options.library)
        identity = identify(runtime, options.soc)
    except NpuError as error:
        tell(error=str(error), trace=traceback.format_exc())
        return
    tell(identity=identity)
    version = RuntimeVersion.parse(identity["runtime"])
    assert version is not None
    table = build(identity["soc"], version)
    for number in options.numbers:
        on_step: Callable[[str], None] = lambda text, number=number: tell(question=number, step=text)  # type: ignore[misc]  # noqa: E731
        instrument = Instrument(runtime, table, everything=options.all, quick=options.quick, on_step=on_step)
        ask = questions[number].ask
        if ask is None:
            tell(question=number, reason=questions[number].reason)
            continue
        try:
            answer = ask(instrument)
        except Exception as error:  # an answer, too: it costs this question only
            tell(question=number, error=f"{type(error).__name__}: {error}", trace=traceback.format_exc())
            continue
        tell(question=number, answer=answer.text, details=answer.details, cells=answer.cells)


def _plain(value: Any) -> Any:
    """Numbers of numpy as Python's."""
    return value.item() if hasattr(value, "item") else str(value)


if __name__ == "__main__":
    main()
