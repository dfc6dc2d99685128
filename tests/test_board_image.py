"""The parts of the check on a board's system that need no system."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from compiling import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import board_image
import check_readme


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sources.list", "# deb http://old/debian bookworm main\ndeb http://mirror.example/debian bookworm main\n"),
        ("sources.list", "deb [arch=amd64 signed-by=/a/b] http://mirror.example/debian/ bookworm main\n"),
        ("sources.list.d/more.list", "deb-src http://source/debian x\ndeb http://mirror.example/debian x main"),
        (
            "sources.list.d/debian.sources",
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\n\n"
            "Types: deb\nURIs: http://mirror.example/debian-security\n",
        ),
    ],
)
def test_the_mirror_is_that_of_apt(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    assert board_image.mirror(tmp_path) == "http://mirror.example/debian"


def test_other_distributions_have_no_such_mirror(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text("deb http://archive.example/ubuntu noble main\n")
    with pytest.raises(SystemExit, match="--mirror"):
        board_image.mirror(tmp_path)


def test_what_fails_ends_the_check_with_what_was_printed() -> None:
    with pytest.raises(SystemExit, match=r"(?s)sh -c .*ended with 3\nwhy"):
        board_image.call("sh", "-c", "echo why; exit 3")


def test_the_install_lines_are_those_of_readme() -> None:
    assert check_readme.install_lines("```sh\npip install .    # this\npip install '.[llm]'\n```\n") == [
        ["."],
        [".[llm]"],
    ]
    assert check_readme.install_lines((ROOT / "README.md").read_text())
    with pytest.raises(SystemExit):
        check_readme.install_lines("make install\n")
