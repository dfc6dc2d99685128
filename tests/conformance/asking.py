"""Asks the simulator through runner.py, in a process whose standard error is read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

RUNNER = Path(__file__).with_name("runner.py")


def ask(library: Path, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers of runner.py, each with the log lines that belong to it, time stamps removed."""
    done = subprocess.run(
        [sys.executable, str(RUNNER), str(library)],
        input="\n".join(json.dumps(request) for request in requests),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    logs = done.stderr.split("#\n")
    assert len(answers) == len(requests) == len(logs) - 1
    for answer, log in zip(answers, logs, strict=False):
        answer["log"] = [without_time(line) for line in log.splitlines()]
    return answers


def without_time(line: str) -> str:
    """``E RKNN: [12:34:56.789] text`` as ``E RKNN: text``."""
    start, _, text = line.partition("] ")
    return start.split("[")[0] + text
