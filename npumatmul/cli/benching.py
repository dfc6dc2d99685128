"""Runs a benchmark, prints its tables, and saves what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from npumatmul.bench import Record, Row, describe_machine
from npumatmul.bench.batching import best_batch, go_lines
from npumatmul.bench.benchmark import Benchmark
from npumatmul.cli.bench_outputs import Outputs, report
from npumatmul.cli.progress import working
from npumatmul.cli.terminal import say
from npumatmul.device.current import current_device
from npumatmul.device.device import Device

__all__ = ["run", "say_best_batch"]


def run(
    benchmark: Benchmark, device: str | None, outputs: Outputs, sources: Sequence[str | Path] = ()
) -> tuple[Device, Sequence[Row]]:
    """Measure, and say what was left out.

    Whatever ends it early, what was measured until then is printed and saved.

    Parameters
    ----------
    benchmark : Benchmark
    device : str or None
    outputs : Outputs
    sources : sequence of path-like
        Files that results are made of.
    """
    outputs.check(sources)
    target = current_device(device)
    for note in benchmark.prepare(target):
        say(note)
    machine, found = describe_machine(target), list[Row]()
    complete = False
    try:
        with working() as progress:
            for row in benchmark.measure(target, progress):
                found.append(row)
        complete = True
    finally:  # an interrupt, or a case that failed
        if found:
            if not complete:
                say(f"it ended early; {len(found)} {'row was' if len(found) == 1 else 'rows were'} measured until then")
            report(Record(machine, found, benchmark.settings), outputs, sources, target.chip.timings)
    return target, found


def say_best_batch(rows: Sequence[Row], outputs: Outputs) -> None:
    """Lines that tools of Go read, and which batch is best."""
    for line in go_lines(rows):
        outputs.console.print(line, soft_wrap=True)
    best = best_batch(rows)
    if best is not None:
        outputs.console.print(f"best batch: {best}; no larger one saves a twentieth of a row's time", soft_wrap=True)
    modelled = best_batch(rows, "modelled_ms_per_row")
    if modelled is not None:
        outputs.console.print(f"best batch on the chip by its timing model, not measured: {modelled}", soft_wrap=True)
