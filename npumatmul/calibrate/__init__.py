"""Fitting the constants of the timing model to the board at hand, by runs that are chosen for it."""

from npumatmul.calibrate.calibration import Calibration, Constant, calibrate
from npumatmul.calibrate.clocks import Clock, modelled_clock
from npumatmul.calibrate.fit import UnfitError

__all__ = ["Calibration", "Clock", "Constant", "UnfitError", "calibrate", "modelled_clock"]
