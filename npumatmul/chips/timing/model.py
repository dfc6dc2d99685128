"""A model of how long a chip takes: what plans print, and what choices between plans are made by.

It is a roofline with one refinement. Before rows of A are multiplied they stand in the core's buffer, beside a group of
columns of B (as many as a native tile has) that is at work and the next one that is being read. B is read once for each
so many rows of A::

    group    = columns * K * bytes of an element
    rows     = (buffer - 2 groups) / (K * bytes of an A element)
    traffic  = ceil(M / rows) * |B| + |A| + |C|
    time     = start + max(traffic / bandwidth, 2 M N K / peak)

Where two groups leave room for fewer than `_FEWEST_ROWS` rows there is one group, and nothing is read while it is at
work: reading and multiplying add up. That is what makes large K collapse (float16 at K = 8192 reaches a fourteenth of
the peak). The buffer's size is documented; that it is used so is a hypothesis, which explains what others published
(`tools/model_check.py` prints how well), and which nobody has looked inside for.

Around a run there is more: naming its matrices to the runtime (`bind_seconds`), and the host's packing and storing,
which are taken to go at the speed of a copy (`host_bandwidth`); adding partial sums moves half as much again as a copy.
In normal layout the runtime converts C itself, element by element (`normal_c_seconds`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from typing import Any, NamedTuple

from npumatmul.chips.rows import ROWS
from npumatmul.chips.types import ElementType, MatmulType
from npumatmul.files.reading import shown

__all__ = ["Estimate", "TimingModel", "Work"]

#: Fewer rows than these beside two groups of B, and the second group gives way to rows of A: a guess.
_FEWEST_ROWS = 4
#: Bytes or operations per second.
_RATES = 1.0, 1e18
#: What constants of other kinds are between, by the last word of their names.
_RANGES = {"seconds": (1e-18, 1e6), "cores": (1, 64), "bytes": (1, 1 << 40), "within": (1, 1e6)}


@dataclass(frozen=True)
class Estimate:
    """A modelled time, and what nine tenths of times would lie between.

    Attributes
    ----------
    seconds, low, high : float

    Examples
    --------
    >>> print(Estimate.within(2e-3, 2.0))
    2.00 ms (1.00 to 4.00)
    """

    seconds: float
    low: float
    high: float

    @classmethod
    def within(cls, seconds: float, factor: float) -> Estimate:
        """An estimate that is right to within a factor."""
        return cls(seconds, seconds / factor, seconds * factor)

    def __add__(self, other: Estimate) -> Estimate:
        """Both, one after the other; what is wrong in one is taken to be wrong in the other as well."""
        return Estimate(self.seconds + other.seconds, self.low + other.low, self.high + other.high)

    def __str__(self) -> str:
        scale, unit = (1e3, "ms") if self.seconds < 1 else (1.0, "s")
        shown = [f"{scale * each:.3g}" if scale * each >= 100 else f"{scale * each:.2f}" for each in
                 (self.seconds, self.low, self.high)]  # fmt: skip
        return f"{shown[0]} {unit} ({shown[1]} to {shown[2]})"


class Work(NamedTuple):
    """Modelled time of runs with one tile of B, after their start.

    Attributes
    ----------
    resident_rows : int
        B is read once for each so many rows.
    b_seconds : float
        Reading B.
    row_seconds : float
        Reading a row of A and writing one of C.
    product_seconds : float
        Multiplying a row.
    overlap : bool
        Whether reading goes on while rows are multiplied.
    convert_seconds : float
        Converting a row of C, after that.
    """

    resident_rows: int
    b_seconds: float
    row_seconds: float
    product_seconds: float
    overlap: bool = True
    convert_seconds: float = 0.0

    def seconds(self, m: int) -> float:
        """Time of `m` rows."""
        traffic = -(-m // self.resident_rows) * self.b_seconds + m * self.row_seconds
        product = m * self.product_seconds
        busy = max(traffic, product) if self.overlap else traffic + product
        return busy + m * self.convert_seconds


@dataclass(frozen=True)
class TimingModel:
    """Constants of one chip; `to_json` and `from_json` keep them in files.

    Attributes
    ----------
    soc : str
    cores : int
        All cores.
    start_seconds : float
        Fixed cost of a run.
    join_seconds : float
        What runs on several cores at once cost beyond that, together.
    buffer_bytes : int
        Buffer of a core.
    bandwidth_one_core, bandwidth_all_cores : float
        Bytes per second from memory.
    bind_seconds : float
        Cost of one `rknn_matmul_set_io_mem` with a native B; taken for native A and C too.
    host_bandwidth : float
        Bytes per second that one CPU thread copies.
    host_flops : float
        Float32 operations per second of one CPU thread in a product.
    host_exp_seconds : float
        What one CPU thread takes for an exponential in a long array.
    normal_c_seconds : float
        What the runtime takes for an element of C in normal layout.
    peak : mapping of ElementType to float
        Operations (two per multiply-accumulate) per second and core, by the type of A.
    within : float
        The factor that nine tenths of modelled times of runs are right to.
    models_within : float
        The same of prompts and tokens of whole language models.
    provenance : str
        Where the constants come from.
    normal_peak : mapping of ElementType to float
        The same as `peak` with A and C in normal layout, where that is known to be far less.
    sources : mapping of str to str
        Where each constant comes from, by its name.
    """

    soc: str
    cores: int
    start_seconds: float
    join_seconds: float
    buffer_bytes: int
    bandwidth_one_core: float
    bandwidth_all_cores: float
    bind_seconds: float
    host_bandwidth: float
    host_flops: float
    host_exp_seconds: float
    normal_c_seconds: float
    peak: Mapping[ElementType, float] = field(hash=False)
    within: float
    models_within: float
    provenance: str
    normal_peak: Mapping[ElementType, float] = field(default_factory=dict, hash=False)
    sources: Mapping[str, str] = field(default_factory=dict, hash=False, compare=False, repr=False)

    def knows(self, mm_type: MatmulType) -> bool:
        """Whether there is a figure for the type."""
        return mm_type.a in self.peak

    def bandwidth(self, cores: int) -> float:
        """Bytes per second of so many cores together: each its own, until all that the memory has are in use."""
        return min(cores * self.bandwidth_one_core, self.bandwidth_all_cores)

    def resident_rows(self, mm_type: MatmulType, k: int) -> int:
        """Rows of A of that depth that stay on the chip: with more, B is read again."""
        return self._resident(mm_type, k)[0]

    def _resident(self, mm_type: MatmulType, k: int) -> tuple[int, bool]:
        row = mm_type.a.nbytes(k)
        group = group_columns(self.soc, mm_type) * row  # B stands in the buffer as A's type is
        room = self.buffer_bytes - 2 * group
        if room >= _FEWEST_ROWS * row:
            return room // row, True
        return max(1, (self.buffer_bytes - group) // row), False

    def work_seconds(
        self, mm_type: MatmulType, m: int, k: int, n: int, cores: int = 1, ac_native: bool = True
    ) -> float:
        """Modelled time of a run after its start, on one core, while `cores` cores are at work.

        Parameters
        ----------
        mm_type : MatmulType
        m, k, n : int
            Padded extents of the run; `n` is this core's.
        cores : int
        ac_native : bool
            Whether A and C are in native layout.

        Returns
        -------
        float
            Seconds.
        """
        return self.work(mm_type, k, n, cores, ac_native).seconds(m)

    def work(self, mm_type: MatmulType, k: int, n: int, cores: int = 1, ac_native: bool = True) -> Work:
        """`work_seconds` of one tile of B, for any number of rows."""
        peak, convert = self.peak[mm_type.a], 0.0
        if not ac_native:
            if mm_type.a in self.normal_peak:
                peak = self.normal_peak[mm_type.a]
            else:
                convert = n * self.normal_c_seconds
        bandwidth = self.bandwidth(cores) / cores
        a, b, c = mm_type.a, mm_type.b, mm_type.c
        rows, overlap = self._resident(mm_type, k)
        return Work(
            rows,
            b.nbytes(k * n) / bandwidth,
            (a.bits * k + c.bits * n) / 8 / bandwidth,
            2.0 * k * n / peak,
            overlap,
            convert,
        )

    def run_seconds(self, mm_type: MatmulType, m: int, k: int, n: int, cores: int = 1, ac_native: bool = True) -> float:
        """Modelled time of one matmul of padded extents on `cores` cores, N split between them.

        Parameters
        ----------
        mm_type : MatmulType
        m, k, n : int
            Extents over all cores.
        cores : int
        ac_native : bool
            Whether A and C are in native layout.

        Returns
        -------
        float
            Seconds.

        Raises
        ------
        ValueError
            If the chip has no figure for the type.

        Examples
        --------
        >>> from npumatmul.chips.timing import TIMINGS
        >>> TIMINGS["rk3588"].run_seconds(MatmulType.INT8_INT8_INT32, 128, 1024, 8192) < 2e-3
        True
        """
        if mm_type.a not in self.peak:
            raise ValueError(f"no timing is known for {mm_type.name} on {self.soc}")
        columns = group_columns(self.soc, mm_type)
        widest = math.ceil(n / cores / columns) * columns
        start = self.start_seconds + (self.join_seconds if cores > 1 else 0.0)
        return start + self.work_seconds(mm_type, m, k, widest, cores, ac_native)

    def run_estimate(
        self, mm_type: MatmulType, m: int, k: int, n: int, cores: int = 1, ac_native: bool = True
    ) -> Estimate:
        """`run_seconds` with what it may be wrong by."""
        return Estimate.within(self.run_seconds(mm_type, m, k, n, cores, ac_native), self.within)

    def to_json(self) -> str:
        """All constants as JSON.

        Examples
        --------
        >>> from npumatmul.chips.timing import TIMINGS
        >>> TimingModel.from_json(TIMINGS["rk3588"].to_json()) == TIMINGS["rk3588"]
        True
        """
        content = asdict(self)
        for name in ("peak", "normal_peak"):
            content[name] = {element.label: rate for element, rate in getattr(self, name).items()}
        return json.dumps(content, indent=1)

    @classmethod
    def from_json(cls, text: str) -> TimingModel:
        """Constants that `to_json` wrote.

        Raises
        ------
        ValueError
            If they are none, or are not what a chip can have; the message says which.
        """
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("not the constants of a chip")
        return cls.of(content)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> TimingModel:
        """Constants from what JSON holds; as `from_json`."""
        wanted = {each.name for each in fields(cls)}
        if set(content) != wanted:
            raise ValueError(f"constants are missing or unknown: {', '.join(sorted(set(content) ^ wanted))}")
        values = dict(content)
        for name in ("soc", "provenance"):
            if not isinstance(values[name], str):
                raise ValueError(f"{name} is no text")
        if values["soc"] not in ROWS:
            raise ValueError(f"chip {values['soc']!r} is not known")
        for name in ("cores", "buffer_bytes"):
            if type(values[name]) is not int:
                raise ValueError(f"{name} is no whole number")
        for name in ("peak", "normal_peak"):
            values[name] = _rates(name, values[name])
        for name in sorted(wanted - {"soc", "provenance", "peak", "normal_peak", "sources"}):
            low, high = _range(name)
            if not _between(values[name], low, high):
                raise ValueError(f"{name} is {shown(values[name])}; it must be a number between {low:g} and {high:g}")
        sources = values["sources"]
        if not isinstance(sources, dict) or not all(isinstance(each, str) for each in sources.values()):
            raise ValueError("sources are no texts")
        return cls(**values)


def _between(value: object, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _range(name: str) -> tuple[float, float]:
    """What a constant may be: further out sums of times and their quotients leave the numbers of a computer."""
    return _RANGES.get(name.rpartition("_")[2], _RATES) if "bandwidth" not in name else _RATES


def _rates(name: str, content: object) -> dict[ElementType, float]:
    known = {element.label: element for element in ElementType}
    if not isinstance(content, dict) or not all(
        key in known and _between(rate, *_RATES) for key, rate in content.items()
    ):
        raise ValueError(f"{name} has no rates by element type")
    return {known[key]: float(rate) for key, rate in content.items()}


@lru_cache(maxsize=64)
def group_columns(soc: str, mm_type: MatmulType) -> int:
    """Columns of B that are multiplied at once: those of a native tile of a chip."""
    tiles = ROWS[soc].native.b
    return tiles[mm_type.a][0] if mm_type.a in tiles else ROWS[soc].sizes[mm_type.a].n_multiple.value
