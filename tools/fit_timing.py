"""Fit the constants of RK3588 to what others published, and see how well they predict sources that were left out.

    python tools/fit_timing.py

Needs an installed npumatmul and scipy. Prints the constants that `npumatmul/chips/timing/constants.py` holds, every
point, and for each source the error over its points with constants fitted to all others. Deterministic.

Fitted are six constants: start, join, bandwidth of one core and of all, the share of the documented peak that is
reached, and the conversion of C in normal layout. Each has a weak prior, wide enough that points decide where there are
any: a source that is left out may have been the only one that says something of a constant. The buffer is documented,
and 40 GOPS of int4 in normal layout come from a table that is not among the points.
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.chips.timing import TIMINGS, TimingModel
from npumatmul.chips.types import ElementType, MatmulType

POINTS = Path(__file__).parent.parent / "tests" / "measurements" / "rk3588.csv"
TYPES = {
    "fp16": MatmulType.FLOAT16_FLOAT16_FLOAT32,
    "int8": MatmulType.INT8_INT8_INT32,
    "int4": MatmulType.INT4_INT4_INT16,
}
#: Multiply-accumulates a cycle at 1 GHz, two operations each (facts 9.1).
DOCUMENTED_PEAK = {ElementType.FLOAT16: 1.024e12, ElementType.INT8: 2.048e12, ElementType.INT4: 4.096e12}
#: A context with deeper K runs it in segments (facts 4.4).
SEGMENT = 8192
#: mojo24x7 says of a microbenchmark of theirs that it started a thread for each run, "inflating apparent fixed cost"
#: (BENCHMARKS.md). That this is the one, and what starting and joining three threads takes, is a guess: 60 us.
THREADS = {"mojo24x7": 60e-6}
#: What is fitted: a first value, and how far off it may be (standard deviation of the logarithm). All are guesses but
#: for the magnitude of the start (peers B2).
PRIOR = {
    "start_seconds": (30e-6, 0.7),
    "join_seconds": (20e-6, 0.7),
    "bandwidth_one_core": (11e9, 5.0),
    "bandwidth_all_cores": (30e9, 0.5),
    "share_of_peak": (0.9, 0.2),
    "normal_c_seconds": (2e-9, 1.5),
}
#: What the logarithm of a point is taken to be off by.
SPREAD = 0.17


@dataclass(frozen=True)
class Point:
    """One published figure: a product of padded extents over so many cores, and its time."""

    source: str
    dtype: str
    m: int
    k: int
    n: int
    cores: int
    normal: bool
    seconds: float

    def __str__(self) -> str:
        layout = "normal" if self.normal else "native"
        return f"{self.source:<12} {self.dtype} {self.m}x{self.k}x{self.n} {self.cores} core(s) {layout}"


def points(path: Path = POINTS) -> list[Point]:
    """Rows that give a shape and a time or a rate, less those with throttled memory; and rates of reading."""
    found = []
    with path.open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if "throttled" in row["clock_note"]:
            continue
        source, dtype, rate = row["source"], row["dtype"], row["rate_as_published"].replace("about ", "").split()
        if row["clock_note"].startswith("three cores together"):  # "32.9 us + bytes at 11.1 GB/s", M = 1
            start, speed = float(rate[0]) * 1e-6, float(rate[5]) * 1e9
            together = float(row["clock_note"].split()[3]) * 1e9
            nbytes = TYPES[dtype].b.nbytes(int(row["K"]) * SEGMENT)
            found.append(Point("unimatrix", dtype, 1, int(row["K"]), SEGMENT, 1, False, start + nbytes / speed))
            wide = 8 * SEGMENT  # so wide that starts do not count
            found.append(Point("unimatrix", dtype, 1, int(row["K"]), wide, 3, False, 8 * nbytes / together))
            continue
        if row["M"] == "1" and row["K"] == "?":  # the best over all shapes: so large that starts do not count
            k, n = 4096, 32768
            found.append(Point(source, dtype, 1, k, n, 1, False, 2 * k * n / (float(rate[0]) * 1e9)))
            continue
        if not all(row[key].isdigit() for key in ("M", "K", "N_total", "cores")):
            continue
        m, k, n = (int(row[key]) for key in ("M", "K", "N_total"))
        if row["time_ms"]:
            seconds = float(row["time_ms"]) / 1e3
        else:
            scale = {"GOPS": 1e9, "GFLOPS": 1e9, "TOPS": 1e12}[rate[1]]
            seconds = 2 * m * k * n / (float(rate[0]) * scale)
        found.append(Point(source, dtype, m, k, n, int(row["cores"]), row["a_c_layout"] == "norm", seconds))
    return found


def modelled(model: TimingModel, point: Point) -> float:
    """Modelled seconds, with what the source's own program took beyond the chip."""
    parts = [min(SEGMENT, point.k - first) for first in range(0, point.k, SEGMENT)]
    again = (len(parts) - 1) * (model.start_seconds + (model.join_seconds if point.cores > 1 else 0.0))
    runs = sum(model.run_seconds(TYPES[point.dtype], point.m, k, point.n, point.cores, not point.normal) for k in parts)
    return runs - again + THREADS.get(point.source, 0.0)


