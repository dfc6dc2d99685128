"""What changed between two runs, case by case, as sure as their times allow."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from npumatmul.bench.ranks import rank_test, ratio_interval
from npumatmul.bench.record import Machine, Record, Row
from npumatmul.bench.statistics import summarise

__all__ = ["Comparison", "Difference", "Verdict", "compare"]


class Verdict(Enum):
    """What became of a case."""

    SLOWER = "SLOWER"
    FASTER = "FASTER"
    UNCLEAR = "UNCLEAR"
    SAME = "SAME"


@dataclass(frozen=True)
class Difference:
    """One case of both runs.

    Attributes
    ----------
    row : Row
        The case, as the second run has it.
    verdict : Verdict
    before, after : float
        Median seconds.
    ratio, low, high : float
        Times of the second run over those of the first, and what that lies between.
    probability : float
        Of ranks as different as these by chance, corrected for the number of cases.
    """

    row: Row
    verdict: Verdict
    before: float
    after: float
    ratio: float
    low: float
    high: float
    probability: float


@dataclass(frozen=True)
class Comparison:
    """Two runs.

    Attributes
    ----------
    differences : sequence of Difference
        Of the cases that both have, as the second run has them.
    only_before, only_after : sequence of str
        Cases that the other run does not have.
    machine : mapping of str to (str, str)
        What was different about the machines, by its name.
    threshold, confidence : float
    too_few : int
        Cases with so few times that no difference of them could be told among so many cases.
    """

    differences: Sequence[Difference]
    only_before: Sequence[str]
    only_after: Sequence[str]
    machine: Mapping[str, tuple[str, str]]
    threshold: float
    confidence: float
    too_few: int = 0

    @property
    def counts(self) -> dict[Verdict, int]:
        """How many cases have each verdict."""
        found = Counter(each.verdict for each in self.differences)
        return {verdict: found[verdict] for verdict in Verdict}

    def columns(self) -> dict[str, list[str]]:
        """The differences as columns of a table, what is slower first."""
        order = list(Verdict)
        every = sorted(self.differences, key=lambda each: order.index(each.verdict))
        first = self.differences[0].row.what  # what is of another kind says so
        return {
            "case": [
                each.row.label if each.row.what == first else f"{each.row.what}: {each.row.label}" for each in every
            ],
            "verdict": [each.verdict.value for each in every],
            "A": [_time(each.before) for each in every],
            "B": [_time(each.after) for each in every],
            "B/A": [f"{each.ratio:.3f}" for each in every],
            "between": [f"{each.low:.3f}..{each.high:.3f}" for each in every],
            "by chance": [f"{each.probability:.2g}" for each in every],
        }

    def to_json(self) -> str:
        """All of it, for programs."""
        rows: list[dict[str, Any]] = [
            {
                "what": each.row.what,
                "case": dict(each.row.case),
                "verdict": each.verdict.value,
                "before_us": each.before * 1e6,
                "after_us": each.after * 1e6,
                "ratio": each.ratio,
                "low": each.low,
                "high": None if math.isinf(each.high) else each.high,
                "probability": each.probability,
            }
            for each in self.differences
        ]
        content = {
            "threshold": self.threshold,
            "confidence": self.confidence,
            "counts": {verdict.value: count for verdict, count in self.counts.items()},
            "rows": rows,
            "only_before": list(self.only_before),
            "only_after": list(self.only_after),
            "machine": {name: list(each) for name, each in self.machine.items()},
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"


def compare(
    before: Record,
    after: Record,
    threshold: float = 0.05,
    confidence: float = 0.95,
    measure: str | None = None,
    across: bool = False,
) -> Comparison:
    """Compare the times of each case that two runs have in common.

    A case is `Verdict.SLOWER` or `Verdict.FASTER` where the rank test, corrected for the number of cases (Holm), says
    that its times differ, and their ratio is beyond the threshold; it is the `Verdict.SAME` where the interval of the
    ratio is within the threshold; else it is `Verdict.UNCLEAR`, and more repetitions would help.

    Parameters
    ----------
    before, after : Record
    threshold : float
        Relative differences up to this one do not matter: 0.05 is 5 %.
    confidence : float
        That no case at all is taken for slower or faster which is not, and of each interval.
    measure : str, optional
        What is compared of all that was timed, such as ``"matmul"``; by default what each case is about.
    across : bool
        Whether simulated and measured times, or different chips, may be compared.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        If the runs have nothing to compare, or are of kinds that nobody should.

    Examples
    --------
    >>> machine = Machine("sim:rk3588", True, "rk3588", 3, "2.3.2", "0.9.8", "0.1.0", "3.11", "2.0", "6.1", "neon",
    ...                   "Cortex-A76", 8, "aarch64", 1024, "2026-01-31T12:00:00+00:00")
    >>> times = [1.0, 1.01, 0.99, 1.02, 0.98, 1.0, 1.01, 0.99]
    >>> runs = [Record(machine, [Row("x", {"n": 1}, {"run": [factor * each for each in times]})]) for factor in (1, 2)]
    >>> [each.verdict.value for each in compare(*runs).differences]
    ['SLOWER']
    """
    if not 0 <= threshold < math.inf:
        raise ValueError(f"compare: threshold is {threshold}; it is a share such as 0.05")
    if not 0 < confidence < 1:
        raise ValueError(f"compare: confidence is {confidence}; it lies between 0 and 1")
    if not across:
        _check_alike(before.machine, after.machine)
    first, second = _times(before, measure), _times(after, measure)
    both = [key for key in second if key in first]
    if not both:
        what = "" if measure is None else f" that {measure!r} was timed of"
        raise ValueError(f"compare: the runs have no case{what} in common")
    raw = [rank_test(first[key][1], second[key][1]) for key in both]
    least = [2 / math.comb(len(first[key][1]) + len(second[key][1]), len(first[key][1])) for key in both]
    found = []
    for key, probability in zip(both, _holm(raw), strict=True):
        a, b = first[key][1], second[key][1]
        low, ratio, high = ratio_interval(a, b, confidence)
        verdict = _verdict(probability < 1 - confidence, low, ratio, high, threshold)
        medians = summarise(a).median, summarise(b).median
        found.append(Difference(second[key][0], verdict, *medians, ratio, low, high, probability))
    return Comparison(
        found,
        [row.label for key, (row, _) in first.items() if key not in second],
        [row.label for key, (row, _) in second.items() if key not in first],
        _changed(before.machine, after.machine),
        threshold,
        confidence,
        sum(len(both) * each >= 1 - confidence for each in least),
    )


def _check_alike(a: Machine, b: Machine) -> None:
    if a.simulated != b.simulated:
        simulated, measured = ("first", "second") if a.simulated else ("second", "first")
        raise ValueError(
            f"compare: the {simulated} run was timed on a CPU that simulates, the {measured} one on an NPU; their "
            "times have nothing to do with each other (--across compares them all the same)"
        )
    if a.simulated_runs != b.simulated_runs:
        raise ValueError(
            f"compare: the first run was timed on: {a.timed_on}; the second on: {b.timed_on} (--across compares them "
            "all the same)"
        )
    if a.chip != b.chip:
        raise ValueError(
            f"compare: the first run is of {a.chip}, the second of {b.chip} (--across compares them all the same)"
        )


def _times(record: Record, measure: str | None) -> dict[Any, tuple[Row, list[float]]]:
    """Times by case; where a case was measured more than once, all of them."""
    found: dict[Any, tuple[Row, list[float]]] = {}
    for row in record.rows:
        name = row.main if measure is None else measure
        times = [seconds for seconds in row.seconds.get(name, ()) if seconds > 0]
        if times:
            found.setdefault((*row.key, name), (row, []))[1].extend(times)
    return found


def _holm(probabilities: Sequence[float]) -> list[float]:
    """Probabilities after Holm's correction: that none of those below a level is there by chance."""
    order = sorted(range(len(probabilities)), key=lambda index: probabilities[index])
    corrected, largest = [0.0] * len(probabilities), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * probabilities[index]))
        corrected[index] = largest
    return corrected


def _verdict(differ: bool, low: float, ratio: float, high: float, threshold: float) -> Verdict:
    if differ and ratio > 1 + threshold:
        return Verdict.SLOWER
    if differ and ratio < 1 / (1 + threshold):
        return Verdict.FASTER
    if 1 / (1 + threshold) <= low and high <= 1 + threshold:
        return Verdict.SAME
    return Verdict.UNCLEAR


def _changed(a: Machine, b: Machine) -> dict[str, tuple[str, str]]:
    """What may explain a difference, and is different."""
    passing = {"time", "load", "descriptor_limit", "timed_on"}
    before, after = a.flat(), b.flat()
    return {
        name: (str(before.get(name, "-")), str(after.get(name, "-")))
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name) and name not in passing and not name.startswith("temperatures_")
    }


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.{1 if seconds < 1e-4 else 0}f}"
