"""A model of how long a chip takes: what plans print, and what choices between plans can be made by.

Nothing here was measured by us: the constants are a fit to figures that others published for RK3588 boards with
different clocks, drivers and runtimes (`tests/measurements/rk3588.csv` has them with their sources). Over 31 of those
points, from 0.03 to 462 ms, the root mean square error is a factor of about 1.25 and the worst one 1.6, so treat a
modelled time of a shape that was not among them as good to within 50 %, and say that it is modelled wherever it is
shown. A measurement on the board at hand beats it.

The model is a roofline with one refinement. Only so many rows of A fit into the chip's buffer; B is read again for each
batch of rows::

    rows     = buffer / (K * bytes of an A element)
    traffic  = ceil(M / rows) * |B| + |A| + |C|
    time     = start + max(traffic / bandwidth, 2 M N K / peak)

Around a run there is more: naming its matrices to the runtime (`bind_seconds`), and the host's packing and storing,
which are taken to go at the speed of a copy (`host_bandwidth`); adding partial sums moves half as much again as a copy.

That is what makes large K collapse (float16 at K = 8192 reaches a tenth of the peak), and it is a hypothesis: it
explains the published points, nobody has looked inside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from npumatmul.chips.types import ElementType, MatmulType

__all__ = ["TIMINGS", "TimingModel", "Work"]


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
    """

    resident_rows: int
    b_seconds: float
    row_seconds: float
    product_seconds: float

    def seconds(self, m: int) -> float:
        """Time of `m` rows."""
        traffic = -(-m // self.resident_rows) * self.b_seconds + m * self.row_seconds
        return max(traffic, m * self.product_seconds)


@dataclass(frozen=True)
class TimingModel:
    """Constants of one chip.

    Attributes
    ----------
    soc : str
    cores : int
        All cores.
    start_seconds : float
        Fixed cost of a run.
    start_seconds_all_cores : float
        Fixed cost of runs on all cores at once, joining them included.
    buffer_bytes : int
        Bytes of A that stay on the chip.
    bandwidth_one_core, bandwidth_all_cores : float
        Bytes per second from memory.
    bind_seconds : float
        Cost of one `rknn_matmul_set_io_mem` with a native B; taken for native A and C too.
    host_bandwidth : float
        Bytes per second that one CPU thread copies.
    peak : mapping of ElementType to float
        Operations (two per multiply-accumulate) per second and core, by the type of A.
    provenance : str
        Where the constants come from.
    normal_peak : mapping of ElementType to float
        The same with A and C in normal layout, where that is known to be far less.
    """

    soc: str
    cores: int
    start_seconds: float
    start_seconds_all_cores: float
    buffer_bytes: int
    bandwidth_one_core: float
    bandwidth_all_cores: float
    bind_seconds: float
    host_bandwidth: float
    peak: Mapping[ElementType, float] = field(hash=False)
    provenance: str
    normal_peak: Mapping[ElementType, float] = field(default_factory=dict, hash=False)

    def knows(self, mm_type: MatmulType) -> bool:
        """Whether there is a figure for the type."""
        return mm_type.a in self.peak

    @property
    def join_seconds(self) -> float:
        """What a matmul on several cores costs over one on a single core, however many runs each core makes."""
        return self.start_seconds_all_cores - self.start_seconds

    def bandwidth(self, cores: int) -> float:
        """Bytes per second of so many cores together.

        For numbers between one and all no figure was found (peers B4): interpolated, which is a guess.
        """
        share = (cores - 1) / (self.cores - 1) if self.cores > 1 else 0.0
        return self.bandwidth_one_core + share * (self.bandwidth_all_cores - self.bandwidth_one_core)

    def resident_rows(self, mm_type: MatmulType, k: int) -> int:
        """Rows of A of that depth that stay on the chip: with more, B is read again."""
        return max(1, self.buffer_bytes // mm_type.a.nbytes(k))

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
        peak = self.peak[mm_type.a] if ac_native else self.normal_peak.get(mm_type.a, self.peak[mm_type.a])
        bandwidth = self.bandwidth(cores) / cores
        a, b, c = mm_type.a, mm_type.b, mm_type.c
        return Work(
            self.resident_rows(mm_type, k),
            b.nbytes(k * n) / bandwidth,
            (a.bits * k + c.bits * n) / 8 / bandwidth,
            2.0 * k * n / peak,
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
        >>> TIMINGS["rk3588"].run_seconds(MatmulType.INT8_INT8_INT32, 128, 1024, 8192) < 2e-3
        True
        """
        if mm_type.a not in self.peak:
            raise ValueError(f"no timing is known for {mm_type.name} on {self.soc}")
        start = self.start_seconds if cores == 1 else self.start_seconds_all_cores
        return start + self.work_seconds(mm_type, m, k, math.ceil(n / cores), cores, ac_native)


#: The chips that something is known of. Of RK3576, RK3568, RK3566 and RK3562 no raw matmul timing was found anywhere.
TIMINGS: Mapping[str, TimingModel] = {
    "rk3588": TimingModel(
        soc="rk3588",
        cores=3,
        start_seconds=33e-6,
        start_seconds_all_cores=100e-6,
        buffer_bytes=98304,
        bandwidth_one_core=16e9,
        bandwidth_all_cores=28e9,
        bind_seconds=4.9e-6,  # pty819/rk-llama.cpp, docs/opi5/README.md: set_io_mem with native B (peers B2)
        host_bandwidth=10.14e9,  # memcpy in one thread, Orange Pi 5: ggml-org/whisper.cpp#89 (peers B3)
        peak={ElementType.FLOAT16: 0.93e12, ElementType.INT8: 1.95e12, ElementType.INT4: 4.0e12},
        # 44 on one core: unimatrix099/rk-llama.cpp, docs/backend/RKNPU2-native-layout-plan.md; 40 on each of three:
        # Mojo24x7/rk-llama.cpp, BENCHMARKS.md (peers B1). It is the same from 1 to 1024 rows.
        normal_peak={ElementType.INT4: 44e9},
        provenance="fit to published figures of third parties, tests/measurements/rk3588.csv",
    ),
}
