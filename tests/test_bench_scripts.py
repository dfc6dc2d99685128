"""The project's own measurements take minutes to hours; here they are only imported, so that no name is left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parent.parent / "bench"


def test_every_script_imports() -> None:
    names = sorted(path.stem for path in BENCH.glob("*.py"))
    names += sorted(f"targets.{path.stem}" for path in (BENCH / "targets").glob("*.py"))
    assert {"quality", "targets.packing"} <= set(names)
    program = f"import importlib\nfor name in {names}:\n    importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", program], cwd=BENCH, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
