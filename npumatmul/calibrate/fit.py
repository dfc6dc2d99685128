"""Constants that explain timed points best, in the sense of least squares of logarithms; numpy alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from npumatmul.calibrate.points import Point
from npumatmul.chips.timing import TimingModel
from npumatmul.errors import CalibrationError

__all__ = ["Fit", "errors", "fit", "rms"]

#: How far from what was known the buffer is looked for, in steps of a fiftieth.
_BUFFER = np.exp(np.arange(-52, 53) / 50)
#: What a constant is changed by to see whether any point notices it, and how much a point has to.
_NUDGE, _NOTICED = 1.1, 0.005
#: A constant is known whose logarithm is off by less than this (one standard deviation), for points that are off by as
#: much as they are, and by no less than that.
_UNSURE, _LEAST_NOISE = 0.1, 0.001
#: What pulls a constant that no point depends on to where the fit began.
_PULL = 1e-6
#: From here on an error is taken to be a disturbance's.
_LARGE = 0.03
#: Buffers that are looked at more closely.
_BEST = 6


@dataclass(frozen=True)
class Fit:
    """What came out.

    Attributes
    ----------
    model : TimingModel
    noticed : frozenset of str
        Constants that some point depends on, by the names of `values_of`; all others are not known better than before.
    """

    model: TimingModel
    noticed: frozenset[str]


def values_of(model: TimingModel) -> dict[str, float]:
    """The constants that are fitted, by name; those by element type as ``peak int8``."""
    single = ["start_seconds", "bandwidth_one_core", "normal_c_seconds", "buffer_bytes"]
    if model.cores > 1:
        single += ["join_seconds", "bandwidth_all_cores"]
    values = {name: float(getattr(model, name)) for name in single}
    for name in ("peak", "normal_peak"):
        values.update({f"{name} {element.label}": rate for element, rate in getattr(model, name).items()})
    return values


def with_values(model: TimingModel, values: Mapping[str, float]) -> TimingModel:
    """A model with other constants."""
    given: dict[str, object] = {}
    for name in ("peak", "normal_peak"):
        rates = getattr(model, name)
        given[name] = {element: values.get(f"{name} {element.label}", rate) for element, rate in rates.items()}
    given.update({name: value for name, value in values.items() if " " not in name})
    if "buffer_bytes" in values:
        given["buffer_bytes"] = round(values["buffer_bytes"])
    if model.cores == 1 and "bandwidth_one_core" in values:
        given["bandwidth_all_cores"] = values["bandwidth_one_core"]
    return replace(model, **given)  # type: ignore[arg-type]


def errors(model: TimingModel, observed: Mapping[Point, float]) -> NDArray[np.float64]:
    """Logarithms of modelled over measured."""
    return np.array([math.log(point.seconds(model) / seconds) for point, seconds in observed.items()])


def _muted(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Errors whose squares grow like errors where they are large: a run that was disturbed decides nothing."""
    scale = _LARGE
    return np.asarray(np.sign(values) * scale * np.sqrt(2 * (np.sqrt(1 + (values / scale) ** 2) - 1)))


def rms(values: NDArray[np.float64]) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(values**2)))


def fit(prior: TimingModel, observed: Mapping[Point, float]) -> Fit:
    """Fit constants to points.

    Start and bandwidth follow from single rows, joining and shared bandwidth from single rows on several cores. For
    each size of the buffer, what points take beyond reading bounds the peaks; the sizes that explain most are then
    fitted with all other constants together.

    Parameters
    ----------
    prior : TimingModel
        What was known before.
    observed : mapping of Point to float
        Seconds.

    Returns
    -------
    Fit

    Raises
    ------
    CalibrationError
        If points contradict each other so much that constants would not be positive.
    """
    if min(observed.values()) <= 0:
        raise CalibrationError("a run took no time at all, by the clock that was used")
    base = _of_single_rows(prior, observed)
    candidates = []
    for factor in _BUFFER:
        model = _with_peaks(with_values(base, {"buffer_bytes": prior.buffer_bytes * float(factor)}), observed)
        candidates.append((rms(_muted(errors(model, observed))), model.buffer_bytes, model))
    best = min(
        (_polished(model, observed) for _, _, model in sorted(candidates, key=lambda each: each[:2])[:_BEST]),
        key=lambda model: rms(_muted(errors(model, observed))),
    )
    best = _polished(_middle_of_buffers(best, observed), observed)
    return _cautious(prior, best, observed)


def _of_single_rows(prior: TimingModel, observed: Mapping[Point, float]) -> TimingModel:
    """By straight lines through single rows: time over bytes."""
    model = prior
    for cores in range(1, prior.cores + 1):
        single = {p: s for p, s in observed.items() if p.m == 1 and p.cores == cores and p.ac_native}
        if len(single) < 2:
            continue
        nbytes = [_traffic(point) for point in single]
        seconds = np.array(list(single.values()))
        lines = np.array([np.ones(len(single)), nbytes]).T / seconds[:, None]
        fixed, each = np.linalg.lstsq(lines, np.ones(len(single)), rcond=None)[0]
        if each <= 0 or fixed <= 0:
            raise CalibrationError(
                f"runs of single rows on {cores} core{'s' if cores > 1 else ''} do not take longer the more they read: "
                "something else used the NPU, or its clock changed"
            )
        if cores == 1:
            values = {"start_seconds": float(fixed), "bandwidth_one_core": float(1 / each)}
        else:
            values = {
                "join_seconds": max(float(fixed) - model.start_seconds, 1e-7),
                "bandwidth_all_cores": float(cores / each),
            }
        model = with_values(model, values)
    return model


