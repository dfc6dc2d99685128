"""The list of long tests names tests that there are."""

from __future__ import annotations

from compiling import ROOT
from long_tests import LONG


def test_every_entry_is_a_test() -> None:
    for name in LONG:
        file, _, function = name.partition("::")
        text = (ROOT / file).read_text()
        assert not function or f"def {function}(" in text, name
