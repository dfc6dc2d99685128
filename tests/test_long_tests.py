"""The list of long tests names tests that there are."""

from __future__ import annotations

from compiling import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from long_tests import LONG


@settings(max_examples=120)
@given(st.integers())
def test_examples_are_as_many_as_the_profile_has(number: int) -> None:
    """Also where a test asks for a number of its own."""
    tried.append(number)


def test_that_was_so() -> None:
    assert 0 < len(tried) <= 2 * settings().max_examples


tried: list[int] = []


def test_every_entry_is_a_test() -> None:
    for name in LONG:
        file, _, function = name.partition("::")
        text = (ROOT / file).read_text()
        assert not function or f"def {function}(" in text, name
