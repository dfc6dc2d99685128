"""Calibrating a device: timing, fitting, and whether what came out may be relied on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from npumatmul.calibrate.clocks import Clock, clock_of
from npumatmul.calibrate.fit import errors, fit, rms, values_of
from npumatmul.calibrate.measure import Sample, measure_binding, measure_host, measure_point
from npumatmul.calibrate.points import Point, points_for
from npumatmul.chips.timing import TimingModel, keep_timing
from npumatmul.device.device import Device
from npumatmul.errors import CalibrationError

__all__ = ["Calibration", "Constant", "calibrate"]

#: A run that takes so much longer at the end than at the beginning met other clocks.
_THROTTLED = 1.1
#: Times that vary by more between quartiles, as the median of all points has it, are those of a busy board.
_UNSTEADY = 0.25
#: Constants that explain what they were fitted to worse than this are none (root mean square of logarithms).
_POOR = 0.25
#: Further from what was known than by this factor is no board of the chip.
_FARTHEST = 10.0
#: No model is taken to be better than this, however well it fits.
_BEST_WITHIN = 1.1


@dataclass(frozen=True)
class Constant:
    """A constant, before and after.

    Attributes
    ----------
    name : str
        As in `TimingModel`; those by element type as ``peak int8``.
    before, after : float
    noticed : bool
        Whether any run depended on it; else it is no better known than before.
    """

    name: str
    before: float
    after: float
    noticed: bool


@dataclass(frozen=True)
class Calibration:
    """What a calibration found. Nothing is stored before `keep` is called.

    Attributes
    ----------
    before, after : TimingModel
    constants : tuple of Constant
    measured : dict of Point to Sample
    slowdown : float
        What the same run took at the end, as a multiple of what it took at the beginning.
    seconds : float
        What all of it took.
    simulated : bool
    facts : dict
        Device, versions and date, for the file.
    """

    before: TimingModel
    after: TimingModel
    constants: tuple[Constant, ...]
    measured: Mapping[Point, Sample]
    slowdown: float
    seconds: float
    simulated: bool
    facts: Mapping[str, Any]

    def error(self, model: TimingModel) -> float:
        """Root mean square of the logarithms of modelled over measured."""
        return rms(errors(model, _medians(self.measured)))

    def worst(self, model: TimingModel, count: int = 3) -> list[tuple[Point, float]]:
        """The points that a model errs most about, with modelled over measured."""
        found = dict(zip(self.measured, np.exp(errors(model, _medians(self.measured))).tolist(), strict=True))
        return sorted(found.items(), key=lambda each: -abs(math.log(each[1])))[:count]

    @property
    def problem(self) -> str | None:
        """Why the constants are not to be relied on, or None."""
        if self.slowdown > _THROTTLED:
            return (
                f"the same run took {100 * (self.slowdown - 1):.0f} % longer at the end: the board became too hot, or "
                "its clocks changed. Cool it and fix its clocks (docs/board.md), then try again"
            )
        unsteady = float(np.median([sample.spread for sample in self.measured.values()]))
        if unsteady > _UNSTEADY:
            return f"times vary by {100 * unsteady:.0f} %: something else uses NPU or memory; stop it and try again"
        error = self.error(self.after)
        if error > _POOR:
            point, ratio = self.worst(self.after, 1)[0]
            return (
                f"the model cannot explain what was measured: its error is {error:.2f}, more than {_POOR}; at worst it "
                f"says {ratio:.2f} times what {point} took. Please report it with the output of --json"
            )
        for each in self.constants:
            if not 1 / _FARTHEST < each.after / each.before < _FARTHEST:
                return (
                    f"{each.name} came out as {each.after:.3g} where {each.before:.3g} was known: no board is so far "
                    "from others of its chip. Please report it with the output of --json"
                )
        if error > self.error(self.before):
            return "the constants that were there explain what was measured better than those that were fitted"
        return None

    def keep(self, path: Path | None = None) -> Path:
        """Store the constants for this machine.

        Parameters
        ----------
        path : Path, optional
            Instead of where plans look for them.

        Raises
        ------
        CalibrationError
            If they are not to be relied on; nothing is stored then.
        OSError, UnusableFileError
            If the file cannot be written.
        """
        if self.problem is not None:
            raise CalibrationError(f"nothing was stored: {self.problem}")
        return keep_timing(self.after, self.simulated, path, self.facts)


def calibrate(
    device: Device,
    *,
    clock: Clock | None = None,
    seconds: float = 60.0,
    progress: Callable[[int, int, str], object] = lambda done, total, what: None,
) -> Calibration:
    """Time runs on a device and fit the constants of the timing model to them.

    Parameters
    ----------
    device : Device
        Nothing else should use its NPU.
    clock : Clock, optional
        By default the computer's, or that of a simulator that counts modelled time.
    seconds : float
        About so long is spent on timing.
    progress : callable
        Called with what is done, what there is to do, and what is being done.

    Returns
    -------
    Calibration

    Raises
    ------
    CalibrationError
        If what was measured contradicts the model.
    DeviceError
        If the device is a simulator without modelled time, or nothing is known of the chip.
    RknnError
        If a function of the runtime fails.

    Examples
    --------
    >>> import npumatmul as npu
    >>> from npumatmul import sim
    >>> with sim.configured(timing="model", timing_constants="start_seconds=1e-4"), npu.Device("sim:rk3566") as device:
    ...     found = calibrate(device)
    >>> round(found.after.start_seconds, 6), found.problem
    (0.0001, None)
    """
    began = time.monotonic()
    clock = clock_of(device) if clock is None else clock
    before = device.chip.timings[device.chip.soc]
    points = points_for(device.chip, device.runtime_version)
    total, budget = len(points) + 3, seconds / (len(points) + 8)
    measured: dict[Point, Sample] = {}
    for done, point in enumerate(points):
        progress(done, total, str(point))
        measured[point] = measure_point(device, point, clock, budget)
    progress(len(points), total, "set_io_mem")
    values = {"bind_seconds": measure_binding(device, clock, budget).seconds}
    progress(len(points) + 1, total, "the CPU")
    if not device.simulated:
        values.update(measure_host(clock, 3 * budget))
    progress(len(points) + 2, total, "the first run again")
    reference = max((p for p in points if p.cores == 1), key=lambda p: measured[p].seconds)
    slowdown = measure_point(device, reference, clock, budget).seconds / measured[reference].seconds
    observed = _medians(measured)
    found = fit(before, observed)
    spread = math.exp(float(np.quantile(np.abs(errors(found.model, observed)), 0.9)))
    noticed = {*found.noticed, *values}
    by_us = f"npumatmul calibrate, {time.strftime('%Y-%m-%d')}"
    whole = {name.partition(" ")[0] for name in noticed}
    sources = {**before.sources, **dict.fromkeys([*whole, "within"], f"fitted: {by_us}")}
    changed: dict[str, Any] = {**values, "provenance": by_us, "sources": sources}
    after = replace(found.model, **changed, within=max(_BEST_WITHIN, spread))
    old, new = _all_values(before), _all_values(after)
    return Calibration(
        before, after, tuple(Constant(name, old[name], new[name], name in noticed) for name in old), measured,
        slowdown, time.monotonic() - began, device.simulated, _facts(device),
    )  # fmt: skip


def _all_values(model: TimingModel) -> dict[str, float]:
    host = ("bind_seconds", "host_bandwidth", "host_flops", "host_exp_seconds")
    return {**values_of(model), **{name: getattr(model, name) for name in host}}


def _medians(measured: Mapping[Point, Sample]) -> dict[Point, float]:
    return {point: sample.seconds for point, sample in measured.items()}


def _facts(device: Device) -> dict[str, str]:
    return {
        "device": device.name,
        "runtime": device.api_version,
        "driver": device.driver_version,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }
