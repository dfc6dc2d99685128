"""``make bench``: one table of what was measured, beside what, the target, and whether it is reached.

::

    python bench/table.py                               # everything; some minutes
    python bench/table.py --only packing                # a subject, or any part of a line's name; may be repeated
    python bench/table.py --quick                       # every line runs once and says nothing of its speed
    python bench/table.py --store before.json           # for later
    python bench/table.py --compare before.json         # the same lines again, beside what they were
    python bench/table.py --compare before.json after.json   # two stored runs

Ratios are medians of turns in one process. `targets` says how to add a line.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from targets.counting import count_instructions
from targets.lines import Line, UnavailableError, all_lines
from targets.measuring import SECONDS, Figure, machine_speeds, measure

import npumatmul as npu
from npumatmul.bench import describe_machine

#: Ratios of stored runs that differ by less are taken to be the same.
NOISE = 0.1


def describe(speeds: dict[str, float]) -> dict[str, object]:
    """What a stored run says of where it was measured."""
    return {**describe_machine(npu.current_device()).flat(), "speeds": speeds}


def heading(machine: dict[str, Any]) -> str:
    """What stands above a table."""
    speeds = ", ".join(f"{what}: {speed:.1f}" for what, speed in machine["speeds"].items())
    return (
        f"{machine['cpu']}, {machine['cpus']} processors, kernels: {machine['host_kernels']}, {machine['timed_on']}, "
        f"Python {machine['python']}, numpy {machine['numpy']}, npumatmul {machine['npumatmul']}, {machine['time']}\n"
        f"{speeds}"
    )


def table(rows: list[tuple[str, ...]], right: tuple[int, ...]) -> str:
    """Align columns; the first row is the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def show_seconds(seconds: float | None) -> str:
    """In microseconds, or nothing."""
    return "" if seconds is None else f"{seconds * 1e6:.1f} us"


def row_of(line: Line, figure: Figure | str) -> tuple[str, ...]:
    """A line of the table; a figure that is a text says why there is none."""
    if isinstance(figure, str):
        return (line.subject, line.what, line.measure, "-", line.target, "", "", figure)
    value = "ran" if math.isnan(figure.value) else f"{figure.value:.2f}"
    verdict = "" if math.isnan(figure.value) else line.verdict(figure.value)
    count = "" if figure.instructions is None else f"{figure.instructions:,}"
    return (line.subject, line.what, line.measure, value, line.target, show_seconds(figure.seconds), count, verdict)


HEAD = ("subject", "what", "beside", "value", "target", "time", "instructions", "")


