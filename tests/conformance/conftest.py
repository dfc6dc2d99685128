from __future__ import annotations

from pathlib import Path

import pytest
from compiling import build_simulators


@pytest.fixture(scope="session")
def simulators(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the simulator's libraries, built from the present sources."""
    return build_simulators(tmp_path_factory.mktemp("simulators"))
