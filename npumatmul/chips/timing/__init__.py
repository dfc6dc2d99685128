"""How long chips are modelled to take: the form of the model, the constants of each chip, and constants kept here.

`model` is the form, `constants` what it is filled with, `kept` a file that overrides them on this machine; `cpu` is the
same of products that the CPU makes.
"""

from npumatmul.chips.timing.constants import TIMINGS
from npumatmul.chips.timing.cpu import CPUS, CpuTiming
from npumatmul.chips.timing.kept import default_timing_path, find_timing, keep_timing, used_timing_path
from npumatmul.chips.timing.model import Estimate, TimingModel, Work

__all__ = [
    "CPUS",
    "TIMINGS",
    "CpuTiming",
    "Estimate",
    "TimingModel",
    "Work",
    "default_timing_path",
    "find_timing",
    "keep_timing",
    "used_timing_path",
]
