"""Instructions of the C functions behind a line, by callgrind: they do not depend on who else uses the machine.

Valgrind knows no AVX-512, so what is counted is the code for AVX2, or NEON.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from targets.lines import Count, Line, UnavailableError, all_lines
from targets.measuring import prepared

#: Between a short and a long run, so that what preparing calls does not count.
CALLS = 3


def count_instructions(line: Line) -> int | None:
    """Instructions per call of the line's work within its C function; None where it names none.

    Raises
    ------
    UnavailableError
        If there is no valgrind.
    """
    if line.counted is None:
        return None
    if not shutil.which("valgrind"):
        raise UnavailableError("--instructions needs valgrind")
    few, many = (_counted(line, line.counted, calls) for calls in (1, 1 + CALLS))
    return (many - few) // CALLS


def _counted(line: Line, function: str, calls: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "out"
        command = [
            "valgrind", "--tool=callgrind", f"--callgrind-out-file={written}", f"--toggle-collect={function}",
            sys.executable, "-m", __name__, line.name, str(calls),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
        found = re.search(r"^(?:summary|totals): (\d+)", written.read_text() if written.exists() else "", re.MULTILINE)
    if done.returncode or not found:
        raise RuntimeError(f"instructions of {line.name!r} could not be counted:\n{done.stderr}")
    return int(found[1])


def main(name: str, calls: int) -> None:
    """Call the work of one line, for valgrind to look on."""
    (line,) = (line for line in all_lines() if line.name == name)
    with prepared(line) as what:
        if not isinstance(what, Count):
            for _ in range(calls):
                what.work()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
