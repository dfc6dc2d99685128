"""Modules of the package are imported by their own names before pytest reads the examples in them.

It would import a file that it is given alone a second time, beside the module that others have imported, and nothing of
one would be equal to anything of the other.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collect_file(file_path: Path) -> None:
    """Import the module that a file is."""
    is_module = file_path.suffix == ".py" and file_path.name != "__main__.py"  # which would run the program
    if is_module and file_path.is_relative_to(_ROOT / "npumatmul"):
        parts = file_path.relative_to(_ROOT).with_suffix("").parts
        importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
