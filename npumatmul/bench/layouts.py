"""`bench layout`: A and C in native and in normal layout, all that either of them costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from npumatmul.bench.benchmark import Names, Numbers, Progress, names_of, numbers_of
from npumatmul.bench.cases import TYPES, Case, cases_from
from npumatmul.bench.matmul_bench import CasesBenchmark
from npumatmul.bench.record import Row, Value
from npumatmul.bench.statistics import summarise
from npumatmul.device.device import Device

__all__ = ["LayoutBenchmark"]

#: What a product of contexts takes with a B that is bound already, one step after the other.
_STEPS = ("pack_a", "sync_a", "bind", "run", "sync_c", "unpack_c")


@dataclass(frozen=True, kw_only=True)
class LayoutBenchmark(CasesBenchmark):
    """Native and normal layout of A and C beside each other, by type and number of rows.

    Attributes
    ----------
    types : str or sequence of str
        Matmul types; by default all that the chip has.
    k, n : int
    rows : str, int or sequence of int
    """

    name: ClassVar[str] = "layout"

    types: Names = ()
    k: int = 2048
    n: int = 2048
    rows: Numbers = "1,16,64,256"
    cold: bool = False

    def cases(self, device: Device) -> list[Case]:
        types = names_of(self.types, "types") if self.types else [t for t in TYPES if TYPES[t] in device.chip.limits]
        for name in types:
            if name not in TYPES:
                raise ValueError(f"types: {name!r} is no matmul type; there are {', '.join(TYPES)}")
        shapes = [(m, self.k, self.n) for m in numbers_of(self.rows, "rows")]
        return cases_from(types, shapes, ("native", "normal"))

    def ordered(self, cases: list[Case]) -> list[Case]:
        shuffled = super().ordered(cases)
        places = {(case.type_name, case.m): place for place, case in enumerate(shuffled)}
        # both layouts one after the other, so that little else changes between them
        return sorted(shuffled, key=lambda case: (places[case.type_name, case.m], not case.ac_native))

    def measure(self, device: Device, progress: Progress = lambda done, total, what: None) -> Iterator[Row]:
        natives: dict[tuple[Value, ...], dict[str, float]] = {}
        for row in super().measure(device, progress):
            if row.what != "matmul":
                yield row
                continue
            medians = {name: summarise(row.seconds[name]).median for name in _STEPS}
            medians["together"] = sum(medians.values())
            figures = {**row.figures, "together_us": medians["together"] * 1e6}
            shape = row.case["type"], row.case["m"]
            if row.case["layout"] == "native":
                natives[shape] = medians
            elif shape in natives:
                native = natives[shape]
                figures |= {
                    "normal_per_native_run": medians["run"] / native["run"],
                    "normal_per_native": medians["together"] / native["together"],
                }
            yield replace(row, what=self.name, figures=figures)
