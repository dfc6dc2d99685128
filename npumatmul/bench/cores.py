"""`bench cores`: one core, two, ... all of them; and which core masks the runtime takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from npumatmul.bench.benchmark import Names, Numbers, Progress, names_of, numbers_of
from npumatmul.bench.cases import TYPES, Case, cases_from
from npumatmul.bench.contexts import BoundTiles, Tile
from npumatmul.bench.matmul_bench import CasesBenchmark
from npumatmul.bench.record import Row, Value
from npumatmul.bench.sampling import Stopwatch
from npumatmul.bench.shapes import parse_shapes
from npumatmul.bench.statistics import summarise
from npumatmul.device.device import Device
from npumatmul.errors import RknnError
from npumatmul.rknn import CoreMask

__all__ = ["CoresBenchmark"]


@dataclass(frozen=True, kw_only=True)
class CoresBenchmark(CasesBenchmark):
    """Products whose N is shared by one core, by two, ...: how much faster they are together.

    Attributes
    ----------
    types : str or sequence of str
    shapes : str
    rows : str, int or sequence of int
        Values of M where shapes give none.
    masks : bool
        Whether one context is run with each core mask, too.
    """

    name: ClassVar[str] = "cores"

    types: Names = "int8"
    shapes: str = "2048x4096"
    rows: Numbers = "1,128"
    masks: bool = True
    cold: bool = False

    def cases(self, device: Device) -> list[Case]:
        shapes = parse_shapes(self.shapes, numbers_of(self.rows, "rows"))
        return cases_from(names_of(self.types, "types"), shapes, cores=range(1, device.chip.cores + 1))

    def ordered(self, cases: list[Case]) -> list[Case]:
        return sorted(super().ordered(cases), key=lambda case: case.cores)  # that one core is known first

    def measure(self, device: Device, progress: Progress = lambda done, total, what: None) -> Iterator[Row]:
        alone: dict[tuple[Value, ...], dict[str, float]] = {}
        for row in super().measure(device, progress):
            if row.what != "matmul":
                yield row
                continue
            shape = tuple(row.case[name] for name in ("type", "m", "k", "n"))
            medians = {name: summarise(row.seconds[name]).median for name in ("run", "matmul")}
            one = alone.setdefault(shape, medians)
            speedups = {f"{name}_speedup": one[name] / median for name, median in medians.items()}
            yield replace(row, what=self.name, figures={**row.figures, **speedups})
        if self.masks:
            yield from self._masks(device)

    def _masks(self, device: Device) -> Iterator[Row]:
        """One context with each mask: combined ones fail on some runtimes, and all on chips of one core (facts 8)."""
        case = next((each for each in self.cases(device) if each.cores == 1 and each.scheme is None), None)
        if case is None or case.problem(device.chip, device.runtime_version) is not None:
            return
        shape = case.padded(device.chip, device.runtime_version)
        fields: dict[str, Value] = {"type": case.type_name, "m": case.m, "k": case.k, "n": case.n}
        for name, mask in CoreMask.__members__.items():
            if mask is CoreMask.CORE_UNDEFINED:
                continue
            stopwatch = Stopwatch()
            with BoundTiles(device, TYPES[case.type_name], [Tile(0, shape.m, shape.k, shape.n)], True) as bound:
                refused = stopwatch.time("set_core_mask", _set_mask, device, bound.contexts[0].handle, mask)
                if refused is None:
                    bound.flush_a()
                    bound.bind()
                    for _ in self.sampling.rounds(stopwatch, ["run"]):
                        stopwatch.time("run", bound.run)
            times = stopwatch.seconds
            seconds = {"run": times["run"], **times} if refused is None else times  # the run first
            yield Row("mask", {**fields, "mask": name.lower()}, seconds, {"refused": refused})


def _set_mask(device: Device, handle: int, mask: CoreMask) -> str | None:
    """The error that comes of it, or None."""
    try:
        device.runtime.matmul_set_core_mask(handle, mask)
    except RknnError as error:
        return error.name
    return None
