"""Fitting the constants of the timing model to the board at hand, by runs that are chosen for it."""

from npumatmul.calibrate.calibration import Calibration, Constant, calibrate
from npumatmul.calibrate.clocks import Clock, modelled_clock

__all__ = ["Calibration", "Clock", "Constant", "calibrate", "modelled_clock"]
