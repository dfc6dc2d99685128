"""Trying what may kill the process that tries it: in a process below the one that asks, which is started anew.

That process takes one JSON object per line, a product to try, and answers each with one line of JSON. After a death
the next trial is made by a new process, so that each death costs one answer and not the question.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from npumatmul.chips.table import build
from npumatmul.chips.types import ElementType, MatmulType
from npumatmul.errors import NpuError, RknnError
from npumatmul.probe.instrument import NATIVE, NORMAL, Instrument, judge
from npumatmul.rknn import Runtime, RuntimeVersion

__all__ = ["Trials", "main"]


class Trials:
    """Products that are tried in a process of their own.

    Parameters
    ----------
    instrument : Instrument
        Whose library and chip are tried.
    environment : mapping of str to str, optional
        What the process gets besides this one's environment.
    """

    def __init__(self, instrument: Instrument, environment: Mapping[str, str] | None = None) -> None:
        self._command = [
            sys.executable, "-c", f"from {__name__} import main; main()",
            "--library", str(instrument.runtime.path), "--soc", instrument.soc, "--runtime", str(instrument.version),
        ]  # fmt: skip
        self._environment = {**os.environ, "NPUMATMUL_SIM_SOC": instrument.soc, **(environment or {})}
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Trials:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process is not None:
            self._process.kill()
            self._end()

    def attempt(self, mm_type: MatmulType, m: int, k: int, n: int, *, native: bool = False, run: bool = True) -> str:
        """What becomes of a product, A and C native or normal, or of its creation alone.

        Returns
        -------
        str
            ``"right"``, ``"wrong"`` or ``"zeros"``; ``"created"`` where nothing is run; ``"refused (<code>)"``;
            ``"died (<signal>)"``.
        """
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self._environment, text=True
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        wish = {"type": mm_type.name, "m": m, "k": k, "n": n, "native": native, "run": run}
        try:
            print(json.dumps(wish), file=process.stdin, flush=True)
            line = process.stdout.readline()
        except BrokenPipeError:  # it died as it was started
            line = ""
        if line:
            return str(json.loads(line))
        return f"died ({self._end()})"

    def _end(self) -> str:
        process, self._process = self._process, None
        assert process is not None
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        try:
            return signal.Signals(-code).name if code < 0 else f"code {code}"
        except ValueError:
            return f"signal {-code}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Try what standard input says."""
    parser = argparse.ArgumentParser(prog=__name__, description=__doc__)
    parser.add_argument("--library", required=True)
    parser.add_argument("--soc", required=True)
    parser.add_argument("--runtime", required=True)
    options = parser.parse_args(arguments)
    version = RuntimeVersion.parse(options.runtime)
    assert version is not None
    # what a library prints must not get between the answers
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    instrument = Instrument(Runtime(options.library), build(options.soc, version))
    for line in sys.stdin:
        print(json.dumps(_tried(instrument, json.loads(line))), file=answers, flush=True)


def _tried(instrument: Instrument, wish: dict[str, Any]) -> str:
    mm_type, m, k, n = MatmulType[wish["type"]], wish["m"], wish["k"], wish["n"]
    layout = NATIVE if wish["native"] else NORMAL
    segment = instrument.row(mm_type).k_segment.value
    of_b = NORMAL if segment is not None and k > segment else NATIVE  # how segments lie is another question (Q4)
    try:
        with instrument.context(mm_type, m, k, n, b=of_b, ac=layout) as context:
            if not wish["run"]:
                return "created"
            a, b, expected = _operands(instrument, mm_type, m, k, n)
            return judge(context.product(a, b), expected)
    except RknnError as error:
        return f"refused ({error.code})"
    except NpuError as error:
        return f"refused ({error})"


def _operands(instrument: Instrument, mm_type: MatmulType, m: int, k: int, n: int) -> tuple[Any, Any, Any]:
    """Those of `Instrument.operands`, whose B repeats its first columns so that a large one costs little."""
    width = min(n, 64)
    a, b, product = instrument.operands(mm_type, m, k, width)
    narrow = np.int8 if mm_type.b in (ElementType.INT4, ElementType.INT8) else np.float16
    times = -(-n // width)
    return a, np.tile(b.astype(narrow), times)[:, :n], np.tile(product, times)[:, :n]
