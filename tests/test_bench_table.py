"""The table of `make bench`: which lines it finds, verdicts, stored runs and comparing them. No time is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench"
sys.path.append(str(BENCH))  # behind, for it has modules whose names others have, too

import table  # noqa: E402
from targets import lines as registry  # noqa: E402
from targets.lines import Count, Turns, UnavailableError, line  # noqa: E402
from targets.measuring import measure  # noqa: E402

MACHINE = {"cpu": "A CPU", "cpus": 2, "host_kernels": "avx2", "timed_on": "CPU simulation of rk3588", "python": "3",
           "numpy": "2", "npumatmul": "0.1.0", "time": "2026", "speeds": {"memcpy": 10.0}}  # fmt: skip


@contextmanager
def no_other_lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[registry.Line]]:
    made: list[registry.Line] = []
    monkeypatch.setattr(registry, "_LINES", made)
    monkeypatch.setattr(table, "all_lines", lambda: list(made))
    monkeypatch.setattr(table, "machine_speeds", lambda seconds: {"memcpy": 10.0})
    yield made


def test_each_subject_has_lines_and_every_name_is_one_lines() -> None:
    names = [each.name for each in registry.all_lines()]
    assert len(names) == len(set(names)) > 50
    modules = {path.stem for path in (BENCH / "targets").glob("*.py")}
    assert modules - {each.subject for each in registry.all_lines()} == {"__init__", "lines", "measuring", "counting"}


def test_two_lines_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with no_other_lines(monkeypatch), pytest.raises(ValueError, match="two lines are called"):

        @line("a work", "another", over=[(1,), (2,)])
        def twice(number: int) -> Iterator[Count]:
            yield Count(number)


@pytest.mark.parametrize(
    ("bounds", "value", "verdict"),
    [
        ({"least": 0.6}, 0.6, "ok"),
        ({"least": 0.6}, 0.59, "MISS"),
        ({"most": 2.0}, 2.0, "ok"),
        ({"most": 2.0}, 2.01, "MISS"),
        ({}, 0.1, ""),
    ],
)
def test_a_line_ends_with_its_verdict(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bounds: dict[str, float],
    value: float,
    verdict: str,
) -> None:
    with no_other_lines(monkeypatch):

        @line("a work", "another", **bounds)
        def counted() -> Iterator[Count]:
            yield Count(value)

        assert table.main(["--seconds", "0.01"]) == 0
    (row,) = (text for text in capsys.readouterr().out.splitlines() if "a work" in text)
    assert row.endswith(verdict or f"{value:.2f}")


def test_values_are_speeds_or_times_and_what_was_prepared_is_cleaned_up(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def turns() -> Iterator[Turns]:
        try:
            yield Turns(lambda: sum(range(20000)), lambda: sum(range(200)))
        finally:
            done.append("cleaned up")

    with no_other_lines(monkeypatch) as made:
        line("speed", "a hundredth", least=1.0)(turns)
        line("time", "a hundredth", most=1.0)(turns)
        speed, time = (measure(each, 0.05).value for each in made)
    assert speed < 1 < time
    assert done == ["cleaned up"] * 2


def test_what_a_machine_lacks_is_said_in_its_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with no_other_lines(monkeypatch):

        @line("a work", "another", least=1.0)
        def unavailable() -> Iterator[Count]:
            raise UnavailableError("needs llama.cpp")
            yield Count(1.0)

        table.main(["--seconds", "0.01"])
    assert "needs llama.cpp" in capsys.readouterr().out


def test_stored_runs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    old = {
        "a: speed / b": (0.5, ">= 1"),
        "a: time / b": (2.0, "<= 3"),
        "a: same / b": (1.0, ""),
        "a: gone / b": (1, ""),
    }
    new = {
        "a: speed / b": (1.0, ">= 1"),
        "a: time / b": (3.0, "<= 3"),
        "a: same / b": (1.01, ""),
        "a: new / b": (1, ""),
    }
    for path, values in ((before, old), (after, new)):
        of = {name: {"value": value, "target": target} for name, (value, target) in values.items()}
        path.write_text(json.dumps({"machine": MACHINE | {"time": path.stem}, "lines": of}))

    def said(*options: str) -> dict[str, str]:
        assert table.main(["--compare", str(before), str(after), *options]) == 0
        out = capsys.readouterr().out
        for run in ("before: A CPU, 2 processors", "now: A CPU, 2 processors", "0.1.0, before", "0.1.0, after"):
            assert run in out
        return {text.split(" / ")[0]: text.split()[-1] for text in out.splitlines() if " / " in text}

    every = {"a: speed": "better", "a: time": "worse", "a: same": "+1%", "a: new": "new", "a: gone": "gone"}
    assert said() == every
    assert said("--only", "time", "--only", "new") == {name: every[name] for name in ("a: time", "a: new")}


def test_an_interrupted_run_keeps_what_it_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.json"
    with no_other_lines(monkeypatch):

        @line("work {}", "another", over=[(1,), (2,)], least=1.0)
        def counted(number: int) -> Iterator[Count]:
            if number == 2:
                raise KeyboardInterrupt
            yield Count(3.0)

        assert table.main(["--seconds", "0.01", "--store", str(path)]) == 130
    assert len(json.loads(path.read_text())["lines"]) == 1
    assert "1 of 2 lines" in capsys.readouterr().err


def test_a_run_is_stored_with_where_it_was_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with no_other_lines(monkeypatch):

        @line("a work", "another", least=1.0)
        def counted() -> Iterator[Count]:
            yield Count(3.0)

        table.main(["--seconds", "0.01", "--store", str(path)])
    run = json.loads(path.read_text())
    assert run["machine"]["speeds"] == {"memcpy": 10.0}
    assert [(each["value"], each["target"]) for each in run["lines"].values()] == [(3.0, ">= 1")]


def test_the_command_says_what_it_cannot_do(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text("[]")
    for given, says in (
        (
            ["--only", "no such line"],
            "there is no line whose name holds any of ['no such line']; subjects are chains, ",
        ),
        (["--compare", str(wrong)], "no run that --store wrote"),
        (["--compare", str(tmp_path / "absent.json")], "absent.json cannot be read: No such file"),
        (["--seconds", "0"], "0 is no time to measure for"),
        (["--seconds", "soon"], "soon is no time to measure for"),
        (["--quick", "--store", str(wrong)], "there is nothing to --store"),
        (["--store", str(tmp_path / "absent" / "run.json")], "is no folder that can be written to"),
        (["--store", str(tmp_path)], "is a folder"),
    ):
        done = subprocess.run([sys.executable, BENCH / "table.py", *given], capture_output=True, text=True, timeout=100)
        assert done.returncode
        assert says in done.stderr