def number_of_seconds(text: str) -> float:
    """What `--seconds` takes."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no time to measure for; --quick measures nothing")
    return seconds


def form_of(lines: list[Line]) -> str:
    """A format of rows: each is printed as soon as it is measured."""
    names = [("subject", "what", "beside"), *((line.subject, line.what, line.measure) for line in lines)]
    first, second, third = (max(map(len, column)) for column in zip(*names, strict=True))
    return f"{{:{first}}}  {{:{second}}}  {{:{third}}}  {{:>7}} {{:>7}}  {{:>13}} {{:>13}}  {{}}"


def run(lines: list[Line], seconds: float, instructions: bool) -> Iterator[tuple[Line, Figure | str]]:
    """Measure lines one after the other; in place of a figure there may be why there is none."""
    for line in lines:
        try:
            figure = measure(line, seconds)
            if instructions:
                figure = replace(figure, instructions=count_instructions(line))
            yield line, figure
        except UnavailableError as error:
            yield line, str(error)


def stored(path: Path) -> dict[str, Any]:
    """Read a run that `--store` wrote."""
    try:
        run = json.loads(path.read_text())
        if not {"machine", "lines"} <= run.keys():
            raise ValueError("it has no machine and lines")
        heading(run["machine"])
        for line in run["lines"].values():
            float(line["value"]), line["target"]
        return dict(run)
    except OSError as error:
        raise SystemExit(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise SystemExit(f"{path} is no run that --store wrote: {error!r}") from error


def compared(before: dict[str, Any], now: dict[str, Any]) -> str:
    """How lines changed: their values then and now, and where that is beyond noise."""
    rows: list[tuple[str, ...]] = [("line", "target", "before", "now", "change", "")]
    for name, new in now["lines"].items():
        old = before["lines"].get(name)
        value = f"{new['value']:.2f}"
        if old is None:
            rows.append((name, new["target"], "-", value, "", "new"))
            continue
        change = new["value"] / old["value"] - 1 if old["value"] else 0.0
        better = change < 0 if new["target"].startswith("<=") else change > 0
        says = "" if abs(change) < NOISE else "better" if better else "worse"
        rows.append((name, new["target"], f"{old['value']:.2f}", value, f"{change:+.0%}", says))
    gone = [(name, old["target"], f"{old['value']:.2f}", "-", "", "gone") for name, old in before["lines"].items()
            if name not in now["lines"]]  # fmt: skip
    return table(rows + gone, right=(2, 3, 4))


def wanted(name: str, only: list[str]) -> bool:
    """Whether a line is among those that `--only` asks for."""
    return not only or any(part in name for part in only)


def subjects() -> list[str]:
    """What lines are about, in their order."""
    return list(dict.fromkeys(each.subject for each in all_lines()))


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--only", action="append", default=[], metavar="TEXT",
        help="lines whose subject, work and reference hold this text; repeated, those that hold any of them",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="each line once: that it runs")
    parser.add_argument(
        "--seconds", type=number_of_seconds, default=SECONDS,
        help="how long a line is timed, though seven rounds at least (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--instructions", action="store_true", help="count instructions by callgrind, too: half a minute a line"
    )
    parser.add_argument("--store", type=Path, help="write the run as JSON")
    parser.add_argument("--compare", type=Path, nargs="+", metavar="RUN", help="a stored run, or two of them")
    asked = parser.parse_args(arguments)
    if asked.compare and len(asked.compare) > 2:
        parser.error("--compare takes one stored run, or two")
    if asked.compare and asked.quick:
        parser.error("--quick measures nothing that could be compared")
    if asked.store and (asked.quick or len(asked.compare or ()) == 2):
        parser.error(
            f"nothing is measured with {'--quick' if asked.quick else 'two runs'}: there is nothing to --store"
        )
    if asked.store and not (asked.store.parent.is_dir() and os.access(asked.store.parent, os.W_OK)):
        parser.error(f"--store {asked.store}: {asked.store.parent} is no folder that can be written to")
    if asked.store and asked.store.is_dir():
        parser.error(f"--store {asked.store} is a folder")
    before = [stored(path) for path in asked.compare or ()]
    if len(before) == 2:
        for each in before:
            each["lines"] = {name: line for name, line in each["lines"].items() if wanted(name, asked.only)}
        if not any(each["lines"] for each in before):
            parser.error(f"neither run has a line whose name holds any of {asked.only}")
        for when, each in zip(("before", "now"), before, strict=True):
            print(f"{when}: {heading(each['machine'])}")
        print(compared(*before))
        return 0

    lines = [each for each in all_lines() if wanted(each.name, asked.only)]
    if before and not asked.only:
        lines = [each for each in lines if each.name in before[0]["lines"]]
    if asked.quick:
        lines = [each for each in lines if not each.long]
    if not lines:
        asked_for = f"whose name holds any of {asked.only}" if asked.only else f"of {asked.compare[0]}"
        parser.error(f"there is no line {asked_for}; subjects are {', '.join(subjects())}")
    seconds = 0.0 if asked.quick else asked.seconds
    machine = describe({} if asked.quick else machine_speeds(seconds))
    print(heading(machine))
    print("value: speed beside the reference's, or time where the target is an upper bound; the CPU simulates products")
    form, figures = form_of(lines), {}
    print(form.format(*HEAD).rstrip())
    interrupted = False
    try:
        for each, figure in run(lines, seconds, asked.instructions):
            print(form.format(*row_of(each, figure)).rstrip(), flush=True)
            if isinstance(figure, Figure) and not math.isnan(figure.value):
                figures[each.name] = {**asdict(figure), "target": each.target}
    except KeyboardInterrupt:
        print(f"interrupted: {len(figures)} of {len(lines)} lines were measured", file=sys.stderr)
        interrupted = True
    now = {"machine": machine, "lines": figures}
    if asked.store:
        asked.store.write_text(json.dumps(now, indent=1) + "\n")
    if before:
        print(f"before: {heading(before[0]['machine'])}")
        print(compared(before[0], now))
    return 130 if interrupted else 0


if __name__ == "__main__":
    raise SystemExit(main())
