"""`bench bandwidth`: how fast the NPU reads weights, and how fast the CPU reads and copies memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from npumatmul.bench.benchmark import Benchmark, Numbers, Progress, numbers_of
from npumatmul.bench.cases import Case
from npumatmul.bench.contexts import BoundTiles, Tile
from npumatmul.bench.record import Row, Value
from npumatmul.bench.sampling import Sampling, Stopwatch
from npumatmul.bench.statistics import summarise
from npumatmul.board.slowdown import SlowdownWatch
from npumatmul.chips.types import MatmulType
from npumatmul.device.device import Device

__all__ = ["BandwidthBenchmark"]

_TYPE, _NAME = MatmulType.INT8_INT8_INT32, "int8"


@dataclass(frozen=True, kw_only=True)
class BandwidthBenchmark(Benchmark):
    """Bytes per second, over how many are read.

    Of the NPU: products of one row of int8 with a larger and larger B, which is nearly all that there is to read. Of
    one thread of the CPU: comparing two arrays (both are read), and copying one (bytes that are copied count once).

    Attributes
    ----------
    sizes : str, int or sequence of int
        KiB of B, at most; and KiB of arrays of the CPU.
    cores : str, int or sequence of int
        NPU cores that read at once, each a share of B; by default one, and all.
    host : bool
        Whether the CPU is measured, too.
    """

    name: ClassVar[str] = "bandwidth"

    sizes: Numbers = "64-16384*4"
    cores: Numbers = ()
    host: bool = True

    def prepare(self, device: Device) -> list[str]:
        self.sampling  # noqa: B018 - looks at its options
        largest = max(numbers_of(self.sizes, "sizes"))
        if largest > 1 << 20:
            raise ValueError(f"sizes: {largest} KiB are more than a gigabyte, which is more than bandwidth needs")
        if max(self._cores(device)) > device.chip.cores:
            raise ValueError(
                f"cores: {max(self._cores(device))} are asked for; {device.chip.soc} has {device.chip.cores}"
            )
        return [] if self._products(device) else ["left out all of the NPU: no B is as small as the sizes ask for"]

    def _cores(self, device: Device) -> list[int]:
        return numbers_of(self.cores, "cores") if self.cores else sorted({1, device.chip.cores})

    def _products(self, device: Device) -> list[Case]:
        """For each size and number of cores, what comes closest; each once."""
        limits = device.chip.type_limits(_TYPE, device.runtime_version)
        found: dict[Case, None] = {}
        for size in numbers_of(self.sizes, "sizes"):
            for cores in self._cores(device):
                # as square as it gets, in steps of what K and N are aligned to
                k = min(limits.k_max, 4096, _floor(int((size * 1024) ** 0.5), limits.k_multiple))
                if k == 0:
                    continue
                n = min(limits.n_max * cores, _floor(size * 1024 // k, limits.n_multiple * cores))
                if n:
                    found[Case(_NAME, 1, k, n, cores=cores)] = None
        return list(found)

    def measure(self, device: Device, progress: Progress = lambda done, total, what: None) -> Iterator[Row]:
        products, sampling = self._products(device), self.sampling
        sizes = numbers_of(self.sizes, "sizes") if self.host else []
        watch = SlowdownWatch(self.root, self.throttle)
        total = len(products) + 2 * len(sizes)
        for done, case in enumerate(products):
            progress(done, total, f"the NPU reads {case.k * case.n // 1024} KiB")
            yield self._npu_reads(device, case, sampling, watch)
        for done, (size, how) in enumerate(((size, how) for size in sizes for how in ("read", "copy")), len(products)):
            progress(done, total, f"the CPU: {how} {size} KiB")
            yield _host(how, size * 1024, sampling, watch)
        progress(total, total, "done")

    def _npu_reads(self, device: Device, case: Case, sampling: Sampling, watch: SlowdownWatch) -> Row:
        stopwatch = Stopwatch()
        multiple = device.chip.type_limits(_TYPE, device.runtime_version).n_multiple
        shares = case.shares(multiple)
        tiles = [Tile(core, 1, case.k, each.stop - each.start) for core, each in enumerate(shares)]
        with BoundTiles(device, _TYPE, tiles, ac_native=True) as bound:
            bound.flush_a()
            bound.bind()
            for _ in sampling.rounds(stopwatch, ["run"]):
                stopwatch.time("run", bound.run)
        nbytes = case.k * case.n
        model = device.chip.timings.get(device.chip.soc)
        modelled = {}
        if model is not None and model.knows(_TYPE):
            estimate = model.run_estimate(_TYPE, 1, case.k, case.n, case.cores)
            modelled = {"run": estimate.seconds, "low": estimate.low, "high": estimate.high}
        figures: dict[str, Value] = {
            "kib": nbytes // 1024, "gb_per_s": nbytes / summarise(stopwatch.seconds["run"]).median / 1e9,
            "modelled_gb_per_s": nbytes / modelled["run"] / 1e9 if modelled else None,
        }  # fmt: skip
        fields: dict[str, Value] = {"reads": "npu", "m": 1, "k": case.k, "n": case.n, "cores": case.cores}
        marks = [*sampling.mark(stopwatch.seconds, ["run"]), *watch.reasons()]
        return Row(self.name, fields, stopwatch.seconds, figures, modelled, marks)


def _host(how: str, nbytes: int, sampling: Sampling, watch: SlowdownWatch) -> Row:
    """The CPU reads or copies so many bytes."""
    stopwatch = Stopwatch()
    if how == "copy":
        source, target = np.ones(nbytes, np.uint8), np.empty(nbytes, np.uint8)
        for _ in sampling.rounds(stopwatch, ["run"]):
            stopwatch.time("run", np.copyto, target, source)
    else:  # both halves are read to the end, for they are equal
        one, other = (bytearray(b"\1") * (nbytes // 2) for _ in range(2))
        for _ in sampling.rounds(stopwatch, ["run"]):
            stopwatch.time("run", one.__eq__, other)
    median = summarise(stopwatch.seconds["run"]).median
    marks = [*sampling.mark(stopwatch.seconds, ["run"]), *watch.reasons()]
    figures = {"kib": nbytes // 1024, "gb_per_s": nbytes / median / 1e9}
    return Row("bandwidth", {"reads": f"cpu {how}", "kib": nbytes // 1024}, stopwatch.seconds, figures, {}, marks)


def _floor(value: int, multiple: int) -> int:
    return value // multiple * multiple
