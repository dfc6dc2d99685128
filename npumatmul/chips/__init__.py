"""What each chip can do: types, alignments, native tiles, limits, with the source of every figure.

`rows` holds the figures, `table` makes the queryable table of them, `probe_file` overrides it with what
`npumatmul probe` found on this machine, `chips` is what planning takes of it.
"""

from npumatmul.chips.cells import Cell, Provenance
from npumatmul.chips.limits import CHIPS, Chip, MemoryLimits, TypeLimits, chip, chip_here
from npumatmul.chips.probe_file import ProbeResults, default_path, find_probe_results, load_probe_results
from npumatmul.chips.rows import NEWEST_RUNTIME, OLDEST_RUNTIME, NativeTiles, Problem
from npumatmul.chips.table import Capabilities, TypeCapabilities, capabilities

__all__ = [
    "CHIPS",
    "NEWEST_RUNTIME",
    "OLDEST_RUNTIME",
    "Capabilities",
    "Cell",
    "Chip",
    "MemoryLimits",
    "NativeTiles",
    "ProbeResults",
    "Problem",
    "Provenance",
    "TypeCapabilities",
    "TypeLimits",
    "capabilities",
    "chip",
    "chip_here",
    "default_path",
    "find_probe_results",
    "load_probe_results",
]
