"""What is measured: types or schemes, shapes, layouts, cores."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from npumatmul.bench.record import Value
from npumatmul.chips import Chip
from npumatmul.chips.layout import round_up
from npumatmul.chips.types import MatmulType
from npumatmul.errors import DeviceError
from npumatmul.quant.routes import route_for
from npumatmul.quant.schemes import Scheme
from npumatmul.rknn import RuntimeVersion

__all__ = ["TYPES", "Case", "cases_from"]

#: Short names of the matmul types that the binding's buffers can be filled for, and whose results are not scaled.
TYPES = {
    "fp16": MatmulType.FLOAT16_FLOAT16_FLOAT32,
    "int8": MatmulType.INT8_INT8_INT32,
    "int4": MatmulType.INT4_INT4_INT16,
    "int8xint4": MatmulType.INT8_INT4_INT32,
}


@dataclass(frozen=True)
class Case:
    """One matmul to measure.

    Attributes
    ----------
    type_name : str
        A key of `TYPES`: contexts of such a type, all steps by themselves. Or the name of a scheme, such as ``"w8a8"``:
        a product of floats with a weight that is packed so.
    m, k, n : int
        Extents.
    ac_native : bool
        Whether A and C are in native layout; B always is.
    cores : int
        NPU cores that share N, each with a context and a thread of its own; of a scheme, at most so many.
    """

    type_name: str
    m: int
    k: int
    n: int
    ac_native: bool = True
    cores: int = 1

    @cached_property
    def scheme(self) -> Scheme | None:
        """The scheme, where it is one.

        Raises
        ------
        ValueError
            If the name is neither a type nor a scheme.
        """
        return None if self.type_name in TYPES else Scheme.parse(self.type_name)

    def mm_type(self, chip: Chip, runtime: RuntimeVersion) -> MatmulType:
        """What computes it on a chip.

        Raises
        ------
        DeviceError, ValueError
            As `route_for`, of schemes.
        """
        return TYPES[self.type_name] if self.scheme is None else route_for(self.scheme, chip, runtime).mm_type

    @property
    def macs(self) -> int:
        """Multiply-accumulates of what was asked for."""
        return self.m * self.k * self.n

    @property
    def layout(self) -> str:
        """Of A and C: ``"native"`` or ``"normal"``."""
        return "native" if self.ac_native else "normal"

    @property
    def fields(self) -> dict[str, Value]:
        """What tells it from others in a saved run."""
        return {
            "type": self.type_name, "m": self.m, "k": self.k, "n": self.n, "layout": self.layout, "cores": self.cores,
        }  # fmt: skip

    @property
    def label(self) -> str:
        """What it is called in tables, where native layouts and one core go without saying.

        Examples
        --------
        >>> Case("int8", 1, 64, 32).label, Case("int8", 1, 64, 96, ac_native=False, cores=3).label
        ('int8 1x64x32', 'int8 1x64x96 normal 3 cores')
        """
        on = "" if self.cores == 1 else f" {self.cores} cores"
        return f"{self.type_name} {self.m}x{self.k}x{self.n}{'' if self.ac_native else ' normal'}{on}"

    def __str__(self) -> str:
        on = "" if self.cores == 1 else f" {self.cores} cores"
        return f"{self.type_name} {self.m}x{self.k}x{self.n} {self.layout}{on}"

    def padded(self, chip: Chip, runtime: RuntimeVersion) -> Case:
        """Of a type: the same with extents that a context takes, each as much larger as it has to be.

        Examples
        --------
        >>> from npumatmul.chips import NEWEST_RUNTIME, chip
        >>> print(Case("int8", 5, 100, 33).padded(chip("rk3588"), NEWEST_RUNTIME))
        int8 8x128x64 native
        """
        limits = chip.type_limits(TYPES[self.type_name], runtime)
        m = round_up(self.m, chip.native.row_multiple) if self.ac_native and self.m > 1 else self.m
        return replace(self, m=m, k=round_up(self.k, limits.k_multiple), n=round_up(self.n, limits.n_multiple))

    def shares(self, n_multiple: int) -> list[slice]:
        """The columns of each core: as equal as the alignment of N allows.

        Examples
        --------
        >>> Case("int8", 1, 64, 128, cores=3).shares(32)
        [slice(0, 64, None), slice(64, 96, None), slice(96, 128, None)]
        """
        units = self.n // n_multiple
        edges = [n_multiple * ((units * core + self.cores - 1) // self.cores) for core in range(self.cores + 1)]
        return [slice(start, stop) for start, stop in itertools.pairwise(edges)]

    def problem(self, chip: Chip, runtime: RuntimeVersion) -> str | None:
        """Why a chip cannot run this, or None. Of a type it has to be one context for each core, once it is padded.

        Examples
        --------
        >>> from npumatmul.chips import NEWEST_RUNTIME, chip
        >>> Case("int8", 1, 64, 32, cores=4).problem(chip("rk3588"), NEWEST_RUNTIME)
        '4 cores: rk3588 has 3'
        """
        if self.cores > chip.cores:
            return f"{self.cores} cores: {chip.soc} has {chip.cores}"
        if self.scheme is not None:
            if self.scheme.static:
                return f"{self.type_name} needs a calibration: measure its like that quantizes each row by itself"
            try:
                route_for(self.scheme, chip, runtime)
            except DeviceError as error:
                return str(error)
            return None
        if TYPES[self.type_name] not in chip.limits:
            return f"{chip.soc} has no matmul type {TYPES[self.type_name].name}"
        return self.padded(chip, runtime)._problem_of_contexts(chip, runtime)

    def _problem_of_contexts(self, chip: Chip, runtime: RuntimeVersion) -> str | None:
        limits = chip.type_limits(TYPES[self.type_name], runtime)
        for name, value, largest in (("K", self.k, limits.k_max), ("N", self.n, limits.n_max * self.cores)):
            if value > largest:
                most = limits.n_max if name == "N" else largest
                return f"{name} = {value} is above {most}, the largest that is given to one context"
        if self.n < self.cores * limits.n_multiple:
            return f"N = {self.n} is too small for {self.cores} cores: each takes a multiple of {limits.n_multiple}"
        if self.ac_native and limits.native_rows is not None:
            widths = {share.stop - share.start for share in self.shares(limits.n_multiple)}
            most = min(limits.native_rows.most(self.k, width) for width in widths)
            if self.m > most:
                return f"M = {self.m} is above {most}, the most that is safe for this K and N with native A and C"
        return None


def cases_from(
    types: Sequence[str],
    shapes: Sequence[tuple[int, int, int]],
    layouts: Sequence[str] = ("native",),
    cores: Sequence[int] = (1,),
) -> list[Case]:
    """Every combination of types and schemes, shapes, layouts and numbers of cores.

    Raises
    ------
    ValueError
        If a name is neither a type nor a scheme, or a layout another one than ``"native"`` and ``"normal"``.

    Examples
    --------
    >>> [str(case) for case in cases_from(["int8", "w8a8"], [(1, 64, 32)], ["native", "normal"])]
    ['int8 1x64x32 native', 'int8 1x64x32 normal', 'w8a8 1x64x32 native', 'w8a8 1x64x32 normal']
    """
    for name in types:
        if name not in TYPES:
            try:
                Scheme.parse(name)
            except ValueError as error:
                raise ValueError(f"types: {name!r} is no type ({', '.join(TYPES)}), and as a scheme: {error}") from None
    for name in layouts:
        if name not in ("native", "normal"):
            raise ValueError(f"layouts: {name!r} is not known; there are native, normal")
    return [
        Case(type_name, m, k, n, layout == "native", count)
        for type_name, (m, k, n), layout, count in itertools.product(types, shapes, layouts, cores)
    ]
