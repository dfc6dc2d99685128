"""What commands print: tables that are complete at any width, and progress that says how long the rest may take."""

from __future__ import annotations

import io
import itertools
import logging
import re
from collections.abc import Callable

import pytest
from rich.cells import cell_len
from rich.console import Console
from typer.testing import CliRunner

from npumatmul.cli.app import app
from npumatmul.cli.progress import LINE_SECONDS, Pace, working
from npumatmul.cli.tables import Column, print_table
from npumatmul.cli.terminal import Once, notes, results

ROWS = Column("case", ["int8 1x64x32", "fp16 256x4096x4096 normal 3 cores"], left=True)
COLUMNS = [
    Column("run", ["1234567", "8"]),
    Column("two\nlines of heading", ["0.000123", "99.5 %"]),
    Column("perplexity", ["835.4486 ± 134.7554", "1.0000 ± 0.0001"]),
    *(Column(f"column {i}", [f"{i}{i}{i}{i}.{i}", f"-{i}"]) for i in range(6)),
]


def printed(width: int, columns: list[Column] = COLUMNS, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding=encoding, errors="replace"), width=width)
    print_table(console, "the title", ROWS, columns)
    console.file.flush()
    assert console.width == width
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [10, 40, 60, 61, 79, 80, 100, 132, 200, 1000])
def test_tables_are_complete_at_any_width(width: int) -> None:
    text = printed(width)
    for column in (ROWS, *COLUMNS):
        for cell in (*column.heading.split("\n"), *column.cells):
            assert re.search(rf"(?<!\S){re.escape(cell)}(?!\S)", text), cell
    assert "…" not in text
    if width >= 60:  # the names of rows and the widest column fit
        assert max(map(cell_len, text.splitlines())) <= width


def test_what_is_most_important_stands_first() -> None:
    wide, narrow = printed(1000), printed(80)
    assert wide.count("case") == 1
    assert narrow.count("case") > 1
    first = narrow[: narrow.index("└")]
    assert "1234567" in first
    assert "column 5" not in first
    order = [wide.index(column.heading.split("\n")[-1]) for column in COLUMNS]
    assert order == sorted(order)


def test_terminals_without_line_characters() -> None:
    assert printed(80, encoding="ascii").count("?") == 1 + 1  # the two ± of figures, none of lines


def test_names_of_files_are_no_markup() -> None:
    console = Console(file=io.StringIO(), width=80, markup=notes._markup, emoji=notes._emoji)
    print_table(console, "[bold]/a[/b] :smile:", Column("x", ["[/red]"], left=True), [Column("y", ["1"])])
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "[bold]/a[/b] :smile:" in text
    assert "[/red]" in text


def test_output_that_nobody_looks_at_is_as_wide_as_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert results().width > 1000
    monkeypatch.setenv("COLUMNS", "66")
    assert results().width == 66


def clock_of(*seconds: float) -> Callable[[], float]:
    times = itertools.chain(seconds, itertools.repeat(seconds[-1]))
    return lambda: next(times)


@pytest.mark.parametrize(
    ("done", "elapsed", "expected"),
    [
        (10, 5, "10 %, 0:05, about 45 s left"),
        (50, 600, "50 %, 10:00, about 10 min left"),
        (1, 200, "1 %, 3:20, about 5.5 h left"),
        (99, 99, "99 %, 1:39, about 1 s left"),
        (100, 42, "100 %, 0:42"),
    ],
)
def test_pace(done: int, elapsed: float, expected: str) -> None:
    pace = Pace(clock_of(0, 0, elapsed))
    pace.note(0, 100)
    pace.note(done, 100)
    assert pace.text() == expected


def test_what_is_left_becomes_less_while_a_step_takes_long() -> None:
    pace = Pace(clock_of(0, 0, 10, 10, 15, 100))
    pace.note(0, 4)
    pace.note(1, 4)
    assert [pace.text() for _ in range(3)] == [
        "25 %, 0:10, about 30 s left", "25 %, 0:15, about 25 s left", "25 %, 1:40, about 1 s left",
    ]  # fmt: skip


def test_each_step_has_a_pace_of_its_own() -> None:
    pace = Pace(clock_of(0, 0, 100, 100, 101, 101))
    pace.note(0, 10)
    pace.note(10, 10)  # 100 seconds
    pace.note(0, 20)
    pace.note(10, 20)  # 1 second
    assert pace.text() == "50 %, 0:01, about 1 s left"


def test_lines_now_and_then_where_no_terminal_looks_on() -> None:
    output = io.StringIO()
    seconds = itertools.count()

    def clock() -> float:
        return next(seconds) / 4  # looked at two or three times for each step

    with working(console=Console(file=output, width=40), clock=clock) as progress:
        for done in range(100):
            progress(done, 100, "quantizing a layer with a long name")
    lines = output.getvalue().splitlines()
    total = next(seconds) / 4
    assert total / LINE_SECONDS - 2 <= len(lines) <= total / LINE_SECONDS
    assert all(
        re.fullmatch(r"quantizing a layer with a long name: \d+ %, \d:\d\d, about \d+ s left", line) for line in lines
    )


def test_short_work_writes_nothing() -> None:
    output = io.StringIO()
    with working(console=Console(file=output), clock=clock_of(0, 5)) as progress:
        for done in range(100):
            progress(done, 100, "work")
    with working(lines=False, console=Console(file=output), clock=clock_of(0, 500)) as progress:
        progress(1, 2, "work")
    assert output.getvalue() == ""


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_bar_on_a_terminal(width: int) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=width, color_system=None)
    now = [0.0]
    with working(console=console, clock=lambda: now[0]) as progress:
        progress(0, 100, "quantizing blk.11.gate_up")
        now[0] = 10
        progress(25, 100, "quantizing blk.11.gate_up")
    lines = re.split(r"[\r\n]|\x1b\[[0-9;?]*[A-Za-z]", output.getvalue())
    assert max(map(cell_len, lines)) <= width
    assert any("about 30 s left" in line for line in lines)


def test_an_interrupt_leaves_the_terminal_as_it_was() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=60)

    def work() -> None:
        with working(console=console) as progress:
            progress(1, 2, "work")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert output.getvalue().rindex("\x1b[?25h") > output.getvalue().rindex("\x1b[?25l")  # the cursor is shown again


def test_advice_is_given_once() -> None:
    once = Once()

    def passes(level: int, message: str, *values: object) -> bool:
        return once.filter(logging.LogRecord("npumatmul.x", level, __file__, 1, message, values, None))

    assert passes(logging.WARNING, "%s has no %d", "a", 1)
    assert passes(logging.WARNING, "%s has no %d", "b", 1)
    assert not passes(logging.WARNING, "%s has no %d", "a", 1)
    assert passes(logging.INFO, "packing")
    assert passes(logging.INFO, "packing")


def test_handlers_of_a_program_that_calls_the_command_stay_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    """A filter of the command on them would swallow what that program says twice."""
    before = [list(handler.filters) for handler in logging.getLogger().handlers]
    assert before
    assert CliRunner().invoke(app, ["probe", "--list"]).exit_code == 0
    assert [list(handler.filters) for handler in logging.getLogger().handlers] == before
