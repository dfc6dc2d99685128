"""`npumatmul bench matmul`: measure cases, print a table, save what was asked for."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from npumatmul.bench import (
    Case,
    Measurement,
    Record,
    cases_from,
    describe_machine,
    measure,
    parse_shapes,
    row_of,
)
from npumatmul.bench.record import Value
from npumatmul.cli.bench_outputs import Outputs, report
from npumatmul.cli.progress import working
from npumatmul.cli.terminal import say
from npumatmul.device.current import current_device
from npumatmul.device.device import Device


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
    outputs: Outputs = field(default_factory=Outputs)

    @property
    def sources(self) -> list[str]:
        """Files that results are made of."""
        return [self.shapes] if self.shapes.endswith(".csv") else []

    @property
    def settings(self) -> dict[str, Value]:
        """What a saved run says that it was asked for."""
        shapes = "file" if self.sources else self.shapes  # names of files are nobody's business
        return {
            "types": self.types, "shapes": shapes, "rows": self.rows, "layouts": self.layouts, "cores": self.cores,
            "repetitions": self.repetitions, "seed": self.seed,
        }  # fmt: skip


def run(request: Request) -> None:
    """Measure every case that the chip can run, in random order, and say which ones were left out.

    Whatever ends it early, what was measured until then is printed and saved.
    """
    request.outputs.check(request.sources)
    shapes = parse_shapes(request.shapes, _integers("--rows", request.rows))
    cores = _integers("--cores", request.cores)
    types, layouts = _names(request.types), _names(request.layouts)
    device = current_device(request.device)
    if max(cores) > device.chip.cores:
        raise ValueError(f"--cores is {request.cores}; {device.chip.soc} has {device.chip.cores}")
    cases = cases_from(types, shapes, layouts, cores)
    problems = {case: case.problem(device.chip, device.runtime_version) for case in cases}
    possible = [case for case, problem in problems.items() if problem is None]
    _say_what_is_left_out(problems)
    if not possible:
        raise ValueError(
            f"nothing is left to measure: none of these products is one that {device.chip.soc} runs at once"
        )
    found: dict[Case, Measurement] = {}
    try:
        _measure(device, possible, request, found)
    finally:  # an interrupt, or a case that failed
        if found:
            _report([found[case] for case in possible if case in found], len(possible), device, request)


def _measure(device: Device, cases: Sequence[Case], request: Request, found: dict[Case, Measurement]) -> None:
    order = list(cases)
    random.Random(request.seed).shuffle(order)  # so that a machine that warms up does not favour the first cases
    macs = sum(case.macs for case in order)
    before = 0
    with working() as progress:
        for index, case in enumerate(order, 1):

            def show(done: int, total: int, case: Case = case, index: int = index, before: int = before) -> None:
                # by work: the largest cases take most of the time
                progress(before + case.macs * done // total, macs, f"{index} of {len(order)}, {case.label}")

            show(0, 1)
            found[case] = measure(device, case, request.repetitions, progress=show)
            before += case.macs


def _say_what_is_left_out(problems: Mapping[Case, str | None]) -> None:
    by_reason: dict[str, list[str]] = {}
    for case, problem in problems.items():
        if problem is not None:
            by_reason.setdefault(problem, []).append(str(case))
    for problem, left_out in by_reason.items():
        say(f"left out {', '.join(left_out)}: {problem}")


def _report(measured: Sequence[Measurement], asked: int, device: Device, request: Request) -> None:
    record = Record(describe_machine(device), [row_of(result) for result in measured], request.settings)
    if len(measured) < asked:
        say(f"{len(measured)} of {asked} cases were measured")
    report(record, request.outputs, request.sources, device.chip.timings)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _integers(option: str, text: str) -> list[int]:
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{option}: {text!r} is not a list of integers") from error
    if min(values) < 1:
        raise ValueError(f"{option}: {text!r} has a value below 1")
    return list(dict.fromkeys(values))
