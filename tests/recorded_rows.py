"""How many rows int4 with native A and C survived: the recording, and what follows from it where it has a gap.

Written apart from the library's and the simulator's own copies of it, which are compared with it.
"""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"


def recorded_rows() -> dict[tuple[int, int], int]:
    """The largest good M by K and N."""
    with (GOLDEN / "int4_native_rows_v1.6.0.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    return {(int(line["k"]), int(line["n"])): int(line["largest_good_m"]) for line in lines}


RECORDED = recorded_rows()
_KS, _NS = (sorted({key[i] for key in RECORDED}) for i in (0, 1))


def _neighbours(value: int, known: list[int]) -> list[int]:
    """The value itself where it is known, else the known ones next to it; none outside of them."""
    if value in known:
        return [value]
    below, above = [v for v in known if v < value], [v for v in known if v > value]
    return [below[-1], above[0]] if below and above else []


def safe_rows(k: int, n: int) -> int:
    """The most rows that are known to be safe."""
    if k < _KS[0]:
        return 262144 // k
    if k > _KS[-1]:
        return 0
    return min((RECORDED[at] for at in itertools.product(_neighbours(k, _KS), _neighbours(n, _NS))), default=1)
