"""The check that no two C files use each other."""

from __future__ import annotations

import sys

from compiling import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import c_circles

LOW = """
#include "low.h"
/* sim_high() is not called here */
static int sim_hidden(void) { return 1; }
const int sim_table[2] = {1, 2};
int sim_low(
    int value) {
  return value + sim_hidden() + (sizeof "sim_high" > 0);
}
"""
HIGH = "#define TWICE(x) (2 * sim_low(x))\nSIM_EXPORT int sim_high(int value) { return TWICE(value) + sim_table[0]; }\n"


def test_what_a_file_defines_and_uses() -> None:
    assert c_circles.definitions(LOW) == {"sim_low", "sim_table"}
    assert c_circles.definitions(HIGH) == {"sim_high"}
    assert c_circles.uses({"low.c": LOW, "high.c": HIGH}) == {"low.c": set(), "high.c": {"low.c"}}


def test_circles_are_told_once_as_a_path() -> None:
    assert list(c_circles.circles({"a": ["b"], "b": ["c"], "c": []})) == []
    assert list(c_circles.circles({"a": ["b"], "b": ["c"], "c": ["b", "d"], "d": ["d"]})) == [
        ["b", "c", "b"],
        ["d", "d"],
    ]


def test_a_call_back_to_the_caller_is_found() -> None:
    files = {"low.c": LOW.replace("sim_hidden()", "sim_high(0)"), "high.c": HIGH}
    assert list(c_circles.circles(c_circles.uses(files))) == [["high.c", "low.c", "high.c"]]


def test_definitions_of_the_project_are_found() -> None:
    """By example, so that a change of style does not make the check blind."""
    found = {
        name
        for folder in c_circles.FOLDERS
        for file in (c_circles.NATIVE / folder).glob("*.c")
        for name in c_circles.definitions(file.read_text())
    }
    assert {"npumm_pack", "npumm_execute", "sim_registry_enter", "sim_products_scalar", "rknn_matmul_run"} <= found
