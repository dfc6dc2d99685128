"""What is measured: types, shapes, layouts."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from npumatmul.chips import Chip
from npumatmul.chips.types import MatmulType
from npumatmul.files.reading import read_text, shown
from npumatmul.rknn import RuntimeVersion

__all__ = ["TYPES", "Case", "cases_from", "parse_shapes"]

#: Short names of the matmul types that the binding's buffers can be filled for.
TYPES = {
    "fp16": MatmulType.FLOAT16_FLOAT16_FLOAT32,
    "int8": MatmulType.INT8_INT8_INT32,
    "int4": MatmulType.INT4_INT4_INT16,
}

#: (K, N) of linear layers: SmolLM2-135M, TinyLlama-1.1B, Llama-2-7B, as far as one context takes them.
LLM_LAYERS = ((576, 576), (576, 1536), (1536, 576), (2048, 2048), (2048, 256), (2048, 4096), (4096, 4096))
SQUARES = (64, 128, 256, 512, 1024, 2048)


@dataclass(frozen=True)
class Case:
    """One matmul to measure.

    Attributes
    ----------
    type_name : str
        A key of `TYPES`.
    m, k, n : int
        Extents, as given to `rknn_matmul_create`.
    ac_native : bool
        Whether A and C are in native layout; B always is.
    cores : int
        NPU cores that share N, each with a context and a thread of its own.
    """

    type_name: str
    m: int
    k: int
    n: int
    ac_native: bool = True
    cores: int = 1

    @property
    def mm_type(self) -> MatmulType:
        return TYPES[self.type_name]

    @property
    def macs(self) -> int:
        return self.m * self.k * self.n

    @property
    def nbytes(self) -> int:
        """Bytes of A, B and C together."""
        t = self.mm_type
        return t.a.nbytes(self.m * self.k) + t.b.nbytes(self.k * self.n) + t.c.nbytes(self.m * self.n)

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
        return f"{self.type_name} {self.m}x{self.k}x{self.n} {'native' if self.ac_native else 'normal'}{on}"

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
        """Why a chip cannot run this as one context, or None.

        Examples
        --------
        >>> from npumatmul.chips import NEWEST_RUNTIME, chip
        >>> Case("int8", 1, 100, 32).problem(chip("rk3588"), NEWEST_RUNTIME)
        'K = 100 is not a multiple of 32'
        """
        limits = chip.type_limits(self.mm_type, runtime)
        for name, value, multiple, largest in (
            ("K", self.k, limits.k_multiple, limits.k_max),
            ("N", self.n, limits.n_multiple, limits.n_max),
        ):
            if value % multiple:
                return f"{name} = {value} is not a multiple of {multiple}"
            if value > largest * (self.cores if name == "N" else 1):
                return f"{name} = {value} is above {largest}, the largest that is given to one context"
        if self.cores > chip.cores:
            return f"{self.cores} cores: {chip.soc} has {chip.cores}"
        if self.n < self.cores * limits.n_multiple:
            return f"N = {self.n} is too small for {self.cores} cores: each takes a multiple of {limits.n_multiple}"
        if self.ac_native and self.m > 1 and self.m % chip.native.row_multiple:
            return f"M = {self.m} is neither 1 nor a multiple of {chip.native.row_multiple}, as native A and C ask"
        if self.ac_native and limits.native_rows is not None:
            widths = {share.stop - share.start for share in self.shares(limits.n_multiple)}
            most = min(limits.native_rows.most(self.k, width) for width in widths)
            if self.m > most:
                return f"M = {self.m} is above {most}, the most that is safe for this K and N with native A and C"
        return None


#: Extents beyond any memory, and more shapes than anybody waits for.
_LARGEST, _MOST_LINES = 1 << 31, 100_000


def parse_shapes(text: str, rows: Sequence[int] = (1, 8, 64, 256)) -> list[tuple[int, int, int]]:
    """Shapes from the notation of the command line.

    Parameters
    ----------
    text : str
        ``"llm"`` or ``"square"``; or ``"M,K,N;M,K,N"``, or ``"K,N;K,N"`` to be combined with `rows`, also written
        ``"MxKxN"`` as tables print it; or the path of a CSV file with the columns M, K, N, such as `as_csv` writes.
    rows : sequence of int
        Values of M where the notation gives none.

    Returns
    -------
    list of (M, K, N)

    Raises
    ------
    ValueError
        If the notation is wrong; the message shows the part that is.
    OSError
        If a CSV file cannot be read.

    Examples
    --------
    >>> parse_shapes("64,32;128,32", rows=(1, 4))
    [(1, 64, 32), (4, 64, 32), (1, 128, 32), (4, 128, 32)]
    >>> parse_shapes("1x576x1536")
    [(1, 576, 1536)]
    """
    if text == "llm":
        return [(m, k, n) for (k, n), m in itertools.product(LLM_LAYERS, rows)]
    if text == "square":
        return [(size, size, size) for size in SQUARES]
    if text.endswith(".csv"):
        return _from_csv(Path(text))
    shapes: list[tuple[int, int, int]] = []
    for part in text.split(";"):
        numbers = _numbers(part)
        if len(numbers) == 3:
            shapes.append((numbers[0], numbers[1], numbers[2]))
        elif len(numbers) == 2:
            shapes += [(m, numbers[0], numbers[1]) for m in rows]
        else:
            raise ValueError(f"shapes: {shown(part)} is neither M,K,N nor K,N")
    return shapes


def cases_from(
    types: Sequence[str],
    shapes: Sequence[tuple[int, int, int]],
    layouts: Sequence[str] = ("native",),
    cores: Sequence[int] = (1,),
) -> list[Case]:
    """Every combination of types, shapes, layouts and numbers of cores.

    Raises
    ------
    ValueError
        If a type or layout has another name than those of `TYPES`, ``"native"`` and ``"normal"``.

    Examples
    --------
    >>> [str(case) for case in cases_from(["int8"], [(1, 64, 32)], ["native", "normal"])]
    ['int8 1x64x32 native', 'int8 1x64x32 normal']
    """
    for name in types:
        if name not in TYPES:
            raise ValueError(f"types: {name!r} is not known; there are {', '.join(TYPES)}")
    for name in layouts:
        if name not in ("native", "normal"):
            raise ValueError(f"layouts: {name!r} is not known; there are native, normal")
    return [
        Case(type_name, m, k, n, layout == "native", count)
        for type_name, (m, k, n), layout, count in itertools.product(types, shapes, layouts, cores)
    ]


def _numbers(part: str) -> list[int]:
    try:
        numbers = [int(number) for number in part.strip().lower().replace("x", ",").split(",")]
    except ValueError as error:
        raise ValueError(
            f"shapes: {shown(part)} is none of llm, square, M,K,N, MxKxN and K,N, nor the path of a .csv file"
        ) from error
    if not all(1 <= number <= _LARGEST for number in numbers):
        raise ValueError(f"shapes: {shown(part)} has an extent below 1 or above {_LARGEST}")
    return numbers


def _from_csv(path: Path) -> list[tuple[int, int, int]]:
    try:
        lines = read_text(path).splitlines(keepends=True)
        if len(lines) > _MOST_LINES:
            raise ValueError(f"it has {len(lines)} lines; at most {_MOST_LINES} are measured")
        reader = csv.DictReader(lines)
        columns = {name.strip().upper(): name for name in reader.fieldnames or ()}
        missing = [name for name in "MKN" if name not in columns]
        if missing:
            raise ValueError(f"it has no column {', '.join(missing)}")
        shapes = []
        for row in reader:
            m, k, n = _numbers(",".join(str(row[columns[name]]) for name in "MKN"))
            shapes.append((m, k, n))
    except (csv.Error, ValueError) as error:
        raise ValueError(f"shapes: {path}: {error}") from error
    return shapes
