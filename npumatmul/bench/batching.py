"""`bench batch`: how many rows to multiply at once (what BenchmarkBatchSize of go-rknnlite tells of models)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from npumatmul.bench.benchmark import Benchmark, Numbers, Progress, numbers_of
from npumatmul.bench.cases import Case
from npumatmul.bench.operands import Operands
from npumatmul.bench.record import Row, Value
from npumatmul.bench.sampling import Stopwatch, settle
from npumatmul.bench.statistics import summarise
from npumatmul.board.slowdown import SlowdownWatch
from npumatmul.device.device import Device
from npumatmul.errors import DeviceError
from npumatmul.ops import Matmul, pack
from npumatmul.planning.product import plan_matmul
from npumatmul.quant.routes import route_for
from npumatmul.quant.schemes import Scheme

__all__ = ["BatchBenchmark", "best_batch", "go_lines"]

#: A larger batch is better where it saves at least this share of each row's time: else it only makes rows wait.
_GAIN = 0.05


@dataclass(frozen=True, kw_only=True)
class BatchBenchmark(Benchmark):
    """Products of more and more rows with one weight, which is packed once: time of a batch, and of each row in it.

    A batch is gathered row by row, multiplied, and its results stand in an array again.

    Attributes
    ----------
    k, n : int
    rows : str, int or sequence of int
        Sizes of batches.
    scheme : str
    check : bool
        Whether results are compared with exact ones.
    """

    name: ClassVar[str] = "batch"

    k: int = 2048
    n: int = 2048
    rows: Numbers = "1,4,8,16"
    scheme: str = "w8a8"
    check: bool = True

    def prepare(self, device: Device) -> list[str]:
        self.sampling  # noqa: B018 - looks at its options
        numbers_of(self.rows, "rows")
        if self.k < 1 or self.n < 1:
            raise ValueError(f"k is {self.k} and n {self.n}; both are 1 or more")
        scheme = Scheme.parse(self.scheme)
        if scheme.static:
            raise ValueError(f"scheme: {self.scheme} needs a calibration; take its like that measures each row")
        try:
            route_for(scheme, device.chip, device.runtime_version)
        except DeviceError as error:
            raise ValueError(f"scheme: {error}") from error
        return []

    def measure(self, device: Device, progress: Progress = lambda done, total, what: None) -> Iterator[Row]:
        sizes, sampling = sorted(numbers_of(self.rows, "rows")), self.sampling
        watch = SlowdownWatch(self.root, self.throttle)
        scheme = Scheme.parse(self.scheme)
        route = route_for(scheme, device.chip, device.runtime_version)
        case = Case(self.scheme, sizes[-1], self.k, self.n)
        operands = Operands.of_scheme(case, route, np.random.default_rng(self.seed))
        done, total = 0, sum(sizes)
        with pack(operands.b, scheme, device=device) as packed:
            assert packed.plan is not None
            for size in sizes:
                progress(done, total, f"batches of {size}")
                given = list(operands.a[:size])
                batch = np.empty_like(operands.a[:size])
                stopwatch = Stopwatch()
                with Matmul(batch, packed) as product:
                    result = _multiply(given, batch, product)
                    if self.check:
                        Operands(batch, operands.b, operands.rounding).check(result, f"a batch of {size}")
                    settle(product.execute)
                    for _ in sampling.rounds(stopwatch, ["batch"]):
                        stopwatch.time("batch", _multiply, given, batch, product)
                plan = plan_matmul(size, packed.plan, timings=device.chip.timings)
                yield self._row(size, stopwatch.seconds, plan.cores, plan.modelled_seconds, watch.reasons())
                done += size
        progress(total, total, "done")

    def _row(
        self, size: int, seconds: dict[str, list[float]], cores: int, modelled: float | None, slow: list[str]
    ) -> Row:
        median = summarise(seconds["batch"]).median
        fields: dict[str, Value] = {"type": self.scheme, "m": size, "k": self.k, "n": self.n}
        figures: dict[str, Value] = {
            "ms_per_batch": median * 1e3, "ms_per_row": median * 1e3 / size,
            "modelled_ms_per_row": None if modelled is None else modelled * 1e3 / size,
            "cores": cores, "gops": 2 * size * self.k * self.n / median / 1e9, "checked": self.check,
        }  # fmt: skip
        marks = [*self.sampling.mark(seconds, ["batch"]), *slow]
        return Row(self.name, fields, seconds, figures, {} if modelled is None else {"batch": modelled}, marks)


def best_batch(rows: Sequence[Row], figure: str = "ms_per_row") -> int | None:
    """The smallest batch that no larger one beats by more than a twentieth of a row's time; None without figures.

    Examples
    --------
    >>> def row(size, milliseconds):
    ...     return Row("batch", {"m": size}, {"batch": [1.0]}, {"ms_per_row": milliseconds})
    >>> best_batch([row(1, 8.806), row(4, 5.389), row(8, 2.792), row(16, 2.70)])
    8
    """
    found = [(size, value) for row in rows if (size := row.case["m"]) and (value := row.figures.get(figure))]
    times = {int(size): float(value) for size, value in found}
    for size, milliseconds in sorted(times.items()):
        if all(other >= (1 - _GAIN) * milliseconds for larger, other in times.items() if larger > size):
            return size
    return None


def go_lines(rows: Sequence[Row], processors: int | None = None) -> list[str]:
    """Lines as ``go test -bench=BenchmarkBatchSize`` prints them, for tools that read those.

    Parameters
    ----------
    rows : sequence of Row
        Of `BatchBenchmark`.
    processors : int, optional
        What stands behind each name; those of this machine by default.

    Examples
    --------
    >>> row = Row("batch", {"m": 4}, {"batch": [0.021555109]}, {"ms_per_batch": 21.555109, "ms_per_row": 5.38877725})
    >>> " ".join(go_lines([row], 8)[0].split())
    'BenchmarkBatchSize/Batch04-8 1 21555109 ns/op 21.56 ms/batch 5.389 ms/row'
    """
    count = (os.cpu_count() or 1) if processors is None else processors
    lines = []
    for row in rows:
        times = row.seconds["batch"]
        name = f"BenchmarkBatchSize/Batch{row.case['m']:02}-{count}"
        figures = f"{_go(summarise(times).median * 1e9)} ns/op\t{_go(row.figures['ms_per_batch'])} ms/batch"
        lines.append(f"{name}\t{len(times):8d}\t{figures}\t{_go(row.figures['ms_per_row'])} ms/row")
    return lines


def _go(value: Value) -> str:
    """A figure as Go's testing package prints it: four digits, and the points below each other."""
    number = float(value or 0.0)
    limits = (999.95, 99.995, 9.9995, 0.99995, 0.099995, 0.0099995, 0.00099995)
    digits = next((digits for digits, limit in enumerate(limits) if number >= limit), 7) if number else 0
    return f"{number:{10 if digits == 0 else 11 + digits}.{digits}f}"


def _multiply(given: Sequence[NDArray[Any]], batch: NDArray[Any], product: Matmul[Any]) -> NDArray[Any]:
    for index, row in enumerate(given):
        batch[index] = row
    return np.asarray(product.execute())
