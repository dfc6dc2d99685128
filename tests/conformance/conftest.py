from __future__ import annotations

from pathlib import Path

import pytest

from npumatmul.rknn.discovery import native_directory


@pytest.fixture(scope="session")
def simulators() -> Path:
    """Folder with the simulator's libraries, as they are installed."""
    return native_directory()
