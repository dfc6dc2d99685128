"""Calibrators: choose scales and zero points from the values that pass by, batch by batch, in bounded memory.

"Normal" (`MinMax`), KL divergence and MMSE are the algorithms of the vendor's toolkit (facts 5.5).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sized
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.errors import NotFiniteError
from npumatmul.quant.functions import float_array
from npumatmul.quant.histogram import BINS, Histogram
from npumatmul.quant.params import QuantParams
from npumatmul.quant.ranges import range_params
from npumatmul.quant.search import divergences, squared_errors

__all__ = ["MMSE", "Calibrator", "ClipRatio", "KLDivergence", "MinMax", "Percentile", "calibrate"]


class Calibrator(ABC):
    """What all calibrators do: `observe` batches, then give `params`.

    Parameters
    ----------
    bits : int
        2 to 8.
    symmetric : bool
        Whether zero points are 0.
    axis : int, optional
        Give one scale per index along this axis; one for everything by default.
    levels : int, optional
        Largest magnitude of a code, see `QuantParams`.
    """

    def __init__(
        self, bits: int = 8, *, symmetric: bool = True, axis: int | None = None, levels: int | None = None
    ) -> None:
        self._codes = QuantParams(1.0, bits=bits, levels=levels)
        self.symmetric = symmetric
        self.axis = axis
        self._channels: int | None = None

    def observe(self, batch: ArrayLike) -> None:
        """Take note of a batch.

        Parameters
        ----------
        batch : array_like
            Of any shape; where there is an axis, of the same extent along it every time. An empty one is ignored.

        Raises
        ------
        NotFiniteError
            If it holds an inf or nan; nothing of it was noted.
        ValueError
            If the shape does not fit.
        """
        name = f"{type(self).__name__}.observe"
        values = float_array(batch, name)
        if not np.isfinite(values).all():
            raise NotFiniteError(f"{name}: the batch holds an inf or nan; nothing of it was noted")
        if self.axis is None:
            rows = values.reshape(1, -1)
        else:
            if not -values.ndim <= self.axis < values.ndim:
                raise ValueError(f"{name}: a batch of shape {values.shape} has no axis {self.axis}")
            moved = np.moveaxis(values, self.axis, 0)
            rows = moved.reshape(moved.shape[0], -1)
        if self._channels not in (None, rows.shape[0]):
            raise ValueError(f"{name}: this batch has {rows.shape[0]} channels, earlier ones had {self._channels}")
        if rows.size:
            self._note(rows)
            self._channels = rows.shape[0]

    def params(self) -> QuantParams:
        """Parameters for what was observed.

        Returns
        -------
        QuantParams
            Per layer, or per channel along the axis.

        Raises
        ------
        ValueError
            If nothing was observed.
        """
        if self._channels is None:
            raise ValueError(f"{type(self).__name__}.params: nothing was observed yet")
        ranges = self._ranges()
        scale, zero_point = range_params(*ranges, self._codes.qmin, self._codes.qmax, self.symmetric)
        bits, levels = self._codes.bits, self._codes.levels
        if self.axis is None:
            return QuantParams(scale[0], zero_point[0], bits=bits, levels=levels)
        return QuantParams(scale, zero_point, "channel", bits=bits, axis=self.axis, levels=levels)

    @abstractmethod
    def _note(self, rows: NDArray[Any]) -> None:
        """Take note of values of shape (channels, n)."""

    @abstractmethod
    def _ranges(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Least and largest value per channel that is to be represented."""


