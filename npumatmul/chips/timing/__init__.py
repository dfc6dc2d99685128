"""How long chips are modelled to take: the form of the model, the constants of each chip, and constants kept here.

`model` is the form, `constants` what it is filled with, `kept` a file that overrides them on this machine.
"""

from npumatmul.chips.timing.constants import TIMINGS
from npumatmul.chips.timing.kept import default_timing_path, find_timing, keep_timing, used_timing_path
from npumatmul.chips.timing.model import Estimate, TimingModel, Work

__all__ = [
    "TIMINGS",
    "Estimate",
    "TimingModel",
    "Work",
    "default_timing_path",
    "find_timing",
    "keep_timing",
    "used_timing_path",
]
