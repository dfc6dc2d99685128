"""Which runs are timed: between them, every constant of the model decides what some of them take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from npumatmul.chips.limits import Chip
from npumatmul.chips.timing import TimingModel
from npumatmul.chips.types import MatmulType
from npumatmul.device.spec import ContextSpec
from npumatmul.rknn import MatmulLayout, QuantType
from npumatmul.rknn.version import RuntimeVersion

__all__ = ["Point", "points_for", "spec_of"]

#: What stands for all types with such an A.
_TYPES = (MatmulType.INT8_INT8_INT32, MatmulType.FLOAT16_FLOAT16_FLOAT32, MatmulType.INT4_INT4_INT16)
_K, _ROWS = (512, 1024, 1536, 2048, 4096, 6144, 8192), (512, 256, 128, 32)
#: Columns: so many that reading A is little beside B, and fewer where B is deep.
_WIDE, _NARROW, _DEEP = 1024, 256, 4096
#: Bytes of B do not matter less than this: (K, N) of single rows.
_SINGLE_ROWS = ((256, 256), (512, 512), (1024, 1024), (2048, 2048), (2048, 4096))
#: (K, N of a core) where several cores run.
_TOGETHER = ((256, 256), (1024, 1024), (2048, 4096))
_NORMAL = ((32, 512, 512), (128, 512, 1024), (256, 1024, 512))


@dataclass(frozen=True)
class Point:
    """A run that is timed.

    Attributes
    ----------
    mm_type : MatmulType
    m, k, n : int
        `n` is one core's.
    cores : int
        So many do the same at once.
    ac_native : bool

    Examples
    --------
    >>> print(Point(MatmulType.INT8_INT8_INT32, 1, 256, 512, 3))
    INT8_INT8_INT32 1x256x512 on each of 3 cores
    """

    mm_type: MatmulType
    m: int
    k: int
    n: int
    cores: int = 1
    ac_native: bool = True

    def __str__(self) -> str:
        layout = "" if self.ac_native else " normal"
        on = "" if self.cores == 1 else f" on each of {self.cores} cores"
        return f"{self.mm_type.name} {self.m}x{self.k}x{self.n}{layout}{on}"

    @property
    def operations(self) -> float:
        """Two for each multiply-accumulate of a core."""
        return 2.0 * self.m * self.k * self.n

    def seconds(self, model: TimingModel) -> float:
        """What a model says."""
        join = model.join_seconds if self.cores > 1 else 0.0
        work = model.work_seconds(self.mm_type, self.m, self.k, self.n, self.cores, self.ac_native)
        return model.start_seconds + join + work


def spec_of(point: Point, core: int | None) -> ContextSpec:
    """A context for a point."""
    ac_layout = MatmulLayout.NATIVE if point.ac_native else MatmulLayout.NORM
    return ContextSpec.of(
        point.mm_type, (point.m, point.k, point.n), (MatmulLayout.NATIVE, ac_layout),
        (QuantType.PER_LAYER_SYM, QuantType.PER_LAYER_SYM), 0, core, 0,
    )  # fmt: skip


def points_for(chip: Chip, runtime: RuntimeVersion) -> list[Point]:
    """The points that a chip can run, those that say most first."""
    return [point for point in _wanted(chip) if _fits(point, chip, runtime)]


def _wanted(chip: Chip) -> Iterator[Point]:
    """Where a type has fewer rows than are asked for, as many as it has."""
    reading = MatmulType.INT8_INT8_INT32
    yield from (Point(reading, 1, k, n) for k, n in _SINGLE_ROWS)
    if chip.cores > 1:
        yield from (Point(reading, 1, k, n, cores) for cores in range(2, chip.cores + 1) for k, n in _TOGETHER)
    for mm_type in _TYPES:
        if mm_type not in chip.limits:
            continue
        for k in _K:
            n = _WIDE if k < _DEEP else _NARROW
            most = chip.limits[mm_type].native_rows
            bound = _ROWS[0] if most is None else most.most(k, n)
            # so many that B is read once: then it is multiplying that may take longest
            once = min(chip.timings[chip.soc].resident_rows(mm_type, k), _ROWS[0]) // 4 * 4
            rows = dict.fromkeys(min(each, bound // 4 * 4) for each in (once, *_ROWS))
            yield from (Point(mm_type, m, k, n) for m in rows if m >= 4)
        yield from (Point(mm_type, m, k, n, ac_native=False) for m, k, n in _NORMAL)


def _fits(point: Point, chip: Chip, runtime: RuntimeVersion) -> bool:
    """Whether a context can have the shape, without looking at a device."""
    limits = chip.limits[point.mm_type]
    if point.k > limits.k_max or point.n > limits.n_max or point.k % limits.k_multiple or point.n % limits.n_multiple:
        return False
    documented = point.mm_type.a in chip.native.a and point.mm_type.c in chip.native.c
    row = chip.type_row(point.mm_type, runtime)
    if not (documented if point.ac_native else row.ac_normal.value):
        return False
    try:
        spec_of(point, None).check(chip, limits, [(point.m, point.k, point.n)])
    except ValueError:
        return False
    return True
