"""What pytest needs to collect modules of the package for their examples."""

from __future__ import annotations

import importlib
from pathlib import Path

import npumatmul

PACKAGE = Path(npumatmul.__file__).parent


def pytest_collect_file(file_path: Path) -> None:
    """Import a module by its name, before pytest does by its path.

    pytest imports the package of a module first, which imports the module, and then executes its file once more: there
    would be two classes of each name.
    """
    if file_path.suffix == ".py" and file_path.name != "__main__.py" and PACKAGE in file_path.parents:
        inside = file_path.relative_to(PACKAGE.parent).with_suffix("").parts
        importlib.import_module(".".join(inside[:-1] if inside[-1] == "__init__" else inside))
