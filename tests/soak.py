"""Threads that create, pack, run and destroy, for as long as asked; what they leave behind is counted.

    python tests/soak.py --minutes 60

One device lives all the time and serves several threads; meanwhile other devices are opened, used by several threads
and closed. The long-lived one wants more contexts than it may have, so they are given up and made anew. Every minute
all of them pause with no weight alive, and everything is counted. It fails where a product is not numpy's int32
product, where a closed device leaves anything behind, or where the counts of the long-lived device, the process's
descriptors (but for those of contexts, which have a limit) or threads, or its resident memory grow after the warm-up
(the first fifth of the time).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import random
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import npumatmul as npu
from npumatmul import sim
from npumatmul.rknn.simulator import Simulator
from npumatmul.running import pool

#: By how much resident memory, with what is free given back, may exceed its largest value of the warm-up. It moves by
#: some MiB; a leak of one rknn_tensor_mem or context per operation would be far above.
RSS_SLACK_BYTES = 16 << 20
#: Likewise for the long-lived device, whose weight arenas depend on the order of allocations.
ARENAS_SLACK = 2

#: Contexts that are kept in the process: fewer than the lasting device wants, so that they are given up and made anew.
CONTEXTS = 120
#: Those that all devices use at once beside them, at most.
CONTEXTS_SLACK = 30
#: Most M, K and N: the shapes of the passing devices come to 8 contexts and their own for each.
LASTING_EXTENTS = (40, 700, 500)
PASSING_EXTENTS = (4, 64, 64)
THREADS_OF_LASTING_DEVICE = 2
PASSING_DEVICES = 2
THREADS_OF_PASSING_DEVICE = 2


@dataclass(frozen=True)
class Figures:
    """What is in use while everything pauses; descriptors are those of the process, less those of contexts."""

    rss: int
    descriptors: int
    threads: int
    contexts: int
    npu_bytes: int
    arenas: int


class Tally:
    """Counts of all threads, and the first thing that went wrong."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.products = self.packs = self.devices = 0
        self.problem: BaseException | None = None

    def add(self, products: int = 0, packs: int = 0, devices: int = 0) -> None:
        with self.lock:
            self.products += products
            self.packs += packs
            self.devices += devices


def work(device: npu.Device, most: tuple[int, int, int], seed: int, until: float, tally: Tally) -> None:
    """Pack a weight of a random shape, multiply with it a few times, drop it; `most` bounds M, K and N."""
    choose = random.Random(seed)
    values = np.random.default_rng(seed)
    while time.monotonic() < until and tally.problem is None:
        k, n = choose.randint(1, most[1]), choose.randint(1, most[2])
        b = values.integers(-128, 128, (k, n), dtype=np.int8)
        packed = npu.pack(b, "int8", device=device)
        for _ in range(choose.randint(1, 4)):
            a = values.integers(-128, 128, (choose.randint(1, most[0]), k), dtype=np.int8)
            right: npu.PackedWeight | np.ndarray = packed if choose.random() < 0.8 else b
            c = npu.matmul(a, right, device=device)
            if not np.array_equal(c, a.astype(np.int32) @ b.astype(np.int32)):
                raise AssertionError(f"wrong product: seed {seed}, {a.shape} x {b.shape}")
            tally.add(products=1)
        tally.add(packs=1)


def guarded(tally: Tally, function: object, *arguments: object) -> None:
    """Run in a thread; what it raises ends the soak."""
    try:
        function(*arguments)  # type: ignore[operator]
    except BaseException as error:
        tally.problem = tally.problem or error
        raise


def open_use_close(seed: int, until: float, tally: Tally) -> None:
    """One device after the other, each with its own threads."""
    while time.monotonic() < until and tally.problem is None:
        with npu.Device("sim:rk3588") as device:
            end = min(until, time.monotonic() + 2.0)
            run_together(
                tally,
                [
                    (work, device, PASSING_EXTENTS, seed + 1 + index, end, tally)
                    for index in range(THREADS_OF_PASSING_DEVICE)
                ],
            )
        tally.add(devices=1)
        seed += 1000


