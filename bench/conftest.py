"""`beside`: how a speed is measured here, and the table of all of them.

A figure is a ratio to something known that is timed in the same process, in turns with it: the speed of the machine,
and of whoever else uses it, cancels. ``make bench`` runs everything and prints the table; ``--benchmark-save`` and
``--benchmark-compare`` of pytest-benchmark work as always.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from rich.console import Console
from rich.table import Table

import npumatmul as npu
from npumatmul.bench import describe_machine
from npumatmul.host import kernels

Work = Callable[[], object]
Beside = Callable[[str, Work, str, Work], None]
#: A work and its reference together run for about so long, within these numbers of rounds.
SECONDS = 1.0
FEWEST, MOST = 5, 2000


@dataclass(frozen=True)
class Line:
    """One line of the table; times in seconds."""

    what: str
    seconds: float
    reference: str
    reference_seconds: float


_LINES = pytest.StashKey[list[Line]]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin an empty table."""
    config.stash[_LINES] = []


@pytest.fixture
def beside(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Beside:
    """Time some work in turns with a reference: ``beside("pack B", work, "memcpy", reference)``."""

    def measure(what: str, work: Work, reference_name: str, reference: Work) -> None:
        references: list[float] = []

        def timed_reference() -> None:
            start = time.perf_counter()
            reference()
            references.append(time.perf_counter() - start)

        start = time.perf_counter()
        work(), reference()
        rounds = min(max(int(SECONDS / (time.perf_counter() - start)), FEWEST), MOST)
        benchmark.pedantic(work, setup=timed_reference, rounds=rounds, warmup_rounds=2)
        if benchmark.stats is None:  # --benchmark-disable
            return
        line = Line(what, float(benchmark.stats.stats.median), reference_name, statistics.median(references))
        benchmark.extra_info["speed ratio"] = line.reference_seconds / line.seconds
        request.config.stash[_LINES].append(line)

    return measure


def pytest_terminal_summary(config: pytest.Config) -> None:
    """Print the ratios, and what they were measured on."""
    lines = config.stash[_LINES]
    if not lines:
        return
    table = Table(title="medians of turns; above 1 is faster than the reference", title_justify="left")
    for column in ("what", "time", "beside", "its time", "speed ratio"):
        table.add_column(column, justify="left" if column in ("what", "beside") else "right")
    for line in lines:
        times = [f"{seconds * 1e6:.0f} us" for seconds in (line.seconds, line.reference_seconds)]
        table.add_row(line.what, times[0], line.reference, times[1], f"{line.reference_seconds / line.seconds:.2f}")
    console = Console(width=130, highlight=False)
    console.print(table)
    device = npu.current_device()
    console.print(
        f"{describe_machine(device).cpu}, kernels: {kernels.instruction_set()}, {device.name} (CPU simulation: "
        f"products say nothing about the speed of a chip), Python {sys.version.split()[0]}, numpy {np.__version__}, "
        f"npumatmul {npu.__version__}"
    )
