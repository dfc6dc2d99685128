"""The example of pictures in prompts, run as its users run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "pictures.py"


def test_the_example_asks_twice_and_knows_its_pictures_again() -> None:
    ran = subprocess.run(
        [sys.executable, EXAMPLE],
        capture_output=True,
        text=True,
        env={**os.environ, "NPUMATMUL_DEVICE": "sim:rk3588"},
        timeout=100,
    )
    assert ran.returncode == 0, ran.stderr
    first, second = ran.stdout.splitlines()
    tokens = 2 + 4 * 6 + 8 * 4 + len("What differs?")
    assert re.match(rf"{tokens} tokens, 0 of them known: ", first)
    assert second.startswith(f"{tokens} tokens, {tokens - 1} of them known: ")
    assert first.split(": ")[1] == second.split(": ")[1]
