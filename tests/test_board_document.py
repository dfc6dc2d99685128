"""docs/board.md has an entry for whatever a board can answer with, and its figures are those of the model."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from importlib.metadata import metadata
from pathlib import Path

from compiling import ROOT

import npumatmul as npu
from npumatmul import errors
from npumatmul.probe import runner
from npumatmul.rknn import discovery

sys.path.append(str(ROOT / "bench"))  # behind: it has a `prose` of its own

import modelled_speed

TEXT = (ROOT / "docs" / "board.md").read_text()
#: Where errors arise before and while a device is used.
ROOMS = ("rknn", "device", "probe")


def rows(heading: str) -> list[list[str]]:
    """The table below a heading, without its first two lines."""
    section = re.split(r"^#+ ", TEXT.partition(f"# {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    assert len(lines) > 2, heading
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def test_every_return_code_has_an_entry() -> None:
    listed = {int(code): name.strip("`") for code, name, *_ in rows("Return codes of the runtime")}
    assert listed == {code: kind.__name__ for code, kind in errors.RKNN_ERRORS.items()}


def raised_in(folder: Path) -> set[str]:
    """Names of our exceptions that the code of a room mentions in what it raises."""
    names: set[str] = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.Raise, ast.Return)):  # some functions return what is raised elsewhere
                names |= {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    return {name for name in names if inspect.isclass(getattr(errors, name, None))}


def test_every_error_of_device_discovery_and_probe_has_an_entry() -> None:
    listed = {name.strip("`") for name, *_ in rows("Errors of finding and using the device")}
    listed |= {"RknnError", *(kind.__name__ for kind in errors.RKNN_ERRORS.values())}
    package = Path(inspect.getfile(npu)).parent
    raised = set.union(*(raised_in(package / room) for room in ROOMS))
    assert {"LibraryNotFoundError", "BoardInUseError", "LayoutMismatchError"} <= raised
    assert raised <= listed, raised - listed


def test_every_message_of_discovery_has_an_entry() -> None:
    """What the table quotes is what the code says, and every place that raises in discovery is quoted."""
    source = inspect.getsource(discovery)
    quoted = [
        text for _, says, _ in rows("Errors of finding and using the device") for text in re.findall('"(.*?)"', says)
    ]
    for raised in re.findall(r"raise \w+\(\s*(.*?)\)(?: from \w+)?\n", source, re.DOTALL):
        if "is missing from the package" in raised or "simulated" in raised or "{error}" in raised:
            continue  # of the package itself, or of simulators; or of the binding, which adds where it looked
        parts = [re.split(r" ?\.\.\. ?", text) for text in quoted]
        assert any(all(part in raised for part in each) for each in parts), raised


def test_every_status_of_a_probed_question_has_an_entry() -> None:
    documented = re.findall(r'``"(\w+)"``', inspect.getdoc(runner.Outcome) or "")
    assert [status for status, *_ in rows("What the probe says of a question")] == documented


def test_every_place_of_the_library_is_named() -> None:
    for place in discovery.LIBRARY_PLACES:
        if "gnueabihf" not in place:  # of 32-bit systems, which the page is not about
            assert str(Path(place).parent) in TEXT


def test_modelled_speeds_are_those_of_the_model() -> None:
    """To a quarter: what plans choose may improve without a new edition of the page."""
    numbers = re.compile(r"(?<=\| )\d+(?:\.\d+)?(?= \|)")
    lines = [line for line in modelled_speed.table().splitlines() if numbers.search(line)]
    shown = {line.partition(" | ")[0]: numbers.findall(line) for line in TEXT.splitlines()}
    assert len(lines) == len(modelled_speed.PRODUCTS) + len(modelled_speed.MODELS)
    for line in lines:
        wanted = numbers.findall(line)
        assert len(shown[line.partition(" | ")[0]]) == len(wanted)
        for seen, now in zip(shown[line.partition(" | ")[0]], wanted, strict=True):
            assert abs(float(seen) / float(now) - 1) < 0.25, line


def test_every_extra_is_listed() -> None:
    listed = {name.strip("`") for name, _ in rows("4. Installing")} - {"(none)"}
    assert listed == set(metadata("npumatmul").get_all("Provides-Extra") or ()) - {"dev"}
