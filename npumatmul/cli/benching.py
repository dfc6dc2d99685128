"""`npumatmul bench matmul`: measure cases, print a table, save what was asked for."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from npumatmul.bench import as_csv, as_json, as_table, cases_from, describe_machine, measure, parse_shapes
from npumatmul.cli.files import picture_format
from npumatmul.device.current import current_device
from npumatmul.files.writing import check_output, write_bytes, write_text

#: Progress and notes go to standard error, so that the table can be piped on.
notes = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Request:
    """What is asked for; the fields are the options of the command."""

    types: str = "fp16,int8"
    shapes: str = "llm"
    rows: str = "1,8,64,256"
    layouts: str = "native"
    cores: str = "1"
    device: str | None = None
    repetitions: int = 30
    seed: int = 0
    csv: Path | None = None
    json: Path | None = None
    plot: Path | None = None


def run(request: Request) -> None:
    """Measure every case that the chip can run, in random order, and say which ones were left out."""
    device = current_device(request.device)
    sources = [request.shapes] if request.shapes.endswith(".csv") else []
    for path in (request.csv, request.json, request.plot):
        if path is not None:
            check_output(path, sources)
    if request.plot is not None:
        picture_format(request.plot)
    shapes = parse_shapes(request.shapes, _integers("rows", request.rows))
    cores = _integers("cores", request.cores)
    cases = cases_from(request.types.split(","), shapes, request.layouts.split(","), cores)
    problems = {case: case.problem(device.chip, device.runtime_version) for case in cases}
    possible = [case for case in cases if problems[case] is None]
    for case, problem in problems.items():
        if problem is not None:
            notes.print(f"left out {case}: {problem}")
    if not possible:
        raise ValueError("bench: there is nothing to measure")
    order = list(possible)
    random.Random(request.seed).shuffle(order)  # so that a machine that warms up does not favour the first cases
    found = {}
    with Progress(console=notes, transient=True, disable=not notes.is_terminal) as bar:
        task = bar.add_task("measuring", total=len(order))
        for case in order:
            found[case] = measure(device, case, request.repetitions)
            bar.advance(task)
    results = [found[case] for case in possible]
    machine = describe_machine(device)
    output = Console(highlight=False, width=None if notes.is_terminal else 150)
    output.print(as_table(results))
    output.print(", ".join(f"{name} {value}" for name, value in machine.items()), soft_wrap=True)
    if request.csv is not None:
        write_text(request.csv, as_csv(results), sources)
    if request.json is not None:
        write_text(request.json, as_json(results, machine), sources)
    if request.plot is not None:
        from npumatmul.bench.roofline import roofline

        write_bytes(request.plot, roofline(results, device.chip.soc, picture_format(request.plot)), sources)


def _integers(name: str, text: str) -> list[int]:
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{name}: {text!r} is not a list of integers") from error
    if min(values) < 1:
        raise ValueError(f"{name}: {text!r} has a value below 1")
    return values