def run_together(tally: Tally, jobs: list[tuple[object, ...]]) -> None:
    threads = [threading.Thread(target=guarded, args=(tally, *job)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def measure(device: npu.Device) -> Figures:
    """Count, with nothing going on."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # freed blocks that the C library keeps for threads to come are no leak
    stats = device.stats()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Figures(
        rss=pages * os.sysconf("SC_PAGE_SIZE"),
        # how many contexts a device has when the others were closed last is a matter of chance; they have a limit
        descriptors=len(os.listdir("/proc/self/fd")) - stats.contexts * device.chip.memory.context_descriptors,
        threads=threading.active_count(),
        contexts=stats.contexts,
        npu_bytes=stats.npu_bytes,
        arenas=stats.descriptors,
    )


def check_growth(history: list[Figures], warm: int, most_contexts: int) -> list[str]:
    """What grew after the warm-up, in words."""
    before, after = history[:warm], history[warm:]
    found = []
    for name, slack in (
        ("rss", RSS_SLACK_BYTES),
        ("descriptors", ARENAS_SLACK),
        ("arenas", ARENAS_SLACK),
        ("threads", 0),
    ):
        limit = max(getattr(figures, name) for figures in before) + slack
        largest = max(getattr(figures, name) for figures in after)
        if largest > limit:
            found.append(f"{name} grew to {largest}; in the warm-up they were at most {limit - slack}")
    if max(figures.contexts for figures in after) > most_contexts:
        found.append(f"the lasting device holds more than {most_contexts} contexts")
    return found


def soak(minutes: int, seconds_per_round: float = 60.0) -> None:
    """Run, printing a line per minute; `SystemExit` with a message where something is wrong."""
    tally = Tally()
    history: list[Figures] = []
    descriptors_at_start, threads_at_start = len(os.listdir("/proc/self/fd")), threading.active_count()
    pool._KEPT_MOST = CONTEXTS
    with npu.Device("sim:rk3588") as device:
        for minute in range(1, minutes + 1):
            until = time.monotonic() + seconds_per_round
            lasting = [
                (work, device, LASTING_EXTENTS, minute * 7 + index, until, tally)
                for index in range(THREADS_OF_LASTING_DEVICE)
            ]
            passing = [(open_use_close, minute * 10_000_000 + index, until, tally) for index in range(PASSING_DEVICES)]
            run_together(tally, [*lasting, *passing])
            if tally.problem is not None:
                sys.exit(f"soak: {type(tally.problem).__name__}: {tally.problem}")
            now = measure(device)
            history.append(now)
            print(
                f"minute {minute}: {tally.products} products, {tally.packs} packs, {tally.devices} devices closed; "
                f"RSS {now.rss / 2**20:.1f} MiB, {now.descriptors} descriptors of no context, {now.threads} threads; "
                f"lasting device: {now.contexts} contexts, {now.arenas} allocations, {now.npu_bytes / 2**20:.1f} MiB",
                flush=True,
            )
            counted = sim.counters(device)
            held = now.arenas + now.contexts * device.chip.memory.context_descriptors
            if counted.contexts_now != now.contexts or counted.descriptors_now != held:
                sys.exit(f"soak: closed devices left something behind: {counted}, the lasting device has {now}")
        simulator = Simulator(device.runtime)
    found = check_growth(history, max(1, minutes // 5), CONTEXTS + CONTEXTS_SLACK)
    left = {name: value for name, value in simulator.read_counters().items() if name.endswith("_now") and value}
    if left:
        found.append(f"the simulator still holds {left}")
    gc.collect()
    if len(os.listdir("/proc/self/fd")) > descriptors_at_start:
        found.append(
            f"{len(os.listdir('/proc/self/fd'))} descriptors are open; {descriptors_at_start} were at the start"
        )
    if threading.active_count() > threads_at_start:
        found.append(f"{threading.active_count()} threads live; {threads_at_start} did at the start")
    if found:
        sys.exit("soak: " + "; ".join(found))
    print(f"soak: {tally.products} products right, nothing grew, nothing left")


def silence_the_library() -> None:
    """Send the C library's lines to nowhere: one stands for every context refused at the limit, which is intended."""
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def main() -> None:
    """Soak for as long as the command line says."""
    parser = argparse.ArgumentParser(description="Create, pack, run and destroy in threads; count what is left.")
    parser.add_argument("--minutes", type=int, default=60)
    options = parser.parse_args()
    if options.minutes < 2:
        parser.error("at least 2 minutes: the first is for warming up")
    silence_the_library()
    soak(options.minutes)


if __name__ == "__main__":
    main()
