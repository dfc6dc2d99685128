"""A plugin of pytest: the package loads the libraries that count which lines run (see measure_coverage.py)."""

from __future__ import annotations

import os


def pytest_configure() -> None:
    """Put them before the installed ones; not earlier, since lines that are run by importing are to be counted too."""
    import npumatmul

    npumatmul.__path__.insert(0, os.environ["INSTRUMENTED_PACKAGE"])
