"""Asks questions of a device, each in a process of its own with a time limit, and gathers the outcomes."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from npumatmul.chips.probe_file import ProbeResults, checked_cells, load_probe_results
from npumatmul.device.boardlock import BoardLock, wants_lock
from npumatmul.errors import DeviceError, LibraryNotFoundError
from npumatmul.files.locking import locked
from npumatmul.files.writing import write_text
from npumatmul.probe.answer import Question
from npumatmul.rknn import Discovery, RuntimeVersion, discover

__all__ = ["Outcome", "Probe", "Target", "find_target", "probe"]

_UNKILLABLE = "and cannot be killed: reboot before you go on"
MODULE = "npumatmul.probe.question"


@dataclass(frozen=True)
class Target:
    """What is asked.

    Attributes
    ----------
    device : str
    library : Path
    soc : str
    runtime : RuntimeVersion
    simulated : bool
    api_version, driver_version : str
    environment : dict
        What the asking processes get besides this process's environment.
    """

    device: str
    library: Path
    soc: str
    runtime: RuntimeVersion
    simulated: bool
    api_version: str
    driver_version: str
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of one question.

    Attributes
    ----------
    number : str
    status : str
        ``"answered"``, ``"failed"`` (an exception), ``"crashed"`` (a signal), ``"hung"`` (the time limit),
        ``"unanswerable"``, ``"skipped"`` (after a process that cannot be killed).
    text : str
        The answer, or what happened and at which step.
    seconds : float
    details, cells : dict
        As in `Answer`.
    log : str
        The end of what the runtime printed, where there is no answer.
    """

    number: str
    status: str
    text: str
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)
    cells: dict[str, Any] = field(default_factory=dict)
    log: str = ""


