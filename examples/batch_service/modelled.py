"""What gathering gains on chips: times of batches by the model of time, and the service reckoned with them.

    python examples/batch_service/modelled.py                     a table of batches, and one of loads
    python examples/batch_service/modelled.py --plot modelled.png

Nothing here was measured on a chip. What a service does beside its batches, HTTP above all, is left out.
"""

from __future__ import annotations

import argparse
import random
from collections import deque
from collections.abc import Callable
from pathlib import Path

from load import Load
from measure import WAYS, plot

from npumatmul.chips import chip
from npumatmul.chips.types import MatmulType
from npumatmul.llm.modelled.published import SHAPES
from npumatmul.llm.modelled.seconds import modelled_texts

TOKENS = 16
RATES = (50, 100, 200, 300, 400, 600, 800, 1000, 1200, 1500)


def batch_seconds(soc: str, count: int) -> float:
    """How long so many texts take at once."""
    found = modelled_texts(SHAPES["all-MiniLM-L6-v2"], [TOKENS] * count, MatmulType.INT8_INT8_INT32, chip(soc))
    assert found is not None
    return found.seconds


def reckoned(
    rate: float,
    count: int,
    took: Callable[[int], float],
    *,
    size: int,
    max_wait: float,
    limit: int = 256,
    seed: int = 0,
) -> Load:
    """What becomes of so many requests, where batches take the time that they are modelled to take.

    A batch begins as soon as the one before is done and it is full, or its oldest text has waited.
    """
    gaps, now, arrivals = random.Random(seed), 0.0, deque[float]()
    for _ in range(count):
        arrivals.append(now := now + gaps.expovariate(rate))
    waiting, latencies = deque[float](), list[float]()
    free, refused = 0.0, 0
    while arrivals or waiting:
        if not waiting:
            waiting.append(arrivals.popleft())
        begin = max(free, waiting[size - 1] if len(waiting) >= size else waiting[0] + max_wait)
        if arrivals and arrivals[0] <= begin:
            came = arrivals.popleft()
            if len(waiting) < limit:
                waiting.append(came)
            else:
                refused += 1
            continue
        taken = [waiting.popleft() for _ in range(min(size, len(waiting)))]
        free = begin + took(len(taken))
        latencies += [free - each for each in taken]
    return Load(rate, count, len(latencies), refused, 0, 0, free, tuple(sorted(latencies)))


def main() -> None:
    """Print the tables, and draw the second one."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--plot", type=Path)
    given = options.parse_args()
    times = {soc: {count: batch_seconds(soc, count) for count in range(1, 33)} for soc in ("rk3588", "rk3576")}
    print("| texts at once | RK3588, ms | ms for a text | texts a second | rows per ms | RK3576, ms | texts a second |")
    print("|---|---|---|---|---|---|---|")
    for count in (1, 2, 4, 8, 16, 32):
        ms, other = (of[count] * 1e3 for of in times.values())
        rates = f"{count * 1e3 / ms:.0f}", f"{count * TOKENS / ms:.1f}", f"{other:.2f}", f"{count * 1e3 / other:.0f}"
        print(f"| {count} | {ms:.2f} | {ms / count:.2f} | {' | '.join(rates)} |")
    took = times["rk3588"].__getitem__
    found = {
        way: [reckoned(rate, 20 * rate, took, size=size, max_wait=milliseconds / 1e3) for rate in RATES]
        for way, (size, milliseconds) in WAYS.items()
    }
    print("\n| offered a second |", "".join(f" {way}: answered | p50, ms | p99, ms |" for way in WAYS), sep="")
    print("|---" * (1 + 3 * len(WAYS)) + "|")
    for rate, *loads in zip(RATES, *found.values(), strict=True):
        cells = (f"{x.throughput:.0f} | {x.percentile(0.5) * 1e3:.1f} | {x.percentile(0.99) * 1e3:.1f}" for x in loads)
        print(f"| {rate} | {' | '.join(cells)} |")
    if given.plot:
        plot(found, given.plot, "modelled for RK3588 and not measured: all-MiniLM-L6-v2, w8a8, texts of 16 tokens")


if __name__ == "__main__":
    main()
