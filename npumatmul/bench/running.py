"""Benchmarks by name, for Python."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from npumatmul.bench.bandwidth import BandwidthBenchmark
from npumatmul.bench.batching import BatchBenchmark
from npumatmul.bench.benchmark import Benchmark, Progress
from npumatmul.bench.cores import CoresBenchmark
from npumatmul.bench.layouts import LayoutBenchmark
from npumatmul.bench.llm_bench import LlmBenchmark
from npumatmul.bench.machine import describe_machine
from npumatmul.bench.matmul_bench import MatmulBenchmark
from npumatmul.bench.overhead import OverheadBenchmark
from npumatmul.bench.record import Record, Row
from npumatmul.device.current import current_device
from npumatmul.device.device import Device

__all__ = ["BENCHMARKS", "benchmark", "run"]

#: Benchmarks by name.
BENCHMARKS: Mapping[str, type[Benchmark]] = {
    each.name: each
    for each in (
        MatmulBenchmark, LlmBenchmark, BandwidthBenchmark, OverheadBenchmark, LayoutBenchmark, CoresBenchmark,
        BatchBenchmark,
    )
}  # fmt: skip


def benchmark(what: str, options: Mapping[str, Any]) -> Benchmark:
    """A benchmark with its options.

    Raises
    ------
    ValueError
        If there is none of that name.
    TypeError
        If it has no such option.
    """
    kind = BENCHMARKS.get(what)
    if kind is None:
        raise ValueError(f"run: there is no benchmark {what!r}; there are {', '.join(BENCHMARKS)}")
    known = [field.name for field in fields(kind) if field.name not in kind.unused]
    for name in options:
        if name not in known:
            raise TypeError(f"run: {what!r} has no option {name!r}; it has {', '.join(known)}")
    return kind(**options)


def run(
    what: str,
    /,
    *,
    device: Device | str | None = None,
    rows_into: list[Row] | None = None,
    progress: Progress = lambda done, total, what: None,
    **options: Any,
) -> Record:
    """Measure, as ``npumatmul bench <what>`` does.

    Parameters
    ----------
    what : str
        ``"matmul"``, ``"llm"``, ``"bandwidth"``, ``"overhead"``, ``"layout"``, ``"cores"`` or ``"batch"``.
    device : Device or str, optional
        The current device by default.
    rows_into : list, optional
        Receives each row when it is measured, so that nothing is lost when something ends it early.
    progress : callable, optional
        Called with (what is done, of how much, what goes on).
    **options
        Those of the command, with underscores, as strings or as numbers and sequences; ``repetitions=30`` times
        everything so often, and without it until its median is known to within ``precision``. All are described at the
        class of each benchmark in `npumatmul.bench.running.BENCHMARKS`.

    Returns
    -------
    Record
        Where it was measured, the options, and the rows.

    Raises
    ------
    ValueError
        If there is no such benchmark, a value makes no sense, or the chip can run nothing of what is asked for.
    TypeError
        If there is no such option.
    RuntimeError
        If a result is wrong.

    Warns
    -----
    UserWarning
        For what the chip cannot run, which is left out.

    Examples
    --------
    >>> from npumatmul import bench
    >>> record = bench.run("matmul", device="sim:rk3588", types="int8", shapes="4x64x32", repetitions=3, cold=False)
    >>> record.machine.timed_on, [row.label for row in record.rows]
    ('CPU simulation of rk3588', ['int8 4x64x32'])
    >>> len(record.rows[0].seconds["run"])
    3
    """
    asked = benchmark(what, options)
    found = [] if rows_into is None else rows_into
    target = current_device(device)
    for note in asked.prepare(target):
        warnings.warn(note, UserWarning, stacklevel=2)
    machine = describe_machine(target)
    before = len(found)
    found += asked.measure(target, progress)
    return Record(machine, asked.arranged(found[before:], target), asked.settings)