@dataclass(frozen=True)
class Probe:
    """Everything that was found.

    Attributes
    ----------
    target : Target
    facts : dict
        Device, versions, kernel, date.
    outcomes : tuple of Outcome
    interrupted : bool
        Whether it was ended by Ctrl-C; what had been answered by then is here.
    """

    target: Target
    facts: dict[str, str]
    outcomes: tuple[Outcome, ...]
    interrupted: bool = False

    def results(self, earlier: ProbeResults | None = None) -> ProbeResults:
        """The content of the probe file; answers of `earlier` stay where nothing was asked anew."""
        target = self.target
        asked = {outcome.number for outcome in self.outcomes}
        answers: dict[str, Any] = {}
        cells: dict[str, tuple[Any, str]] = {}
        if earlier is not None:
            answers |= {k: v for k, v in earlier.facts.get("answers", {}).items() if k not in asked}
            cells |= {name: cell for name, cell in earlier.cells.items() if cell[1] not in asked}
        for outcome in self.outcomes:
            answers[outcome.number] = {k: v for k, v in asdict(outcome).items() if k not in ("number", "cells")}
            cells |= checked_cells(outcome.cells, outcome.number)
        facts = {**self.facts, "answers": answers}
        return ProbeResults(target.soc, target.runtime, target.simulated, cells, facts)

    def write(self, path: Path) -> ProbeResults:
        """Write the probe file, keeping what an earlier probe of the same device left there.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            results = self.results(self._earlier(path))
            write_text(path, results.to_json())
        return results

    def _earlier(self, path: Path) -> ProbeResults | None:
        """What an earlier probe of the same device left; None where nothing is there, or nothing that can be kept."""
        target = self.target
        try:
            found = load_probe_results(path)
        except (OSError, ValueError):
            return None
        same = (found.soc, found.runtime, found.simulated) == (target.soc, target.runtime, target.simulated)
        return found if same else None


def find_target(device: str | None = None, timeout: float = 60.0) -> Target:
    """The device that a string or the machine names; its library is loaded in another process.

    Raises
    ------
    LibraryNotFoundError, DeviceError
        If there is none, or it cannot even create a context.
    """
    found = discover(device)
    if found.library is None:
        raise LibraryNotFoundError(f"there is no runtime library to probe. Looked at:\n{found.report()}")
    environment = _environment(found)
    lines, status, log = _run([], found.library, found.soc, timeout, environment)
    failure = next((line["error"] for line in lines if "error" in line), None)
    if failure is not None:
        raise DeviceError(f"{found.library} cannot be probed: {failure}")
    identity = next((line["identity"] for line in lines if "identity" in line), None)
    if identity is None or status != "answered":
        step = next((line["step"] for line in reversed(lines) if "step" in line), "the start")
        raise DeviceError(f"{found.library} cannot be probed: {status} at {step!r}. {log}".strip())
    if identity["soc"] is None:
        raise DeviceError(f"the chip of this machine is not known. Looked at:\n{found.report()}")
    version = RuntimeVersion.parse(identity["runtime"])
    assert version is not None
    return Target(
        found.device,
        found.library,
        identity["soc"],
        version,
        identity["simulated"],
        identity["api_version"],
        identity["driver_version"],
        environment,
    )


def _environment(found: Discovery) -> dict[str, str]:
    if found.device.startswith("sim:") and found.soc is not None:
        return {"NPUMATMUL_SIM_SOC": found.soc}
    return {}


def probe(
    target: Target,
    questions: Iterable[Question],
    *,
    timeout: float = 60.0,
    everything: bool = False,
    quick: bool = False,
    progress: Callable[[Question, Outcome | None], None] = lambda question, outcome: None,
    module: str = MODULE,
) -> Probe:
    """Ask questions one after the other, each in a process of its own.

    Parameters
    ----------
    target : Target
    questions : iterable of Question
        In this order.
    timeout : float
        Seconds per question.
    everything, quick : bool
        As in `Instrument`.
    progress : callable
        Called with each question before (and None) and after (and its outcome).
    module : str
        The module that the processes run.

    Returns
    -------
    Probe

    Raises
    ------
    BoardInUseError
        If another process uses the board's NPU.
    """
    board = BoardLock() if wants_lock(target.simulated) else None
    flags = [*(["--all"] if everything else []), *(["--quick"] if quick else [])]
    outcomes: list[Outcome] = []
    stuck = ""
    interrupted = False
    try:
        for question in questions:
            progress(question, None)
            if stuck:
                outcome = Outcome(question.number, "skipped", stuck)
            else:
                outcome = _ask(target, question, timeout, flags, module)
            if _UNKILLABLE in outcome.text:
                stuck = f"not asked, because the process of {question.number} waits inside the kernel"
            outcomes.append(outcome)
            progress(question, outcome)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        if board is not None:
            board.release()
    facts = {
        "device": target.device,
        "library": str(target.library),
        "api_version": target.api_version,
        "driver_version": target.driver_version,
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    return Probe(target, facts, tuple(outcomes), interrupted)


def _ask(target: Target, question: Question, timeout: float, flags: Sequence[str], module: str) -> Outcome:
    if question.ask is None:
        return Outcome(question.number, "unanswerable", question.reason)
    start = time.monotonic()
    lines, status, log = _run(
        [question.number, *flags], target.library, target.soc, timeout, target.environment, module
    )
    seconds = round(time.monotonic() - start, 2)
    last = lines[-1] if lines else {}
    if "answer" in last:
        # a crash after the answer (on unloading, say) does not take it back
        after = "" if status == "answered" else f" (the process then {status})"
        return Outcome(
            question.number, "answered", last["answer"] + after, seconds, dict(last["details"]), dict(last["cells"])
        )
    if "error" in last:
        return Outcome(question.number, "failed", last["error"], seconds, {"trace": last["trace"]}, {}, log)
    step = next((line["step"] for line in reversed(lines) if "step" in line), "the start of the process")
    kind = "hung" if status.startswith("hung") else "crashed"
    return Outcome(question.number, kind, f"{status} at: {step}", seconds, {}, {}, log)


def _run(
    arguments: Sequence[str],
    library: Path,
    soc: str | None,
    timeout: float,
    environment: dict[str, str],
    module: str = MODULE,
) -> tuple[list[dict[str, Any]], str, str]:
    """Lines that a process wrote, how it ended, and the end of what the runtime printed."""
    with tempfile.TemporaryFile() as result, tempfile.TemporaryFile() as log:  # without names: nothing is ever left
        passed = f"/proc/self/fd/{result.fileno()}"
        command = [sys.executable, "-m", module, *arguments, "--library", str(library), "--result", passed]
        if soc is not None:
            command += ["--soc", soc]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **environment},
            pass_fds=(result.fileno(),),
            start_new_session=True,
        )
        try:
            status = _ending(process.wait(timeout))
        except subprocess.TimeoutExpired:
            status = _kill(process, timeout)
        except BaseException:  # an interruption must not leave a process on the NPU
            _kill(process, timeout)
            raise
        result.seek(0)
        lines = []
        for text in result.read(_MOST_SAID).splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break  # cut off in the middle
        log.seek(-min(log.tell(), _TAIL), os.SEEK_END)
        return lines, status, log.read().decode("utf-8", "replace").strip()[-1000:]


#: Bytes that a question may write, and that are read of what a runtime printed.
_MOST_SAID, _TAIL = 1 << 24, 4000


def _ending(code: int) -> str:
    if code == 0:
        return "answered"
    if code > 0:
        return f"ended with code {code}"
    try:
        return f"ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"ended by signal {-code}"


def _kill(process: subprocess.Popen[bytes], timeout: float) -> str:
    """End the process; one that waits for the NPU inside the kernel may not end."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        return f"hung for {timeout:g} s {_UNKILLABLE}"
    return f"hung for {timeout:g} s"