def _traffic(point: Point) -> float:
    t = point.mm_type
    return float(t.b.nbytes(point.k * point.n) + t.a.nbytes(point.m * point.k) + t.c.nbytes(point.m * point.n))


def _with_peaks(model: TimingModel, observed: Mapping[Point, float]) -> TimingModel:
    """The least peaks that let every point be as fast as it was; conversion of C from what is left."""
    values = {}
    for name, rates in (("peak", model.peak), ("normal_peak", model.normal_peak)):
        for element in rates:
            found = [
                rate for point, seconds in observed.items()
                if point.mm_type.a is element and point.ac_native == (name == "peak")
                if (rate := _rate(model, point, seconds)) is not None
            ]  # fmt: skip
            if found:
                values[f"{name} {element.label}"] = max(found)
    model = with_values(model, values)
    converting = [
        rate for point, seconds in observed.items()
        if not point.ac_native and point.mm_type.a not in model.normal_peak
        if (rate := (seconds - replace(point, ac_native=True).seconds(model)) / (point.m * point.n)) > 0
    ]  # fmt: skip
    return with_values(model, {"normal_c_seconds": float(np.median(converting))}) if converting else model


def _rate(model: TimingModel, point: Point, seconds: float) -> float | None:
    """Operations per second that a point needs at least; exactly, where nothing overlaps."""
    work = model.work(point.mm_type, point.k, point.n, point.cores, point.ac_native)
    left = seconds - model.start_seconds
    if not work.overlap:
        left -= -(-point.m // work.resident_rows) * work.b_seconds + point.m * work.row_seconds
    return point.operations / left if left > 0.02 * seconds else None


def _polished(model: TimingModel, observed: Mapping[Point, float]) -> TimingModel:
    """Gauss and Newton, with Levenberg's damping, on logarithms of all constants but the buffer."""
    names = [name for name in values_of(model) if name != "buffer_bytes"]
    first = np.log([values_of(model)[name] for name in names])

    def residuals(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        other = with_values(model, dict(zip(names, np.exp(logs).tolist(), strict=True)))
        return np.append(_muted(errors(other, observed)), _PULL * (logs - first))

    logs = _least_squares(residuals, first)
    return with_values(model, dict(zip(names, np.exp(logs).tolist(), strict=True)))


def _least_squares(
    residuals: Callable[[NDArray[np.float64]], NDArray[np.float64]], first: NDArray[np.float64], rounds: int = 40
) -> NDArray[np.float64]:
    """Variables that make a sum of squares small; derivatives by differences."""
    at, damping = first, 1e-3
    now = residuals(at)
    for _ in range(rounds):
        slopes = np.array([(residuals(at + step) - now) / 1e-5 for step in 1e-5 * np.eye(len(at))]).T
        square, down = slopes.T @ slopes, slopes.T @ now
        while damping < 1e9:
            step = -np.linalg.solve(square + damping * np.diag(np.diag(square) + 1e-12), down)
            ahead = residuals(at + np.clip(step, -1.0, 1.0))
            if ahead @ ahead < now @ now:
                break
            damping *= 8
        else:
            return at
        gained = float(now @ now - ahead @ ahead)
        at, now, damping = at + np.clip(step, -1.0, 1.0), ahead, damping / 8
        if gained <= 1e-12 * float(now @ now) or float(now @ now) < 1e-20:
            break
    return at


def _middle_of_buffers(model: TimingModel, observed: Mapping[Point, float]) -> TimingModel:
    """Rows are whole, so that many sizes of a buffer are the same to all points: the middle one of the best."""
    near = [
        with_values(model, {"buffer_bytes": model.buffer_bytes * factor})
        for factor in np.exp(np.arange(-40, 41) / 1000)
    ]
    found = [rms(_muted(errors(each, observed))) for each in near]
    least = min(found)
    same = [each for each, error in zip(near, found, strict=True) if error <= least * (1 + 1e-6) + 1e-12]
    return same[len(same) // 2]


def _cautious(prior: TimingModel, fitted: TimingModel, observed: Mapping[Point, float]) -> Fit:
    """What points say too little of stays as it was, as long as the points still come out the same.

    A constant that is too low is always seen. One that is too high may not matter: then it is only known to be at least
    so high.
    """
    now, known, slopes = errors(fitted, observed), [], []
    noise = max(1.48 * float(np.median(np.abs(now))), _LEAST_NOISE)  # the deviation, but for what was disturbed
    values, old = values_of(fitted), values_of(prior)

    def moved(name: str, factor: float) -> NDArray[np.float64]:
        return errors(with_values(fitted, {name: values[name] * factor}), observed) - now

    for name in values:
        up, down = moved(name, _NUDGE), moved(name, 1 / _NUDGE)
        if min(float(np.max(np.abs(up))), float(np.max(np.abs(down)))) > _NOTICED:
            known.append(name)
            slopes.append((up - down) / (2 * math.log(_NUDGE)))
    if known:
        square = np.array(slopes) @ np.array(slopes).T
        deviations = noise * np.sqrt(np.diag(np.linalg.pinv(square)))
        known = [name for name, deviation in zip(known, deviations, strict=True) if deviation < _UNSURE]
    for name in set(values) - set(known):
        for value in (old[name], max(old[name], values[name])):
            other = with_values(fitted, {name: value})
            if float(np.max(np.abs(errors(other, observed) - now))) <= max(_NOTICED, noise):
                fitted = other
                break
    return Fit(fitted, frozenset(known))
