"""`bench matmul`: every case by itself, in random order, the first one once more at the end."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from npumatmul.bench.benchmark import Benchmark, Names, Numbers, Progress, names_of, numbers_of
from npumatmul.bench.cases import Case, cases_from
from npumatmul.bench.measure import Caches, measure
from npumatmul.bench.record import Row
from npumatmul.bench.shapes import parse_shapes
from npumatmul.bench.statistics import summarise
from npumatmul.board.slowdown import SlowdownWatch
from npumatmul.device.device import Device

__all__ = ["CasesBenchmark", "MatmulBenchmark"]

#: A change of the first case between beginning and end that is marked, where it is beyond the precision as well.
_DRIFT = 0.05


@dataclass(frozen=True, kw_only=True)
class CasesBenchmark(Benchmark):
    """Measurements of single cases.

    Attributes
    ----------
    cold : bool
        Whether runs and products are timed with empty caches, too.
    check : bool
        Whether results are compared with exact ones.
    """

    cold: bool = True
    check: bool = True

    def cases(self, device: Device) -> list[Case]:
        """All that is asked for."""
        raise NotImplementedError

    def prepare(self, device: Device) -> list[str]:
        self.sampling  # noqa: B018 - looks at its options
        possible, problems = self._sorted(device)
        if not possible:
            reasons = "; ".join(problems) or "no case is asked for"
            raise ValueError(f"nothing is left to measure on {device.chip.soc}: {reasons}")
        return [f"left out {', '.join(map(str, cases))}: {problem}" for problem, cases in problems.items()]

    def _sorted(self, device: Device) -> tuple[list[Case], dict[str, list[Case]]]:
        """Cases that the chip can run, and the others by what is in the way."""
        possible: list[Case] = []
        problems: dict[str, list[Case]] = {}
        for case in self.cases(device):
            problem = case.problem(device.chip, device.runtime_version)
            (possible if problem is None else problems.setdefault(problem, [])).append(case)
        return possible, problems

    def ordered(self, cases: list[Case]) -> list[Case]:
        """The order to measure them in: at random, so that a machine that warms up does not favour the first ones."""
        return random.Random(self.seed).sample(cases, len(cases))

    def measure(self, device: Device, progress: Progress = lambda done, total, what: None) -> Iterator[Row]:
        order = self.ordered(self._sorted(device)[0])
        again = order[:1] if len(order) > 1 else []
        macs = sum(case.macs for case in (*order, *again))
        watch = SlowdownWatch(self.root, self.throttle)
        caches = Caches() if self.cold else None
        done, first = 0, None
        for index, case in enumerate((*order, *again), 1):
            # by work: the largest cases take most of the time
            progress(done, macs, f"{index} of {len(order) + len(again)}, {case.label}")
            row = measure(device, case, self.sampling, check=self.check, caches=caches, watch=watch, seed=self.seed)
            first = first or row
            yield _drift(first, row, self.precision) if index > len(order) else row
            done += case.macs
        progress(macs, macs, "done")

    def arranged(self, rows: Sequence[Row], device: Device) -> list[Row]:
        """By what was asked for; what is no case of that stands behind."""
        places = {tuple(case.fields.items()): index for index, case in enumerate(self.cases(device))}
        mine = [row for row in rows if row.what == self.name]
        mine.sort(key=lambda row: places.get(tuple(row.case.items()), len(places)))
        return [*mine, *(row for row in rows if row.what != self.name)]


def _drift(first: Row, again: Row, precision: float) -> Row:
    """What became of the first case until the end."""
    before, after = (summarise(row.seconds["run"]).median for row in (first, again))
    change = after / before - 1
    marks = [f"the first case takes {100 * change:+.1f} % now"] if abs(change) > max(_DRIFT, 2 * precision) else []
    figures = {"first_run_us": before * 1e6, "drift_percent": 100 * change}
    return Row("drift", again.case, {"run": again.seconds["run"]}, figures, {}, [*marks, *again.marks])


@dataclass(frozen=True, kw_only=True)
class MatmulBenchmark(CasesBenchmark):
    """Products of many shapes: what each step takes.

    Attributes
    ----------
    types : str or sequence of str
        Matmul types (`TYPES`) and schemes.
    schemes : str or sequence of str
        Further schemes.
    shapes : str or sequence of (int, int, int)
        As `parse_shapes` takes them, or (M, K, N) each.
    rows : str, int or sequence of int
        Values of M where shapes give none.
    layouts : str or sequence of str
        Of A and C.
    cores : str, int or sequence of int
        How many share N.
    """

    name: ClassVar[str] = "matmul"

    types: Names = "fp16,int8"
    schemes: Names = ()
    shapes: str | Sequence[tuple[int, int, int]] = "llm"
    rows: Numbers = "1,8,64,256"
    layouts: Names = "native"
    cores: Numbers = "1"

    @property
    def settings(self) -> dict[str, str | int | float | bool | None]:
        found = super().settings
        if isinstance(self.shapes, str) and self.shapes.endswith(".csv"):
            found["shapes"] = "file"  # names of files are nobody's business
        return found

    def cases(self, device: Device) -> list[Case]:
        shapes = self.shapes
        if isinstance(shapes, str):
            shapes = parse_shapes(shapes, numbers_of(self.rows, "rows"))
        types = names_of(self.types, "types") if self.types else []
        types += names_of(self.schemes, "schemes") if self.schemes else []
        cores = numbers_of(self.cores, "cores")
        if max(cores) > device.chip.cores:
            raise ValueError(f"cores: {max(cores)} are asked for; {device.chip.soc} has {device.chip.cores}")
        return cases_from(list(dict.fromkeys(types)), shapes, names_of(self.layouts, "layouts"), cores)