def errors(model: TimingModel, chosen: Sequence[Point]) -> NDArray[np.float64]:
    """Logarithms of modelled over published."""
    return np.array([math.log(modelled(model, point) / point.seconds) for point in chosen])


def fitted(chosen: Sequence[Point]) -> TimingModel:
    """Constants that explain points best."""
    from scipy.optimize import least_squares

    first = np.log([value for value, _ in PRIOR.values()])
    width = np.array([deviation for _, deviation in PRIOR.values()])

    def residuals(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.append(errors(_model(logs), chosen), (logs - first) / width * SPREAD)

    high = np.full(len(first), np.inf)
    high[list(PRIOR).index("share_of_peak")] = 0.0
    solve: Callable[..., Any] = least_squares
    return _model(solve(residuals, first, bounds=(-np.inf, high), x_scale=0.1, diff_step=1e-3).x)


def _model(logs: NDArray[np.float64]) -> TimingModel:
    values = dict(zip(PRIOR, np.exp(logs).tolist(), strict=True))
    share = values.pop("share_of_peak")
    peak = {element: share * rate for element, rate in DOCUMENTED_PEAK.items()}
    return replace(TIMINGS["rk3588"], peak=peak, **values)


def rms(values: NDArray[np.float64]) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(values**2)))


@dataclass(frozen=True)
class Fit:
    """What came out.

    Attributes
    ----------
    model : TimingModel
        Fitted to all points.
    left_out : dict of str to ndarray
        Errors over the points of each source, with constants fitted to all others.
    """

    model: TimingModel
    left_out: dict[str, NDArray[np.float64]]

    @property
    def within(self) -> float:
        """The factor that nine tenths of points of sources that were left out are predicted to."""
        return math.exp(float(np.quantile(np.abs(np.concatenate(list(self.left_out.values()))), 0.9)))


def fit(chosen: Sequence[Point]) -> Fit:
    """Fit to all points, and without each source in turn."""
    sources = dict.fromkeys(point.source for point in chosen)
    left_out = {}
    for source in sources:
        model = fitted([point for point in chosen if point.source != source])
        left_out[source] = errors(model, [point for point in chosen if point.source == source])
    return Fit(fitted(chosen), left_out)


def main() -> int:
    """Print constants and errors."""
    chosen = points()
    found = fit(chosen)
    for name in PRIOR:
        if name != "share_of_peak":
            print(f"{name:<20} {getattr(found.model, name):.3g}")
    for element, rate in found.model.peak.items():
        print(f"peak of {element.label:<12} {rate:.4g}")
    print(f"{'within':<20} {found.within:.2f}")
    for point, error in zip(chosen, errors(found.model, chosen), strict=True):
        print(f"{point!s:<60} {point.seconds * 1e3:9.3f} ms, modelled {math.exp(error):.2f} of it")
    print(f"root mean square of logarithms, in sample: {rms(errors(found.model, chosen)):.3f}")
    for source, left in found.left_out.items():
        print(f"{source} left out: {rms(left):.3f} over {len(left)} points")
    return 0


if __name__ == "__main__":
    sys.exit(main())