class MinMax(Calibrator):
    """Nothing is clipped: the toolkit's "normal" algorithm.

    Examples
    --------
    >>> calibrator = MinMax()
    >>> calibrator.observe([-1.27, 0.3])
    >>> calibrator.observe([0.5])
    >>> calibrator.params()
    QuantParams(layer, int8, symmetric, scale=0.01)
    """

    _low: NDArray[np.float64]
    _high: NDArray[np.float64]

    def _note(self, rows: NDArray[Any]) -> None:
        low, high = rows.min(axis=1).astype(np.float64), rows.max(axis=1).astype(np.float64)
        first = self._channels is None
        self._low = low if first else np.minimum(self._low, low)
        self._high = high if first else np.maximum(self._high, high)

    def _ranges(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return self._low, self._high


class _HistogramCalibrator(Calibrator):
    """Calibrators that choose a range of the histogram, channel by channel.

    Parameters
    ----------
    bits, symmetric, axis, levels
        As for `Calibrator`.
    bins : int
        Of the histogram, a power of two. They reach to the next power of two beyond the largest value.
    """

    def __init__(
        self,
        bits: int = 8,
        *,
        symmetric: bool = True,
        axis: int | None = None,
        levels: int | None = None,
        bins: int = BINS,
    ) -> None:
        super().__init__(bits, symmetric=symmetric, axis=axis, levels=levels)
        Histogram(0, bins)  # refuses wrong numbers of bins now
        self._bins = bins
        self._histogram = Histogram(0, 4)

    def _note(self, rows: NDArray[Any]) -> None:
        if self._channels is None:
            self._histogram = Histogram(rows.shape[0], self._bins)
        self._histogram.add(rows)

    def _ranges(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        histogram = self._histogram
        found = np.stack([histogram.low, histogram.high], axis=1)
        for channel in np.flatnonzero(histogram.limit > 0):
            used = np.flatnonzero(histogram.counts[channel])
            span = slice(int(used[0]), int(used[-1]) + 1)
            low, high = float(histogram.low[channel]), float(histogram.high[channel])
            if self.symmetric:
                high = max(-low, high)
                low = -high
            found[channel] = self._range(
                histogram.counts[channel, span], histogram.centers(int(channel))[span], min(low, 0.0), max(high, 0.0)
            )
        return found[:, 0], found[:, 1]

    @abstractmethod
    def _range(
        self, counts: NDArray[np.int64], centers: NDArray[np.float64], low: float, high: float
    ) -> tuple[float, float]:
        """Range for one channel, of which `low` .. `high` is all; -high .. high where zero points are 0."""

    def _squared_errors(
        self,
        counts: NDArray[np.int64],
        centers: NDArray[np.float64],
        lows: NDArray[np.float64],
        highs: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Mean squared errors if the ranges are these, to a common factor."""
        return squared_errors(counts, centers, lows, highs, (self._codes.qmin, self._codes.qmax), self.symmetric)


class Percentile(_HistogramCalibrator):
    """Clip the outermost values.

    Parameters
    ----------
    bits, symmetric, axis, levels, bins
        As for the other calibrators.
    percentile : float
        Of magnitudes where zero points are 0; else what lies above this percentile and below 100 minus it is clipped.

    Examples
    --------
    >>> calibrator = Percentile(percentile=90)
    >>> calibrator.observe(np.arange(1, 101) / 64)
    >>> bool(abs(calibrator.params().scale * 127 - 90 / 64) < 0.001)  # to a bin
    True
    """

    def __init__(
        self,
        bits: int = 8,
        *,
        percentile: float = 99.99,
        symmetric: bool = True,
        axis: int | None = None,
        levels: int | None = None,
        bins: int = BINS,
    ) -> None:
        super().__init__(bits, symmetric=symmetric, axis=axis, levels=levels, bins=bins)
        if not 50 < percentile <= 100:
            raise ValueError(f"Percentile: percentile lies above 50 and is at most 100, not {percentile}")
        self.percentile = percentile

    def _range(
        self, counts: NDArray[np.int64], centers: NDArray[np.float64], low: float, high: float
    ) -> tuple[float, float]:
        width = centers[1] - centers[0] if centers.size > 1 else 2 * (max(-low, high) - abs(float(centers[0])))
        share = self.percentile / 100
        if self.symmetric:
            order = np.argsort(np.abs(centers), kind="stable")
            reach = _quantile(counts[order], np.abs(centers[order]) + width / 2, share)
            return -min(reach, high), min(reach, high)
        upper = _quantile(counts, centers + width / 2, share)
        lower = -_quantile(counts[::-1], -(centers[::-1] - width / 2), share)
        return max(lower, low), min(upper, high)


class KLDivergence(_HistogramCalibrator):
    """Clip where the divergence of the quantized from the original distribution is least.

    The original distribution within a range, with what lies outside added to its ends, is compared with the one that
    as many equal steps as there are codes can tell apart. Ranges are all there is, times 1/128 .. 128/128. The bin of 0
    counts like its neighbour: zeros, of which activations often have many, are exact in any range.

    Examples
    --------
    >>> calibrator = KLDivergence()
    >>> x = np.random.default_rng(0).normal(size=20000)
    >>> calibrator.observe(np.append(x, 40.0))
    >>> bool(calibrator.params().scale * 127 < 8)
    True
    """

    def _range(
        self, counts: NDArray[np.int64], centers: NDArray[np.float64], low: float, high: float
    ) -> tuple[float, float]:
        counts = counts.copy()
        zero = int(np.searchsorted(centers, 0.0))  # the bin that begins at 0
        if zero + 1 < counts.size:
            counts[zero] = min(counts[zero], counts[zero + 1])
        if self.symmetric:  # the distribution of magnitudes
            magnitudes = np.abs(centers)
            edges, inverse = np.unique(magnitudes, return_inverse=True)
            counts, centers, low = np.bincount(inverse, weights=counts).astype(np.int64), edges, 0.0
        levels = self._codes.qmax + 1 if self.symmetric else self._codes.qmax - self._codes.qmin + 1
        parts = np.arange(128, 0, -1) / 128
        start, stop = np.searchsorted(centers, low * parts), np.searchsorted(centers, high * parts, side="right")
        start[0], stop[0] = 0, centers.size  # the middle of the outermost bins may lie beyond the outermost values
        fit = int(np.argmin(np.append(stop - start >= max(levels, 2), False)))  # with fewer bins nothing is merged
        best = 0
        if fit:
            found = divergences(counts, start[:fit], stop[:fit], levels)
            best = int(np.argmax(found <= found.min() + 1e-12))  # the widest of those that are equal to rounding
        return (-high if self.symmetric else low) * parts[best], high * parts[best]


class MMSE(_HistogramCalibrator):
    """Search the range with the least mean squared error.

    With zero points both ends are searched, one after the other until neither moves.

    Examples
    --------
    >>> calibrator = MMSE(bits=4)
    >>> calibrator.observe(np.random.default_rng(0).normal(size=20000))
    >>> bool(2.2 < calibrator.params().scale * 7 < 2.6)  # 0.335 standard deviations per step are best for 16 codes
    True
    """

    def _range(
        self, counts: NDArray[np.int64], centers: NDArray[np.float64], low: float, high: float
    ) -> tuple[float, float]:
        ratios = np.linspace(1, 0.01, 100)

        def best(lows: NDArray[np.float64], highs: NDArray[np.float64]) -> int:
            return int(np.argmin(self._squared_errors(counts, centers, lows, highs)))

        ends = [best(low * ratios, high * ratios)] * 2
        for _ in range(0 if self.symmetric else 8):
            before = list(ends)
            ends[0] = best(low * ratios, np.full(ratios.size, high * ratios[ends[1]]))
            ends[1] = best(np.full(ratios.size, low * ratios[ends[0]]), high * ratios)
            if ends == before:
                break
        return float(low * ratios[ends[0]]), float(high * ratios[ends[1]])


class ClipRatio(_HistogramCalibrator):
    """Search one ratio by which the whole range is shrunk.

    Parameters
    ----------
    bits, symmetric, axis, levels, bins
        As for the other calibrators.
    ratios : array_like
        To try, above 0 and at most 1.
    power : float
        Of the errors whose mean is made least; more than 2 minds large errors more.

    Attributes
    ----------
    ratio : ndarray of float64, shape (channels,), or None
        What was found by the last `params`: 1 means that nothing is clipped.

    Examples
    --------
    >>> calibrator = ClipRatio(bits=4)
    >>> calibrator.observe(np.random.default_rng(0).normal(size=20000))
    >>> _ = calibrator.params()
    >>> bool(0.5 < calibrator.ratio[0] < 0.7)
    True
    """

    def __init__(
        self,
        bits: int = 8,
        *,
        ratios: ArrayLike | None = None,
        power: float = 2.0,
        symmetric: bool = True,
        axis: int | None = None,
        levels: int | None = None,
        bins: int = BINS,
    ) -> None:
        super().__init__(bits, symmetric=symmetric, axis=axis, levels=levels, bins=bins)
        wanted = np.geomspace(1, 0.02, 100) if ratios is None else float_array(ratios, "ClipRatio").astype(np.float64)
        self._ratios: NDArray[np.float64] = np.sort(wanted, axis=None)[::-1]
        if not self._ratios.size or not ((self._ratios > 0) & (self._ratios <= 1)).all():
            raise ValueError("ClipRatio: ratios lie above 0 and are at most 1")
        if not power > 0:
            raise ValueError(f"ClipRatio: power is positive, not {power}")
        self.power = power
        self.ratio: NDArray[np.float64] | None = None
        self._found: list[float] = []

    def _ranges(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        self._found = []
        result = super()._ranges()
        self.ratio = np.ones(len(self._histogram.limit))
        self.ratio[self._histogram.limit > 0] = self._found
        return result

    def _range(
        self, counts: NDArray[np.int64], centers: NDArray[np.float64], low: float, high: float
    ) -> tuple[float, float]:
        if self.power == 2:
            errors = self._squared_errors(counts, centers, low * self._ratios, high * self._ratios)
        else:
            errors = np.array([self._error(counts, centers, low * r, high * r) for r in self._ratios])
        ratio = float(self._ratios[int(np.argmin(errors))])
        self._found.append(ratio)
        return low * ratio, high * ratio

    def _error(self, counts: NDArray[np.int64], centers: NDArray[np.float64], low: float, high: float) -> float:
        """Mean of the errors to the power if the range is this."""
        used = np.flatnonzero(counts)
        counts, centers = counts[used], centers[used]
        scale, zero_point = range_params(
            np.float64(low), np.float64(high), self._codes.qmin, self._codes.qmax, self.symmetric
        )
        codes = np.clip(np.rint(centers / scale) + zero_point, self._codes.qmin, self._codes.qmax)
        errors = np.abs(centers - scale * (codes - zero_point))
        return float((counts * errors**self.power).sum() / counts.sum())


def calibrate(
    calibrators: Mapping[str, Calibrator], batches: Iterable[Mapping[str, ArrayLike]], *, progress: bool = False
) -> dict[str, QuantParams]:
    """Show batches to calibrators and collect the parameters.

    Parameters
    ----------
    calibrators : mapping of str to Calibrator
    batches : iterable of mappings
        Arrays by the names of the calibrators; names without a calibrator are passed over, and a batch need not have
        all. One batch is held at a time.
    progress : bool
        Show a progress bar on standard error; it needs the package ``rich``.

    Returns
    -------
    dict of str to QuantParams

    Raises
    ------
    ValueError
        If a calibrator has seen nothing, or a batch does not fit.
    TypeError
        If a batch is no mapping.
    ImportError
        If a progress bar is wanted and ``rich`` is not installed.

    Examples
    --------
    >>> calibrate({"x": MinMax()}, [{"x": [1.27]}, {"x": [-0.5]}])
    {'x': QuantParams(layer, int8, symmetric, scale=0.01)}
    """
    for batch in _with_progress(batches) if progress else batches:
        if not isinstance(batch, Mapping):
            raise TypeError(f"calibrate: a batch is a mapping of names to arrays, not {type(batch).__name__}")
        for name, calibrator in calibrators.items():
            if name in batch:
                try:
                    calibrator.observe(batch[name])
                except ValueError as error:
                    raise type(error)(f"calibrate: {name}: {error}") from error
    missing = [name for name, calibrator in calibrators.items() if calibrator._channels is None]
    if missing:
        raise ValueError(f"calibrate: no batch had values for {', '.join(map(repr, missing))}")
    return {name: calibrator.params() for name, calibrator in calibrators.items()}


def _with_progress(batches: Iterable[Mapping[str, ArrayLike]]) -> Iterable[Mapping[str, ArrayLike]]:
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:
        raise ImportError("calibrate: a progress bar needs the package rich: pip install 'npumatmul[cli]'") from None
    total = len(batches) if isinstance(batches, Sized) else None
    return track(batches, "calibrating", total=total, console=Console(stderr=True))


def _quantile(counts: NDArray[np.int64], upper_edges: NDArray[np.float64], share: float) -> float:
    """Upper edge of the bin up to which a share of all values lies."""
    cumulated = np.cumsum(counts)
    return float(upper_edges[int(np.searchsorted(cumulated, share * cumulated[-1]))])
